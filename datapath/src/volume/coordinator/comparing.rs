//! Frames of a resync with one replica (`docs/replication.md` §§5 and 11): what was asked and not answered, and the bytes that go to and fro.

use std::cell::Cell;

use super::asking::Asking;
use super::driver::{Copying, NotRead};
use super::frames::Frame;
use crate::replication::seam::Entry;
use crate::replication::wire::WireError;
use crate::replication::wire::frame::{HEADER_BYTES, Kind};
use crate::replication::wire::resync::{
    AskLeaf, AskSummaries, Copied, CopyWriter, Leaf, NotCopied, NotRead as NotFound, Summaries,
};

/// See the module's text.
#[derive(Default)]
pub(super) struct Comparing {
    pub summaries: Asking<AskSummaries, Vec<u32>>,
    pub leaves: Asking<AskLeaf, Vec<Entry>>,
    pub copies: Asking<u64, Result<(), NotCopied>>,
    moved: Cell<u64>,
}

impl Comparing {
    /// Bytes of frames in both directions so far.
    pub fn moved(&self) -> u64 {
        self.moved.get()
    }

    fn count(&self, body: usize, data: usize) {
        let bytes = (HEADER_BYTES + body + data) as u64;
        self.moved.set(self.moved.get() + bytes);
    }

    /// A frame goes out.
    pub fn counted(&self, frame: &Frame) {
        let data = frame.data.iter().map(|(_, part)| part.len()).sum();
        self.count(frame.body.len(), data);
    }

    /// No answer comes any more.
    pub fn end(&self) {
        self.summaries.end();
        self.leaves.end();
        self.copies.end();
    }

    /// A frame came; false: it is none of these.
    pub fn heard(&self, kind: Kind, body: &[u8]) -> Result<bool, WireError> {
        match kind {
            Kind::Summaries => {
                let said = Summaries::decode(body)?;
                let all = said.summaries.map(|all| all.iter().collect());
                self.summaries.answer(&said.asked, all.map_err(why));
            }
            Kind::Leaf => {
                let said = Leaf::decode(body)?;
                let all = said.entries.map(|all| {
                    let mut leaf = Vec::new();
                    for found in all.iter() {
                        leaf.resize(usize::from(found.index), Entry::ABSENT);
                        leaf.push(found.entry);
                    }
                    leaf
                });
                self.leaves.answer(&said.asked, all.map_err(why));
            }
            Kind::Copied => {
                let said = Copied::decode(body)?;
                self.copies.answer(&said.request, Ok(said.result));
            }
            _ => return Ok(false),
        }
        self.count(body.len(), 0);
        Ok(true)
    }
}

fn why(not: NotFound) -> NotRead {
    match not {
        NotFound::Unknown => NotRead::Away,
        NotFound::Failed => NotRead::Damaged,
    }
}

/// A frame without data.
pub(super) fn bare(kind: Kind, put: impl FnOnce(&mut Vec<u8>)) -> Frame {
    let mut body = Vec::new();
    put(&mut body);
    Frame {
        kind,
        body,
        data: Vec::new(),
    }
}

/// The frame of copies.
///
/// # Panics
/// If they are more than a frame has room for.
pub(super) fn copy_frame(request: u64, copies: &[Copying]) -> Frame {
    let mut writer = CopyWriter::default();
    writer.begin(request);
    let mut data = Vec::new();
    for copy in copies {
        let (position, flags) = copy.place();
        let record = copy.record.record(position, flags);
        assert!(writer.add(&record), "copies within a frame's bounds");
        data.extend(copy.data.clone());
    }
    Frame {
        kind: Kind::Copy,
        body: writer.finish().0.to_vec(),
        data,
    }
}
