//! A zeroed structure that is filled in at named offsets, little-endian.

/// Writing beyond its end is our own mistake and panics.
pub struct Page(Vec<u8>);

impl Page {
    /// `bytes` zeroes.
    pub fn new(bytes: usize) -> Self {
        Page(vec![0; bytes])
    }

    /// Puts these bytes at `at`.
    pub fn bytes(&mut self, at: usize, v: &[u8]) -> &mut Self {
        self.0[at..at + v.len()].copy_from_slice(v);
        self
    }

    /// Puts a byte.
    pub fn u8(&mut self, at: usize, v: u8) -> &mut Self {
        self.bytes(at, &[v])
    }

    /// Puts two bytes.
    pub fn u16(&mut self, at: usize, v: u16) -> &mut Self {
        self.bytes(at, &v.to_le_bytes())
    }

    /// Puts four bytes.
    pub fn u32(&mut self, at: usize, v: u32) -> &mut Self {
        self.bytes(at, &v.to_le_bytes())
    }

    /// Puts eight bytes.
    pub fn u64(&mut self, at: usize, v: u64) -> &mut Self {
        self.bytes(at, &v.to_le_bytes())
    }

    /// Puts sixteen bytes, as counters and capacities have.
    pub fn u128(&mut self, at: usize, v: u128) -> &mut Self {
        self.bytes(at, &v.to_le_bytes())
    }

    /// An ASCII field of `len` bytes: padded with spaces, cut, and what does not print replaced.
    pub fn ascii(&mut self, at: usize, len: usize, text: &str) -> &mut Self {
        let printable = |b: u8| if (0x20..0x7f).contains(&b) { b } else { b'?' };
        let padded = text.bytes().map(printable).chain(std::iter::repeat(b' '));
        let field: Vec<u8> = padded.take(len).collect();
        self.bytes(at, &field)
    }

    /// The bytes.
    pub fn done(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_endian_and_padded() {
        let mut p = Page::new(14);
        p.u16(0, 0x0102)
            .u32(2, 0x0304_0506)
            .ascii(6, 4, "aé")
            .ascii(10, 2, "xyz");
        assert_eq!(p.done()[..], *b"\x02\x01\x06\x05\x04\x03a??\x20xy\0\0");
    }
}
