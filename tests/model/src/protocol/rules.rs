//! Rules that can be left out on purpose, and the worlds that a check is run in.

/// A rule that is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// 1: a promise is answered while older operations run on, and are acknowledged.
    NoBarrier,
    /// 2: a coordinator that restarts goes on in its epoch.
    SameEpoch,
    /// 2: a restarted replica has forgotten its promise.
    PromiseForgotten,
    /// 3: the new set alone counts from its sending on.
    NewSetAlone,
    /// 3: a member that departs goes on counting.
    DepartingCounts,
    /// 3: a takeover that does not end with a swap.
    NoFinalSwap,
    /// 3: the set is written without comparing the revision.
    BlindSwap,
    /// 4: settled counts what is written.
    SettledWritten,
    /// 4: a flush counts what is written.
    FlushWritten,
    /// 4: a promise is answered before what was written is stable.
    PromiseUnflushed,
    /// 4: an excluded member leaves before the others are level.
    NotLevelled,
    /// 5: a copy replaces what came by the stream.
    CopyReplacesLive,
    /// 5: the copy's source need not have everything up to s0.
    SourceBehind,
    /// 5: a returning replica's higher stamp wins.
    HigherStampWins,
    /// 5: a replica joins before it has the stream.
    JoinsBehind,
    /// 7: a read shows what is not acknowledged.
    ReadsUnacked,
    /// 9: an empty replica counts as the one that it replaces.
    Amnesia,
    /// 10: a restored record is believed.
    RestoreBelieved,
    /// 13: a promise does not wait for the lease.
    LeaseIgnored,
    /// 13: a restarted replica does not wait for the lease that it may have given.
    LeaseForgotten,
    /// 13: the lease is looked at before the data are read, not after.
    LeaseBefore,
    /// 14: takeover copies block by block.
    TornCopy,
    /// 14: takeover trusts the list of one who knows less to be settled: only records that all list are completed.
    ListedByAll,
    /// 15: a damaged block counts as never written.
    RotIsAbsent,
    /// 16: settled passes a member that is not fed.
    SettledPassesGapped,
    /// 17: sets shrink below the minimum.
    BelowMinimum,
    /// Majority: one confirmation fewer.
    MinorityAck,
    /// Takeover with one promise fewer.
    MinorityPromise,
}

/// What happens in a check, and how much of it.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// Its name.
    pub name: &'static str,
    /// Replicas, 1 to 3.
    pub replicas: u8,
    /// The volume's minimum.
    pub minimum: u8,
    /// Records, at most.
    pub records: u8,
    /// Epochs, at most.
    pub epochs: u8,
    /// Blocks of the writes that hosts may do, as masks.
    pub writes: &'static [u8],
    /// Admission and completion are two steps.
    pub slow_drives: bool,
    /// Written is not stable.
    pub volatile: bool,
    /// Settled is known, and lists end there.
    pub settles: bool,
    /// Members are excluded.
    pub excludes: bool,
    /// Replicas come back.
    pub resyncs: bool,
    /// Reads take time.
    pub slow_reads: bool,
    /// Faults, at most.
    pub faults: u8,
    /// Replicas restart.
    pub restarts: bool,
    /// Replicas lose power.
    pub power: bool,
    /// Blocks rot.
    pub rots: bool,
    /// Drives are swapped for empty ones.
    pub swapped: bool,
    /// The KVDB is set back to its first record.
    pub restored: bool,
}

/// The plainest one: others say what they have more.
const PLAIN: World = World {
    name: "takeover",
    replicas: 3,
    minimum: 2,
    records: 2,
    epochs: 3,
    writes: &[0b11, 0b01],
    slow_drives: true,
    volatile: false,
    settles: false,
    excludes: false,
    resyncs: false,
    slow_reads: false,
    faults: 0,
    restarts: false,
    power: false,
    rots: false,
    swapped: false,
    restored: false,
};

/// All of them. `long` has larger bounds.
pub fn worlds(long: bool) -> Vec<World> {
    let more = u8::from(long);
    vec![
        World {
            records: 2 + more,
            ..PLAIN
        },
        World {
            name: "one replica",
            replicas: 1,
            minimum: 1,
            records: 3,
            restarts: true,
            faults: 2,
            ..PLAIN
        },
        World {
            name: "two replicas",
            replicas: 2,
            minimum: 1,
            excludes: true,
            restarts: long,
            faults: more,
            ..PLAIN
        },
        World {
            name: "two replicas, resync",
            replicas: 2,
            minimum: 1,
            slow_drives: long,
            excludes: true,
            resyncs: true,
            epochs: 2,
            ..PLAIN
        },
        World {
            name: "set changes",
            minimum: 1,
            excludes: true,
            slow_drives: false,
            epochs: 2 + more,
            ..PLAIN
        },
        World {
            name: "resync",
            excludes: true,
            resyncs: true,
            slow_drives: long,
            epochs: 2,
            ..PLAIN
        },
        World {
            name: "settled",
            settles: true,
            slow_drives: false,
            epochs: 2 + more,
            excludes: true,
            ..PLAIN
        },
        World {
            name: "volatile caches",
            settles: true,
            volatile: true,
            power: true,
            faults: 1,
            slow_drives: false,
            epochs: 2 + more,
            ..PLAIN
        },
        World {
            name: "restarts",
            restarts: true,
            faults: 1 + more,
            slow_reads: true,
            slow_drives: false,
            writes: &[0b01],
            ..PLAIN
        },
        World {
            name: "rot",
            rots: true,
            faults: 1,
            slow_drives: false,
            ..PLAIN
        },
        World {
            name: "drive swapped",
            swapped: true,
            faults: 1,
            slow_drives: false,
            excludes: true,
            resyncs: long,
            epochs: 2,
            ..PLAIN
        },
        World {
            name: "restored KVDB",
            replicas: 2,
            minimum: 1,
            restored: true,
            records: 1 + more,
            faults: 1,
            excludes: true,
            slow_drives: false,
            ..PLAIN
        },
    ]
}

/// Each rule, and the world in which leaving it out is found.
pub fn planted() -> Vec<(Bug, World)> {
    let worlds = worlds(false);
    let of = |name: &str| {
        let found = worlds.iter().find(|w| w.name == name);
        *found.expect("a world of this name")
    };
    let pairs = [
        (Bug::NoBarrier, "takeover"),
        (Bug::SameEpoch, "takeover"),
        (Bug::PromiseForgotten, "restarts"),
        (Bug::NewSetAlone, "two replicas"),
        (Bug::DepartingCounts, "set changes"),
        (Bug::NoFinalSwap, "two replicas"),
        (Bug::BlindSwap, "set changes"),
        (Bug::SettledWritten, "volatile caches"),
        (Bug::FlushWritten, "volatile caches"),
        (Bug::PromiseUnflushed, "volatile caches"),
        (Bug::NotLevelled, "set changes"),
        (Bug::CopyReplacesLive, "two replicas, resync"),
        (Bug::SourceBehind, "resync"),
        (Bug::HigherStampWins, "two replicas, resync"),
        (Bug::JoinsBehind, "two replicas, resync"),
        (Bug::ReadsUnacked, "takeover"),
        (Bug::Amnesia, "drive swapped"),
        (Bug::RestoreBelieved, "restored KVDB"),
        (Bug::LeaseIgnored, "takeover"),
        (Bug::LeaseForgotten, "restarts"),
        (Bug::LeaseBefore, "restarts"),
        (Bug::TornCopy, "takeover"),
        (Bug::ListedByAll, "takeover"),
        (Bug::RotIsAbsent, "rot"),
        (Bug::SettledPassesGapped, "settled"),
        (Bug::BelowMinimum, "settled"),
        (Bug::MinorityAck, "takeover"),
        (Bug::MinorityPromise, "set changes"),
    ];
    pairs.map(|(bug, world)| (bug, of(world))).to_vec()
}
