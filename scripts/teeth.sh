#!/usr/bin/env bash
# Whether the tests have teeth: bugs are planted one at a time, and each must make the test fail that is
# named for it.
#
#   scripts/teeth.sh                 all of them, and first the named tests without any: these must pass
#   scripts/teeth.sh skip_fdatasync  only those that are named
#
# The bugs stand in the source as `planted::on("name")` (src/planted.rs). One build holds all of them; the
# environment chooses. A test that could not run here (it says `SKIP`) counts as skipped, not as caught. One
# that hangs or dies without a verdict counts as missed. Exit code 1 when a plant was missed.
set -euo pipefail
cd "$(dirname "$0")/.."

# plant | program | the test that must catch it
plants() {
    cat <<'TABLE'
skip_fdatasync | lib | backends::fault_tests::a_durable_commit_asks_for_an_fdatasync_and_a_failure_closes_the_file
skip_zero_fill_sync | lib | backends::fault_tests::zeros_and_a_new_size_are_synced_with_the_inode
skip_contents_sync | lib | backends::fault_tests::every_durable_operation_on_names_syncs_the_directory_and_contents_come_first
skip_directory_sync | lib | backends::fault_tests::every_durable_operation_on_names_syncs_the_directory_and_contents_come_first
ignore_short_pwrite | lib | backends::fault_tests::a_write_that_ends_short_is_carried_on_and_is_no_success
full_disk_is_success | lib | backends::fault_tests::a_full_disk_is_said_to_be_full
full_disk_is_fatal | it | full_disk::a_full_disk_loses_nothing_and_the_same_writer_goes_on_when_space_is_freed
lock_file_only | it | kill::a_successor_waits_until_a_killed_writers_direct_writes_have_landed
acknowledge_on_write | lib | backends::io_uring::chain::tests::every_pair_of_answers_to_a_linked_pair_has_its_verdict_in_either_order
ignore_short_write | lib | backends::io_uring::chain::tests::the_rest_of_a_short_write_follows_where_it_ended_and_is_synced_again
ignore_ecanceled | lib | backends::io_uring::chain::tests::every_pair_of_answers_to_a_linked_pair_has_its_verdict_in_either_order
retry_failed_ring_sync | lib | backends::io_uring::chain::tests::a_commit_of_no_bytes_is_one_sync_that_is_never_tried_again_after_an_error
acknowledge_out_of_order | lib | backends::io_uring::overlap::tests::a_success_waits_for_every_sync_that_ran_beside_it_and_for_no_later_one
free_buffer_early | lib | backends::io_uring::tests::commits_of_several_threads_in_flight_at_once_read_back_equal
skip_drain | lib | backends::io_uring::tests::a_file_that_is_dropped_has_all_that_was_accepted_and_keeps_its_lock_until_then
drop_dsync_flag | lib | backends::io_uring::ring::tests::every_unit_asks_for_what_it_is_named_for
drop_link_flag | lib | backends::io_uring::ring::tests::every_unit_asks_for_what_it_is_named_for
drop_alone_dsync | lib | backends::io_uring::file::alone::tests::answers::it_asks_for_durability_and_a_failure_closes_the_file
drop_forgets_alone | lib | backends::io_uring::file::alone::tests::a_file_that_is_dropped_with_one_commit_has_it
start_leaves_alone | lib | backends::io_uring::file::alone::tests::a_commit_that_nobody_waits_for_begins_when_it_is_told_to
submit_wakes_nobody | lib | backends::io_uring::file::alone::tests::who_waits_beside_a_slow_write_hears_of_the_next_commit
driver_is_no_committer | lib | walog::queue::tests::tickets_overlap_and_threads_that_block_go_together
dsync_vouches_for_all | lib | backends::io_uring::tests::what_was_only_flushed_is_synced_by_the_next_durable_commit
latch_never_trips | it | poison::every_operation_of_a_poisoned_writer_says_so_and_reopening_goes_on
retry_failed_sync | it | poison::every_operation_of_a_poisoned_writer_says_so_and_reopening_goes_on
watermark_of_flushed | it | power_cut::no_power_cut_loses_what_a_shared_log_acknowledged
allow_parent_component | it | conformance::every_operation_refuses_paths_that_are_not_plain_relative_ones
skip_segment_directory_sync | it | power_cut::no_power_cut_loses_or_invents_anything
rotate_without_sync | it | power_cut::no_power_cut_loses_or_invents_anything
skip_zeroing_spares | it | power_cut::no_power_cut_loses_or_invents_anything
reuse_salt | lib | walog::tests::durable_appends_on_a_file_system_come_back_and_recycling_reuses_files
trim_before_newest_is_durable | it | power_cut::no_power_cut_loses_or_invents_anything
trim_one_segment_too_many | it | conformance::truncation_keeps_what_carries_the_ids_and_readers_go_on
skip_write_again | it | power_cut::what_recovery_returned_after_a_failed_sync_survives_the_next_power_cut
end_offset_behind_seal | it | power_cut::syncs_that_fail_again_and_again_lose_nothing_that_was_promised
truncate_before_checkpoint | it | power_cut::no_power_cut_during_publishing_loses_a_state
checkpoint_before_log | it | power_cut::no_power_cut_during_publishing_loses_a_state
skip_checkpoint_sync | it | power_cut::no_power_cut_during_publishing_loses_a_state
skip_checkpoint_directory_sync | it | power_cut::no_power_cut_during_publishing_loses_a_state
skip_checkpoint_crc | lib | publish::tests::checkpoints_stream_and_every_flipped_bit_is_found
closed_behind_lost_seal | it | damage::closed::a_seal_lost_before_the_closing_one_does_not_refuse_what_follows
closed_behind_lost_seal | it | mixed::damage_to_a_log_used_in_every_way_is_told_or_costs_nothing_that_is_attested
header_is_never_written_again | it | counterexamples::a_record_log_writes_its_header_again_whose_sync_has_failed
record_log_asks_for_nothing | it | room::a_record_log_meets_a_full_disk_before_it_writes
oldest_checkpoint_goes_first | it | counterexamples::publishing::publishing_keeps_the_good_one_of_two_checkpoints_until_the_next_has_its_name
damage_is_told_once | it | counterexamples::damage_of_a_checkpoint_is_told_to_whoever_asks_again
checkpoint_is_no_floor | it | repair::the_first_commit_behind_a_checkpoint_is_judged_as_recovery_judges_it
shared_log_asks_nobody | it | observers::publishing_of_a_shared_log_asks_before_it_truncates
poisoned_records_are_dropped_silently | it | said::a_dropped_record_log_that_cannot_be_sealed_says_why
attesting_waits_for_a_pause | it | observers::attesting_ends_where_commits_never_pause
closing_waits_for_a_pause | it | observers::closing_ends_where_commits_never_pause
any_log_is_a_new_one | it | counterexamples::publishing::a_log_that_was_begun_since_recovery_found_none_is_not_gone_on_with
follower_waits_for_segments | it | follow::a_folder_that_vanished_is_no_log_without_news
follower_waits_for_folder | it | follow::a_folder_that_vanished_is_no_log_without_news
drop_seal_watermark | it | damage::closed::a_seal_closes_the_window_of_the_last_commit
skip_zero_sectors | lib | formats::scan::tests::entries_full_of_zeros_do_not_hide_a_flipped_bit
durable_beside_flushes | it | flushing::no_power_cut_beside_flushes_in_flight_loses_what_was_acknowledged
await_each_flush | it | flushing::several_are_in_flight_beside_each_other_and_no_more_than_is_promised
believe_failed_flush | it | flushing::one_that_fails_last_is_met_by_whoever_waits
flushed_out_of_order | lib | walog::afloat::tests::what_is_flushed_moves_in_the_order_in_which_flushes_began
flushes_starve_commits | lib | walog::queue::flushing::tests::no_flush_begins_while_somebody_asks_for_durability
full_of_ended_flushes | it | flushing::what_has_ended_makes_room_although_nobody_waits_for_it
flushes_never_start | it | flushing::what_is_flushed_reaches_the_file_although_nobody_calls_again
streams_are_zero_filled | it | flushing::what_nobody_commits_to_is_not_written_twice
rotate_beside_flights | it | tickets::no_segment_is_left_while_commits_of_it_are_in_flight
sync_waits_for_segment | it | tickets::what_is_flushed_becomes_durable_although_there_is_no_space_for_what_follows
header_block_is_a_sector | lib | formats::scan::tests::any_set_of_sectors_of_a_last_frame_that_survives_is_torn_whatever_the_alignment
ignore_attestation | it | damage::newest::a_lost_sector_is_corruption_where_something_attests_it_and_torn_in_the_last_commit
size_is_no_metadata | lib | backends::fault_tests::zeros_and_a_new_size_are_synced_with_the_inode
skip_root_directory_sync | lib | backends::fault_tests::every_durable_operation_on_names_syncs_the_directory_and_contents_come_first
watermark_of_pending | it | power_cut::no_power_cut_loses_what_a_shared_log_acknowledged
resume_in_place | it | power_cut::no_power_cut_during_recovery_loses_or_invents_anything
ignore_missing_successor | it | damage::segment_files::missing_swapped_copied_and_emptied_segments_are_named
ignore_what_checkpoint_needs | lib | publish::tests::a_log_that_lost_what_a_checkpoint_needs_is_corruption_and_never_a_fresh_start
record_log_rests_on_seal | it | power_cut::a_record_log_whose_syncs_fail_loses_nothing_that_was_promised
skip_record_log_directory_sync | it | power_cut::no_power_cut_loses_an_acknowledged_record
record_log_resumes_at_tear | it | power_cut::no_power_cut_loses_an_acknowledged_record
error_is_absence | lib | recover::plan::tests::not_being_able_to_look_is_not_absence
take_foreign_checkpoint | lib | recover::plan::tests::every_readable_candidate_meets_one_row
keep_refused_entry | it | full_disk::a_full_disk_loses_nothing_and_the_same_writer_goes_on_when_space_is_freed
ignore_known_end | lib | formats::scan::tests::a_known_end_hides_what_was_cut_and_misses_nothing_before_it
trim_to_newest_checkpoint | lib | publish::tests::a_damaged_newest_checkpoint_falls_back_to_the_one_before
frames_without_salt | lib | formats::frame::tests::a_header_checks_out_only_with_its_salt_at_its_place_unflipped
reserve_and_not_write | lib | backends::std_fs::tests::zero_filled_blocks_are_written_not_only_reserved
rename_syncs_one_parent | lib | backends::fault_tests::a_rename_between_directories_syncs_both
ring_skips_directory_sync | lib | backends::fault_tests::every_durable_operation_on_names_syncs_the_directory_and_contents_come_first
root_may_vanish | lib | backends::std_fs::tests::a_vanished_root_is_neither_empty_nor_made_again
ignore_lock | it | conformance::a_second_writer_is_locked_out_until_the_first_is_gone
impatient_lock | it | kill::a_successor_waits_until_a_killed_writers_direct_writes_have_landed
lock_trusts_lost_name | lib | backends::std_fs::lock::os::a_lock_on_a_file_that_lost_its_name_does_not_count
believe_overlapping_sync | lib | backends::io_uring::file::tests::of_two_syncs_that_overlap_the_first_success_is_told_when_the_other_has_ended_too
believe_held_after_failure | lib | backends::io_uring::file::tests::a_success_that_overlaps_with_a_failed_sync_is_none
ring_size_is_no_metadata | lib | backends::io_uring::file::tests::a_new_size_is_synced_with_the_inode
ignore_split_pair | lib | backends::io_uring::tests::a_write_whose_sync_was_taken_up_apart_from_it_is_no_success
skip_folder_sync | it | power_cut::no_power_cut_loses_or_invents_anything
seal_attests_flushed | it | power_cut::a_seal_attests_only_what_was_durable_before_it
frame_attests_flushed | it | power_cut::no_power_cut_loses_or_invents_anything
close_forgets_pending | lib | walog::tests::closing_a_shared_log_writes_what_is_pending
trim_newest_first | it | power_cut::no_power_cut_loses_or_invents_anything
trim_without_directory_sync | it | power_cut::no_power_cut_loses_or_invents_anything
unproven_forgets_newest | it | crash_knobs::no_power_cut_behind_a_failing_disk_loses_what_was_promised
opening_counts_as_proven | it | power_cut::syncs_that_fail_again_and_again_lose_nothing_that_was_promised
forget_id_floor | lib | walog::tests::a_log_that_ends_before_its_floor_is_refused_and_a_new_one_starts_behind_it
skip_sweep | lib | publish::tests::what_a_crash_left_under_temporary_names_is_swept_and_nothing_else
checkpoint_without_seal | lib | publish::tests::checkpoints_stream_and_every_flipped_bit_is_found
read_error_is_end | it | unreadable::a_read_that_fails_is_never_the_end_of_a_record_log
strict_accepts_torn | it | fixtures::a_torn_fixture_is_torn_and_nothing_else
fully_written_is_torn | it | damage::newest::every_flipped_bit_is_corruption_in_first_middle_and_last_frames_sealed_and_not
trust_length | lib | formats::frame::tests::a_length_above_the_limit_is_impossible_however_well_it_is_signed
reader_never_looks_anew | it | reader::what_cannot_be_read_is_told_apart
reader_misses_what_is_in_flight | it | reader::what_is_in_flight_is_read_when_its_commit_has_ended
slow_only_afterwards | it | telemetry::a_commit_that_stalls_is_reported_while_it_does_by_whoever_waits
child_goes_on | it | fork::commits_in_flight_while_a_process_forks_end_in_the_parent_and_their_tickets_are_fenced_in_the_child
child_goes_on | it | fork::a_forked_child_cannot_use_its_parents_logs_and_leaves_them_alone
keep_half_an_entry | it | misuse::an_encoder_that_panics_leaves_nothing_behind
later_frames_excuse_damage | it | matrix::every_damage_to_a_log_that_was_killed_gets_the_verdict_of_the_table
evidence_reads_claims | lib | formats::scan::tests::claims_of_half_of_what_is_left_ask_for_no_more_than_there_is
seek_looks_at_all | it | bounded::seeking_costs_a_binary_search_and_the_segments_from_there_on
open_reads_all | it | bounded::opening_reads_only_what_nothing_attests
idle_never_attests | it | attesting::an_idle_log_attests_its_last_entries_and_busy_ones_go_on
believe_page_cache | it | failed_sync::what_opening_returned_after_a_sync_that_failed_is_on_the_disk
prepare_unlocked | it | rotation::a_segment_that_is_ready_is_locked_as_the_one_that_is_written
prepared_newest_first | it | rotation::segments_are_taken_in_the_order_of_their_ids
switch_without_sync | it | power_cut::no_power_cut_beside_the_making_of_segments_loses_or_invents_anything
switch_without_sync | it | mixed::no_power_cut_loses_what_a_log_used_in_every_way_promised
remove_named_successor | it | rotation::the_successor_that_a_seal_names_stays_until_the_log_has_gone_on
fence_unchecked | it | rotation::a_writer_whose_lock_or_segment_was_taken_away_says_so_and_writes_no_more
spare_before_its_seal | it | rotation::a_file_whose_seal_is_still_to_come_serves_no_other_segment
forget_seal_failure | it | rotation::a_seal_that_fails_beside_later_commits_poisons_and_loses_nothing
skip_reserve | it | rotation::a_segment_that_grows_asks_for_space_before_it_writes
ignore_cut | it | hostile::a_record_log_that_was_cut_at_any_byte_goes_on_and_stays_readable
repair_cuts_before_saving | it | repair::a_power_cut_in_a_repair_loses_no_byte_and_repairing_again_ends_it
repair_moves_oldest_first | it | repair::a_power_cut_in_a_repair_loses_no_byte_and_repairing_again_ends_it
repair_loses_unasked | it | repair::what_was_acknowledged_goes_only_when_it_is_named
ignore_what_checkpoint_needs | it | repair::nothing_is_taken_out_of_a_log_that_would_end_before_what_a_checkpoint_requires
follow_hands_out_unattested | it | follow::what_a_follower_handed_out_survives_every_power_cut
follow_leaves_gaps | it | follow::a_follower_says_that_truncation_was_faster_and_that_an_entry_is_damaged
observed_in_a_role | it | observers::an_observer_may_use_the_log_whatever_it_is_told_of
owner_waits_for_itself | it | observers::an_observer_may_use_the_log_whatever_it_is_told_of
failed_close_stops_threads | it | combined::a_log_that_could_not_be_closed_for_want_of_space_goes_on_and_is_closed_later
failed_close_ends_log | it | combined::a_log_that_could_not_be_closed_for_want_of_space_goes_on_and_is_closed_later
ignore_header_crc | it | losses::every_bit_of_a_segments_header_and_every_header_that_is_not_its_own_are_told
ignore_file_id | it | losses::a_recycled_file_that_was_renamed_and_not_yet_rewritten_is_no_part_of_the_log
require_applied_only | it | losses::checkpoints::a_published_checkpoint_records_the_least_end_that_it_requires
newest_checkpoint_only | it | losses::checkpoints::segments_and_checkpoints_that_do_not_fit_together_are_told
any_damage_is_fatal | it | losses::checkpoints::segments_and_checkpoints_that_do_not_fit_together_are_told
missing_checkpoint_is_new | it | losses::checkpoints::segments_and_checkpoints_that_do_not_fit_together_are_told
whole_log_is_needed | it | losses::checkpoints::segments_and_checkpoints_that_do_not_fit_together_are_told
hole_is_truncation | it | losses::checkpoints::segments_and_checkpoints_that_do_not_fit_together_are_told
ignore_missing_successor | it | losses::checkpoints::segments_and_checkpoints_that_do_not_fit_together_are_told
ignore_what_checkpoint_needs | it | losses::checkpoints::segments_and_checkpoints_that_do_not_fit_together_are_told
skip_checkpoint_crc | it | losses::checkpoints::segments_and_checkpoints_that_do_not_fit_together_are_told
forget_id_floor | it | losses::the_loss_of_a_segment_that_followed_an_opening_is_seen_by_a_checkpoint_alone
resume_in_place | it | losses::recovery_cut_short_at_every_operation_on_a_full_disk_loses_nothing
skip_zeroing_spares | it | fault_kill::a_process_killed_at_any_call_loses_nothing_that_it_acknowledged
skip_write_again | it | faults::every_fault_of_resuming_an_unproven_tail_leaves_the_contract_whole
skip_segment_directory_sync | it | faults::every_fault_of_a_log_that_is_cut_beside_its_commits_leaves_the_contract_whole
closing_keeps_locks | it | descriptors::without_descriptors_nothing_acknowledged_is_lost_and_with_them_the_log_goes_on
closing_keeps_locks | it | reader::a_reader_outlives_the_writer
entries_of_any_size | it | misuse::entries_of_no_bytes_and_of_all_that_may_be_are_kept_and_larger_ones_change_nothing
batch_never_waits | it | misuse::a_batch_that_does_not_fit_behind_what_is_pending_waits_or_is_told_so
batch_must_fit_segment | it | misuse::a_batch_that_is_larger_than_a_segment_gets_one_of_its_own
closed_is_forgotten | it | misuse::every_operation_of_a_closed_log_says_so_and_what_was_committed_is_told
poison_tells_no_watermark | it | misuse::every_operation_of_a_poisoned_shared_log_says_so_in_every_way_of_waiting
observer_panic_escapes | it | misuse::an_observer_that_panics_at_rotation_poisons_nothing
forget_nobody | it | misuse::a_runtime_that_goes_while_tickets_are_open_takes_no_commit_with_it
submitting_blocks | it | misuse::nothing_blocks_the_one_thread_of_a_runtime
close_async_forgets | it | misuse::closing_goes_on_without_its_future_and_says_when_it_cannot
closing_says_ok | it | misuse::closing_goes_on_without_its_future_and_says_when_it_cannot
reader_calls_flushed_durable | it | reader::every_entry_is_read_wherever_it_is_and_the_answer_says_what_is_durable
reader_calls_flushed_durable | it | reader::a_log_in_memory_is_read_as_well_and_nothing_in_it_is_durable
reader_misses_what_is_in_flight | it | reader::after_poison_what_is_readable_is_read_and_what_was_in_flight_says_why_not
reader_holds_up_commits | it | reader::reading_holds_up_no_commit
forget_marks | it | reader::an_entry_near_one_that_was_read_costs_one_small_read
reader_takes_damage_for_end | it | reader::damage_to_what_was_written_is_reported_and_never_an_end
reader_never_looks_anew | it | reader::readers_at_random_places_see_every_entry_as_it_was_appended
parked_never_report | it | telemetry::a_commit_that_is_stuck_in_its_system_call_is_reported_by_another_thread_that_waits
slow_never_afterwards | it | telemetry::a_lone_commit_that_was_stuck_in_its_system_call_is_reported_afterwards
failures_uncounted | it | telemetry::every_stage_is_counted
accept_zero_threshold | it | telemetry::a_threshold_of_nothing_is_refused
span_never_ends | it | telemetry::whoever_subscribes_gets_a_span_for_each_commit
read_file_whole | memory | replay_keeps_no_more_than_sixteen_mebibytes_beyond_the_largest_entry
follow_stays_in_its_segment | it | follow::a_follower_misses_nothing_across_rotation_truncation_and_new_writers
look_at_oldest_first | it | live::whatever_a_writer_does_between_two_calls_of_a_reader_the_log_stays_sound
believe_first_look | it | live::a_header_that_is_half_there_is_looked_at_again
zeros_end_the_log | it | live::the_zeros_of_a_file_that_serves_again_are_no_end_of_the_log
grow_without_zeros | it | rotation::a_segment_grows_by_zeros_so_that_commits_into_it_change_no_metadata
room_is_asked_for_once | it | rotation::growing_leaves_alone_what_was_written_beyond_what_was_asked_for
room_is_asked_for_once | it | crash_knobs::no_power_cut_beside_appends_while_room_is_made_loses_what_was_promised
room_is_asked_for_once | it | room::a_batch_that_grows_beyond_its_segment_while_room_is_made_goes_into_the_next_one
room_is_asked_for_once | it | room::a_batch_that_outgrows_the_space_while_room_is_made_is_refused_and_goes_when_there_is_more
latch_never_trips | it | room::a_disk_that_is_full_among_zeros_poisons_and_whoever_opens_the_log_goes_on
opening_takes_a_seals_place | it | room::there_is_space_for_the_seals_of_an_idle_log_and_of_its_end_whatever_stands_before
room_is_asked_for_bit_by_bit | it | room::room_is_made_again_and_again_but_not_for_each_that_comes_meanwhile
full_is_left_alone | it | flushing::what_is_pending_is_flushed_where_it_alone_is_more_than_may_wait
late_seal_attests | it | attesting::what_is_attested_behind_a_refused_commit_is_although_the_log_has_gone_on_in_another_segment
never_fill_blocks | it | flushing::a_large_flush_ends_with_a_block
fill_direct_alone | it | flushing::what_one_owner_writes_depends_neither_on_how_nor_on_how_fast_the_disk_takes_it
no_room_for_fillers | it | room::there_is_space_for_the_seals_of_an_idle_log_and_of_its_end_whatever_stands_before
rotation_sync_is_forgotten | it | attesting::what_a_rotation_of_a_shared_log_made_durable_is_attested
rotation_sync_is_forgotten | it | mixed::damage_to_a_log_used_in_every_way_is_told_or_costs_nothing_that_is_attested
filler_attests | it | flushing::what_fills_a_block_attests_no_entry
filler_attests_flushed | it | flushing::no_power_cut_beside_filled_blocks_loses_what_was_acknowledged
grow_beside_ready | it | rotation::a_log_goes_on_in_the_next_segment_where_the_first_would_have_to_grow
grow_beside_begun | it | counterexamples::what_a_segment_in_the_making_holds_serves_a_commit_that_finds_the_disk_full
streams_need_whole_segments | it | counterexamples::a_stream_whose_segments_end_by_age_alone_goes_on
refused_are_asked_for | it | counterexamples::flushes_begin_again_after_a_commit_was_refused
callback_panic_escapes | it | told::a_callback_that_panics_takes_neither_the_logs_thread_nor_later_commits_with_it
panic_payload_escapes | it | told::what_a_callback_panics_with_takes_nothing_with_it_either
deadline_never_drives | it | told::a_callback_may_wait_for_a_ticket_in_every_way
deadline_never_drives | it | observers::an_observer_may_use_the_log_whatever_it_is_told_of
driving_outwaits_deadline | it | told::a_deadline_passes_while_the_same_thread_drives
waiting_calls_nobody | it | told::who_is_told_on_a_blocked_thread_may_wait_for_a_ticket_that_nobody_has_begun
replaced_task_goes_locked | it | told::a_task_that_goes_because_another_one_polls_may_have_held_the_last_handle
poison_is_dropped_silently | it | said::a_dropped_log_that_is_poisoned_says_so
forgotten_close_says_nothing | it | said::a_log_that_is_closed_without_blocking_and_forgotten_says_why_it_was_not_sealed
span_ends_where_it_is_seen | it | said::a_span_ends_with_its_commit_whoever_collects_it
telemetry_is_never_off | it | telemetry::what_is_off_reads_no_clock
depth_never_adapts | lib | walog::queue::tests::depth_follows_how_long_commits_take
unappended_is_out_of_space | it | short_of_space::who_waits_for_room_on_a_full_disk_is_told_that_nothing_was_appended
unappended_is_out_of_space | it | short_of_space::threads_and_tickets_with_commits_in_flight_lose_and_double_nothing_on_a_disk_that_is_full_now_and_then
retry_passes_final_seal | lib | framing::reader::tests::nothing_is_handed_out_behind_a_final_seal_however_often_it_is_looked_for
TABLE
}

seconds_max=120
target="${CARGO_TARGET_DIR:-$PWD/target}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
unset DURABILITY_SEED DURABILITY_SEEDS DURABILITY_PLANTED
skip_log="${DURABILITY_SKIP_LOG:-/dev/null}"

now() { date +%s.%N; }
since() { awk -v from="$1" -v to="$(now)" 'BEGIN { printf "%.1f", to - from }'; }

# What stands in the source and what stands in the table are the same.
grep -rhoE 'planted::on\("[a-z_]+"\)' src --include='*.rs' --exclude=planted.rs | sed 's/.*("\(.*\)").*/\1/' | sort -u >"$scratch/source"
{
    plants | sed 's/ *|.*//'
    # Those have their own build and their own script.
    scripts/model-check.sh list-plants
} | sort -u >"$scratch/table"
if ! diff "$scratch/source" "$scratch/table" >"$scratch/diff"; then
    echo "planted in the source (<) and listed here (>) differ:"
    cat "$scratch/diff"
    exit 1
fi

# Only our own crate is built with the plants, so that its dependencies are those of any `cargo test`.
wrapper="$target/teeth-rustc"
mkdir -p "$target"
printf '#!/bin/sh\nexec "$@" --cfg durability_planted\n' >"$scratch/wrapper"
chmod +x "$scratch/wrapper"
cmp -s "$scratch/wrapper" "$wrapper" || cp "$scratch/wrapper" "$wrapper"

began="$(now)"
RUSTC_WORKSPACE_WRAPPER="$wrapper" CARGO_TARGET_DIR="$target" \
    cargo test -p durability --lib --test it --test memory --no-run --message-format=json >"$scratch/build"
executable() {
    grep -F "\"kind\":[\"$1\"]" "$scratch/build" | grep -F "\"name\":\"$2\"" | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1
}
lib="$(executable lib durability)"
it="$(executable test it)"
memory="$(executable test memory)"
echo "built in $(since "$began") s"

# run NAME PLANT PROGRAM TEST...: the verdict of the test program; what it says goes to NAME's files.
run() {
    local name=$1 plant=$2 program=$3
    shift 3
    : >"$scratch/skips-$name"
    DURABILITY_PLANTED="$plant" DURABILITY_SKIP_LOG="$scratch/skips-$name" RUST_BACKTRACE=0 \
        timeout "$seconds_max" "${!program}" --exact "$@" >"$scratch/output-$name" 2>&1
}

line() { printf '%-32s | %-108s | %-7s | %5s\n' "$@"; }

# catch PLANT PROGRAM TEST: one line of the table. A plant may have several.
catch() {
    local plant=$1 program=$2 test=$3 began code=0 verdict=MISSED
    local name="$plant-${test//:/_}"
    began="$(now)"
    # Some bugs show only in some orders of threads.
    for _ in 1 2 3; do
        run "$name" "$plant" "$program" "$test" || code=$?
        grep -q "^test result: ok" "$scratch/output-$name" && [ ! -s "$scratch/skips-$name" ] || break
    done
    if grep -q "^test result: FAILED. 0 passed; 1 failed" "$scratch/output-$name"; then
        verdict=caught
    elif [ -s "$scratch/skips-$name" ]; then
        verdict=skipped
        echo "SKIP: the plant $plant: $(sed -n 's/^SKIP: //p' "$scratch/skips-$name" | head -1)" >>"$skip_log"
    fi
    line "$plant" "$test" "$verdict" "$(since "$began")" | tee "$scratch/verdict-$name"
}

if [ "$#" -eq 0 ]; then
    for program in lib it memory; do
        began="$(now)"
        mapfile -t tests < <(plants | sed 's/ *| */|/g' | awk -F'|' -v p="$program" '$2 == p { print $3 }' | sort -u)
        # All of them in one process: longer than any one may take.
        if ! seconds_max=900 run "clean-$program" "" "$program" "${tests[@]}" ||
            ! grep -q "${#tests[@]} passed; 0 failed" "$scratch/output-clean-$program"; then
            cat "$scratch/output-clean-$program"
            echo "without a plant the named tests must pass"
            exit 1
        fi
        echo "without a plant: ${#tests[@]} tests of \`$program\` pass in $(since "$began") s"
    done
fi

line plant "test that must catch it" verdict "s"
export -f catch run line now since
export scratch lib it memory seconds_max skip_log
began="$(now)"
# Twice as many at once as there are processors, as many plants make threads wait; each has a process of its own.
plants | sed 's/ *| */|/g' | while IFS='|' read -r plant program test; do
    if [ "$#" -eq 0 ] || [[ " $* " == *" $plant "* ]]; then
        printf '%s\0%s\0%s\0' "$plant" "$program" "$test"
    fi
done | xargs -0 -n 3 -P "$((2 * $(getconf _NPROCESSORS_ONLN)))" bash -c 'catch "$@"' catch

count() { cat "$scratch"/verdict-* | awk -F'|' -v v="$1" '$3 ~ v { n++ } END { print n + 0 }'; }
missed="$(count MISSED)"
for verdict in "$scratch"/verdict-*; do
    grep -q '| MISSED ' "$verdict" || continue
    echo "--- ${verdict##*/verdict-}"
    tail -15 "$scratch/output-${verdict##*/verdict-}"
done
echo "planted bugs: $(count caught) caught, $missed missed, $(count skipped) skipped in $(since "$began") s"
[ "$missed" -eq 0 ]
