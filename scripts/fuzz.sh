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

log="$(mktemp -d)"
trap 'rm -rf "$log"' EXIT
cargo fuzz build

# fuzz TARGET: its output goes to a file, of which the end is shown.
fuzz() {
    local code=0
    mkdir -p "$found/$1"
    cargo fuzz run "$1" "$found/$1" "fuzz/corpus/$1" -- \
        -seed="${DURABILITY_SEED:-1}" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=66000 -print_final_stats=1 \
        >"$log/$1" 2>&1 || code=$?
    echo "=== fuzzed $1 for $seconds s: exit code $code"
    if [ "$code" -eq 0 ]; then grep '^stat::' "$log/$1" || true; else tail -60 "$log/$1"; fi
    return "$code"
}
export -f fuzz
export found log seconds
# As many at once as there are processors.
printf '%s\0' "${targets[@]}" | xargs -0 -n 1 -P "$(getconf _NPROCESSORS_ONLN)" bash -c 'fuzz "$1"' fuzz
echo "=== fuzzed ${targets[*]}: nothing found"
