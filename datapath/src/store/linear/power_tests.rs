//! Pools on simulated drives: the process is killed or the power is cut at any moment of any command, over and over. What was answered holds,
//! what was under way is old or new, and no volume ever shows bytes that it did not write.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::pool::Candidate;
use super::*;
use crate::device::{Device, DeviceSource, Latch};
use crate::reactor::Handle;
use crate::reactor::sim::Sim;

const MIB: u64 = 1 << 20;
const DRIVES: [(&str, u64); 2] = [("d0", 9 * MIB), ("d1", 6 * MIB)];
const NAMES: [&str; 2] = ["d0", "d1"];
/// Virtual time that no command needs.
const LONG: Duration = Duration::from_secs(1000);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Command {
    Create(u8, u64),
    Grow(u8, u64),
    Delete(u8),
}

/// What was answered, and what was asked last.
#[derive(Clone, Debug, Default)]
struct Model {
    sizes: BTreeMap<u8, u64>,
    asked: Option<Command>,
}

impl Model {
    fn done(&mut self, command: Command) {
        match command {
            Command::Create(n, size) | Command::Grow(n, size) => drop(self.sizes.insert(n, size)),
            Command::Delete(n) => drop(self.sizes.remove(&n)),
        }
        self.asked = None;
    }
}

fn id(n: u8) -> VolumeId {
    VolumeId([n; 16])
}

fn devices(handle: &Handle) -> Vec<Device> {
    let open = |name: &str| {
        let source = DeviceSource::Sim {
            name: name.to_owned(),
        };
        Device::open(handle, &source, &Latch::new(|_| {})).unwrap()
    };
    NAMES.map(open).to_vec()
}

async fn open(handle: &Handle, devices: &[Device]) -> Result<Pool, PoolError> {
    let candidates = devices.iter().enumerate().map(|(n, device)| Candidate {
        id: Name::new(NAMES[n]).unwrap(),
        number: n as u32,
        device: device.clone(),
    });
    Pool::open(
        Name::new("p").unwrap(),
        candidates.collect(),
        true,
        handle.buffers(),
    )
    .await
}

/// Writes or checks the first block of every grain.
async fn each_grain(handle: &Handle, devices: &[Device], volume: &PoolVolume, write: bool) {
    let mut buffer = handle.buffers().take(4096).await;
    for extent in volume.extents.as_ref().unwrap().iter() {
        let device = &devices[extent.drive as usize];
        for at in (0..extent.end - extent.start).step_by(GRAIN_BYTES as usize) {
            let place = extent.drive_start + at;
            let result;
            if write {
                buffer.fill(volume.id.0[0]);
                (buffer, result) = device.write(place, buffer, 4096, true).await;
            } else {
                (buffer, result) = device.read(place, buffer, 4096).await;
                // A block that was being written may be torn between zeroes and ours.
                let ours = |&b: &u8| b == 0 || b == volume.id.0[0];
                assert!(
                    buffer[..4096].iter().all(ours),
                    "volume {} shows foreign bytes",
                    volume.id
                );
            }
            result.unwrap();
        }
    }
}

/// Opens the pool, checks it against the model, takes over what became of the command that was cut, and goes on with random commands.
async fn live(handle: Handle, model: Rc<RefCell<Model>>, mut random: StdRng) {
    let devices = devices(&handle);
    let mut pool = open(&handle, &devices).await.unwrap();
    settle(&pool, &mut model.borrow_mut());
    for volume in pool.volumes() {
        each_grain(&handle, &devices, &volume, false).await;
    }
    loop {
        let (n, size) = (random.random_range(1..5), random.random_range(1..4) * MIB);
        let command = match (model.borrow().sizes.get(&n), random.random_range(0..3)) {
            (None, _) => Command::Create(n, size),
            (Some(&had), 0) => Command::Grow(n, had.max(size)),
            (Some(_), _) => Command::Delete(n),
        };
        model.borrow_mut().asked = Some(command);
        let result = match command {
            Command::Create(n, size) => pool.create(id(n), size, handle.buffers()).await.map(Some),
            Command::Grow(n, size) => pool.grow(id(n), size, handle.buffers()).await.map(Some),
            Command::Delete(n) => pool.delete(id(n), handle.buffers()).await.map(|()| None),
        };
        match result {
            Ok(volume) => {
                model.borrow_mut().done(command);
                if let Some(volume) = volume {
                    each_grain(&handle, &devices, &volume, false).await;
                    each_grain(&handle, &devices, &volume, true).await;
                }
            }
            Err(PoolError::Full { .. }) => model.borrow_mut().asked = None,
            Err(e) => panic!("{command:?}: {e}"),
        }
    }
}

fn settle(pool: &Pool, model: &mut Model) {
    let found: BTreeMap<u8, u64> = pool
        .volumes()
        .iter()
        .map(|v| (v.id.0[0], v.size_bytes))
        .collect();
    if found != model.sizes {
        let asked = model
            .asked
            .unwrap_or_else(|| panic!("found {found:?}, answered was {model:?}"));
        model.done(asked);
        assert_eq!(found, model.sizes, "neither old nor new after {asked:?}");
    }
    model.asked = None;
    assert!(pool.volumes().iter().all(|v| v.extents.is_some()));
    assert_eq!(
        pool.used_bytes(),
        found.values().sum::<u64>(),
        "space is lost"
    );
}

#[test]
fn pools_live_through_power_cuts_and_kills() {
    let seed: u64 = StdRng::from_os_rng().random::<u32>().into();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let sim = Sim::new(seed);
    for (name, bytes) in DRIVES {
        sim.add_disk(name, bytes);
    }
    let model = Rc::new(RefCell::new(Model::default()));
    let (node, mut handles) = sim.start_node(1);
    let mut cut_in_a_command = 0;
    for _ in 0..20 {
        let life = live(
            handles[0].clone(),
            Rc::clone(&model),
            StdRng::seed_from_u64(random.random()),
        );
        let lasts = Duration::from_micros(random.random_range(100..30_000));
        assert!(
            sim.run(&handles[0], lasts, life).is_none(),
            "it lives until it is cut"
        );
        handles.clear();
        cut_in_a_command += usize::from(model.borrow().asked.is_some());
        if random.random_range(0..4) > 0 {
            sim.power_cut(node, &NAMES);
        } else {
            sim.kill(node);
        }
        handles = sim.restart_node(node, 1);
    }
    assert!(cut_in_a_command > 0, "no cut hit a command");
}

/// A drive that fails: the command says so, the pool goes on without it, and after a restart everything answered is there.
#[test]
fn a_failing_drive_fails_commands_and_nothing_else() {
    let sim = Sim::new(7);
    for (name, bytes) in DRIVES {
        sim.add_disk(name, bytes);
    }
    let (node, handles) = sim.start_node(1);
    let handle = handles[0].clone();
    let opened = sim.run(&handles[0], LONG, async move {
        let devices = devices(&handle);
        let mut pool = open(&handle, &devices).await.unwrap();
        let volume = pool.create(id(1), 4 * MIB, handle.buffers()).await.unwrap();
        (handle, devices, pool, volume)
    });
    let (handle, devices, mut pool, volume) = opened.unwrap();
    let home = volume.extents.as_ref().unwrap()[0].drive as usize;
    sim.disk(NAMES[home], |d| d.faults.fail_writes = true);
    let failed = sim.run(&handles[0], LONG, async move {
        let grown = pool.grow(id(1), 5 * MIB, handle.buffers()).await;
        assert!(
            matches!(
                grown,
                Err(PoolError::Io { .. } | PoolError::Drive(DriveError::Io { .. }))
            ),
            "{grown:?}"
        );
        assert!(devices[home].failed());
        // New volumes go to the drive that works.
        let other = pool.create(id(2), MIB, handle.buffers()).await.unwrap();
        assert!(
            other
                .extents
                .unwrap()
                .iter()
                .all(|e| e.drive as usize != home)
        );
        assert_eq!(pool.volume(id(1)).unwrap().size_bytes, 4 * MIB);
    });
    failed.unwrap();
    drop(handles);
    sim.power_cut(node, &NAMES);
    sim.disk(NAMES[home], |d| d.faults.fail_writes = false);
    let handle = sim.restart_node(node, 1).remove(0);
    let on = handle.clone();
    let checked = sim.run(&on, LONG, async move {
        let devices = self::devices(&handle);
        let pool = open(&handle, &devices).await.unwrap();
        let sizes: Vec<u64> = pool.volumes().iter().map(|v| v.size_bytes).collect();
        assert_eq!(sizes, [4 * MIB, MIB]);
    });
    checked.unwrap();
}
