#!/usr/bin/env bash
# Power cuts on real file systems: a campaign of tests/powercut, after seeing to what it needs.
#
#   scripts/powercut.sh                  a short one (under a minute of an idle machine)
#   scripts/powercut.sh --points 2000    a longer one; everything that the program takes, see --help
#   scripts/powercut.sh --teeth          whether it would notice: a disk that lies, a bug in each I/O path
#
# As root on Debian it installs the mkfs programs that are missing. Where power cannot be cut (no root, no
# loop devices, no FUSE) it says `SKIP: reason` and succeeds.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    missing=()
    command -v mkfs.ext4 >/dev/null || missing+=(e2fsprogs)
    command -v mkfs.xfs >/dev/null || missing+=(xfsprogs)
    command -v mkfs.btrfs >/dev/null || missing+=(btrfs-progs)
    if [ "${#missing[@]}" -gt 0 ]; then
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
            --no-install-recommends "${missing[@]}"; } >/dev/null 2>&1 || true
    fi
fi

if [ "${1:-}" = --teeth ]; then
    shift
    cargo run --release -p durability-powercut -- --kind device --fs ext4 --points 200 --flushes lie "$@"
    RUSTFLAGS="${RUSTFLAGS:-} --cfg durability_planted" CARGO_TARGET_DIR="$PWD/target/teeth" \
        cargo run --release -p durability-powercut -- --kind device --points 800 --seed 5 \
        --plants skip_fdatasync,drop_link_flag,drop_dsync_flag,drop_alone_dsync,rotate_without_sync,skip_directory_sync,watermark_of_flushed,resume_in_place,truncate_before_checkpoint,skip_checkpoint_sync \
        "$@"
    exit
fi
[ "$#" -gt 0 ] || set -- --quick
exec cargo run --release -p durability-powercut -- "$@"
