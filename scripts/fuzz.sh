#!/usr/bin/env bash
# Fuzzes the readers of hostile files, every target for a while:
#
#   scripts/fuzz.sh [SECONDS per target]    60 by default
#   scripts/fuzz.sh SECONDS TARGET...       only these
#
# Seeds are in fuzz/corpus; what a run finds beyond them stays in the target directory, not among them. An
# input that fails is kept under fuzz/artifacts, and the last lines say how to run it again. Works with the
# stable toolchain; cargo-fuzz is installed when it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds="${1:-60}"
targets=("${@:2}")
if [ "${#targets[@]}" -eq 0 ]; then
    targets=(recordlog segment checkpoint scanner)
fi

skip() {
    echo "SKIP: $1" >&2
    if [ -n "${DURABILITY_SKIP_LOG:-}" ]; then
        echo "SKIP: $1" >>"$DURABILITY_SKIP_LOG"
    fi
    exit 0
}

export RUSTC_BOOTSTRAP=1
found="${CARGO_TARGET_DIR:-fuzz/target}/fuzz-corpus"
case "$(uname -sm)" in
    "Linux x86_64" | "Linux aarch64" | Darwin*) ;;
    *) skip "fuzzing needs a sanitizer, which $(uname -sm) has not" ;;
esac
if ! cargo fuzz --version >/dev/null 2>&1; then
    cargo install cargo-fuzz --version '~0.13' --locked || skip "cargo-fuzz is missing and could not be installed"
fi
command -v c++ >/dev/null || skip "libFuzzer needs a C++ compiler"

for target in "${targets[@]}"; do
    mkdir -p "$found/$target"
    echo "=== fuzzing $target for $seconds s"
    cargo fuzz run "$target" "$found/$target" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=66000 -print_final_stats=1
done
echo "=== fuzzed ${targets[*]}: nothing found"
