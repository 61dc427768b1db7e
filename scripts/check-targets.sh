#!/usr/bin/env bash
# Checks the crate on targets that this machine is not.
#
#   scripts/check-targets.sh [--quick] [--no-install] [TARGET...]
#
# Type-checks the library (default features, and none) and the command-line tool for macOS, Windows,
# FreeBSD, Android, 32-bit Linux and s390x; runs the library's tests on s390x, which is big-endian, and on
# aarch64, both under qemu-user. qemu-user has no io_uring, so that those runs also walk every fallback.
#
#   --quick       macOS and Windows checks, and the s390x run of unit and integration tests only
#   --no-install  install no Debian package; use what is there
#   TARGET        only these targets
#
# Needs Debian (see scripts/debian-rust.sh); elsewhere it prints `SKIP: reason` and succeeds. Its builds
# live in target/targets. Tests that start this test binary again find an emulator to put before it in
# DURABILITY_TEST_RUNNER.
set -euo pipefail
cd "$(dirname "$0")/.."

QUICK=0
INSTALL=1
ONLY=()
for argument in "$@"; do
    case $argument in
        --quick) QUICK=1 ;;
        --no-install) INSTALL=0 ;;
        -h | --help)
            sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$0"
            exit 0
            ;;
        -*)
            echo "unknown option $argument; see --help" >&2
            exit 2
            ;;
        *) ONLY+=("$argument") ;;
    esac
done

say_skip() {
    echo "SKIP: check-targets: $1"
    if [ -n "${DURABILITY_SKIP_LOG:-}" ]; then
        echo "SKIP: check-targets: $1" >>"$DURABILITY_SKIP_LOG"
    fi
}
skip() {
    say_skip "$1"
    exit 0
}

# shellcheck source=scripts/debian-rust.sh
. scripts/debian-rust.sh

CHECKED=(aarch64-apple-darwin x86_64-pc-windows-msvc x86_64-unknown-freebsd aarch64-linux-android
    i686-unknown-linux-gnu s390x-unknown-linux-gnu)
TESTED=(s390x-unknown-linux-gnu aarch64-unknown-linux-gnu)
if [ "$QUICK" = 1 ]; then
    CHECKED=(aarch64-apple-darwin x86_64-pc-windows-msvc)
    TESTED=(s390x-unknown-linux-gnu)
fi
if [ "${#ONLY[@]}" -gt 0 ]; then
    keep() {
        local target
        for target in "$@"; do
            [[ " ${ONLY[*]} " == *" $target "* ]] && printf '%s\n' "$target"
        done
        true
    }
    mapfile -t CHECKED < <(keep "${CHECKED[@]}")
    mapfile -t TESTED < <(keep "${TESTED[@]}")
fi

TARGETS_DIR="${CARGO_TARGET_DIR:-$PWD/target}/targets"
case $TARGETS_DIR in /*) ;; *) TARGETS_DIR=$PWD/$TARGETS_DIR ;; esac
mkdir -p "$TARGETS_DIR"
export CARGO_TARGET_DIR=$TARGETS_DIR
# The std source is only usable with the compiler that it came with, and only behind this word.
export RUSTC_BOOTSTRAP=1
# The caller's flags are for the caller's machine.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET
# No emulator has rings.
unset DURABILITY_REQUIRE_IO_URING
# Emulation is slow: few seeds of each campaign meet every byte order.
export DURABILITY_SEEDS="${DURABILITY_SEEDS:-1}"

command -v apt-get >/dev/null || skip "no apt-get: the toolchain comes from Debian"
[ "$(dpkg --print-architecture)" = amd64 ] || skip "written for an amd64 machine"
if [ "$INSTALL" = 1 ]; then
    apt_refresh_lists
fi
debian_rust "$TARGETS_DIR/toolchain" "" rustc-web cargo-web rust-web-src

CARGO_STD=(-Zbuild-std --locked)
# A warning that only another target sees is an error here as well (our packages only).
DENY=(-Zwarnings --config 'build.warnings="deny"')

step() {
    local start=$SECONDS
    echo "--- $*"
    "${@}" || {
        echo "FAILED: $*" >&2
        exit 1
    }
    echo "    $((SECONDS - start)) s"
}

check() {
    local target=$1
    shift
    debian_cargo check --quiet "${CARGO_STD[@]}" "${DENY[@]}" --target "$target" "$@"
}

run_tests() {
    local target=$1 processor=${1%%-*} variable
    shift
    variable=$(tr 'a-z-' 'A-Z_' <<<"$target")
    # Emulated code is slow: a little optimisation costs less than it saves. Assertions stay on.
    env "CARGO_TARGET_${variable}_LINKER=$processor-linux-gnu-gcc" \
        "CARGO_TARGET_${variable}_RUNNER=qemu-$processor-static" \
        "CARGO_TARGET_${variable}_RUSTFLAGS=-Ctarget-feature=+crt-static" \
        "CARGO_TARGET_${variable}_RUSTDOCFLAGS=-Ctarget-feature=+crt-static" \
        CARGO_PROFILE_TEST_OPT_LEVEL=1 CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_PROFILE_DEV_DEBUG=0 \
        DURABILITY_TEST_RUNNER="qemu-$processor-static" \
        bash -c '. scripts/debian-rust.sh; RUST_BIN=$1 RUST_LIBRARY_PATH=$2; shift 2; debian_cargo "$@"' _ \
        "$RUST_BIN" "$RUST_LIBRARY_PATH" test --no-fail-fast "${CARGO_STD[@]}" --target "$target" -p durability "$@"
}

for target in ${CHECKED[@]+"${CHECKED[@]}"}; do
    step check "$target" -p durability
    step check "$target" -p durability --no-default-features
    step check "$target" -p durability-cli
done

# They start this program again without the emulator, or set limits that it does not keep.
NOT_EMULATED=(--skip descriptors:: --skip bad_input::permissions --skip fork:: --skip fault_kill::)

# They start other programs. The emulator's fork hangs where another thread holds a lock of the emulator's, so these
# run one at a time, behind the others.
STARTING=(full_disk:: failed_sync:: kill:: decoder::)
APART=()
for tests in "${STARTING[@]}"; do APART+=(--skip "$tests"); done

for target in ${TESTED[@]+"${TESTED[@]}"}; do
    say_skip "on $target: descriptors, bad_input::permissions, fork, fault_kill"
    case $target in
        s390x-*) packages=(gcc-s390x-linux-gnu libc6-dev-s390x-cross qemu-user-static) ;;
        aarch64-*) packages=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static) ;;
    esac
    if ! apt_ensure "${packages[@]}"; then
        say_skip "tests on $target need the packages ${packages[*]}"
        continue
    fi
    if [ "$QUICK" = 1 ]; then
        # Slow when emulated, and no byte order is in what they add; they run here as they are.
        say_skip "on $target, quick: matrix, power_cut, faults, crash_knobs, losses"
        step run_tests "$target" --lib --test it -- "${NOT_EMULATED[@]}" "${APART[@]}" \
            --skip matrix:: --skip power_cut:: --skip faults:: --skip crash_knobs:: --skip losses::
    else
        step run_tests "$target" -- "${NOT_EMULATED[@]}" "${APART[@]}"
        step run_tests "$target" --no-default-features -- "${NOT_EMULATED[@]}" "${APART[@]}"
    fi
    step run_tests "$target" --test it -- "${NOT_EMULATED[@]}" "${STARTING[@]}" --test-threads 1
done
