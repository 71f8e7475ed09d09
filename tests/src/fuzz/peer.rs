//! One misbehaving host: a connection or two, proper up to some stage.
use super::capsule::{Wire, edge, mutate, nonsense_command, put_command, put_data, random_pdu};
use crate::workload::Target;
use keelblock_nvme::fabrics::{CNTLID_DYNAMIC, ConnectCommand, ConnectData, PropertyCommand};
use keelblock_nvme::pdu::{Digests, H2CData, ICReq, ICResp, pda_bytes};
use keelblock_nvme::property::{cc, offset};
use keelblock_nvme::sgl::Sgl;
use rand::Rng;
use rand::rngs::SmallRng;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Longest wait for an answer that must come.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Longest time that one connection may misbehave.
const PATIENCE: Duration = Duration::from_secs(2);
/// A connection that hears nothing for this long ends.
const SILENCE: Duration = Duration::from_millis(20);
/// Commands in flight at most: fewer than the queue holds.
const WINDOW: u32 = 96;
/// Size of the queues that we ask for, 0's based.
const SQSIZE: u16 = 127;
/// Commands per send.
const BATCH: usize = 32;
/// Header length of a response PDU; R2T and C2HData have the same.
const RESPONSE: usize = 24;

/// PDU types that the target sends.
const ICRESP: u8 = 1;
const C2H_TERM: u8 = 3;
const RESP: u8 = 5;
const C2H_DATA: u8 = 7;
const R2T: u8 = 9;

/// What a host did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// PDUs sent.
    pub pdus: u64,
    /// PDUs received.
    pub answers: u64,
    /// Connections made.
    pub connections: u64,
}

/// One host, from connecting to leaving. An error means that the target did not let a proper host in.
pub fn misbehave(target: &Target, rng: &mut SmallRng) -> io::Result<Done> {
    let mut done = Done::default();
    match rng.random_range(0..100) {
        0..4 => before_initialisation(target, rng, &mut done)?,
        4..10 => instead_of_connect(target, rng, &mut done)?,
        10..30 => on_the_admin_queue(target, rng, &mut done)?,
        _ => on_an_io_queue(target, rng, &mut done)?,
    }
    Ok(done)
}

/// Junk as the first bytes, a broken ICReq, or nothing at all.
fn before_initialisation(target: &Target, rng: &mut SmallRng, done: &mut Done) -> io::Result<()> {
    let mut peer = Peer::open(target, done)?;
    let mut bytes = match rng.random_range(0..3) {
        0 => random_pdu(rng),
        _ => ICReq::default().encode().to_vec(),
    };
    if rng.random_bool(0.9) {
        mutate(rng, &mut bytes);
    }
    peer.send_broken(&bytes, done);
    peer.leave(rng, done);
    Ok(())
}

/// A proper initialisation, then no proper Connect.
fn instead_of_connect(target: &Target, rng: &mut SmallRng, done: &mut Done) -> io::Result<()> {
    let mut peer = Peer::open(target, done)?;
    peer.initialise(rng, done)?;
    let mut bytes = Vec::new();
    match rng.random_range(0..4) {
        0 => {
            let admin = rng.random();
            let (sqe, data) = nonsense_command(rng, admin, 0, &peer.wire);
            put_command(&mut bytes, &sqe, &data, &peer.wire);
        }
        1 => bytes = random_pdu(rng),
        _ => {
            let mut sqe = connect_command(rng.random_bool(0.5).into());
            let cntlid = edge(rng) as u16;
            let mut data = connect_data(target, rng, cntlid);
            // The fields after the opcode, the data, its length: any may be wrong, and the data may be missing.
            for _ in 0..rng.random_range(0..4) {
                sqe.0[rng.random_range(4..64)] = rng.random();
                let at = rng.random_range(0..data.len());
                data[at] = rng.random();
            }
            data.truncate([1024, 1024, 0, rng.random_range(0..1024)][rng.random_range(0..4)]);
            if rng.random_bool(0.8) {
                sqe.set_sgl(Sgl::InCapsule {
                    offset: 0,
                    length: data.len() as u32,
                });
            }
            put_command(&mut bytes, &sqe, &data, &peer.wire);
        }
    }
    if rng.random_bool(0.5) {
        mutate(rng, &mut bytes);
    }
    peer.send_broken(&bytes, done);
    peer.leave(rng, done);
    Ok(())
}

/// Nonsense on the admin queue of a proper association.
fn on_the_admin_queue(target: &Target, rng: &mut SmallRng, done: &mut Done) -> io::Result<()> {
    let mut admin = Peer::open(target, done)?;
    admin.initialise(rng, done)?;
    admin.associate(target, rng, done)?;
    admin.blast(rng, true, done);
    admin.end_badly(rng, done);
    Ok(())
}

/// Nonsense on an I/O queue of a proper association.
fn on_an_io_queue(target: &Target, rng: &mut SmallRng, done: &mut Done) -> io::Result<()> {
    let mut admin = Peer::open(target, done)?;
    admin.initialise(rng, done)?;
    let cntlid = admin.associate(target, rng, done)?;
    let mut queue = Peer::open(target, done)?;
    queue.hostid = admin.hostid;
    queue.initialise(rng, done)?;
    queue.connect(target, 1, cntlid, rng, done)?;
    queue.blast(rng, false, done);
    if rng.random_bool(0.2) {
        // The admin queue goes first.
        drop(admin);
    }
    queue.end_badly(rng, done);
    Ok(())
}

fn connect_command(qid: u16) -> keelblock_nvme::Sqe {
    let kato_ms = if qid == 0 { 10_000 } else { 0 };
    let mut sqe = ConnectCommand {
        recfmt: 0,
        qid,
        sqsize: if qid == 0 { 31 } else { SQSIZE },
        cattr: 0,
        kato_ms,
    }
    .encode();
    sqe.set_sgl(Sgl::InCapsule {
        offset: 0,
        length: 1024,
    });
    sqe
}

fn connect_data(target: &Target, rng: &mut SmallRng, cntlid: u16) -> Vec<u8> {
    let data = ConnectData {
        hostid: rng.random(),
        cntlid,
        subnqn: target.nqn.clone(),
        hostnqn: host_nqn(),
    };
    data.encode().expect("the names are short").to_vec()
}

fn host_nqn() -> String {
    "nqn.2014-08.org.nvmexpress:uuid:6b65656c-0000-4000-8000-66757a7a6572".into()
}

/// A connection.
struct Peer {
    stream: TcpStream,
    wire: Wire,
    hostid: [u8; 16],
    /// Received and not yet understood.
    pending: Vec<u8>,
    in_flight: u32,
    window: u32,
    alive: bool,
}

impl Peer {
    fn open(target: &Target, done: &mut Done) -> io::Result<Peer> {
        let stream = TcpStream::connect_timeout(&target.address, ANSWER_LIMIT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        done.connections += 1;
        let wire = Wire {
            digests: Digests::default(),
            align: 4,
            h2c_max: 4096,
            in_capsule: 8192,
        };
        Ok(Peer {
            stream,
            wire,
            hostid: [0; 16],
            pending: Vec::new(),
            in_flight: 0,
            window: WINDOW,
            alive: true,
        })
    }

    fn initialise(&mut self, rng: &mut SmallRng, done: &mut Done) -> io::Result<()> {
        let digests = Digests {
            header: rng.random_bool(0.2),
            data: rng.random_bool(0.2),
        };
        let request = ICReq {
            digests,
            maxr2t: rng.random_range(0..3),
            ..ICReq::default()
        };
        self.stream.write_all(&request.encode())?;
        let mut answer = [0; 128];
        self.stream.read_exact(&mut answer)?;
        if answer[0] != ICRESP {
            return Err(io::Error::other(format!(
                "PDU type {} for an ICResp",
                answer[0]
            )));
        }
        let answer = ICResp::parse(&answer).map_err(io::Error::other)?;
        self.wire.digests = answer.digests;
        self.wire.align = pda_bytes(answer.cpda);
        self.wire.h2c_max = answer.maxh2cdata;
        done.pdus += 1;
        done.answers += 1;
        Ok(())
    }

    /// Connects the admin queue and enables the controller.
    fn associate(
        &mut self,
        target: &Target,
        rng: &mut SmallRng,
        done: &mut Done,
    ) -> io::Result<u16> {
        self.hostid = rng.random();
        let cntlid = self.connect(target, 0, CNTLID_DYNAMIC, rng, done)?;
        self.window = 24;
        if rng.random_bool(0.95) {
            let enable =
                PropertyCommand::set(offset::CC, false, u64::from(cc::EN | cc::ENTRY_SIZES));
            self.ask(enable, &[], done)?;
        }
        Ok(cntlid)
    }

    fn connect(
        &mut self,
        target: &Target,
        qid: u16,
        cntlid: u16,
        rng: &mut SmallRng,
        done: &mut Done,
    ) -> io::Result<u16> {
        let mut data = connect_data(target, rng, cntlid);
        data[..16].copy_from_slice(&self.hostid);
        let answer = self.ask(connect_command(qid), &data, done)?;
        // Dword 0 of the completion: CNTLID.
        Ok(u16::from_le_bytes([answer[8], answer[9]]))
    }

    /// Sends one proper command and waits for its completion.
    fn ask(
        &mut self,
        sqe: keelblock_nvme::Sqe,
        data: &[u8],
        done: &mut Done,
    ) -> io::Result<[u8; RESPONSE]> {
        let mut bytes = Vec::with_capacity(2048);
        put_command(&mut bytes, &sqe, data, &self.wire);
        self.stream.write_all(&bytes)?;
        done.pdus += 1;
        let mut answer = [0; RESPONSE];
        self.stream.read_exact(&mut answer)?;
        if self.wire.digests.header && answer[0] == RESP {
            self.stream.read_exact(&mut [0; 4])?;
        }
        done.answers += 1;
        // Status is in the last two bytes, above the phase bit.
        let status = u16::from_le_bytes([answer[22], answer[23]]) >> 1;
        if answer[0] != RESP || status != 0 {
            return Err(io::Error::other(format!(
                "refused: PDU type {}, status {status:#x}",
                answer[0]
            )));
        }
        Ok(answer)
    }

    /// Many well formed commands with nonsense inside.
    fn blast(&mut self, rng: &mut SmallRng, admin: bool, done: &mut Done) {
        let mut left = 1 << rng.random_range(0..if admin { 8 } else { 13 });
        let deadline = Instant::now() + PATIENCE;
        let mut bytes = Vec::with_capacity(64 << 10);
        let mut cid = 0_u16;
        let lazy = rng.random_bool(0.02);
        let _ = self.stream.set_nonblocking(true);
        let (mut answers, mut heard) = (done.answers, Instant::now());
        while left > 0 && self.alive && Instant::now() < deadline {
            bytes.clear();
            let room = (self.window - self.in_flight.min(self.window)) as usize;
            let count = BATCH.min(left).min(room);
            for _ in 0..count {
                let (sqe, data) = nonsense_command(rng, admin, cid, &self.wire);
                put_command(&mut bytes, &sqe, &data, &self.wire);
                cid = cid.wrapping_add(1) % 4096;
            }
            self.send(&bytes, deadline, rng, done);
            if self.alive {
                done.pdus += count as u64;
                self.in_flight += count as u32;
                left -= count;
            }
            if lazy {
                // A host that sends and does not read.
                continue_lazily(&mut self.in_flight);
            } else {
                self.receive(rng, done);
                if done.answers != answers {
                    (answers, heard) = (done.answers, Instant::now());
                } else if heard.elapsed() > SILENCE {
                    // Only commands are left whose data we did not send.
                    break;
                } else if room == 0 {
                    std::thread::sleep(Duration::from_micros(20));
                }
            }
        }
        let _ = self.stream.set_nonblocking(false);
    }

    /// Sends while receiving, so that neither side waits for the other.
    fn send(&mut self, mut bytes: &[u8], deadline: Instant, rng: &mut SmallRng, done: &mut Done) {
        while !bytes.is_empty() && self.alive {
            match self.stream.write(bytes) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                    self.receive(rng, done)
                }
                Err(_) => self.alive = false,
            }
        }
    }

    /// Takes in what is there and answers some of it.
    fn receive(&mut self, rng: &mut SmallRng, done: &mut Done) {
        let mut chunk = [0; 32 << 10];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.alive = false,
            Ok(got) => self.pending.extend_from_slice(&chunk[..got]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return,
            Err(_) => self.alive = false,
        }
        let mut at = 0;
        let mut answers = Vec::new();
        while let Some(header) = self.pending.get(at..at + 8) {
            let length = u32::from_le_bytes(header[4..8].try_into().expect("4 bytes")) as usize;
            let Some(pdu) = self.pending.get(at..at + length.max(8)) else {
                break;
            };
            done.answers += 1;
            match pdu[0] {
                // The last C2HData with SUCCESS completes its command, which we do not allow (SQ flow control is on).
                RESP => self.in_flight = self.in_flight.saturating_sub(1),
                R2T if pdu.len() >= RESPONSE => {
                    answer_r2t(pdu, rng, &self.wire, &mut answers, done)
                }
                C2H_DATA => {}
                C2H_TERM => self.alive = false,
                _ => {}
            }
            at += length.max(8);
        }
        self.pending.drain(..at.min(self.pending.len()));
        let mut rest = &answers[..];
        let deadline = Instant::now() + PATIENCE;
        while !rest.is_empty() && self.alive {
            match self.stream.write(rest) {
                Ok(sent) => rest = &rest[sent..],
                Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_micros(50));
                }
                Err(_) => self.alive = false,
            }
        }
    }

    /// Something broken, or nothing, and away.
    fn end_badly(&mut self, rng: &mut SmallRng, done: &mut Done) {
        if self.alive {
            let mut bytes = Vec::new();
            match rng.random_range(0..4) {
                0 => bytes = random_pdu(rng),
                1 => {
                    let pdu = H2CData {
                        cccid: edge(rng) as u16,
                        ttag: edge(rng) as u16,
                        offset: edge(rng) as u32,
                        length: 512,
                        last: rng.random(),
                    };
                    put_data(&mut bytes, pdu, &[0x55; 512], &self.wire);
                }
                2 => {
                    let (sqe, data) = nonsense_command(rng, false, 1, &self.wire);
                    put_command(&mut bytes, &sqe, &data, &self.wire);
                    mutate(rng, &mut bytes);
                }
                _ => {}
            }
            self.send_broken(&bytes, done);
        }
        self.leave(rng, done);
    }

    /// Sends what the target may well hang up on.
    fn send_broken(&mut self, bytes: &[u8], done: &mut Done) {
        if !bytes.is_empty() && self.stream.write_all(bytes).is_ok() {
            done.pdus += 1;
        }
    }

    /// Leaves: at once, with a reset, half closed, or after a look at what comes.
    fn leave(&mut self, rng: &mut SmallRng, done: &mut Done) {
        match rng.random_range(0..4) {
            // Closing with unread data makes the kernel send a reset.
            0 => {}
            1 => drop(self.stream.shutdown(std::net::Shutdown::Write)),
            _ => {
                let _ = self.stream.set_read_timeout(Some(Duration::from_millis(5)));
                if self.stream.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {
                    done.answers += 1;
                }
            }
        }
    }
}

/// A host that does not read cannot know what is in flight; it goes on as if all had been answered.
fn continue_lazily(in_flight: &mut u32) {
    *in_flight = 0;
}

/// Answers an R2T: mostly as it should be, sometimes not at all, sometimes wrongly.
fn answer_r2t(pdu: &[u8], rng: &mut SmallRng, wire: &Wire, out: &mut Vec<u8>, done: &mut Done) {
    let u16_at = |at: usize| u16::from_le_bytes([pdu[at], pdu[at + 1]]);
    let u32_at = |at: usize| u32::from_le_bytes(pdu[at..at + 4].try_into().expect("4 bytes"));
    let (cccid, ttag, mut offset, length) = (u16_at(8), u16_at(10), u32_at(12), u32_at(16));
    if rng.random_bool(0.05) {
        return;
    }
    let wrong = rng.random_bool(0.002);
    let end = offset.saturating_add(length.min(2 << 20));
    let zeroes = vec![0; wire.h2c_max.min(1 << 20) as usize];
    while offset < end {
        let piece = (end - offset).min(wire.h2c_max).min(1 << 20);
        let mut pdu = H2CData {
            cccid,
            ttag,
            offset,
            length: piece,
            last: offset + piece == end,
        };
        if wrong {
            match rng.random_range(0..4) {
                0 => pdu.cccid = edge(rng) as u16,
                1 => pdu.ttag = edge(rng) as u16,
                2 => pdu.offset = edge(rng) as u32,
                _ => pdu.last = !pdu.last,
            }
        }
        put_data(out, pdu, &zeroes[..piece as usize], wire);
        done.pdus += 1;
        offset += piece;
    }
}
