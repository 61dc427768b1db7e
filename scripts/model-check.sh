#!/usr/bin/env bash
# Model checking of what threads wait for: the shared log's committer, who makes its segments ahead of need, and the
# reaper role of files on a ring.
#
#   scripts/model-check.sh               short: every model, 500 schedules each, and every planted bug
#   scripts/model-check.sh long [N]      every model, N schedules each (1,000,000 unless told)
#   scripts/model-check.sh plants        only the planted bugs
#   scripts/model-check.sh replay MODEL  one schedule again; DURABILITY_MODEL_SCHEDULE holds it
#
# shuttle runs the threads of a model one at a time and decides at every lock, park and wake-up who goes on:
# half of the schedules at random, half with few preemptions (PCT). A thread that nobody wakes is a deadlock, and
# is found as one. DURABILITY_MODEL_SEED (1 unless told) seeds both halves: the same seed, the same schedules.
# Each plant is a bug behind `planted::on`; it must make the model that is named for it fail.
set -euo pipefail
cd "$(dirname "$0")/.."

# plant | model that must catch it
plants() {
    cat <<'TABLE'
forget_next_driver | walog::models::every_ticket_resolves_once_whoever_waits
look_before_listing | walog::models::every_durable_append_returns_and_is_durable
flush_forgets_next_driver | walog::models::flushes_that_nobody_waits_for_keep_nobody_waiting
told_waits_unlisted | walog::models::a_refused_commit_reaches_everybody_and_the_next_one_succeeds
refusal_forgets_waiters | walog::models::a_refused_commit_reaches_everybody_and_the_next_one_succeeds
refusal_keeps_role | walog::models::a_refused_commit_reaches_everybody_and_the_next_one_succeeds
poison_forgets_waiters | walog::models::a_failed_commit_reaches_everybody_who_waits
tell_before_watermark | walog::models::every_ticket_resolves_once_whoever_waits
owner_starts_unwoken | walog::models::every_ticket_resolves_once_whoever_waits
close_asks_unchecked | walog::models::closing_without_blocking_beside_closing_tells_everybody
panic_keeps_role | walog::models::a_panic_of_whoever_drives_leaves_nobody_waiting
watermark_out_of_order | walog::models::every_durable_append_returns_and_is_durable
collect_beside_reaper | backends::io_uring::model::who_waits_in_the_kernel_sees_what_is_submitted_meanwhile
reaper_keeps_file | walog::models::closing_serves_or_refuses_everybody
begin_unchecked | walog::models::ahead::a_failure_of_the_helper_poisons_the_log
forget_seal_failure | walog::models::ahead::a_failure_of_the_helper_poisons_the_log
stop_is_unheard | walog::models::ahead::committers_beside_a_helper_lose_nothing
failed_step_keeps_role | walog::models::ahead::a_helper_without_space_keeps_nobody_waiting
rests_for_good | walog::pool::model::a_step_that_fails_keeps_nobody_waiting
helper_ignores_poison | walog::pool::model::a_step_that_fails_keeps_nobody_waiting
wake_helper_unlocked | walog::pool::model::the_helper_hears_of_all_filling
look_before_mark | walog::pool::model::the_helper_hears_of_all_filling
step_ends_unheard | walog::pool::model::nobody_waits_for_a_helper_that_has_time
wait_for_helper | walog::pool::model::nobody_waits_for_a_helper_that_has_time
discard_beside_work | walog::pool::model::nobody_waits_for_a_helper_that_has_time
prepared_newest_first | walog::pool::model::nobody_waits_for_a_helper_that_has_time
close_beside_seal | walog::pool::model::closing_waits_for_a_seal_that_is_being_written
reap_wakes_nobody | backends::io_uring::model::every_completion_reaches_somebody_who_waits
reaper_keeps_role | backends::io_uring::model::every_completion_reaches_somebody_who_waits
ring_forgets_alone | backends::io_uring::model::whoever_waits_in_whatever_way_gets_a_completion
start_leaves_alone | backends::io_uring::model::a_commit_that_is_only_begun_ends_for_whoever_looks
TABLE
}

# For teeth.sh, which compares what is planted with what is listed.
if [ "${1:-}" = list-plants ]; then
    plants | sed 's/ *|.*//'
    exit 0
fi

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
export RUST_BACKTRACE=0 DURABILITY_MODEL_SEED="${DURABILITY_MODEL_SEED:-1}"
unset DURABILITY_PLANTED SHUTTLE_RANDOM_SEED

began=$SECONDS
# A long run is optimised; assertions stay on.
optimise=0
[ "${1:-short}" != long ] || optimise=2
CARGO_PROFILE_DEV_OPT_LEVEL=$optimise CARGO_TARGET_DIR="$PWD/target/models" \
    RUSTFLAGS="${RUSTFLAGS:-} --cfg durability_shuttle --cfg durability_planted" \
    cargo test -p durability --lib --no-run --message-format=json >"$scratch/build"
models="$(grep -F '"kind":["lib"]' "$scratch/build" | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)"
echo "built in $((SECONDS - began)) s"

explore() {
    local began=$SECONDS
    if ! DURABILITY_MODEL_SCHEDULES="$1" "$models" model --nocapture >"$scratch/output" 2>&1; then
        cat "$scratch/output"
        exit 1
    fi
    grep '^MODEL ' "$scratch/output" | sort
    awk -v s="$((SECONDS - began))" '/^MODEL / { for (i = 1; i < NF; i++) if ($(i + 1) == "schedules,") sum += $i; models++ }
        END { print models " models, " sum " schedules in " s " s, none of which deadlocks or breaks a promise" }' "$scratch/output"
}

catch_plants() {
    local missed=0 plant model code verdict
    while IFS='|' read -r plant model; do
        code=0
        DURABILITY_PLANTED="$plant" DURABILITY_MODEL_SCHEDULES=20000 \
            timeout 120 "$models" --exact "$model" >"$scratch/output" 2>&1 || code=$?
        verdict=caught
        if ! grep -q '^test result: FAILED. 0 passed; 1 failed' "$scratch/output"; then
            verdict=MISSED
            missed=$((missed + 1))
        fi
        printf '%-28s | %-96s | %s\n' "$plant" "$model" "$verdict"
    done < <(plants | sed 's/ *| */|/g')
    [ "$missed" -eq 0 ]
}

case "${1:-short}" in
short)
    explore 500
    catch_plants
    ;;
long)
    explore "${2:-1000000}"
    ;;
plants)
    catch_plants
    ;;
replay)
    "$models" --nocapture --exact "$2"
    ;;
*)
    sed -n '2,/^set /p' "$0"
    exit 1
    ;;
esac
