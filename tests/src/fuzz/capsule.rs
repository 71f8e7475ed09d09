//! PDUs of a misbehaving host.
use keelblock_nvme::pdu::{CapsuleCmd, DataLayout, Digests, H2CData, PduType};
use keelblock_nvme::sgl::Sgl;
use keelblock_nvme::{Sqe, digest::digest};
use rand::Rng;
use rand::rngs::SmallRng;

/// What both sides agreed on.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// Digests in use.
    pub digests: Digests,
    /// Alignment of our data in bytes.
    pub align: usize,
    /// The longest data of one H2CData PDU.
    pub h2c_max: u32,
    /// Bytes of data that fit into a capsule.
    pub in_capsule: u32,
}

/// Appends a PDU: header, header digest, padding, data, data digest.
pub fn put(out: &mut Vec<u8>, header: &[u8], kind: PduType, data: &[u8], wire: &Wire) {
    let start = out.len();
    out.extend_from_slice(header);
    if wire.digests.header {
        out.extend_from_slice(&digest(header).to_le_bytes());
    }
    if !data.is_empty() {
        let layout = DataLayout::new(kind, data.len() as u32, wire.digests, wire.align);
        out.resize(start + usize::from(layout.pdo), 0);
        out.extend_from_slice(data);
        if wire.digests.data {
            out.extend_from_slice(&digest(data).to_le_bytes());
        }
    }
}

/// Appends a command with its in-capsule data.
pub fn put_command(out: &mut Vec<u8>, sqe: &Sqe, data: &[u8], wire: &Wire) {
    let header = CapsuleCmd::encode(sqe, data.len() as u32, wire.digests, wire.align);
    put(out, &header, PduType::CapsuleCmd, data, wire);
}

/// Appends data for an R2T.
pub fn put_data(out: &mut Vec<u8>, pdu: H2CData, data: &[u8], wire: &Wire) {
    put(
        out,
        &pdu.encode(wire.digests, wire.align),
        PduType::H2CData,
        data,
        wire,
    );
}

/// Numbers that programs get wrong.
pub fn edge(rng: &mut SmallRng) -> u64 {
    match rng.random_range(0..8) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << rng.random_range(0..64),
        3 => (1 << rng.random_range(0..64)) - 1,
        4 => u64::MAX - rng.random_range(0..256),
        5 => rng.random_range(0..4096),
        _ => rng.random(),
    }
}

/// A command whose opcode, fields and SGL are nonsense in some way, and its in-capsule data. The capsule itself is well formed.
pub fn nonsense_command(rng: &mut SmallRng, admin: bool, cid: u16, wire: &Wire) -> (Sqe, Vec<u8>) {
    const IO: [u8; 14] = [
        0x00, 0x01, 0x02, 0x04, 0x05, 0x08, 0x09, 0x0c, 0x0d, 0x0e, 0x11, 0x15, 0x18, 0x19,
    ];
    // Without Fabrics commands other than property ones: a Disconnect or a Connect has its own shape.
    const ADMIN: [u8; 12] = [
        0x00, 0x01, 0x02, 0x04, 0x05, 0x06, 0x08, 0x09, 0x0a, 0x0d, 0x14, 0x18,
    ];
    let known = if admin { &ADMIN[..] } else { &IO[..] };
    let opcode = if rng.random_bool(0.9) {
        known[rng.random_range(0..known.len())]
    } else {
        rng.random_range(0..0x7f)
    };
    let nsid = match rng.random_range(0..10) {
        0 => 0,
        1 => u32::MAX,
        2 => rng.random(),
        3 => 2,
        _ => 1,
    };
    let mut sqe = Sqe::new(opcode, nsid);
    if rng.random_bool(0.05) {
        // Fused, PSDT and reserved bits.
        sqe.0[1] = rng.random();
    }
    for dword in 10..16 {
        let value = if rng.random_bool(0.5) {
            edge(rng) as u32
        } else {
            0
        };
        sqe.set_cdw(dword, value);
    }
    if !admin && rng.random_bool(0.7) {
        // Mostly inside the volume of 32 MiB, a few blocks.
        sqe.set_cdw(10, rng.random_range(0..9000));
        sqe.set_cdw(11, 0);
        let blocks = if rng.random_bool(0.8) { 2 } else { 32 };
        sqe.set_cdw(12, rng.random_range(0..blocks));
    }
    let mut data = Vec::new();
    match rng.random_range(0..8) {
        0 => sqe.set_sgl(Sgl::None),
        1 => sqe.set_sgl(Sgl::Other { id: rng.random() }),
        2 | 3 => {
            data = vec![rng.random(); rng.random_range(1..=wire.in_capsule.max(1)) as usize];
            let honest = rng.random_bool(0.7);
            let (offset, length) = if honest {
                (0, data.len() as u32)
            } else {
                (edge(rng), edge(rng) as u32)
            };
            sqe.set_sgl(Sgl::InCapsule { offset, length });
        }
        4 => sqe.set_sgl(Sgl::Transport {
            length: edge(rng) as u32,
        }),
        _ => sqe.set_sgl(Sgl::Transport {
            length: rng.random_range(0..=32) * 4096,
        }),
    }
    if !admin && rng.random_bool(0.6) {
        // Length as the command says, so that it goes all the way.
        let length = (sqe.cdw(12) & 0xffff)
            .saturating_add(1)
            .saturating_mul(4096);
        if data.is_empty() {
            sqe.set_sgl(Sgl::Transport { length });
        }
    }
    sqe.set_cid(cid);
    (sqe, data)
}

/// Breaks bytes that were PDUs: bits, bytes, lengths, order.
pub fn mutate(rng: &mut SmallRng, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    for _ in 0..rng.random_range(1..=4) {
        let at = rng.random_range(0..bytes.len());
        // The first bytes decide how the rest is read.
        let early = rng.random_range(0..bytes.len().min(16));
        match rng.random_range(0..8) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[early] ^= 1 << rng.random_range(0..8),
            2 => bytes[early] = rng.random(),
            3 => bytes[at] = rng.random(),
            4 => bytes.truncate(at.max(1)),
            5 => bytes.insert(at, rng.random()),
            6 => drop(bytes.drain(..at.min(bytes.len() - 1))),
            _ => {
                // PLEN.
                let value = (edge(rng) as u32).to_le_bytes();
                let end = bytes.len().min(8);
                for (byte, new) in bytes.iter_mut().take(end).skip(4).zip(value) {
                    *byte = new;
                }
            }
        }
    }
}

/// A header of any type with any lengths, and some bytes after it.
pub fn random_pdu(rng: &mut SmallRng) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..rng.random_range(1..=256))
        .map(|_| rng.random())
        .collect();
    if bytes.len() >= 8 && rng.random_bool(0.8) {
        bytes[0] = rng.random_range(0..12);
        bytes[1] = rng.random_range(0..16);
        bytes[2] = [8, 24, 72, 128, rng.random()][rng.random_range(0..5)];
        bytes[3] = [0, 24, 72, 76, rng.random()][rng.random_range(0..5)];
        let length = [bytes.len() as u32, 24, 72, 128, edge(rng) as u32][rng.random_range(0..5)];
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn anything_can_be_made_and_broken() {
        let wire = Wire {
            digests: Digests {
                header: true,
                data: true,
            },
            align: 4,
            h2c_max: 4096,
            in_capsule: 8192,
        };
        let mut rng = SmallRng::seed_from_u64(7);
        for n in 0..5000 {
            let mut out = Vec::new();
            let (sqe, data) = nonsense_command(&mut rng, n % 2 == 0, n as u16, &wire);
            put_command(&mut out, &sqe, &data, &wire);
            let length = u32::from_le_bytes(out[4..8].try_into().unwrap());
            assert_eq!(length as usize, out.len(), "PLEN of a well formed capsule");
            mutate(&mut rng, &mut out);
            assert!(!random_pdu(&mut rng).is_empty());
        }
    }
}
