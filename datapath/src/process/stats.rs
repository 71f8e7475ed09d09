//! The reactors' own counters, copied to the stats page from time to time: this thread is the only one that writes those blocks.

use std::time::Duration;

use keelblock_api::datapath as proto;
use keelblock_api::stats::{ReactorField, StatsPage};

use crate::reactor::{ReactorStats, Reactors};

/// Copies until a reactor has ended.
pub async fn publish(
    reactors: &Reactors,
    told: &[proto::Reactor],
    page: &StatsPage,
    every: Duration,
) {
    for reactor in told {
        set_fixed(page, reactor);
    }
    while !reactors.ended() {
        for (index, stats) in reactors.stats().iter().enumerate() {
            copy(page, index as u32, stats);
        }
        tokio::time::sleep(every).await;
    }
}

/// What does not change while the process runs.
fn set_fixed(page: &StatsPage, reactor: &proto::Reactor) {
    let Some(to) = page.reactor(reactor.id) else {
        return;
    };
    // the page says core + 1, and 0 for a reactor that is not pinned (-1)
    to.set(
        ReactorField::Cpu,
        u64::from((reactor.cpu + 1).unsigned_abs()),
    );
    to.set(
        ReactorField::PollAlways,
        u64::from(reactor.poll == "always"),
    );
}

fn copy(page: &StatsPage, reactor: u32, from: &ReactorStats) {
    use ReactorField as F;
    let Some(to) = page.reactor(reactor) else {
        return;
    };
    let fields = [
        (F::BusyNs, &from.busy_ns),
        (F::IdleNs, &from.idle_ns),
        (F::AsleepNs, &from.asleep_ns),
        (F::CpuNs, &from.cpu_ns),
        (F::Passes, &from.passes),
        (F::Wakeups, &from.sleeps),
        (F::Connections, &from.sockets),
        (F::Commands, &from.commands),
        (F::RingDepth, &from.ring_depth),
        (F::Stalls, &from.stalls),
        (F::StallNsMax, &from.stall_ns_max),
        (F::BuffersInUse, &from.buffer_bytes_used),
        (F::Syscalls, &from.enters),
    ];
    for (field, counter) in fields {
        to.set(field, counter.get());
    }
}
