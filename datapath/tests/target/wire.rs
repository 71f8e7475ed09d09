//! A host that can misbehave: blocking, one connection, every PDU by hand with the product's codec.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use keelblock_nvme::digest::digest;
use keelblock_nvme::fabrics::{CNTLID_DYNAMIC, ConnectCommand, ConnectData, PropertyCommand};
use keelblock_nvme::opcode::io as opcode;
use keelblock_nvme::pdu::{
    C2HData, CapsuleCmd, CapsuleResp, CommonHeader, Digests, Fes, H2CData, ICReq, ICResp, PduType,
    R2T, Sender, TermReq,
};
use keelblock_nvme::property::{cc, offset};
use keelblock_nvme::sgl::Sgl;
use keelblock_nvme::{Cqe, Sqe, Status};

/// Nothing that is to happen takes longer; what must not happen is waited for much shorter.
const LIMIT: Duration = Duration::from_secs(20);

pub const NQN: &str = "nqn.2024-01.io.keelblock:test";
pub const HOST: &str = "nqn.2024-01.io.keelblock:host";
pub const BLOCK: usize = 4096;

/// What the target sent.
#[derive(Debug)]
pub enum Pdu {
    ICResp(ICResp),
    Resp(Cqe),
    Data(C2HData, Vec<u8>),
    R2T(R2T),
    Term(TermReq),
}

/// A connection.
pub struct Wire {
    pub stream: TcpStream,
    pub digests: Digests,
}

impl Wire {
    pub fn open(at: SocketAddr) -> Self {
        let stream = TcpStream::connect(at).expect("the target listens");
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            digests: Digests::default(),
        }
    }

    /// Opens and negotiates.
    pub fn ready(at: SocketAddr, digests: Digests) -> Self {
        let mut wire = Self::open(at);
        wire.send(
            &ICReq {
                digests,
                ..ICReq::default()
            }
            .encode(),
        );
        match wire.recv() {
            Pdu::ICResp(resp) => assert_eq!(resp.digests, digests),
            other => panic!("{other:?} for an ICReq"),
        }
        wire.digests = digests;
        wire
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the target reads");
    }

    fn fill(&mut self, n: usize) -> Option<Vec<u8>> {
        let mut b = vec![0; n];
        self.stream.read_exact(&mut b).ok().map(|()| b)
    }

    /// The next PDU; `None`: the connection ended.
    pub fn try_recv(&mut self) -> Option<Pdu> {
        let common = self.fill(8)?;
        let header = CommonHeader::parse(
            common.first_chunk().unwrap(),
            Sender::Controller,
            self.digests.header,
        )
        .expect("a valid PDU");
        let mut pdu = common;
        pdu.extend(self.fill(header.plen as usize - 8)?);
        let hlen = header.kind.header_len();
        let digested = self.digests.header && header.kind.has_header_digest();
        if digested {
            assert_eq!(
                digest(&pdu[..hlen]).to_le_bytes(),
                pdu[hlen..hlen + 4],
                "header digest"
            );
        }
        let h = &pdu[..hlen];
        Some(match header.kind {
            PduType::ICResp => Pdu::ICResp(ICResp::parse(h.try_into().unwrap()).unwrap()),
            PduType::C2HTermReq => Pdu::Term(TermReq::parse(h.try_into().unwrap())),
            PduType::CapsuleResp => Pdu::Resp(CapsuleResp::cqe(h.try_into().unwrap())),
            PduType::R2T => Pdu::R2T(R2T::parse(h.try_into().unwrap())),
            PduType::C2HData => {
                let range = header.data_range(self.digests, 4).unwrap();
                let data = pdu[range.clone()].to_vec();
                if self.digests.data {
                    assert_eq!(
                        digest(&data).to_le_bytes(),
                        pdu[range.end..range.end + 4],
                        "data digest"
                    );
                }
                Pdu::Data(
                    C2HData::parse(&header, h.try_into().unwrap(), self.digests, 4).unwrap(),
                    data,
                )
            }
            other => panic!("{other:?} from a controller"),
        })
    }

    pub fn recv(&mut self) -> Pdu {
        self.try_recv().expect("the connection is there")
    }

    pub fn response(&mut self) -> Cqe {
        match self.recv() {
            Pdu::Resp(cqe) => cqe,
            other => panic!("{other:?}, wanted a response"),
        }
    }

    pub fn r2t(&mut self) -> R2T {
        match self.recv() {
            Pdu::R2T(r2t) => r2t,
            other => panic!("{other:?}, wanted an R2T"),
        }
    }

    /// The connection must end, with this fatal error status if it says one.
    pub fn expect_end(&mut self, fes: Fes) {
        match self.try_recv() {
            None => {}
            Some(Pdu::Term(term)) => {
                assert_eq!(term.fes, fes as u16, "information {:#x}", term.fei);
                let _ = self.stream.shutdown(std::net::Shutdown::Write);
                assert!(self.try_recv().is_none(), "a PDU after C2HTermReq");
            }
            Some(other) => panic!("{other:?}, wanted the end"),
        }
    }

    /// Nothing comes for a moment.
    pub fn expect_silence(&mut self) {
        self.stream
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let got = self.stream.peek(&mut [0]);
        self.stream.set_read_timeout(Some(LIMIT)).unwrap();
        assert!(got.is_err(), "something came: {got:?}");
    }

    /// A command capsule; `data` goes with it.
    pub fn capsule(&self, sqe: &Sqe, data: &[u8]) -> Vec<u8> {
        let header = CapsuleCmd::encode(sqe, data.len() as u32, self.digests, 4);
        self.pdu(&header, data)
    }

    /// An H2CData PDU.
    pub fn h2c(&self, cccid: u16, ttag: u16, offset: usize, data: &[u8], last: bool) -> Vec<u8> {
        let pdu = H2CData {
            cccid,
            ttag,
            offset: offset as u32,
            length: data.len() as u32,
            last,
        };
        self.pdu(&pdu.encode(self.digests, 4), data)
    }

    fn pdu(&self, header: &[u8], data: &[u8]) -> Vec<u8> {
        let mut b = header.to_vec();
        if self.digests.header {
            b.extend(digest(header).to_le_bytes());
        }
        b.extend(data);
        if self.digests.data && !data.is_empty() {
            b.extend(digest(data).to_le_bytes());
        }
        b
    }

    /// Sends a Connect and returns its completion.
    pub fn connect(&mut self, connect: ConnectCommand, data: &ConnectData) -> Cqe {
        let data = data.encode().unwrap();
        let sqe = with(
            connect.encode(),
            0,
            Sgl::InCapsule {
                offset: 0,
                length: data.len() as u32,
            },
        );
        self.send(&self.capsule(&sqe, &data));
        self.response()
    }

    /// Sends a command without data and returns its completion.
    pub fn command(&mut self, sqe: Sqe, cid: u16) -> Cqe {
        self.send(&self.capsule(&with(sqe, cid, Sgl::Transport { length: 0 }), &[]));
        self.response()
    }

    /// Reads blocks.
    pub fn read(&mut self, slba: u64, blocks: u32) -> Vec<u8> {
        let sqe = Sqe::io(opcode::READ, 1, slba, blocks);
        let length = blocks * BLOCK as u32;
        self.send(&self.capsule(&with(sqe, 0x77, Sgl::Transport { length }), &[]));
        let data = match self.recv() {
            Pdu::Data(header, data) => {
                assert!(header.last && !header.success && header.cccid == 0x77);
                data
            }
            other => panic!("{other:?}, wanted data"),
        };
        assert_eq!(self.response().status(), Status::SUCCESS);
        data
    }

    /// Writes blocks with the data in the capsule.
    pub fn write(&mut self, slba: u64, data: &[u8]) -> Status {
        let sqe = Sqe::io(opcode::WRITE, 1, slba, (data.len() / BLOCK) as u32);
        let sqe = with(
            sqe,
            0x78,
            Sgl::InCapsule {
                offset: 0,
                length: data.len() as u32,
            },
        );
        self.send(&self.capsule(&sqe, data));
        self.response().status()
    }

    /// Asks to write `data` by R2T; returns what the target grants.
    pub fn begin_write(&mut self, cid: u16, slba: u64, bytes: usize) -> R2T {
        let sqe = Sqe::io(opcode::WRITE, 1, slba, (bytes / BLOCK) as u32);
        let sqe = with(
            sqe,
            cid,
            Sgl::Transport {
                length: bytes as u32,
            },
        );
        self.send(&self.capsule(&sqe, &[]));
        self.r2t()
    }
}

/// The same with identifier and data descriptor.
pub fn with(mut sqe: Sqe, cid: u16, sgl: Sgl) -> Sqe {
    sqe.set_cid(cid);
    sqe.set_sgl(sgl);
    sqe
}

pub fn connect_data(cntlid: u16) -> ConnectData {
    ConnectData {
        hostid: [9; 16],
        cntlid,
        subnqn: NQN.into(),
        hostnqn: HOST.into(),
    }
}

pub fn connect_command(qid: u16) -> ConnectCommand {
    ConnectCommand {
        recfmt: 0,
        qid,
        sqsize: 127,
        cattr: 0,
        kato_ms: 0,
    }
}

/// An association: an enabled controller and one I/O queue.
pub struct Pair {
    pub admin: Wire,
    pub io: Wire,
    pub cntlid: u16,
}

/// Connects an admin queue and enables its controller.
pub fn admin(at: SocketAddr) -> (Wire, u16) {
    let mut admin = Wire::ready(at, Digests::default());
    let cqe = admin.connect(connect_command(0), &connect_data(CNTLID_DYNAMIC));
    assert_eq!(cqe.status(), Status::SUCCESS);
    let enable = PropertyCommand::set(
        offset::CC,
        false,
        u64::from(cc::EN | cc::ENTRY_SIZES | cc::CSS_ALL),
    );
    assert_eq!(admin.command(enable, 1).status(), Status::SUCCESS);
    (admin, cqe.dw0() as u16)
}

/// Connects an I/O queue.
pub fn io(at: SocketAddr, cntlid: u16, qid: u16, digests: Digests) -> Wire {
    let mut io = Wire::ready(at, digests);
    let cqe = io.connect(connect_command(qid), &connect_data(cntlid));
    assert_eq!(cqe.status(), Status::SUCCESS);
    io
}

pub fn pair(at: SocketAddr, digests: Digests) -> Pair {
    let (admin, cntlid) = admin(at);
    Pair {
        io: io(at, cntlid, 1, digests),
        admin,
        cntlid,
    }
}

/// Bytes that tell blocks and runs apart.
pub fn pattern(seed: u8, bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|i| (i / 64) as u8 ^ (i % 251) as u8 ^ seed.wrapping_mul(31))
        .collect()
}
