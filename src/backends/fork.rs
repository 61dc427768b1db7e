//! Whether this process is a forked child of the one that asked before, without a system call.
//!
//! Lives here: the one call that the operating system needs to be asked for it, which is `unsafe`. Not here: what
//! a child may not do (`storage`).

/// A number that is another one in each child of a fork. Processes that were not forked since the first call
/// agree about it.
#[cfg(any(target_os = "linux", target_os = "macos", target_os = "freebsd"))]
pub(crate) fn generation() -> u64 {
    use std::sync::Once;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    // Each stands for itself: a child has one thread when they change.
    static FORKS: AtomicU64 = AtomicU64::new(0);
    static IS_COUNTED: AtomicBool = AtomicBool::new(false);
    static COUNT: Once = Once::new();

    extern "C" fn in_the_child() {
        FORKS.fetch_add(1, Ordering::Relaxed);
    }

    COUNT.call_once(|| {
        // SAFETY: the handler lives as long as the process, and changes one atomic, which is allowed between
        // a fork and whatever follows it.
        #[allow(
            unsafe_code,
            reason = "nothing safe offers this, and asking for the process id each time is dear"
        )]
        let refused = unsafe { nix::libc::pthread_atfork(None, None, Some(in_the_child)) };
        IS_COUNTED.store(refused == 0, Ordering::Relaxed);
    });
    if IS_COUNTED.load(Ordering::Relaxed) {
        return FORKS.load(Ordering::Relaxed);
    }
    u64::from(std::process::id())
}

/// See above. Nobody counts here, and nobody forks where there is no such thing.
#[cfg(not(any(target_os = "linux", target_os = "macos", target_os = "freebsd")))]
pub(crate) fn generation() -> u64 {
    if cfg!(unix) { u64::from(std::process::id()) } else { 0 }
}
