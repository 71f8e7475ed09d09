//! What has come: one large buffer, received with one call, parsed in place.
//!
//! Data of small reads is copied from it to the command's buffer, which is the only copy. When a call leaves us in the middle
//! of a longer transfer, the next one receives straight into the command's buffer, and what follows into ours.

use super::error::{Error, Result};
use super::slot::Slots;
use super::socket::{Negotiated, Socket};
use crate::digest::{digest, digest_append};
use crate::pdu::{
    C2HData, COMMON_HEADER_LEN, CapsuleResp, CommonHeader, DIGEST_LEN, Fes, PduError, PduType, R2T,
    Sender, TermReq,
};
use crate::{Cqe, Status};

/// What one receive may bring: about 32 small reads. More costs as much per read, and lets the controller run dry meanwhile.
const BUFFER_BYTES: usize = 128 << 10;
/// From here on a transfer's rest is received in place.
const DIRECT_BYTES_MIN: usize = 8 << 10;

/// Length of every header that a controller sends once the connection is made.
const DATA_HEADER_LEN: usize = PduType::C2HData.header_len();

/// Something that the queue pair must act on.
#[derive(Debug)]
pub(super) enum Event {
    /// A command completed.
    Response(Cqe),
    /// The controller wants data.
    Ready(R2T),
}

/// What the next received byte belongs to.
#[derive(Clone, Copy, Debug)]
enum State {
    Header,
    Data(Incoming),
    DataDigest(Incoming),
}

/// A C2HData in progress.
#[derive(Clone, Copy, Debug)]
struct Incoming {
    cid: u16,
    /// Where in the command's buffer the next byte goes.
    at: usize,
    left: usize,
    digest: u32,
    /// No response capsule will follow.
    completes: bool,
}

/// The receive side of a queue pair.
#[derive(Debug)]
pub(super) struct Inbox {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    state: State,
    negotiated: Negotiated,
}

impl Inbox {
    pub(super) fn new(negotiated: Negotiated) -> Self {
        Self {
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            state: State::Header,
            negotiated,
        }
    }

    /// The header of the PDU that could not be parsed, as far as it is known.
    pub(super) fn last_header(&self) -> &[u8] {
        match self.state {
            State::Header => &self.buffer[self.start..self.end.min(self.start + DATA_HEADER_LEN)],
            _ => &[],
        }
    }

    /// Receives with one call. All events must have been taken before.
    pub(super) fn fill(&mut self, socket: &mut Socket, slots: &mut Slots) -> Result<()> {
        // What is left is less than a header: moving it costs nothing.
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if let State::Data(mut incoming) = self.state
            && incoming.left >= DIRECT_BYTES_MIN
            && self.end == 0
        {
            let part = fill_target(slots, &incoming)?;
            let n = socket.receive_two(part, &mut self.buffer)?;
            let direct = n.min(incoming.left);
            if self.negotiated.digests.data {
                incoming.digest = digest_append(incoming.digest, &part[..direct]);
            }
            incoming.at += direct;
            incoming.left -= direct;
            self.state = State::Data(incoming);
            self.end = n - direct;
            return Ok(());
        }
        self.end += socket.receive(&mut self.buffer[self.end..])?;
        Ok(())
    }

    /// The next event among the received bytes; `None` when they are used up but for the beginning of a header.
    pub(super) fn next(&mut self, slots: &mut Slots) -> Result<Option<Event>> {
        loop {
            match self.state {
                State::Header => match self.header(slots)? {
                    Step::More => return Ok(None),
                    Step::Next => {}
                    Step::Event(event) => return Ok(Some(event)),
                },
                State::Data(mut incoming) => {
                    self.copy(&mut incoming, slots)?;
                    self.state = State::Data(incoming);
                    if incoming.left > 0 {
                        return Ok(None);
                    }
                    if self.negotiated.digests.data {
                        self.state = State::DataDigest(incoming);
                    } else if let Some(event) = self.data_done(&incoming, slots) {
                        return Ok(Some(event));
                    }
                }
                State::DataDigest(incoming) => {
                    let Some(sent) = self.buffer[self.start..self.end].first_chunk::<DIGEST_LEN>()
                    else {
                        return Ok(None);
                    };
                    if u32::from_le_bytes(*sent) != incoming.digest {
                        return Err(Error::DataDigest { cid: incoming.cid });
                    }
                    self.start += DIGEST_LEN;
                    if let Some(event) = self.data_done(&incoming, slots) {
                        return Ok(Some(event));
                    }
                }
            }
        }
    }

    fn header(&mut self, slots: &mut Slots) -> Result<Step> {
        let bytes = &self.buffer[self.start..self.end];
        let Some(common) = bytes.first_chunk::<COMMON_HEADER_LEN>() else {
            return Ok(Step::More);
        };
        let digests = self.negotiated.digests;
        let header = CommonHeader::parse(common, Sender::Controller, digests.header)?;
        let digest_len = if digests.header && header.kind.has_header_digest() {
            DIGEST_LEN
        } else {
            0
        };
        let hlen = header.kind.header_len();
        if bytes.len() < hlen + digest_len {
            return Ok(Step::More);
        }
        if digest_len > 0 {
            check_header_digest(&bytes[..hlen], &bytes[hlen..hlen + DIGEST_LEN])?;
        }
        let first = bytes
            .first_chunk::<DATA_HEADER_LEN>()
            .expect("no header is shorter than 24 bytes");
        match header.kind {
            PduType::CapsuleResp => {
                let cqe = CapsuleResp::cqe(first);
                self.start += header.plen as usize;
                Ok(Step::Event(Event::Response(cqe)))
            }
            PduType::R2T => {
                let r2t = R2T::parse(first);
                self.start += header.plen as usize;
                Ok(Step::Event(Event::Ready(r2t)))
            }
            PduType::C2HData => {
                let range = header.data_range(digests, self.negotiated.receive_align)?;
                if bytes.len() < range.start {
                    return Ok(Step::More);
                }
                let pdu = C2HData::parse(&header, first, digests, self.negotiated.receive_align)?;
                self.state = State::Data(begin(&pdu, slots)?);
                self.start += range.start;
                Ok(Step::Next)
            }
            PduType::C2HTermReq => Err(Error::Terminated(TermReq::parse(first))),
            _ => Err(PduError::sequence("a PDU that only begins a connection").into()),
        }
    }

    fn copy(&mut self, incoming: &mut Incoming, slots: &mut Slots) -> Result<()> {
        let n = incoming.left.min(self.end - self.start);
        let bytes = &self.buffer[self.start..self.start + n];
        fill_target(slots, incoming)?[..n].copy_from_slice(bytes);
        if self.negotiated.digests.data {
            incoming.digest = digest_append(incoming.digest, bytes);
        }
        incoming.at += n;
        incoming.left -= n;
        self.start += n;
        Ok(())
    }

    fn data_done(&mut self, incoming: &Incoming, slots: &mut Slots) -> Option<Event> {
        self.state = State::Header;
        if let Some(slot) = slots.in_flight(incoming.cid) {
            slot.received = incoming.at;
        }
        incoming
            .completes
            .then(|| Event::Response(Cqe::new(incoming.cid, 0, Status::SUCCESS, 0, 0)))
    }
}

enum Step {
    More,
    Next,
    Event(Event),
}

fn check_header_digest(header: &[u8], sent: &[u8]) -> Result<()> {
    let computed = digest(header);
    if sent == computed.to_le_bytes() {
        return Ok(());
    }
    let fei = sent.first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
    Err(PduError {
        fes: Fes::HeaderDigest,
        fei,
        what: "the header digest does not match",
    }
    .into())
}

/// Admits a C2HData: data of a command comes in order and within its buffer.
fn begin(pdu: &C2HData, slots: &mut Slots) -> Result<Incoming> {
    let (at, left) = (pdu.offset as usize, pdu.length as usize);
    let fits = slots
        .in_flight(pdu.cccid)
        .is_some_and(|s| s.received == at && s.fill_range(at, left).is_some());
    if !fits {
        return Err(PduError::out_of_range("data that no command in flight asked for").into());
    }
    Ok(Incoming {
        cid: pdu.cccid,
        at,
        left,
        digest: 0,
        completes: pdu.success,
    })
}

fn fill_target<'a>(slots: &'a mut Slots, incoming: &Incoming) -> Result<&'a mut [u8]> {
    let gone = PduError::sequence("a command completed in the middle of its data");
    slots
        .in_flight(incoming.cid)
        .and_then(|s| s.fill_range(incoming.at, incoming.left))
        .ok_or(gone.into())
}
