//! The reactors' own counters, copied to the stats page from time to time: this thread is the only one that writes those blocks.

use std::time::Duration;

use keelblock_api::stats::{ReactorField, StatsPage};

use crate::reactor::{ReactorStats, Reactors};

/// Copies until a reactor has ended.
pub async fn publish(reactors: &Reactors, page: &StatsPage, every: Duration) {
    while !reactors.ended() {
        for (index, stats) in reactors.stats().iter().enumerate() {
            copy(page, index as u32, stats);
        }
        tokio::time::sleep(every).await;
    }
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
        (F::Stalls, &from.stalls),
        (F::StallNsMax, &from.stall_ns_max),
        (F::BuffersInUse, &from.buffer_bytes_used),
        (F::Syscalls, &from.enters),
    ];
    for (field, counter) in fields {
        to.set(field, counter.get());
    }
}
