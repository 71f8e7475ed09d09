//! Drives that fail, on simulated disks.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::reactor::sim::{NodeId, Sim};

const MIB: u64 = 1 << 20;

struct World {
    sim: Sim,
    node: NodeId,
    handle: Handle,
    latch: Latch,
    reports: Arc<AtomicUsize>,
}

fn world() -> World {
    let sim = Sim::new(1);
    sim.add_disk("d", 4 * MIB);
    let (node, mut handles) = sim.start_node(1);
    let reports = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&reports);
    World {
        sim,
        node,
        handle: handles.remove(0),
        latch: Latch::new(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        }),
        reports,
    }
}

impl World {
    fn device(&self) -> Device {
        let source = DeviceSource::Sim { name: "d".into() };
        Device::open(&self.handle, &source, &self.latch).unwrap()
    }

    fn run<T: 'static>(&self, work: impl Future<Output = T> + 'static) -> T {
        let done = self.sim.run(&self.handle, Duration::from_secs(100), work);
        done.expect("it ends")
    }

    fn write(&self, offset: u64, byte: u8, fua: bool) -> Result<(), IoError> {
        let (device, handle) = (self.device(), self.handle.clone());
        self.run(async move {
            let mut buffer = handle.buffers().take(4096).await;
            buffer.fill(byte);
            device.write(offset, buffer, 4096, fua).await.1
        })
    }

    fn read(&self, offset: u64) -> Result<u8, IoError> {
        let (device, handle) = (self.device(), self.handle.clone());
        self.run(async move {
            let buffer = handle.buffers().take(4096).await;
            let (buffer, result) = device.read(offset, buffer, 4096).await;
            result.map(|()| {
                assert!(buffer.iter().all(|&b| b == buffer[0]));
                buffer[0]
            })
        })
    }

    fn flush(&self) -> Result<(), IoError> {
        let device = self.device();
        self.run(async move { device.flush().await })
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let device = self.device();
        self.run(async move { device.write_zeroes(offset, len).await })
    }
}

#[test]
fn a_failed_write_latches_the_drive_on_every_handle_once() {
    let w = world();
    w.write(0, 1, false).unwrap();
    w.sim.disk("d", |d| d.faults.fail_writes = true);
    assert_eq!(w.write(0, 2, false), Err(IoError::Failed));
    w.sim.disk("d", |d| d.faults.fail_writes = false);
    assert_eq!(
        w.write(0, 3, false),
        Err(IoError::Failed),
        "it stays latched"
    );
    assert_eq!(w.flush(), Err(IoError::Failed));
    assert_eq!(w.zero(0, MIB), Err(IoError::Failed));
    assert!(w.device().failed() && w.latch.why().is_some());
    assert_eq!(w.reports.load(Ordering::Relaxed), 1);
    assert!(w.read(0).is_ok(), "reads go on");
}

#[test]
fn a_failed_flush_latches_too() {
    let w = world();
    w.write(0, 1, false).unwrap();
    w.sim.disk("d", |d| d.faults.fail_writes = true);
    assert_eq!(w.flush(), Err(IoError::Failed));
    w.sim.disk("d", |d| d.faults.fail_writes = false);
    assert_eq!(
        w.flush(),
        Err(IoError::Failed),
        "what was lost is not forgotten by asking again"
    );
}

#[test]
fn what_cannot_be_read_says_nothing_about_the_rest() {
    let w = world();
    w.write(0, 1, false).unwrap();
    w.sim.disk("d", |d| {
        d.faults.unreadable = std::iter::once(4096..8192).collect()
    });
    assert_eq!(w.read(4096), Err(IoError::Unreadable));
    assert_eq!(w.read(0), Ok(1));
    w.write(8192, 2, false).unwrap();
    assert!(!w.device().failed());
}

#[test]
fn what_the_device_failed_is_counted() {
    let w = world();
    let device = w.device();
    let (other, handle) = (device.clone(), w.handle.clone());
    w.sim.disk("d", |d| d.faults.unreadable.push(4096..8192));
    w.sim.disk("d", |d| d.faults.fail_writes = true);
    w.run(async move {
        let mut buffer = handle.buffers().take(4096).await;
        for at in [0, 4096, 4096, 4 * MIB] {
            buffer = other.read(at, buffer, 4096).await.0;
        }
        for at in [4 * MIB, 0, 0] {
            buffer = other.write(at, buffer, 4096, false).await.0;
        }
    });
    // Outside of the drive is our mistake, and after the first failed write it was not asked any more.
    assert_eq!(
        device.errors(),
        Errors {
            reads: 2,
            writes: 1
        }
    );
}

#[test]
fn no_space_beneath_is_told_apart_and_latches() {
    let w = world();
    w.sim.disk("d", |d| d.faults.full = true);
    assert_eq!(w.write(0, 1, false), Err(IoError::NoSpace));
    assert_eq!(w.write(0, 1, false), Err(IoError::Failed));
}

#[test]
fn a_range_outside_is_the_callers_mistake() {
    let w = world();
    assert_eq!(w.write(4 * MIB, 1, false), Err(IoError::OutOfRange));
    assert_eq!(w.read(4 * MIB), Err(IoError::OutOfRange));
    assert_eq!(w.zero(4 * MIB - 4096, 8192), Err(IoError::OutOfRange));
    assert!(!w.device().failed());
}

#[test]
fn flushed_and_fua_writes_survive_the_power() {
    for fua in [false, true] {
        let mut w = world();
        assert!(w.device().volatile_cache());
        w.write(4096, 7, fua).unwrap();
        if !fua {
            w.flush().unwrap();
        }
        w.sim.power_cut(w.node, &["d"]);
        w.handle = w.sim.restart_node(w.node, 1).remove(0);
        assert_eq!(w.read(4096), Ok(7));
    }
}

#[test]
fn zeroes_replace_what_was_there() {
    let w = world();
    for block in 0..4 {
        w.write(block * 4096, 9, false).unwrap();
    }
    w.zero(4096, 8192).unwrap();
    let got: Vec<_> = (0..4).map(|block| w.read(block * 4096).unwrap()).collect();
    assert_eq!(got, [9, 0, 0, 9]);
}
