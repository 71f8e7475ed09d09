//! Every rule that is left out on purpose is found: the harness is worth something. One bug for each process (`KEEL_BUG`, a name of
//! [`super::super::planted::Bug`]), since a planted bug may do anything; `cargo xtask planted` goes through all.

use super::super::map::{Page, PageHeader, PageId, PageKind, check_page};
use super::super::mover;
use super::super::planted::{ALL, Bug, plant};
use super::super::types::{CatalogueHandle, CheckpointNumber, DriveId, Generation};
use super::{faults, generations, life, replica, run_many, setting};

#[test]
fn planted() {
    let Ok(name) = std::env::var("KEEL_BUG") else {
        println!("KEEL_BUG names none of {ALL:?}");
        return;
    };
    let bug = ALL.into_iter().find(|b| format!("{b:?}") == name);
    let bug = bug.unwrap_or_else(|| panic!("there is no bug {name}: {ALL:?}"));
    let bound = setting("KEEL_CRASHES").unwrap_or(50_000);
    let seed = setting("KEEL_SEED").unwrap_or(1);
    plant(Some(bug));
    if bug == Bug::PageHeaderNotCompared {
        // The entry that leads to a page has its checksum, so that the header is a second lock on the same door.
        assert!(header_does_not_count(), "{bug:?} is not found");
        println!("FOUND {bug:?}: a page of another place counts");
        return;
    }
    if bug == Bug::PromiseInOnePair {
        // Only damage of a whole pair at that very moment shows it.
        let (kept, found) = replica::steps::promise_without_the_newest_pair();
        assert!(found != Some(kept), "{bug:?} is not found");
        println!("FOUND {bug:?}: {found:?} where {kept:?} was kept");
        return;
    }
    if matches!(
        bug,
        Bug::OldGenerationReplays | Bug::MountGenerationNotRaised
    ) {
        // Sequence numbers never go back but after an opening that could not read the newest blocks.
        let (written, found) = generations::written_behind_an_older_mount();
        assert!(written != found, "{bug:?} is not found");
        println!("FOUND {bug:?}: {found} where {written} was written");
        return;
    }
    std::panic::set_hook(Box::new(|_| {}));
    let of_moves = [
        Bug::MoveNotCheckpointed,
        Bug::MoveLeftFirst,
        Bug::LeavingNotTold,
        Bug::MovedEpochLost,
        Bug::ArrivingKept,
        Bug::PinsIgnored,
        Bug::MoveNotHeld,
    ];
    let of_replicas = [
        Bug::OlderStampReplaces,
        Bug::UnsettledNotCopied,
        Bug::SupersededNotKept,
        Bug::SettledNotWritten,
        Bug::CopyReplacesNewer,
        Bug::TagOfOldBlock,
    ];
    let needs_damage = matches!(bug, Bug::RotIsTorn | Bug::ChecksumNotCompared);
    let found = if of_moves.contains(&bug) {
        run_many(bound, seed, |seed| life::Counts {
            crashes: 1 + mover::tests::run(seed).crashes,
            ..life::Counts::default()
        })
    } else if of_replicas.contains(&bug) {
        run_many(bound, seed, replica::run)
    } else if needs_damage {
        run_many(bound, seed, faults::run)
    } else {
        run_many(bound, seed, life::run)
    };
    let _ = std::panic::take_hook();
    match found {
        Err((seed, total)) => println!(
            "FOUND {bug:?}: seed {seed}, after {} crash points",
            total.crashes
        ),
        Ok(total) => panic!("{bug:?} is not found: {total:?}"),
    }
}

fn header_does_not_count() -> bool {
    let mut page: Page = [0; 4096];
    let (kind, level, drive) = (PageKind::Interior, 1, DriveId([1; 16]));
    let header = PageHeader {
        kind,
        level,
        entries: 0,
        index: 5,
        handle: CatalogueHandle(1),
        generation: Generation(1),
        checkpoint: CheckpointNumber(1),
        drive,
    };
    header.encode(&mut page);
    let index = 6;
    check_page(&page, &drive, PageId { kind, level, index }).is_ok()
}
