//! Data writes of a batch: what lies in one run goes out with one, and a large write from its own buffer.

use std::rc::Rc;

use super::super::types::BLOCK_BYTES;
use super::writer::{Batch, Data, Placed};
use super::{Inner, StoreError};

/// Bytes that are gathered into one data write.
pub const GATHER_BYTES: usize = 128 << 10;
/// Such gathered writes under way at a time.
pub const GATHERS_MAX: usize = 8;

impl Inner {
    pub(super) async fn send_data(self: &Rc<Self>, batch: &Rc<Batch>) {
        let count = batch.writes.borrow().len();
        let mut gather: Option<Gather> = None;
        for n in 0..count {
            let runs = batch.writes.borrow()[n].runs.clone();
            let mut from = 0;
            for run in runs {
                for block in 0..u64::from(run.blocks) {
                    let at = run.first.0 + block;
                    if gather.as_ref().is_some_and(|g| !g.takes(at)) {
                        self.send_gather(batch, gather.take().expect("there is one"));
                    }
                    if gather.is_none() {
                        let buffer = self.writer.gathers.take().await;
                        gather = Some(Gather {
                            first: at,
                            len: 0,
                            buffer,
                        });
                    }
                    let writes = batch.writes.borrow();
                    let data = writes[n].data.as_ref().expect("not sent");
                    let bytes = &data[from..from + BLOCK_BYTES];
                    gather.as_mut().expect("there is one").add(bytes);
                    from += BLOCK_BYTES;
                }
            }
        }
        if let Some(gather) = gather {
            self.send_gather(batch, gather);
        }
    }

    fn send_gather(self: &Rc<Self>, batch: &Rc<Batch>, mut gather: Gather) {
        batch.data_left.set(batch.data_left.get() + 1);
        let (this, batch) = (self.clone(), batch.clone());
        self.handle.spawn("store data", async move {
            let place = gather.first * BLOCK_BYTES as u64;
            let buffer = gather.buffer.lend();
            let (back, result) = this.device.write(place, buffer, gather.len, false).await;
            gather.buffer.back(back);
            this.wrote(gather.len as u64);
            drop(gather);
            this.data_done(&batch, result.map_err(StoreError::Io));
        });
    }

    /// A large write goes out from its own buffer, and completes by itself.
    pub(super) fn send_alone(self: &Rc<Self>, mut write: Placed) {
        let run = write.runs[0];
        let Some(Data::Own(data)) = write.data.take() else {
            unreachable!("it goes out from its own buffer, once");
        };
        let batch = self.new_batch(vec![write]);
        batch.data_left.set(1);
        self.writer.batches.borrow_mut().push_back(batch.clone());
        let this = self.clone();
        self.handle.spawn("store data", async move {
            let place = run.first.0 * BLOCK_BYTES as u64;
            let len = run.blocks as usize * BLOCK_BYTES;
            let (back, result) = this.device.write(place, data, len, false).await;
            batch.writes.borrow_mut()[0].data = Some(Data::Own(back));
            this.wrote(len as u64);
            this.data_done(&batch, result.map_err(StoreError::Io));
        });
    }
}

/// Blocks that go out with one data write.
struct Gather {
    first: u64,
    len: usize,
    buffer: super::buffers::Borrowed,
}

impl Gather {
    fn takes(&self, at: u64) -> bool {
        at == self.first + (self.len / BLOCK_BYTES) as u64 && self.len < GATHER_BYTES
    }

    fn add(&mut self, bytes: &[u8]) {
        self.buffer[self.len..self.len + BLOCK_BYTES].copy_from_slice(bytes);
        self.len += BLOCK_BYTES;
    }
}
