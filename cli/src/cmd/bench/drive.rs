//! The loops around a commit: alone, from many threads, from many futures on one thread.
//!
//! Each commits once before it measures, so that lazily made files are there. A commit that has begun when
//! the time is up is waited for and counted.

use super::Failure;
use super::line::{Latencies, Sample};
use super::meter::Meter;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// What a commit answers.
pub type Outcome = Result<(), Failure>;

/// How long to measure, and with what.
pub struct Window<'a> {
    /// How long.
    pub time: Duration,
    /// With what.
    pub meter: &'a Meter,
}

/// One owner, one commit at a time.
pub fn alone(window: &Window<'_>, mut commit: impl FnMut() -> Outcome) -> Result<Sample, Failure> {
    commit()?;
    let before = window.meter.read();
    let began = Instant::now();
    let latencies = repeat(began, window.time, &mut commit)?;
    let elapsed = began.elapsed();
    Ok(Sample::new(latencies, elapsed, window.meter.since(&before)))
}

/// `committers` threads, each of which commits and waits.
pub fn threads(
    window: &Window<'_>,
    committers: usize,
    commit: impl Fn() -> Outcome + Sync,
) -> Result<Sample, Failure> {
    commit()?;
    let (time, commit) = (window.time, &commit);
    let gate = RwLock::new(());
    let (arrive, arrivals) = mpsc::channel();
    std::thread::scope(|scope| {
        let closed = gate.write();
        let mut handles = Vec::with_capacity(committers);
        for _ in 0..committers {
            let (gate, arrive) = (&gate, arrive.clone());
            // After an error the gate opens all the same, and the scope waits for those that are there.
            handles.push(std::thread::Builder::new().spawn_scoped(scope, move || {
                // Whether somebody is there to receive does not matter to this thread.
                let _ = arrive.send(());
                drop(gate.read());
                repeat(Instant::now(), time, &mut || commit())
            })?);
        }
        for _ in 0..committers {
            arrivals.recv()?;
        }
        let before = window.meter.read();
        let began = Instant::now();
        drop(closed);
        let mut all = Latencies::default();
        for handle in handles {
            all.append(handle.join().map_err(|_| "a committer panicked")??);
        }
        let elapsed = began.elapsed();
        Ok(Sample::new(all, elapsed, window.meter.since(&before)))
    })
}

/// `committers` futures on this thread: as soon as one is done, `submit` makes the next in its place.
pub fn futures<F: Future<Output = Outcome>>(
    window: &Window<'_>,
    committers: usize,
    submit: impl Fn() -> Result<F, Failure>,
) -> Result<Sample, Failure> {
    // The one before the time begins.
    run_futures(Duration::ZERO, 1, &submit)?;
    let before = window.meter.read();
    let began = Instant::now();
    let latencies = run_futures(window.time, committers, &submit)?;
    let elapsed = began.elapsed();
    Ok(Sample::new(latencies, elapsed, window.meter.since(&before)))
}

fn run_futures<F: Future<Output = Outcome>>(
    time: Duration,
    committers: usize,
    submit: &impl Fn() -> Result<F, Failure>,
) -> Result<Latencies, Failure> {
    let woken =
        Arc::new(Woken { slots: Mutex::new((0..committers).collect()), thread: std::thread::current() });
    let wakers: Vec<Waker> =
        (0..committers).map(|slot| Waker::from(Arc::new(Slot { slot, woken: Arc::clone(&woken) }))).collect();
    let began = Instant::now();
    let mut waiting: Vec<Option<(Pin<Box<F>>, Instant)>> = Vec::with_capacity(committers);
    for _ in 0..committers {
        waiting.push(Some((Box::pin(submit()?), Instant::now())));
    }
    let mut latencies = Latencies::with_room();
    let mut live = committers;
    while live > 0 {
        let slots = woken.take();
        if slots.is_empty() {
            // A waker that was called in between has left its token: this returns at once.
            std::thread::park();
        }
        for slot in slots {
            while let Some((future, since)) = &mut waiting[slot] {
                let Poll::Ready(outcome) = future.as_mut().poll(&mut Context::from_waker(&wakers[slot]))
                else {
                    break;
                };
                outcome?;
                let now = Instant::now();
                latencies.push(now - *since);
                if now - began < time {
                    future.set(submit()?);
                    *since = now;
                } else {
                    waiting[slot] = None;
                    live -= 1;
                }
            }
        }
    }
    Ok(latencies)
}

/// The futures that want to be polled, and the thread that does it.
struct Woken {
    slots: Mutex<Vec<usize>>,
    thread: Thread,
}

impl Woken {
    fn take(&self) -> Vec<usize> {
        std::mem::take(&mut *self.slots.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Wakes one of them.
struct Slot {
    slot: usize,
    woken: Arc<Woken>,
}

impl Wake for Slot {
    fn wake(self: Arc<Self>) {
        self.woken.slots.lock().unwrap_or_else(PoisonError::into_inner).push(self.slot);
        self.woken.thread.unpark();
    }
}

/// Commits until `time` has passed since `began`, once at least.
fn repeat(
    began: Instant,
    time: Duration,
    commit: &mut impl FnMut() -> Outcome,
) -> Result<Latencies, Failure> {
    let mut latencies = Latencies::with_room();
    let mut then = began;
    loop {
        commit()?;
        // One reading of the clock ends this commit and begins the next.
        let now = Instant::now();
        latencies.push(now - then);
        if now - began >= time {
            return Ok(latencies);
        }
        then = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn window(meter: &Meter, millis: u64) -> Window<'_> {
        Window { time: Duration::from_millis(millis), meter }
    }

    #[test]
    fn every_commit_but_the_first_is_measured() {
        let meter = Meter::new(None);
        let mut commits = 0u64;
        let sample = alone(&window(&meter, 2), || {
            commits += 1;
            Ok(())
        });
        assert_eq!(sample.expect("measures").commits(), commits - 1);
        let commits = AtomicUsize::new(0);
        let sample = threads(&window(&meter, 2), 5, || {
            commits.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        assert_eq!(sample.expect("measures").commits(), commits.into_inner() as u64 - 1);
    }

    #[test]
    fn a_failed_commit_ends_the_measurement() {
        let meter = Meter::new(None);
        let calls = AtomicUsize::new(0);
        let fail = || match calls.fetch_add(1, Ordering::Relaxed) {
            0..10 => Ok(()),
            _ => Err("disk full".into()),
        };
        let error = threads(&window(&meter, 60_000), 3, fail).expect_err("fails").to_string();
        assert_eq!(error, "disk full");
        let error =
            futures(&window(&meter, 60_000), 3, || Ok(std::future::ready(fail()))).expect_err("fails");
        assert_eq!(error.to_string(), "disk full");
    }

    type Waiting = Arc<Mutex<Vec<(Waker, Arc<AtomicUsize>)>>>;

    /// Resolves when another thread says so, which it does for all that wait at once.
    struct Ticket {
        waiting: Waiting,
        done: Arc<AtomicUsize>,
    }

    impl Future for Ticket {
        type Output = Outcome;
        fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
            if self.done.load(Ordering::Acquire) == 1 {
                return Poll::Ready(Ok(()));
            }
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.push((context.waker().clone(), Arc::clone(&self.done)));
            Poll::Pending
        }
    }

    #[test]
    fn futures_that_another_thread_wakes_are_all_counted_and_none_is_forgotten() {
        let meter = Meter::new(None);
        let waiting = Waiting::default();
        let over = AtomicUsize::new(0);
        let submitted = Cell::new(0u64);
        let sample = std::thread::scope(|scope| {
            scope.spawn(|| {
                while over.load(Ordering::Relaxed) == 0 {
                    let batch = std::mem::take(&mut *waiting.lock().unwrap_or_else(PoisonError::into_inner));
                    for (waker, done) in batch {
                        // To be woken early is no harm; the second time counts.
                        waker.wake_by_ref();
                        done.store(1, Ordering::Release);
                        waker.wake();
                    }
                    std::thread::yield_now();
                }
            });
            let sample = futures(&window(&meter, 20), 7, || {
                submitted.set(submitted.get() + 1);
                Ok(Ticket { waiting: Arc::clone(&waiting), done: Arc::default() })
            });
            over.store(1, Ordering::Relaxed);
            sample
        });
        assert_eq!(sample.expect("measures").commits(), submitted.get() - 1);
        assert!(submitted.get() > 8, "only {} futures", submitted.get());
    }
}
