//! A target in this process: reactors, one drive, one or more volumes, exports. For tests and for measuring; the product wires the same
//! parts together in `main.rs`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, mpsc};

use keelblock_api::stats::StatsPage;
use keelblock_datapath::device::{DeviceSource, DeviceSpec, Latch};
use keelblock_datapath::nvmf::seam::{
    AnaState, ExportConfig, IoCounters, NamespaceConfig, NodeIdentity, TargetEvent,
};
use keelblock_datapath::nvmf::{Target, Volumes};
use keelblock_datapath::reactor::{self, Config, Endpoint, Handle, Reactors, mesh};
use keelblock_datapath::store::engine::{CacheBudget, StoreConfig};
use keelblock_datapath::store::{Name, VolumeId};
use keelblock_datapath::volume::{self, DriveOpening, Hub, Lanes, Registry, Volume, VolumeOpening};
use keelblock_datapath::{nvmf, reactor::Notify};

/// What to build.
#[derive(Clone)]
pub struct Setup {
    /// Reactors.
    pub config: Config,
    /// How many.
    pub reactors: usize,
    /// Where to listen.
    pub listen: SocketAddr,
    /// `memory:BYTES` or a path.
    pub device: String,
    /// Bytes of each volume.
    pub volume_bytes: u64,
    /// log2 of the LBA size.
    pub lba_shift: u8,
    /// What to export.
    pub exports: Vec<Export>,
}

/// A subsystem with one namespace of its own volume.
#[derive(Clone)]
pub struct Export {
    pub nqn: String,
    pub allowed_hosts: Option<Vec<String>>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            config: Config::default(),
            reactors: 1,
            listen: "127.0.0.1:0".parse().expect("an address"),
            device: "memory:67108864".into(),
            volume_bytes: 64 << 20,
            lba_shift: 12,
            exports: vec![Export {
                nqn: "nqn.2024-01.io.keelblock:test".into(),
                allowed_hosts: None,
            }],
        }
    }
}

struct Volumes1(Hub);

impl Volumes for Volumes1 {
    fn open(&self, id: &[u8; 16]) -> Option<Volume> {
        self.0.volume(VolumeId(*id))
    }

    fn commit(&self) -> bool {
        self.0.commit_now().is_ok()
    }

    fn counters(&self, _id: &[u8; 16]) -> IoCounters {
        IoCounters::default()
    }
}

/// A running target.
pub struct Running {
    pub address: SocketAddr,
    #[allow(dead_code)]
    pub reactors: Option<Reactors>,
    commands: Arc<Commands>,
}

/// A drive with room for so many bytes of data.
fn drive_bytes(data: u64) -> u64 {
    data * 5 / 4 + (64 << 20)
}

type Command = Box<dyn FnOnce(Target) -> std::pin::Pin<Box<dyn Future<Output = ()>>> + Send>;

struct Commands {
    queue: Mutex<Vec<Command>>,
}

struct Seed {
    target: Endpoint<nvmf::Message>,
    volumes: Endpoint<volume::Message>,
}

impl Setup {
    /// The configuration of an export, by number.
    pub fn export_config(&self, number: usize) -> ExportConfig {
        let id = [number as u8 + 1; 16];
        ExportConfig {
            nqn: Arc::from(self.exports[number].nqn.as_str()),
            serial: format!("TEST{number}"),
            namespaces: vec![NamespaceConfig {
                nsid: 1,
                volume: id,
                lba_shift: self.lba_shift,
                blocks: self.volume_bytes >> self.lba_shift,
                nguid: id,
                uuid: id,
                reservation: Vec::new(),
                volatile_cache: false,
            }],
            allowed_hosts: self.exports[number].allowed_hosts.clone(),
            ana_state: AnaState::Optimized,
            cntlid_min: 1,
            cntlid_max: 0xffef,
        }
    }

    /// Builds it; panics if anything goes wrong, as tests may.
    pub fn start(self) -> Running {
        let seeds: Vec<Seed> = mesh(self.reactors)
            .into_iter()
            .zip(mesh(self.reactors))
            .map(|(target, volumes)| Seed { target, volumes })
            .collect();
        let (ready, is_ready) = mpsc::channel();
        let commands = Arc::new(Commands {
            queue: Mutex::default(),
        });
        let config = self.config.clone();
        let for_main = commands.clone();
        let reactors = reactor::run(&config, seeds, move |handle, seed| {
            let (setup, ready, commands) = (self.clone(), ready.clone(), for_main.clone());
            async move { setup.run(handle, seed, ready, commands).await }
        });
        let reactors = reactors.expect("reactors start");
        let address = is_ready.recv().expect("the target starts");
        Running {
            address,
            reactors: Some(reactors),
            commands,
        }
    }

    async fn run(
        self,
        handle: Handle,
        seed: Seed,
        ready: mpsc::Sender<SocketAddr>,
        commands: Arc<Commands>,
    ) {
        let hub = Hub::start(&handle, seed.volumes).expect("buffers");
        let identity = NodeIdentity {
            firmware: "0.1.0".into(),
            model: "Keelblock".into(),
            address: self.listen,
        };
        let target = Target::start(
            &handle,
            seed.target,
            Box::new(Volumes1(hub.clone())),
            identity,
        )
        .expect("the target listens");
        if handle.id().0 != 0 {
            return;
        }
        let stats = StatsPage::create(self.reactors as u32, 64, [1; 16], 0).expect("a stats page");
        let registry = Registry::start(&hub, stats);
        let spec = DeviceSpec::parse(&self.device).expect("a device");
        let total = self.volume_bytes * self.exports.len() as u64;
        let bytes = drive_bytes(total);
        let spec = match spec {
            // What was asked for is room for volumes; the store takes some for itself.
            DeviceSpec::Memory { bytes: asked } => DeviceSpec::Memory {
                bytes: asked.max(bytes),
            },
            file => file,
        };
        let source = DeviceSource::prepare(&spec, bytes).expect("the device is there");
        let opening = DriveOpening {
            source,
            latch: Latch::new(|why| eprintln!("drive failed: {why}")),
            faults: Arc::new(|fault| eprintln!("damaged: {fault:?}")),
            drive: Name::new("drive").expect("a name"),
            pool: Name::new("pool").expect("a name"),
            format: true,
            config: StoreConfig {
                cache: CacheBudget::new(32 << 20),
            },
        };
        let opened = registry.open_drive(opening).await;
        let (drive, facts) = opened.expect("the drive opens");
        for number in 0..self.exports.len() {
            let config = self.export_config(number);
            let id = VolumeId(config.namespaces[0].volume);
            let (size_bytes, lanes) = (
                self.volume_bytes,
                Lanes::for_size(self.volume_bytes).count(),
            );
            let made = registry.on_drive(drive, move |hub| async move {
                let all: Vec<u8> = (0..lanes as u8).collect();
                let store = hub.store(drive).expect("it is open");
                store.create_lanes(id, &all, lanes as u8, size_bytes).await
            });
            made.await.expect("a volume");
            let opening = VolumeOpening {
                id,
                size_bytes,
                drives: vec![drive; lanes],
                volatile_cache: facts.volatile_cache,
                replicated: false,
            };
            registry.open(opening).await;
            target.export(config).await.expect("an export");
        }
        let events = target.clone();
        handle.spawn("test-events", async move {
            loop {
                if let TargetEvent::ReservationChanged {
                    nqn,
                    nsid,
                    generation,
                    ..
                } = events.next_event().await
                {
                    events.commit_reservation(&nqn, nsid, generation).await;
                }
            }
        });
        ready.send(target.address()).expect("the starter waits");
        let tick = Notify::new();
        loop {
            let next = commands.queue.lock().expect("not poisoned").pop();
            if let Some(command) = next {
                command(target.clone()).await;
            }
            let _ = handle
                .timeout(std::time::Duration::from_millis(20), tick.notified())
                .await;
        }
    }
}

impl Running {
    /// Runs something on the main reactor and waits for its result.
    #[allow(dead_code)]
    pub fn command<R, F>(&self, f: impl FnOnce(Target) -> F + Send + 'static) -> R
    where
        R: Send + 'static,
        F: Future<Output = R> + 'static,
    {
        let (send, receive) = mpsc::channel();
        let command: Command = Box::new(move |target| {
            let run = f(target);
            Box::pin(async move {
                let _ = send.send(run.await);
            })
        });
        self.commands
            .queue
            .lock()
            .expect("not poisoned")
            .push(command);
        receive.recv().expect("the main reactor answers")
    }
}
