use super::*;

const BYTES: usize = 4096;
const CANCELED: i32 = -(Errno::ECANCELED as i32);
const EIO: i32 = -(Errno::EIO as i32);

fn chain(goal: Goal, width: usize) -> Chain {
    Chain::new(goal, BYTES, 1, 1 << 20, width)
}

/// Feeds one unit's completions, in order or swapped.
fn feed(chain: &mut Chain, first: i32, second: i32, swapped: bool) -> Step {
    if chain.width == 1 {
        return chain.complete(Part::First, first);
    }
    let (a, b) = ((Part::First, first), (Part::Second, second));
    let (a, b) = if swapped { (b, a) } else { (a, b) };
    assert_eq!(chain.complete(a.0, a.1), Step::Wait, "one completion of two decides nothing");
    chain.complete(b.0, b.1)
}

fn failed(operation: &'static str, written: usize, cause: Cause) -> Step {
    Step::Done(Err(Failure { operation, written, cause }))
}

#[test]
fn every_pair_of_answers_to_a_linked_pair_has_its_verdict_in_either_order() {
    let whole = BYTES as i32;
    let eintr = -(Errno::EINTR as i32);
    let eagain = -(Errno::EAGAIN as i32);
    let pair = Step::Issue(Unit::WriteAndSync);
    let again = |errno: i32| (errno, CANCELED, Step::Issue(Unit::WriteAndSync));
    let table = [
        (whole, 0, Step::Done(Ok(()))),
        (whole, CANCELED, Step::Issue(Unit::Sync)),
        (whole, EIO, failed("sync", BYTES, Cause::Errno(5))),
        (whole, eintr, failed("sync", BYTES, Cause::Errno(4))),
        (whole, eagain, failed("sync", BYTES, Cause::Errno(11))),
        (whole, 1, failed("sync", BYTES, Cause::Impossible(1))),
        // Short: never the end, whatever the sync says; its own error is not lost.
        (100, CANCELED, pair),
        (100, 0, pair),
        (100, EIO, failed("sync", 100, Cause::Errno(5))),
        (100, eintr, failed("sync", 100, Cause::Errno(4))),
        // Nothing was begun.
        again(CANCELED),
        again(eintr),
        again(eagain),
        (CANCELED, 0, pair),
        (CANCELED, EIO, failed("sync", 0, Cause::Errno(5))),
        // The write itself failed.
        (0, CANCELED, failed("write", 0, Cause::WroteNothing)),
        (0, 0, failed("write", 0, Cause::WroteNothing)),
        (EIO, CANCELED, failed("write", 0, Cause::Errno(5))),
        (EIO, 0, failed("write", 0, Cause::Errno(5))),
        (EIO, EIO, failed("write", 0, Cause::Errno(5))),
        (whole + 1, 0, failed("write", 0, Cause::Impossible(whole + 1))),
        (i32::MIN, 0, failed("write", 0, Cause::Errno(i32::MIN))),
    ];
    for (write, sync, expected) in table {
        for swapped in [false, true] {
            let mut chain = chain(Goal::LinkedSync, 2);
            assert_eq!(chain.unit(), Unit::WriteAndSync);
            let step = feed(&mut chain, write, sync, swapped);
            assert_eq!(step, expected, "write {write}, sync {sync}, swapped {swapped}");
        }
    }
}

#[test]
fn single_writes_and_syncs_have_their_verdicts_with_and_without_a_no_op_beside_them() {
    let whole = BYTES as i32;
    let table = [
        (Goal::Written, whole, Step::Done(Ok(()))),
        (Goal::Written, 100, Step::Issue(Unit::Write { dsync: false })),
        (Goal::Written, CANCELED, Step::Issue(Unit::Write { dsync: false })),
        (Goal::Written, EIO, failed("write", 0, Cause::Errno(5))),
        (Goal::Written, 0, failed("write", 0, Cause::WroteNothing)),
        (Goal::Dsync, whole, Step::Done(Ok(()))),
        (Goal::Dsync, 100, Step::Issue(Unit::Write { dsync: true })),
        (Goal::Dsync, CANCELED, Step::Issue(Unit::Write { dsync: true })),
        (Goal::Dsync, EIO, failed("write", 0, Cause::Errno(5))),
        (Goal::WrittenThenSynced, whole, Step::Issue(Unit::Sync)),
        (Goal::WrittenThenSynced, 100, Step::Issue(Unit::Write { dsync: false })),
        (Goal::WrittenThenSynced, EIO, failed("write", 0, Cause::Errno(5))),
    ];
    for width in [1, 2] {
        for (goal, write, expected) in table {
            for swapped in [false, true] {
                let mut chain = chain(goal, width);
                assert_eq!(feed(&mut chain, write, 0, swapped), expected, "{goal:?} {write} {width}");
            }
        }
    }
}

#[test]
fn a_commit_of_no_bytes_is_one_sync_that_is_never_tried_again_after_an_error() {
    for goal in [Goal::LinkedSync, Goal::Dsync, Goal::WrittenThenSynced] {
        let new = || Chain::new(goal, 0, 512, 1 << 20, 2);
        assert_eq!(new().unit(), Unit::Sync);
        assert!(new().syncs());
        assert_eq!(feed(&mut new(), 0, 0, false), Step::Done(Ok(())));
        assert_eq!(feed(&mut new(), EIO, 0, true), failed("sync", 0, Cause::Errno(5)));
        assert_eq!(feed(&mut new(), CANCELED, 0, false), Step::Issue(Unit::Sync));
    }
}

#[test]
fn the_rest_of_a_short_write_follows_where_it_ended_and_is_synced_again() {
    let mut chain = chain(Goal::LinkedSync, 2);
    assert_eq!(chain.piece(), 0..BYTES);
    assert_eq!(feed(&mut chain, 1000, CANCELED, false), Step::Issue(Unit::WriteAndSync));
    assert_eq!(chain.piece(), 1000..BYTES);
    assert_eq!(feed(&mut chain, 3096, CANCELED, true), Step::Issue(Unit::Sync));
    assert_eq!(feed(&mut chain, 0, 0, false), Step::Done(Ok(())));
}

#[test]
fn a_direct_rest_begins_on_an_aligned_byte() {
    let mut chain = Chain::new(Goal::Dsync, BYTES, 512, 1 << 20, 1);
    assert_eq!(chain.complete(Part::First, 1000), Step::Issue(Unit::Write { dsync: true }));
    assert_eq!(chain.piece(), 512..BYTES);
    for _ in 0..AGAIN_MAX {
        assert_eq!(chain.complete(Part::First, 100), Step::Issue(Unit::Write { dsync: true }));
        assert_eq!(chain.piece(), 512..BYTES);
    }
    assert_eq!(chain.complete(Part::First, 100), failed("write", 512, Cause::WroteNothing));
}

#[test]
fn large_commits_go_in_pieces_and_only_the_last_one_ends_them() {
    let mut chain = Chain::new(Goal::LinkedSync, 2500, 1, 1000, 2);
    assert_eq!(feed(&mut chain, 1000, 0, false), Step::Issue(Unit::WriteAndSync));
    assert_eq!(feed(&mut chain, 1000, 0, false), Step::Issue(Unit::WriteAndSync));
    assert_eq!(chain.piece(), 2000..2500);
    assert_eq!(feed(&mut chain, 500, 0, false), Step::Done(Ok(())));
}

#[test]
fn a_kernel_that_always_gives_up_is_asked_a_bounded_number_of_times() {
    for (goal, width, operation) in [(Goal::LinkedSync, 2, "write"), (Goal::Dsync, 1, "write")] {
        let mut chain = chain(goal, width);
        let mut asked = 0;
        let end = loop {
            asked += 1;
            match feed(&mut chain, CANCELED, CANCELED, false) {
                Step::Issue(_) => assert!(asked <= usize::from(AGAIN_MAX)),
                step => break step,
            }
        };
        assert!(matches!(end, Step::Done(Err(Failure { operation: o, .. })) if o == operation), "{end:?}");
    }
    let mut chain = chain(Goal::LinkedSync, 2);
    let mut step = feed(&mut chain, BYTES as i32, CANCELED, false);
    for _ in 0..AGAIN_MAX - 1 {
        assert_eq!(step, Step::Issue(Unit::Sync));
        step = feed(&mut chain, CANCELED, 0, false);
    }
    assert_eq!(step, Step::Issue(Unit::Sync));
    let canceled = Cause::Errno(Errno::ECANCELED as i32);
    assert_eq!(feed(&mut chain, CANCELED, 0, false), failed("sync", BYTES, canceled));
}
