#!/usr/bin/env bash
# Other targets: type-checks the library (and the tool) for systems that this machine is not, and runs the
# library's tests on a big-endian processor under emulation.
#
#   scripts/check-targets.sh            everything
#   scripts/check-targets.sh --quick    macOS and Windows types, big-endian tests
#   --no-install                        never install packages; skip what is missing
#
# The toolchain is Debian's rustc-web with the source of the standard library (Debian and its derivatives).
# Where something cannot be had, a line `SKIP: reason` says so, and the exit code stays 0.
set -euo pipefail
cd "$(dirname "$0")/.."

quick=false
install=true
for argument in "$@"; do
    case "$argument" in
        --quick) quick=true ;;
        --no-install) install=false ;;
        *) echo "usage: $0 [--quick] [--no-install]" >&2; exit 2 ;;
    esac
done

skip() {
    echo "SKIP: $1"
    [ -z "${DURABILITY_SKIP_LOG:-}" ] || echo "SKIP: $1" >> "$DURABILITY_SKIP_LOG"
}

packages=(rustc-web cargo-web rust-web-src gcc-s390x-linux-gnu libc6-dev-s390x-cross qemu-user-static)
missing=()
if command -v dpkg-query >/dev/null; then
    for package in "${packages[@]}"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
    done
else
    skip "other targets: this is no Debian system"
    exit 0
fi
if [ "${#missing[@]}" -gt 0 ]; then
    if $install && [ "$(id -u)" = 0 ]; then
        export DEBIAN_FRONTEND=noninteractive
        if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null 2>&1; then
            skip "other targets: ${missing[*]} cannot be installed"
            exit 0
        fi
    else
        skip "other targets: ${missing[*]} not installed"
        exit 0
    fi
fi

toolchain="$(dirname "$(dpkg -L rustc-web | grep '/bin/rustc$' | head -n1)")"
export PATH="$toolchain:$PATH" RUSTC="$toolchain/rustc" RUSTC_BOOTSTRAP=1
unset RUSTUP_TOOLCHAIN CARGO RUSTDOC
export RUSTDOC="$toolchain/rustdoc"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/targets"
cargo="$toolchain/cargo"
[ -x "$cargo" ] || cargo="$(dpkg -L cargo-web | grep '/bin/cargo$' | head -n1)"

check() {
    local target=$1
    shift
    printf 'checking %-28s %s\n' "$target" "$*"
    "$cargo" check --quiet --locked -Zbuild-std --target "$target" "$@"
}

targets=(aarch64-apple-darwin x86_64-pc-windows-msvc)
$quick || targets+=(x86_64-unknown-freebsd aarch64-linux-android s390x-unknown-linux-gnu i686-unknown-linux-gnu)
for target in "${targets[@]}"; do
    check "$target" -p durability
    $quick || check "$target" -p durability --no-default-features
    $quick || check "$target" -p durability-cli
done

echo "testing s390x-unknown-linux-gnu (big-endian) under emulation"
export CARGO_TARGET_S390X_UNKNOWN_LINUX_GNU_LINKER=s390x-linux-gnu-gcc
export CARGO_TARGET_S390X_UNKNOWN_LINUX_GNU_RUNNER=qemu-s390x-static
export CARGO_TARGET_S390X_UNKNOWN_LINUX_GNU_RUSTFLAGS=-Ctarget-feature=+crt-static
# The emulator has no rings, and is slow: a few seeds of the campaigns are enough to meet every byte order.
unset DURABILITY_REQUIRE_IO_URING
export DURABILITY_SEEDS="${DURABILITY_SEEDS:-1}"
"$cargo" test --quiet --locked -Zbuild-std --target s390x-unknown-linux-gnu -p durability --lib --test it -- --skip damage:: --skip during_recovery
$quick || "$cargo" test --quiet --locked -Zbuild-std --target s390x-unknown-linux-gnu -p durability --lib --no-default-features
echo "other targets: passed"
