#!/usr/bin/env bash
# Checks the library and the command-line tool with the oldest Rust that Cargo.toml promises.
#
#   scripts/check-msrv.sh
#
# The toolchain is the one of that version that Debian still carries, unpacked into target/msrv and not
# installed (see scripts/debian-rust.sh). Only what users compile is checked: the packages that the tests
# need may ask for a newer Rust. Elsewhere than on Debian it prints `SKIP: reason` and succeeds.
set -euo pipefail
cd "$(dirname "$0")/.."

say_skip() {
    echo "SKIP: check-msrv: $1"
    if [ -n "${DURABILITY_SKIP_LOG:-}" ]; then
        echo "SKIP: check-msrv: $1" >>"$DURABILITY_SKIP_LOG"
    fi
}
skip() {
    say_skip "$1"
    exit 0
}

# shellcheck source=scripts/debian-rust.sh
. scripts/debian-rust.sh

VERSION=$(sed -n 's/^rust-version = "\([0-9.]*\)"$/\1/p' Cargo.toml | head -n 1)
[ -n "$VERSION" ] || {
    echo "Cargo.toml names no rust-version" >&2
    exit 1
}

MSRV_DIR="${CARGO_TARGET_DIR:-$PWD/target}/msrv"
case $MSRV_DIR in /*) ;; *) MSRV_DIR=$PWD/$MSRV_DIR ;; esac
mkdir -p "$MSRV_DIR"
export CARGO_TARGET_DIR=$MSRV_DIR
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET

[ -e "$MSRV_DIR/toolchain/complete" ] || apt_refresh_lists
debian_rust "$MSRV_DIR/toolchain" "$VERSION." rustc-web cargo-web libstd-rust-web-dev "libstd-rust-web-$VERSION"

LD_LIBRARY_PATH=$RUST_LIBRARY_PATH "$RUST_BIN/rustc" --version
for arguments in "-p durability" "-p durability --no-default-features" \
    "-p durability --features testing,serde" "-p durability-cli"; do
    start=$SECONDS
    echo "--- check $arguments"
    # shellcheck disable=SC2086
    debian_cargo check --quiet --locked $arguments || {
        echo "FAILED: check $arguments with Rust $VERSION" >&2
        exit 1
    }
    echo "    $((SECONDS - start)) s"
done
