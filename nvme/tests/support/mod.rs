//! A tiny target in a thread: one subsystem, one namespace in memory, and ways to misbehave.
//!
//! It reads one PDU at a time with blocking calls and is no model of a good target; it is short enough to be believed.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use keelblock_nvme::digest::digest;
use keelblock_nvme::fabrics::{CONNECT_DATA_LEN, ConnectCommand, ConnectData, PropertyCommand};
use keelblock_nvme::identify::cns;
use keelblock_nvme::nqn::DISCOVERY_NQN;
use keelblock_nvme::pdu::{
    C2HData, CapsuleCmd, CapsuleResp, CommonHeader, Digests, H2CData, ICReq, ICResp, PduType, R2T,
    Sender, pda_bytes,
};
use keelblock_nvme::property::{csts, offset};
use keelblock_nvme::sgl::Sgl;
use keelblock_nvme::{Cqe, Sqe, Status, opcode};

pub const NQN: &str = "nqn.2026-01.io.keelblock:test";
pub const HOST: &str = "nqn.2026-01.io.keelblock:host";
pub const BLOCK: usize = 512;
pub const BLOCKS: usize = 8192;

/// What a connection answers to the first Read, instead of the data: raw bytes, after which it goes on if the second is true and closes
/// if not.
pub type Fault = fn(&Sqe, Digests) -> (Vec<u8>, bool);

/// How the target behaves.
#[derive(Clone)]
pub struct Config {
    /// Bytes of an H2CData at most.
    pub max_h2c: u32,
    /// CPDA.
    pub cpda: u8,
    /// In-capsule data of I/O queues.
    pub in_capsule: usize,
    /// Bytes of one C2HData.
    pub c2h_bytes: usize,
    /// Bytes of one R2T.
    pub r2t_bytes: usize,
    /// Reads end with the SUCCESS flag.
    pub success_flag: bool,
    /// Answer to the first Read.
    pub fault: Option<Fault>,
    /// ICResp as sent, if not a good one.
    pub icresp: Option<Vec<u8>>,
    /// Writes that need an R2T get one for all data, and at once this status.
    pub fail_after_r2t: Option<Status>,
    /// The how-manieth write of a connection is acknowledged and lost.
    pub lose_write: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_h2c: 16_384,
            cpda: 0,
            in_capsule: 4096,
            c2h_bytes: 1 << 20,
            r2t_bytes: 1 << 20,
            success_flag: false,
            fault: None,
            icresp: None,
            fail_after_r2t: None,
            lose_write: None,
        }
    }
}

/// What the target saw.
#[derive(Default, Clone, Debug)]
pub struct Seen {
    pub h2c_pdus: usize,
    pub in_capsule_writes: usize,
    pub r2ts: usize,
    pub keep_alives: usize,
    pub connects: Vec<(ConnectCommand, ConnectData)>,
    /// Terminate Connection Requests: their fatal error status.
    pub terminated: Vec<u16>,
}

/// A running target. Its threads end with their connections.
pub struct Target {
    pub addr: SocketAddr,
    pub seen: Arc<Mutex<Seen>>,
}

impl Target {
    pub fn start(config: Config) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let store = Arc::new(Mutex::new(vec![0; BLOCK * BLOCKS]));
        let theirs = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (config, seen, store) = (config.clone(), theirs.clone(), store.clone());
                std::thread::spawn(move || {
                    // The end of a connection shows at the other side.
                    let _ = Connection::new(stream?, config, seen, store).serve();
                    std::io::Result::Ok(())
                });
            }
        });
        Self { addr, seen }
    }

    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }
}

struct Connection {
    stream: TcpStream,
    config: Config,
    seen: Arc<Mutex<Seen>>,
    store: Arc<Mutex<Vec<u8>>>,
    digests: Digests,
    cc: u32,
    qid: u16,
    writes: usize,
}

type Io<T> = std::io::Result<T>;

impl Connection {
    fn new(
        stream: TcpStream,
        config: Config,
        seen: Arc<Mutex<Seen>>,
        store: Arc<Mutex<Vec<u8>>>,
    ) -> Self {
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            config,
            seen,
            store,
            digests: Digests::default(),
            cc: 0,
            qid: 0,
            writes: 0,
        }
    }

    fn serve(&mut self) -> Io<()> {
        let mut request = [0; 128];
        self.stream.read_exact(&mut request)?;
        let request = ICReq::parse(&request).unwrap();
        self.digests = request.digests;
        let good = ICResp {
            pfv: 0,
            cpda: self.config.cpda,
            digests: self.digests,
            maxh2cdata: self.config.max_h2c,
        };
        let bad = self.config.icresp.clone();
        self.stream
            .write_all(&bad.unwrap_or(good.encode().to_vec()))?;
        loop {
            let (header, data) = self.receive()?;
            match PduType::from_code(header[0]).unwrap() {
                PduType::CapsuleCmd => {
                    self.command(CapsuleCmd::sqe(header.first_chunk().unwrap()), data)?
                }
                PduType::H2CData => {} // of a command that has been answered
                PduType::H2CTermReq => {
                    let fes = u16::from_le_bytes([header[8], header[9]]);
                    self.seen.lock().unwrap().terminated.push(fes);
                    return Ok(());
                }
                other => panic!("the initiator sent {other:?}"),
            }
        }
    }

    /// One PDU: its header and its data, digests checked.
    fn receive(&mut self) -> Io<(Vec<u8>, Vec<u8>)> {
        let mut common = [0; 8];
        self.stream.read_exact(&mut common)?;
        let h =
            CommonHeader::parse(&common, Sender::Host, self.digests.header).expect("a good header");
        let mut pdu = common.to_vec();
        pdu.resize(h.plen as usize, 0);
        self.stream.read_exact(&mut pdu[8..])?;
        let hlen = h.kind.header_len();
        if self.digests.header && h.kind.has_header_digest() {
            assert_eq!(
                pdu[hlen..hlen + 4],
                digest(&pdu[..hlen]).to_le_bytes(),
                "header digest"
            );
        }
        if !h.kind.carries_data() {
            return Ok((pdu, Vec::new()));
        }
        let range = h
            .data_range(self.digests, pda_bytes(self.config.cpda))
            .expect("data where it should be");
        let data = pdu[range.clone()].to_vec();
        if self.digests.data && !data.is_empty() {
            assert_eq!(pdu[range.end..], digest(&data).to_le_bytes(), "data digest");
        }
        Ok((pdu[..hlen].to_vec(), data))
    }

    fn send(&mut self, header: &[u8], data: &[u8]) -> Io<()> {
        let pdu = framed(header, data, self.digests);
        self.stream.write_all(&pdu)
    }

    fn respond(&mut self, sqe: &Sqe, status: Status, dw0: u32, dw1: u32) -> Io<()> {
        let cqe = Cqe::new(sqe.cid(), 0, status, dw0, dw1);
        self.send(&CapsuleResp::encode(&cqe, self.digests), &[])
    }

    fn send_data(&mut self, sqe: &Sqe, data: &[u8]) -> Io<()> {
        let success = self.config.success_flag;
        let chunk = self.config.c2h_bytes;
        for (i, piece) in data.chunks(chunk).enumerate() {
            let last = (i + 1) * chunk >= data.len();
            let (offset, length) = ((i * chunk) as u32, piece.len() as u32);
            let pdu = C2HData {
                cccid: sqe.cid(),
                offset,
                length,
                last,
                success: last && success,
            };
            self.send(&pdu.encode(self.digests, 4), piece)?;
        }
        if success {
            Ok(())
        } else {
            self.respond(sqe, Status::SUCCESS, 0, 0)
        }
    }

    fn command(&mut self, sqe: Sqe, data: Vec<u8>) -> Io<()> {
        match sqe.opcode() {
            opcode::FABRICS => self.fabrics(&sqe, &data),
            op if self.qid == 0 => self.admin(op, &sqe),
            opcode::io::READ => self.read(&sqe),
            opcode::io::WRITE | opcode::io::COMPARE => self.write(&sqe, data),
            opcode::io::FLUSH => self.respond(&sqe, Status::SUCCESS, 0, 0),
            _ => self.respond(&sqe, Status::INVALID_OPCODE.dnr(), 0, 0),
        }
    }

    fn fabrics(&mut self, sqe: &Sqe, data: &[u8]) -> Io<()> {
        let property = PropertyCommand::parse(sqe);
        let value: u64 = match sqe.fctype() {
            opcode::fabrics::CONNECT => return self.connect(sqe, data),
            opcode::fabrics::PROPERTY_SET => {
                self.cc = property.value as u32;
                0
            }
            _ => match property.offset {
                offset::CAP => 1 << 43 | 2 << 24 | 127,
                offset::CSTS if self.cc >> 14 & 3 != 0 => csts::SHST_COMPLETE.into(),
                offset::CSTS => (self.cc & 1).into(),
                _ => 0,
            },
        };
        self.respond(sqe, Status::SUCCESS, value as u32, (value >> 32) as u32)
    }

    fn admin(&mut self, op: u8, sqe: &Sqe) -> Io<()> {
        let dw0 = match op {
            opcode::admin::IDENTIFY => return self.identify(sqe),
            opcode::admin::GET_LOG_PAGE => {
                let from = sqe.cdw(12) as usize;
                let len = ((sqe.cdw(10) >> 16) as usize + 1) * 4;
                return self.send_data(sqe, &discovery_log()[from..from + len]);
            }
            opcode::admin::KEEP_ALIVE => {
                self.seen.lock().unwrap().keep_alives += 1;
                0
            }
            opcode::admin::SET_FEATURES => 3 << 16 | 3,
            opcode::admin::ASYNC_EVENT_REQUEST => 0x04_0002,
            _ => return self.respond(sqe, Status::INVALID_OPCODE.dnr(), 0, 0),
        };
        self.respond(sqe, Status::SUCCESS, dw0, 0)
    }

    fn connect(&mut self, sqe: &Sqe, data: &[u8]) -> Io<()> {
        let data: &[u8; CONNECT_DATA_LEN] = data.try_into().expect("Connect data in the capsule");
        let (command, data) = (
            ConnectCommand::parse(sqe),
            ConnectData::parse(data).unwrap(),
        );
        let known = data.subnqn == NQN || data.subnqn == DISCOVERY_NQN;
        self.qid = command.qid;
        self.seen.lock().unwrap().connects.push((command, data));
        let status = if known {
            Status::SUCCESS
        } else {
            Status::CONNECT_INVALID_PARAMETERS.dnr()
        };
        self.respond(sqe, status, 1, 0)
    }

    fn identify(&mut self, sqe: &Sqe) -> Io<()> {
        let mut b = vec![0; 4096];
        match sqe.cdw(10) as u8 {
            cns::CONTROLLER => {
                b[4..8].copy_from_slice(b"TINY");
                b[77] = 8; // MDTS: 1 MiB
                b[320] = 1;
                b[1792..1796]
                    .copy_from_slice(&((64 + self.config.in_capsule as u32) / 16).to_le_bytes());
            }
            cns::NAMESPACE => {
                b[..8].copy_from_slice(&(BLOCKS as u64).to_le_bytes());
                b[130] = BLOCK.trailing_zeros() as u8;
            }
            _ => b[0] = 1,
        }
        self.send_data(sqe, &b)
    }

    fn range(sqe: &Sqe) -> std::ops::Range<usize> {
        let from = (sqe.slba() as usize).saturating_mul(BLOCK);
        from..from.saturating_add(sqe.blocks() as usize * BLOCK)
    }

    fn read(&mut self, sqe: &Sqe) -> Io<()> {
        if let Some(fault) = self.config.fault.take() {
            let (bytes, goes_on) = fault(sqe, self.digests);
            self.stream.write_all(&bytes)?;
            return if goes_on {
                Ok(())
            } else {
                Err(std::io::ErrorKind::ConnectionAborted.into())
            };
        }
        let data = self
            .store
            .lock()
            .unwrap()
            .get(Self::range(sqe))
            .map(<[u8]>::to_vec);
        match data {
            Some(data) => self.send_data(sqe, &data),
            None => self.respond(sqe, Status::LBA_OUT_OF_RANGE.dnr(), 0, 0),
        }
    }

    fn write(&mut self, sqe: &Sqe, data: Vec<u8>) -> Io<()> {
        let data = match sqe.sgl() {
            Sgl::InCapsule { length, .. } => {
                assert_eq!(length as usize, data.len());
                self.seen.lock().unwrap().in_capsule_writes += 1;
                data
            }
            Sgl::Transport { length } => match self.fetch(sqe, length as usize)? {
                Some(data) => data,
                None => return Ok(()),
            },
            other => panic!("a write with {other:?}"),
        };
        let status = match self.store.lock().unwrap().get_mut(Self::range(sqe)) {
            None => Status::LBA_OUT_OF_RANGE.dnr(),
            Some(there) if sqe.opcode() == opcode::io::WRITE => {
                self.writes += 1;
                if self.config.lose_write != Some(self.writes) {
                    there.copy_from_slice(&data);
                }
                Status::SUCCESS
            }
            Some(there) if *there == *data => Status::SUCCESS,
            Some(_) => Status::COMPARE_FAILURE,
        };
        self.respond(sqe, status, 0, 0)
    }

    /// Asks for the data of a write, R2T by R2T.
    fn fetch(&mut self, sqe: &Sqe, length: usize) -> Io<Option<Vec<u8>>> {
        let mut data = Vec::new();
        while data.len() < length {
            let ttag = 0x4000 | self.seen.lock().unwrap().r2ts as u16;
            self.seen.lock().unwrap().r2ts += 1;
            let (offset, n) = (data.len(), self.config.r2t_bytes.min(length - data.len()));
            let r2t = R2T {
                cccid: sqe.cid(),
                ttag,
                offset: offset as u32,
                length: n as u32,
            };
            self.send(&r2t.encode(self.digests), &[])?;
            if let Some(status) = self.config.fail_after_r2t {
                self.respond(sqe, status, 0, 0)?;
                return Ok(None);
            }
            loop {
                let (header, piece) = self.receive()?;
                let h = CommonHeader::parse(
                    header.first_chunk().unwrap(),
                    Sender::Host,
                    self.digests.header,
                )
                .unwrap();
                assert_eq!(
                    h.kind,
                    PduType::H2CData,
                    "these tests have one write in flight at a time"
                );
                let align = pda_bytes(self.config.cpda);
                let pdu =
                    H2CData::parse(&h, header.first_chunk().unwrap(), self.digests, align).unwrap();
                assert_eq!(
                    (pdu.cccid, pdu.ttag, pdu.offset as usize),
                    (sqe.cid(), ttag, data.len())
                );
                assert!(pdu.length <= self.config.max_h2c);
                self.seen.lock().unwrap().h2c_pdus += 1;
                data.extend(piece);
                assert_eq!(
                    pdu.last,
                    data.len() == offset + n,
                    "LAST_PDU ends what the R2T asked for"
                );
                if pdu.last {
                    break;
                }
            }
        }
        Ok(Some(data))
    }
}

/// A log of 20 entries, more than one Get Log Page of the initiator takes.
fn discovery_log() -> Vec<u8> {
    let mut log = vec![0; 1024 * 21];
    log[0] = 5;
    log[8] = 20;
    for (i, entry) in log[1024..].chunks_exact_mut(1024).enumerate() {
        entry[..3].copy_from_slice(&[3, 1, 2]);
        let service = format!("{}", 4420 + i);
        entry[32..64].fill(b' ');
        entry[32..32 + service.len()].copy_from_slice(service.as_bytes());
        entry[256..256 + NQN.len()].copy_from_slice(NQN.as_bytes());
        entry[512..768].fill(b' ');
        entry[512..521].copy_from_slice(b"127.0.0.1");
    }
    log
}

/// Header, digest, padding, data, digest.
pub fn framed(header: &[u8], data: &[u8], digests: Digests) -> Vec<u8> {
    let mut pdu = header.to_vec();
    if digests.header {
        pdu.extend(digest(header).to_le_bytes());
    }
    if !data.is_empty() {
        pdu.resize(header[3].into(), 0);
        pdu.extend(data);
        if digests.data {
            pdu.extend(digest(data).to_le_bytes());
        }
    }
    pdu
}
