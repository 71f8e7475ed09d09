//! A connection before it has a queue: ICReq, then Connect (NVMe/TCP 3.1, 'Transport Connection Establishment').
//!
//! One task, plain reads and sends, a time limit on each phase. The Connect goes to the home of its subsystem with the socket. A refused
//! one comes back here, on whichever reactor refused it, since the host may try again on the same connection.

use std::io::IoSlice;
use std::rc::Rc;

use keelblock_nvme::fabrics::CONNECT_DATA_LEN;

use keelblock_nvme::opcode::{FABRICS, fabrics};
use keelblock_nvme::pdu::{PduError, TERM_DATA_MAX};
use keelblock_nvme::sgl::Sgl;
use keelblock_nvme::{Fuse, Sqe};

use super::conn::pdu::{self, CAPSULE_HLEN, IC, Incoming, Params, SQE_AT, data_intact};
use super::conn::transfer::{Transfer, Transfers};
use super::connect;
use super::limits::{CONNECT_ATTEMPTS, CONNECT_TIMEOUT, IC_TIMEOUT};
use super::message::Candidate;
use super::node::Node;
use super::seam::Reply;
use super::{status, term, uses_sgl};
use crate::reactor::{NetError, Socket};

/// Why a handshake ends without a queue.
enum End {
    Closed,
    Fatal(PduError, Vec<u8>),
}

impl From<NetError> for End {
    fn from(_: NetError) -> Self {
        End::Closed
    }
}

struct Handshake {
    node: Rc<Node>,
    socket: Rc<Socket>,
    params: Params,
    /// Received, not yet taken.
    bytes: Vec<u8>,
    /// Commands that came.
    commands: u16,
}

/// A new connection.
pub async fn begin(node: Rc<Node>, socket: Socket) {
    let socket = Rc::new(socket);
    let place = node.half_open(&socket);
    let mut handshake = Handshake {
        node: node.clone(),
        socket,
        params: Params::default(),
        bytes: Vec::new(),
        commands: 0,
    };
    let negotiated = node.handle.timeout(IC_TIMEOUT, handshake.negotiate()).await;
    match negotiated {
        Ok(Ok(())) => handshake.connect(0).await,
        Ok(Err(end)) => handshake.end(end).await,
        Err(_) => {}
    }
    node.no_longer_half_open(place);
}

/// A connection whose Connect was refused, with the refusal still to be sent.
pub async fn again(node: Rc<Node>, candidate: Candidate, refusal: Reply) {
    let Candidate {
        socket,
        params,
        rest,
        cid,
        attempts,
        ..
    } = candidate;
    let socket = Rc::new(node.handle.adopt(socket));
    let place = node.half_open(&socket);
    let handshake = Handshake {
        node: node.clone(),
        socket,
        params,
        bytes: rest,
        commands: 1,
    };
    if handshake.answer(cid, &refusal).await.is_ok() && attempts < CONNECT_ATTEMPTS {
        handshake.connect(attempts).await;
    }
    node.no_longer_half_open(place);
}

impl Handshake {
    async fn end(&mut self, end: End) {
        if let End::Fatal(fatal, offender) = end {
            tracing::debug!(peer = %self.socket.peer(), %fatal, "handshake refused");
            term::say(&self.node.handle, &self.socket, fatal, &offender).await;
        }
    }

    fn fatal(&self, error: PduError) -> End {
        End::Fatal(
            error,
            self.bytes.iter().take(TERM_DATA_MAX).copied().collect(),
        )
    }

    /// Receives until `n` bytes are there.
    async fn fill(&mut self, n: usize) -> Result<(), End> {
        while self.bytes.len() < n {
            let mut buf = [0; 1024];
            match self.socket.recv(&mut buf).await? {
                0 => return Err(End::Closed),
                got => self.bytes.extend_from_slice(&buf[..got]),
            }
        }
        Ok(())
    }

    async fn send(&self, mut bytes: &[u8]) -> Result<(), End> {
        while !bytes.is_empty() {
            match self.socket.try_send(&[IoSlice::new(bytes)])? {
                0 => self.socket.writable().await?,
                n => bytes = &bytes[n..],
            }
        }
        Ok(())
    }

    async fn negotiate(&mut self) -> Result<(), End> {
        loop {
            if let Some((params, resp)) = pdu::negotiate(&self.bytes).map_err(|e| self.fatal(e))? {
                self.bytes.drain(..IC);
                self.params = params;
                return self.send(&resp).await;
            }
            self.fill(self.bytes.len() + 1).await?;
        }
    }

    /// Waits for a Connect and gives the connection to the subsystem's home.
    async fn connect(mut self, mut attempts: u32) {
        let node = self.node.clone();
        loop {
            match node.handle.timeout(CONNECT_TIMEOUT, self.command()).await {
                Err(_) => return,
                Ok(Err(end)) => return self.end(end).await,
                Ok(Ok(None)) => attempts += 1,
                Ok(Ok(Some((sqe, data)))) => {
                    attempts += 1;
                    let cid = sqe.cid();
                    let (peer, local) = (self.socket.peer(), self.node.address);
                    match connect::parse(&sqe, &data, peer, local) {
                        Ok(request) => {
                            let Ok(socket) = Rc::try_unwrap(self.socket) else {
                                unreachable!("only the handshake holds the socket")
                            };
                            let (params, rest) = (self.params, self.bytes);
                            let socket = socket.detach();
                            return node.admit(Candidate {
                                socket,
                                params,
                                rest,
                                request,
                                cid,
                                attempts,
                            });
                        }
                        Err(refused) => {
                            if self.answer(cid, &connect::refusal(refused)).await.is_err() {
                                return;
                            }
                        }
                    }
                }
            }
            if attempts >= CONNECT_ATTEMPTS {
                return;
            }
        }
    }

    async fn answer(&self, cid: u16, reply: &Reply) -> Result<(), End> {
        let head = pdu::response(
            cid,
            self.commands,
            reply.status,
            reply.dw0,
            reply.dw1,
            self.params,
        );
        self.send(head.as_slice()).await
    }

    /// Takes one command; `None`: it was not a Connect that could be looked at, and has been answered.
    async fn command(&mut self) -> Result<Option<(Sqe, Vec<u8>)>, End> {
        let layout = match self.next().await? {
            Incoming::Capsule(layout) => layout,
            Incoming::Data(..) => return Err(self.fatal(PduError::sequence("not a Connect"))),
            Incoming::Term => return Err(End::Closed),
        };
        self.fill(layout.plen).await?;
        let pdu: Vec<u8> = self.bytes.drain(..layout.plen).collect();
        let sqe = Sqe(pdu[SQE_AT..CAPSULE_HLEN]
            .try_into()
            .expect("a capsule has an entry"));
        self.commands += 1;
        let data = &pdu[layout.pdo..layout.pdo + layout.len];
        let damaged = !data_intact(&pdu, layout, self.params);
        let refused = if sqe.opcode() != FABRICS || sqe.fctype() != fabrics::CONNECT {
            Some(status::SEQUENCE)
        } else if sqe.fuse() != Fuse::Normal || !uses_sgl(&sqe) {
            Some(status::INVALID_FIELD)
        } else if damaged {
            Some(status::TRANSPORT)
        } else {
            None
        };
        let refused = match (refused, sqe.sgl()) {
            (Some(refused), _) => refused,
            (None, Sgl::InCapsule { offset: 0, length }) if length as usize == data.len() => {
                return Ok(Some((sqe, data.to_vec())));
            }
            (None, Sgl::Transport { length })
                if length as usize == CONNECT_DATA_LEN && data.is_empty() =>
            {
                return self.fetch(sqe).await;
            }
            (None, Sgl::InCapsule { .. } | Sgl::Transport { .. } | Sgl::None) => status::SGL_LENGTH,
            (None, Sgl::Other { .. }) => status::SGL_TYPE,
        };
        self.answer(sqe.cid(), &Reply::status(refused)).await?;
        Ok(None)
    }

    /// The header of the next PDU, valid and there up to its data.
    async fn next(&mut self) -> Result<Incoming, End> {
        loop {
            match pdu::incoming(&self.bytes, self.params).map_err(|e| self.fatal(e))? {
                Some(incoming) => return Ok(incoming),
                None => self.fill(self.bytes.len() + 1).await?,
            }
        }
    }

    /// Fetches the data of a Connect by R2T.
    async fn fetch(&mut self, sqe: Sqe) -> Result<Option<(Sqe, Vec<u8>)>, End> {
        let cid = sqe.cid();
        let Some(buffer) = self.node.handle.buffers().try_take(CONNECT_DATA_LEN) else {
            self.answer(cid, &Reply::status(status::INTERRUPTED))
                .await?;
            return Ok(None);
        };
        let mut transfers = Transfers::default();
        let ttag = transfers.begin(Transfer {
            sqe,
            buffer,
            len: CONNECT_DATA_LEN,
            got: 0,
            damaged: false,
        });
        self.send(pdu::r2t(cid, ttag, CONNECT_DATA_LEN as u32, self.params).as_slice())
            .await?;
        loop {
            let (layout, header) = match self.next().await? {
                Incoming::Data(layout, header) => (layout, header),
                Incoming::Capsule(_) => return Err(self.fatal(PduError::sequence("not a Connect"))),
                Incoming::Term => return Err(End::Closed),
            };
            self.fill(layout.pdo).await?;
            let (slot, _) = transfers.accept(header).map_err(|e| self.fatal(e))?;
            self.fill(layout.plen).await?;
            let pdu: Vec<u8> = self.bytes.drain(..layout.plen).collect();
            let data = &pdu[layout.pdo..layout.pdo + layout.len];
            let transfer = transfers.get(slot);
            transfer.buffer[transfer.got..transfer.got + data.len()].copy_from_slice(data);
            transfer.got += data.len();
            transfer.damaged |= !data_intact(&pdu, layout, self.params);
            if transfer.got == transfer.len {
                let transfer = transfers.end(slot);
                if transfer.damaged {
                    self.answer(cid, &Reply::status(status::TRANSPORT)).await?;
                    return Ok(None);
                }
                return Ok(Some((sqe, transfer.buffer[..CONNECT_DATA_LEN].to_vec())));
            }
        }
    }
}
