#!/usr/bin/env bash
# The unsafe parts under AddressSanitizer and LeakSanitizer, the threads under ThreadSanitizer.
#
#   scripts/sanitize.sh            both
#   scripts/sanitize.sh address    rings, buffers, teardown: all unit tests, and the integration tests that use rings
#   scripts/sanitize.sh thread     committers, tickets, readers beside writers, files on rings: the same tests
#
# AddressSanitizer works with the stable toolchain. ThreadSanitizer needs the standard library built with it:
# Debian's newer toolchain brings its source (scripts/debian-rust.sh), and the runtime that it lacks is taken from
# the toolchain on the PATH, in a private sysroot. What cannot run here says SKIP, and why.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/debian-rust.sh

target=x86_64-unknown-linux-gnu
skip() {
    echo "SKIP: $1" | tee -a "${DURABILITY_SKIP_LOG:-/dev/null}"
    exit 0
}
[ "$(uname -sm)" = "Linux x86_64" ] || skip "sanitizers: only tried on Linux on x86_64"

# What threads, rings and buffers do; the rest is arithmetic on bytes. Tests that fork children or spend minutes
# in a simulation add nothing here, and `unreadable` leaks a writer on purpose, as a killed process does.
integration=(conformance live tickets poison kill:: reader:: rotation misuse combined telemetry attesting strategy fault_kill follow)

address() {
    echo "=== AddressSanitizer, LeakSanitizer"
    export RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR="$PWD/target/sanitize-address"
    export ASAN_OPTIONS=detect_leaks=1
    cargo test -p durability --target "$target" --lib
    cargo test -p durability --target "$target" --test it -- "${integration[@]}"
    unset RUSTC_BOOTSTRAP RUSTFLAGS CARGO_TARGET_DIR ASAN_OPTIONS
}

thread() {
    echo "=== ThreadSanitizer"
    local runtime sysroot
    runtime="$(find "$(rustc --print sysroot)/lib/rustlib/$target/lib" -name 'librustc-*_rt.tsan.a' | head -1)"
    [ -n "$runtime" ] || skip "ThreadSanitizer: the toolchain on the PATH has no runtime of it"
    debian_rust "${CARGO_TARGET_DIR:-$PWD/target}/targets/toolchain" "" rustc-web cargo-web rust-web-src
    # A sysroot of our own, that is Debian's and has that runtime as well.
    sysroot="$PWD/target/sanitize-sysroot"
    local theirs
    theirs="$(LD_LIBRARY_PATH=$RUST_LIBRARY_PATH "$RUST_BIN/rustc" --print sysroot)"
    rm -rf "$sysroot"
    mkdir -p "$sysroot/lib/rustlib"
    cp -rs "$theirs/lib/rustlib/." "$sysroot/lib/rustlib/"
    mkdir -p "$sysroot/lib/rustlib/$target/lib"
    local name
    for name in librustc_rt.tsan.a librustc-stable_rt.tsan.a librustc-dev_rt.tsan.a librustc-nightly_rt.tsan.a; do
        ln -sf "$runtime" "$sysroot/lib/rustlib/$target/lib/$name"
    done
    export RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=thread --sysroot $sysroot"
    export CARGO_TARGET_DIR="$PWD/target/sanitize-thread"
    debian_cargo test -p durability -Zbuild-std --target "$target" --lib
    debian_cargo test -p durability -Zbuild-std --target "$target" --test it -- "${integration[@]}"
}

case "${1:-both}" in
address) address ;;
thread) (thread) ;;
both)
    (address)
    (thread)
    ;;
*)
    sed -n '2,/^set /p' "$0"
    exit 1
    ;;
esac
