//! The same on simulated reactors and drives: other interleavings, and power cuts.

use std::cell::RefCell;

use super::*;
use crate::reactor::sim::{NodeId, Sim};

const SIZE: u64 = 1024 * MIB;
/// Virtual time that no workload needs.
const LONG: Duration = Duration::from_secs(10_000);

/// The drives, one with each reactor.
const DISKS: [&str; 2] = ["d0", "d1"];

/// Hubs and a registry on two reactors of a simulated node, with the volume open.
fn open(sim: &Sim, handles: Vec<Handle>) -> [Here; 2] {
    let stats = StatsPage::create(2, 4, [0; 16], 0).unwrap();
    let ends = handles.iter().zip(mesh(2));
    let hubs: Vec<Hub> = ends
        .map(|(handle, end)| Hub::start(handle, end).unwrap())
        .collect();
    let registry = Registry::start(&hubs[0], stats);
    let opening = registry.clone();
    let opened = sim.run(&handles[0], LONG, async move {
        let sources = DISKS.map(|name| DeviceSource::Sim { name: name.into() });
        open_all(&opening, sources.to_vec(), SIZE, true).await;
    });
    opened.unwrap();
    [0, 1].map(|n| Here {
        handle: handles[n].clone(),
        volume: hubs[n].volume(ID).unwrap(),
        hub: hubs[n].clone(),
        registry: (n == 0).then(|| registry.clone()),
    })
}

/// Runs both workloads, then flushes.
fn run_both(sim: &Sim, here: &[Here; 2], works: [Workload; 2]) -> [Workload; 2] {
    let [first, second] = works.map(|mut work| async move {
        for _ in 0..100 {
            work.step().await;
        }
        work
    });
    let done = Rc::new(RefCell::new(None));
    let put = Rc::clone(&done);
    here[1].handle.spawn("second", async move {
        let work = second.await;
        put.borrow_mut().replace(work);
    });
    let (handle, volume) = (here[0].handle.clone(), here[0].volume.clone());
    let both = sim.run(&here[0].handle, LONG, async move {
        let first = first.await;
        loop {
            if let Some(second) = done.take() {
                // One reactor's flush is for what both wrote.
                volume.flush().await.unwrap();
                return [first, second];
            }
            handle.sleep(Duration::from_millis(1)).await;
        }
    });
    both.expect("the workloads end")
}

fn check(sim: &Sim, works: [Workload; 2]) -> [Workload; 2] {
    works.map(|mut work| {
        let on = work.handle();
        let checked = sim.run(&on, LONG, async move {
            work.check_all().await;
            work
        });
        checked.expect("checking ends")
    })
}

/// What was flushed is there after the power was cut, on whichever reactor it was written.
#[test]
fn flushed_writes_of_all_reactors_survive_the_power() {
    let seed = fresh_seed();
    println!("seed {seed}");
    let sim = Sim::new(seed);
    for disk in DISKS {
        sim.add_disk(disk, drive_bytes(128 * MIB));
    }
    let (node, handles): (NodeId, _) = sim.start_node(2);
    let mut here = open(&sim, handles);
    let mut works = [0, 1].map(|n| Workload::new(here[n].clone(), SIZE, seed));
    for _ in 0..3 {
        works = run_both(&sim, &here, works);
        works = check(&sim, works);
        sim.power_cut(node, &DISKS);
        here = open(&sim, sim.restart_node(node, 2));
        let [first, second] = works;
        works = [first.go_on(here[0].clone()), second.go_on(here[1].clone())];
        works = check(&sim, works);
    }
}
