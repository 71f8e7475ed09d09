//! This program as a host: connects to a volume with NVMe/TCP like any other.
use super::check::{Bytes, Plan, Subject, check as carry_out};
use crate::failure::{Failure, Result};
use keelblock_nvme::initiator::{ConnectOptions, Controller, Error, IoQueue, Namespace};
use std::time::Duration;

/// Commands that the check's queue could hold; it has one in flight.
const QUEUE_DEPTH: u16 = 31;
/// Longest wait for an answer: a busy machine may take its time.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// The NQN by which volumes know this host.
pub fn nqn(cluster_id: &str) -> String {
    format!("nqn.2014-08.org.nvmexpress:uuid:{cluster_id}")
}

/// Connects to a volume, carries out a plan on it, and disconnects.
pub fn check(subject: &Subject, plan: Plan) -> Result<String> {
    let (controller, mut disk) = connect(subject)
        .map_err(|e| Failure::local(format!("connect to volume {}", subject.name), e))?;
    let found = carry_out(subject, plan, &mut disk)?;
    let left = controller.shutdown();
    left.map_err(|e| Failure::local(format!("disconnect from volume {}", subject.name), e))?;
    Ok(found)
}

/// A connection, and the namespace behind it.
pub type Path = (Controller, Disk);

/// Connects to a volume.
///
/// # Errors
/// The initiator's.
pub fn connect(subject: &Subject) -> std::result::Result<Path, Error> {
    // Host NQN and identifier go together: both are the cluster's id.
    let hostid = uuid::Uuid::try_parse(&subject.cluster_id)
        .unwrap_or_default()
        .into_bytes();
    let options = ConnectOptions {
        hostid,
        timeout: ANSWER_LIMIT,
        ..ConnectOptions::default()
    };
    let host = nqn(&subject.cluster_id);
    let mut controller = Controller::connect(subject.address, &subject.nqn, &host, &options)?;
    let namespace = Namespace::new(subject.nsid, &controller.namespace(subject.nsid)?)?;
    controller.set_io_queues(1)?;
    let queue = controller.io_queue(1, QUEUE_DEPTH)?;
    Ok((controller, Disk { queue, namespace }))
}

/// A namespace as bytes.
pub struct Disk {
    queue: IoQueue,
    namespace: Namespace,
}

impl Disk {
    fn blocks(&self, bytes: u64) -> u64 {
        bytes / u64::from(self.namespace.block_bytes)
    }
}

impl Bytes for Disk {
    type Error = Error;

    fn read(&mut self, offset: u64, into: &mut [u8]) -> std::result::Result<(), Error> {
        let count = self.blocks(into.len() as u64) as usize;
        let data = self
            .queue
            .read(&self.namespace, self.blocks(offset), count)?;
        into.copy_from_slice(&data);
        Ok(())
    }

    fn write(&mut self, offset: u64, from: &[u8]) -> std::result::Result<(), Error> {
        self.queue.write(&self.namespace, self.blocks(offset), from)
    }

    fn flush(&mut self) -> std::result::Result<(), Error> {
        self.queue.flush(&self.namespace)
    }
}
