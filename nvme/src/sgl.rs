//! SGL descriptors that NVMe/TCP uses (NVMe Base 2.1, 4.3.2; NVMe/TCP 1.1, 3.4.2): one per command, no lists.

use crate::bytes::{put_u32, put_u64, u32_at, u64_at};

const ADDRESS: usize = 0;
const LENGTH: usize = 8;
const ID: usize = 15;
const DATA_BLOCK: u8 = 0x0;
const TRANSPORT_DATA_BLOCK: u8 = 0x5;
const SUBTYPE_ADDRESS: u8 = 0x0;
const SUBTYPE_OFFSET: u8 = 0x1;
const SUBTYPE_TRANSPORT: u8 = 0xa;

/// SGL1 of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sgl {
    /// Data in the capsule, `offset` bytes into it.
    InCapsule {
        /// Offset into the capsule's data.
        offset: u64,
        /// Length in bytes.
        length: u32,
    },
    /// Data in the transport's own PDUs (R2T and H2CData, or C2HData).
    Transport {
        /// Length in bytes.
        length: u32,
    },
    /// All zeroes: a data block at address 0 of length 0, as hosts send with commands without data.
    None,
    /// Another descriptor, which NVMe/TCP does not know.
    Other {
        /// Type and subtype, as on the wire.
        id: u8,
    },
}

impl Sgl {
    /// Decodes a descriptor.
    pub fn decode(b: &[u8; 16]) -> Self {
        let length = u32_at(b, LENGTH);
        match (b[ID] >> 4, b[ID] & 0xf) {
            (DATA_BLOCK, SUBTYPE_OFFSET) => Self::InCapsule {
                offset: u64_at(b, ADDRESS),
                length,
            },
            (TRANSPORT_DATA_BLOCK, SUBTYPE_TRANSPORT) => Self::Transport { length },
            (DATA_BLOCK, SUBTYPE_ADDRESS) if *b == [0; 16] => Self::None,
            _ => Self::Other { id: b[ID] },
        }
    }

    /// Encodes a descriptor. `Other` has no content of its own.
    pub fn encode(self) -> [u8; 16] {
        let mut b = [0; 16];
        match self {
            Self::InCapsule { offset, length } => {
                put_u64(&mut b, ADDRESS, offset);
                put_u32(&mut b, LENGTH, length);
                b[ID] = DATA_BLOCK << 4 | SUBTYPE_OFFSET;
            }
            Self::Transport { length } => {
                put_u32(&mut b, LENGTH, length);
                b[ID] = TRANSPORT_DATA_BLOCK << 4 | SUBTYPE_TRANSPORT;
            }
            Self::None => {}
            Self::Other { id } => b[ID] = id,
        }
        b
    }

    /// The length in bytes; 0 where there is no data.
    pub fn length(self) -> u32 {
        match self {
            Self::InCapsule { length, .. } | Self::Transport { length } => length,
            Self::None | Self::Other { .. } => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_the_specification() {
        let transport = Sgl::Transport { length: 0x10203 };
        assert_eq!(
            transport.encode(),
            [0, 0, 0, 0, 0, 0, 0, 0, 3, 2, 1, 0, 0, 0, 0, 0x5a]
        );
        let capsule = Sgl::InCapsule {
            offset: 8,
            length: 4096,
        };
        assert_eq!(
            capsule.encode(),
            [8, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0x01]
        );
        for sgl in [transport, capsule, Sgl::None, Sgl::Other { id: 0x40 }] {
            assert_eq!(Sgl::decode(&sgl.encode()), sgl);
        }
    }
}
