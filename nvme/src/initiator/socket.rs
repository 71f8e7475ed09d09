//! A non-blocking TCP connection to a controller, up to the negotiated parameters (NVMe/TCP 1.1, 3.3 and 3.6.2.2).

use std::io::IoSlice;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg};

use super::error::{Error, Result};
use crate::pdu::{
    CommonHeader, Digests, ICReq, ICResp, PduError, PduType, Sender, TermReq, pda_bytes,
};

/// What was agreed on when the connection was made.
#[derive(Clone, Copy, Debug)]
pub struct Negotiated {
    /// Digests in both directions.
    pub digests: Digests,
    /// Alignment in bytes of data that goes to the controller (CPDA).
    pub send_align: usize,
    /// Alignment in bytes of data that comes from it (HPDA).
    pub receive_align: usize,
    /// The longest data of one H2CData PDU, in bytes.
    pub max_h2c_bytes: u32,
}

/// A connected socket.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    /// System calls made to send and to receive, for those who count cycles.
    pub(super) calls: u64,
}

impl Socket {
    /// Connects within `limit`.
    pub fn connect(addr: SocketAddr, limit: Duration) -> Result<Self> {
        let refused = |source| Error::Connect { addr, source };
        Self::over(TcpStream::connect_timeout(&addr, limit).map_err(refused)?)
    }

    /// Takes over a connection.
    pub fn over(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, calls: 0 })
    }

    /// Sends what the socket takes of `parts`; 0 when it is full.
    pub fn send(&mut self, parts: &[IoSlice<'_>]) -> Result<usize> {
        self.calls += 1;
        let sent = match parts {
            [one] => send(&self.stream, one, SendFlags::NOSIGNAL), // cheaper than sendmsg
            _ => sendmsg(
                &self.stream,
                parts,
                &mut SendAncillaryBuffer::default(),
                SendFlags::NOSIGNAL,
            ),
        };
        match sent {
            Ok(n) => Ok(n),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(e) => Err(Error::Socket(e.into())),
        }
    }

    /// Receives what there is; 0 when nothing is. The end of the stream is [`Error::Closed`].
    pub fn receive(&mut self, into: &mut [u8]) -> Result<usize> {
        self.calls += 1;
        received(recv(&self.stream, into, RecvFlags::empty()).map(|(_, n)| n))
    }

    /// Receives into `first`, then `second`.
    pub fn receive_two(&mut self, first: &mut [u8], second: &mut [u8]) -> Result<usize> {
        use rustix::net::{RecvAncillaryBuffer, recvmsg};
        self.calls += 1;
        let mut parts = [
            std::io::IoSliceMut::new(first),
            std::io::IoSliceMut::new(second),
        ];
        let got = recvmsg(
            &self.stream,
            &mut parts,
            &mut RecvAncillaryBuffer::default(),
            RecvFlags::empty(),
        );
        received(got.map(|m| m.bytes))
    }

    /// Sleeps until the socket has something to read (or, with `or_room`, room to write), or until `deadline`.
    pub fn wait(&self, or_room: bool, deadline: Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        let events = if or_room {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        };
        match poll(&mut [PollFd::new(&self.stream, events)], Some(&left)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(e) => Err(Error::Socket(e.into())),
        }
    }

    /// Sends ICReq and takes ICResp. One R2T per command is enough for the slots of a queue pair.
    pub fn negotiate(&mut self, digests: Digests, limit: Duration) -> Result<Negotiated> {
        let deadline = Instant::now() + limit;
        let request = ICReq {
            pfv: 0,
            hpda: 0,
            digests,
            maxr2t: 0,
        }
        .encode();
        self.send_all(&request, "ICReq", limit, deadline)?;
        let mut response = [0; PduType::ICResp.header_len()];
        let (common, rest) = response.split_at_mut(8);
        self.receive_all(common, "ICReq", limit, deadline)?;
        let head: &[u8; 8] = (&*common).try_into().expect("split at 8");
        let header = CommonHeader::parse(head, Sender::Controller, false)?;
        self.receive_all(
            &mut rest[..header.kind.header_len() - 8],
            "ICReq",
            limit,
            deadline,
        )?;
        match header.kind {
            PduType::ICResp => {}
            PduType::C2HTermReq => {
                return Err(Error::Terminated(TermReq::parse(
                    response.first_chunk().expect("128 > 24"),
                )));
            }
            _ => return Err(PduError::sequence("a PDU before ICResp").into()),
        }
        let agreed = ICResp::parse(&response)?;
        if agreed.digests.bits() & !digests.bits() != 0 {
            return Err(PduError::field(
                11,
                "the controller turned on a digest that was not asked for",
            )
            .into());
        }
        Ok(Negotiated {
            digests: agreed.digests,
            send_align: pda_bytes(agreed.cpda),
            receive_align: pda_bytes(0),
            max_h2c_bytes: agreed.maxh2cdata,
        })
    }

    fn send_all(
        &mut self,
        mut bytes: &[u8],
        what: &'static str,
        limit: Duration,
        deadline: Instant,
    ) -> Result<()> {
        while !bytes.is_empty() {
            let n = self.send(&[IoSlice::new(bytes)])?;
            bytes = &bytes[n..];
            if n == 0 {
                self.wait_in_time(true, what, limit, deadline)?;
            }
        }
        Ok(())
    }

    fn receive_all(
        &mut self,
        into: &mut [u8],
        what: &'static str,
        limit: Duration,
        deadline: Instant,
    ) -> Result<()> {
        let mut have = 0;
        while have < into.len() {
            let n = self.receive(&mut into[have..])?;
            have += n;
            if n == 0 {
                self.wait_in_time(false, what, limit, deadline)?;
            }
        }
        Ok(())
    }

    fn wait_in_time(
        &self,
        or_room: bool,
        what: &'static str,
        limit: Duration,
        deadline: Instant,
    ) -> Result<()> {
        if Instant::now() >= deadline {
            return Err(Error::Timeout { what, limit });
        }
        self.wait(or_room, deadline)
    }
}

fn received(result: std::result::Result<usize, Errno>) -> Result<usize> {
    match result {
        Ok(0) => Err(Error::Closed),
        Ok(n) => Ok(n),
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        Err(e) => Err(Error::Socket(e.into())),
    }
}
