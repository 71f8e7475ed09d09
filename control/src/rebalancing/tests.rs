//! Every row of the table in `follow`, and deaths of whoever does it: what was written is forgotten, and it is looked at again.
use super::super::record::RebalanceWish;
use super::*;
use crate::records::{TaskReplica, TaskStep};
use std::collections::HashMap;

const NOW: u64 = 10_000_000;
const POOL: Uuid = Uuid::from_u128(9);

fn volume(n: usize) -> Uuid {
    Uuid::from_u128(100 + n as u128)
}

fn replica(n: usize) -> Uuid {
    Uuid::from_u128(200 + n as u128)
}

fn job(moves: usize, at_once: u32) -> RebalanceRecord {
    let one = |n: usize| MoveRecord {
        volume_id: volume(n),
        name: format!("v{n}"),
        size_bytes: 10,
        replica_id: replica(n),
        from_node: "a".into(),
        from_pool: POOL,
        to_node: "b".into(),
        to_pool: POOL,
        why: String::new(),
        state: MoveState::Planned,
        task_id: None,
        task_before: Some(Uuid::from_u128(7)),
        error: String::new(),
        begun_unix_ms: 0,
        away_unix_ms: 0,
        given_up: false,
        ended_unix_ms: 0,
    };
    RebalanceRecord {
        job_id: Uuid::nil(),
        state: JobState::Running,
        wish: RebalanceWish {
            over_percent: 5,
            under_percent: 5,
            moves_max: 10,
            at_once,
            minutes_max: 0,
            from: Vec::new(),
            to: Vec::new(),
        },
        moves: (0..moves).map(one).collect(),
        unbalanced: (1, 0),
        left: 0,
        created_unix_ms: NOW,
        updated_unix_ms: NOW,
    }
}

fn set(replicas: &[(Uuid, &str)]) -> Option<ReplicationRecord> {
    let all = replicas
        .iter()
        .map(|(id, node)| (*id, (*node).to_owned(), POOL));
    Some(ReplicationRecord::new(0, all, 1, replicas.len() as u8).unwrap())
}

fn task(id: u128, n: usize, state: TaskState, to: &str) -> Option<TaskRecord> {
    let end = |replica_id, node: &str| {
        Some(TaskReplica {
            replica_id,
            node_id: node.into(),
            pool_id: POOL,
        })
    };
    Some(TaskRecord {
        task_id: Uuid::from_u128(id),
        volume_id: volume(n),
        kind: TaskKind::Move,
        state,
        step: TaskStep::Add,
        wanted_before: 1,
        wanted: 1,
        new: end(Uuid::from_u128(300), to),
        more: Vec::new(),
        old: end(replica(n), "a"),
        old_first: false,
        automatic: false,
        done_bytes: 0,
        total_bytes: 0,
        copied_bytes: 0,
        error: "said".into(),
        created_unix_ms: NOW,
        updated_unix_ms: NOW,
    })
}

fn all_live(task: Option<TaskRecord>, set: Option<ReplicationRecord>) -> Known {
    let away = Arc::default();
    Known { task, set, away }
}

/// Of one volume.
fn look(
    job: &mut RebalanceRecord,
    task: Option<TaskRecord>,
    set: Option<ReplicationRecord>,
) -> Vec<Act> {
    let known = all_live(task, set);
    job.follow(&|id| (id == volume(0)).then(|| known.clone()), NOW)
}

fn there() -> Option<ReplicationRecord> {
    set(&[(replica(0), "a")])
}

fn moved() -> Option<ReplicationRecord> {
    set(&[(Uuid::from_u128(300), "b")])
}

#[test]
fn a_move_begins_and_one_that_somebody_began_who_died_is_found() {
    let mut fresh = job(1, 2);
    assert_eq!(look(&mut fresh, None, there()), [Act::Begin(0)]);
    // The task before is none of it, whatever it was.
    assert_eq!(
        look(&mut fresh, task(7, 0, TaskState::Done, "b"), there()),
        [Act::Begin(0)]
    );
    // Another move of the replica is none either: it is begun, and refused if that still runs.
    assert_eq!(
        look(&mut fresh, task(8, 0, TaskState::Done, "c"), there()),
        [Act::Begin(0)]
    );
    for (state, then, over) in [
        (TaskState::Running, MoveState::Running, false),
        (TaskState::Undoing, MoveState::Running, false),
        (TaskState::Done, MoveState::Done, true),
        (TaskState::Failed, MoveState::Failed, true),
        (TaskState::Cancelled, MoveState::Failed, true),
    ] {
        let mut job = job(1, 2);
        assert_eq!(look(&mut job, task(8, 0, state, "b"), there()), []);
        assert_eq!(
            (job.moves[0].state, job.state.is_over()),
            (then, over),
            "{state:?}"
        );
        assert_eq!(job.moves[0].task_id, Some(Uuid::from_u128(8)));
    }
    // It ended, and another change of the volume began, before anybody looked.
    let mut late = job(1, 2);
    assert_eq!(
        look(&mut late, task(8, 5, TaskState::Running, "c"), moved()),
        []
    );
    assert_eq!(
        (late.moves[0].state, late.state),
        (MoveState::Done, JobState::Done)
    );
    let mut elsewhere = job(1, 2);
    assert_eq!(look(&mut elsewhere, None, set(&[(replica(3), "c")])), []);
    assert_eq!(elsewhere.moves[0].state, MoveState::Failed);
    let mut deleted = job(1, 2);
    assert_eq!(look(&mut deleted, None, None), []);
    assert!(deleted.moves[0].error.contains("deleted") && deleted.state == JobState::Done);
}

#[test]
fn one_whose_task_is_over_ends_as_the_replica_says() {
    let running = || {
        let mut job = job(1, 2);
        look(&mut job, task(8, 0, TaskState::Running, "b"), there());
        job
    };
    let mut job = running();
    assert_eq!(
        look(&mut job, task(9, 5, TaskState::Running, "c"), moved()),
        []
    );
    assert_eq!(job.moves[0].state, MoveState::Done);
    let mut job = running();
    assert_eq!(
        look(&mut job, task(9, 5, TaskState::Running, "c"), there()),
        []
    );
    assert_eq!(job.moves[0].state, MoveState::Failed);
}

#[test]
fn pausing_begins_nothing_and_cancelling_takes_back_what_runs() {
    let mut job = job(3, 1);
    let run = |job: &mut RebalanceRecord, task_of_0: Option<TaskState>| {
        let task = task_of_0.and_then(|s| task(8, 0, s, "b"));
        let all: HashMap<Uuid, Known> = job
            .asks()
            .into_iter()
            .map(|id| {
                let n = (0..3).find(|n| volume(*n) == id).unwrap();
                let task = task.clone().filter(|_| n == 0);
                let set = set(&[(replica(n), "a")]);
                (id, all_live(task, set))
            })
            .collect();
        job.follow(&|id| all.get(&id).cloned(), NOW)
    };
    assert_eq!(run(&mut job, None), [Act::Begin(0)], "one at a time");
    assert_eq!(run(&mut job, Some(TaskState::Running)), [], "it runs");
    job.state = JobState::Paused;
    assert_eq!(run(&mut job, Some(TaskState::Done)), []);
    assert_eq!(
        (job.count(MoveState::Done), job.state),
        (1, JobState::Paused)
    );
    job.state = JobState::Running;
    assert_eq!(run(&mut job, None), [Act::Begin(1)]);
    job.moves[0].state = MoveState::Running;
    job.state = JobState::Cancelling;
    assert_eq!(run(&mut job, Some(TaskState::Running)), [Act::TakeBack(0)]);
    assert_eq!(
        (job.count(MoveState::Skipped), job.state),
        (2, JobState::Cancelling)
    );
    assert_eq!(run(&mut job, Some(TaskState::Cancelled)), []);
    assert_eq!(job.state, JobState::Cancelled);
    assert!(
        job.says().contains("0 of 3 moved, 1 failed, 2 skipped"),
        "{}",
        job.says()
    );
}

#[test]
fn when_its_time_is_up_nothing_more_begins_and_what_runs_goes_on() {
    let mut job = job(2, 1);
    job.wish.minutes_max = 1;
    let known = |state| {
        move |id: Uuid| (id == volume(0)).then(|| all_live(task(8, 0, state, "b"), there()))
    };
    assert_eq!(job.follow(&known(TaskState::Running), NOW + 59_999), []);
    assert_eq!(job.count(MoveState::Planned), 1);
    assert_eq!(job.follow(&known(TaskState::Running), NOW + 60_000), []);
    assert_eq!(
        (job.count(MoveState::Skipped), job.state),
        (1, JobState::Running)
    );
    assert_eq!(job.follow(&known(TaskState::Done), NOW + 60_001), []);
    assert_eq!(job.state, JobState::Done);
}

#[test]
fn a_move_to_a_node_that_stays_away_is_given_up_with_words() {
    let mut job = job(1, 1);
    let look = |job: &mut RebalanceRecord, state, is_away: bool, after_ms: u64| {
        let away = is_away.then(|| "b".to_owned()).into_iter().collect();
        let known = Known {
            away: Arc::new(away),
            ..all_live(task(8, 0, state, "b"), there())
        };
        job.follow(&|_| Some(known.clone()), NOW + after_ms)
    };
    let runs = TaskState::Running;
    assert_eq!(look(&mut job, runs, true, 0), []);
    assert_eq!(look(&mut job, runs, true, AWAY_MS - 1), []);
    // It was there meanwhile: the time begins anew.
    assert_eq!(look(&mut job, runs, false, AWAY_MS), []);
    assert_eq!(look(&mut job, runs, true, AWAY_MS + 1), []);
    assert_eq!(look(&mut job, runs, true, 2 * AWAY_MS), []);
    let late = 2 * AWAY_MS + 1;
    for _ in 0..2 {
        // Until it is taken back, also by another one that does this.
        assert_eq!(look(&mut job, runs, true, late), [Act::TakeBack(0)]);
    }
    assert_eq!(look(&mut job, TaskState::Undoing, true, late), []);
    assert!(!job.state.is_over());
    assert_eq!(look(&mut job, TaskState::Cancelled, true, late), []);
    assert_eq!(
        (job.moves[0].state, job.state),
        (MoveState::Failed, JobState::Done)
    );
    for says in ["node b has been away for 30 minutes", "stays on node a"] {
        assert!(job.says().contains(says), "{}", job.says());
    }
}
