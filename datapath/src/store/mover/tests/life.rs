//! The drives from outside: formatted, halted, cut off from power, opened again.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::super::Name;
use super::super::super::check::{BlockReader, CheckOptions, Report, check};
use super::super::super::engine::{CacheBudget, Store, StoreConfig};
use super::shared::{Model, Shared};
use super::{DISKS, VOLUME};
use crate::device::{Device, DeviceSource, Latch};
use crate::reactor::Handle;
use crate::reactor::sim::{NodeId, Sim};

/// Virtual time that nothing needs.
pub const LONG: Duration = Duration::from_secs(3000);

pub struct Peek<'a>(&'a Sim, &'static str);

impl BlockReader for Peek<'_> {
    fn blocks(&self) -> u64 {
        self.0.disk(self.1, |d| d.bytes()) / 4096
    }

    fn read(&self, block: u64, into: &mut [u8; 4096]) -> std::io::Result<()> {
        self.0.disk(self.1, |d| d.peek(block * 4096, into));
        Ok(())
    }
}

pub struct Life {
    pub sim: Rc<Sim>,
    pub node: NodeId,
    pub shared: Rc<Shared>,
    pub random: StdRng,
}

pub async fn open(handle: Handle, format: bool) -> Vec<Store> {
    let mut stores = Vec::new();
    for disk in DISKS {
        let source = DeviceSource::Sim { name: disk.into() };
        let device = Device::open(&handle, &source, &Latch::new(|_| {})).unwrap();
        if format {
            let (d, p) = (Name::new(disk).unwrap(), Name::new("p").unwrap());
            let formatted = Store::format(&handle, &device, &d, &p).await;
            formatted.expect("it is formatted");
        }
        let config = StoreConfig {
            cache: CacheBudget::new(256 << 10),
        };
        let opened = Store::open(&handle, &device, &config).await;
        stores.push(opened.expect("it opens"));
    }
    stores
}

pub fn shared(handle: &Handle, stores: Vec<Store>, model: Model) -> Rc<Shared> {
    Rc::new(Shared {
        stores: RefCell::new(stores),
        home: RefCell::default(),
        model: RefCell::new(model),
        handle: handle.clone(),
        closed: Cell::new(false),
        in_flight: Cell::new(0),
        changing: tokio::sync::Mutex::new(()),
        copied: Cell::new(0),
        cancel_at: Cell::new(u64::MAX),
        when_held: RefCell::default(),
    })
}

impl Life {
    pub fn new(seed: u64) -> Self {
        Self::with(seed, [40, 40])
    }

    /// With drives of so many MiB.
    pub fn with(seed: u64, mib: [u64; 2]) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let sim = Rc::new(Sim::new(random.random()));
        for (disk, mib) in DISKS.into_iter().zip(mib) {
            sim.add_disk(disk, mib << 20);
            let volatile = random.random_range(0..4) > 0;
            sim.disk(disk, |d| d.volatile_cache = volatile);
        }
        let (node, handles) = sim.start_node(1);
        let handle = &handles[0];
        let stores = sim.run(handle, LONG, open(handle.clone(), true)).unwrap();
        let shared = shared(handle, stores, Model::default());
        let life = Self {
            sim,
            node,
            shared,
            random,
        };
        life.run(|s| async move {
            for store in s.all() {
                store.set_members(2).await.expect("it is told");
            }
            let store = s.stores.borrow()[0].clone();
            let made = store.create_lanes(VOLUME, &[0], 1, 1 << 30).await;
            made.expect("a lane");
            s.home.borrow_mut().insert(VOLUME, 0);
            s.model.borrow_mut().live.entry(VOLUME).or_default();
        });
        life
    }

    pub fn run<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        work: impl FnOnce(Rc<Shared>) -> F,
    ) -> T {
        let done = self
            .sim
            .run(&self.shared.handle, LONG, work(self.shared.clone()));
        done.expect("it ends")
    }

    pub fn check(&self, when: &str, data: bool) -> [Report; 2] {
        DISKS.map(|disk| {
            let report = check(&Peek(&self.sim, disk), CheckOptions { data });
            assert!(report.is_clean(), "{disk} {when}:\n{}", report.text());
            report
        })
    }

    /// The power goes, or the process; both drives are opened again, perhaps with another crash in that.
    pub fn crash(&mut self) {
        let model = self.shared.model.take();
        let mut again = self.random.random_range(0..3) == 0;
        loop {
            match self.random.random_range(0..4) {
                0 => self.sim.kill(self.node),
                _ => self.sim.power_cut(self.node, &DISKS),
            }
            for disk in DISKS {
                self.sim.disk(disk, |d| d.go_on());
            }
            let reports = self.check("after a crash", false);
            let handle = self.sim.restart_node(self.node, 1).remove(0);
            if again {
                let (disk, events) = (
                    self.random.random_range(0..2),
                    self.random.random_range(1..40),
                );
                self.sim.disk(DISKS[disk], |d| d.halt_after(events));
            }
            let opened = self.sim.run(&handle, LONG, open(handle.clone(), false));
            if let Some(stores) = opened
                && DISKS.iter().all(|d| !self.sim.disk(d, |d| d.halted()))
            {
                for disk in DISKS {
                    self.sim.disk(disk, |d| d.go_on());
                }
                self.shared = shared(&handle, stores, model);
                let seen = &mut self.shared.model.borrow_mut().seen;
                seen.half += usize::from(reports.iter().any(|r| r.roots[3] > 0));
                break;
            }
            assert!(again, "opening ends");
            again = false;
        }
        self.run(|s| async move {
            s.put_right().await;
            s.verify().await;
        });
        for store in self.shared.all() {
            store.check();
        }
    }

    /// Opens the drives, which were closed, again.
    pub fn open_again(&mut self) {
        self.open_unseen();
        self.run(|s| async move { s.verify().await });
    }

    /// The same, without a look at what they hold.
    pub fn open_unseen(&mut self) {
        self.sim.power_cut(self.node, &DISKS);
        let handle = self.sim.restart_node(self.node, 1).remove(0);
        let opened = self.sim.run(&handle, LONG, open(handle.clone(), false));
        let model = self.shared.model.take();
        self.shared = shared(&handle, opened.expect("opening ends"), model);
        self.run(|s| async move { s.put_right().await });
    }

    pub fn close(&mut self) -> [Report; 2] {
        self.run(|s| async move {
            for store in s.all() {
                store.check();
                store.close().await.expect("it closes");
            }
        });
        self.check("when closed", true)
    }

    /// Where the volume is.
    pub fn home(&self) -> usize {
        self.shared.home.borrow()[&VOLUME]
    }
}
