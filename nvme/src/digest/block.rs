//! CRC32C of one block of 4 KiB, while the next one comes from memory.
//!
//! The CRC instruction takes three cycles and one can begin in each, so three parts of a block are summed beside each other and put together
//! at the end: 6.4 us for 128 KiB in the caches, where folding 16 bytes at a time takes 10. What is not in the caches decides more: a line
//! asked for with each line summed comes as fast as a copy of the memory would (7.5 us), and a whole block asked for at once made the
//! processor wait (28 us; 22 without; `docs/performance.md`).
use core::arch::x86_64::{
    _MM_HINT_T0, _mm_clmulepi64_si128, _mm_crc32_u64, _mm_cvtsi64_si128, _mm_cvtsi128_si64,
    _mm_prefetch,
};

/// Bytes that are summed here.
pub const BLOCK: usize = 4096;
/// Bytes of each of the three parts: whole words. Two words are left over.
const PART: usize = 1360;
const WORD: usize = 8;
const LINE: usize = 64;
/// Moves the sum of a part over the one or two parts behind it, by a carry-less product whose 64 bits the CRC instruction reduces.
const OVER_ONE: i64 = power(PART as u64 * 8 - 33) as i64;
const OVER_TWO: i64 = power(2 * PART as u64 * 8 - 33) as i64;

/// Whether the processor has what this needs.
pub fn possible() -> bool {
    is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("pclmulqdq")
}

/// The digest of `bytes`. The 4 KiB from `ahead` on, wherever it points, are in the caches soon.
///
/// # Safety
/// [`possible`] was true.
#[target_feature(enable = "sse4.2,pclmulqdq")]
pub unsafe fn digest(bytes: &[u8; BLOCK], ahead: Option<*const u8>) -> u32 {
    let (first, rest) = bytes.split_at(PART);
    let (second, rest) = rest.split_at(PART);
    let (third, left) = rest.split_at(PART);
    let mut sums = [u64::from(u32::MAX), 0, 0];
    let lines = first
        .chunks(LINE)
        .zip(second.chunks(LINE))
        .zip(third.chunks(LINE));
    for (n, ((a, b), c)) in lines.enumerate() {
        if let Some(ahead) = ahead {
            // Two lines more than there are in the end: a comparison here would cost more.
            for line in 3 * n..3 * n + 3 {
                // It reads nothing and faults on nothing, wherever it points.
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line * LINE).cast());
            }
        }
        let words = a
            .chunks_exact(WORD)
            .zip(b.chunks_exact(WORD))
            .zip(c.chunks_exact(WORD));
        for ((a, b), c) in words {
            sums[0] = _mm_crc32_u64(sums[0], word(a));
            sums[1] = _mm_crc32_u64(sums[1], word(b));
            sums[2] = _mm_crc32_u64(sums[2], word(c));
        }
    }
    let moved = times(sums[0], OVER_TWO) ^ times(sums[1], OVER_ONE);
    let sum = _mm_crc32_u64(0, moved) ^ sums[2];
    let sum = left
        .chunks_exact(WORD)
        .fold(sum, |sum, w| _mm_crc32_u64(sum, word(w)));
    !(sum as u32)
}

#[inline]
fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

/// The product of two polynomials over one bit, 64 bits of it: a sum has 32 bits, and so has a power.
#[target_feature(enable = "pclmulqdq")]
fn times(sum: u64, power: i64) -> u64 {
    let product = _mm_clmulepi64_si128::<0>(
        _mm_cvtsi64_si128(sum.cast_signed()),
        _mm_cvtsi64_si128(power),
    );
    _mm_cvtsi128_si64(product).cast_unsigned()
}

/// x to the `n`, modulo the polynomial of CRC32C; bit 31 is x to the 0, as everywhere in this sum.
const fn power(mut n: u64) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    const fn multiply(mut a: u32, mut b: u32) -> u32 {
        let mut product = 0;
        while b != 0 {
            if b >> 31 == 1 {
                product ^= a;
            }
            b <<= 1;
            a = (a >> 1) ^ (POLYNOMIAL * (a & 1));
        }
        product
    }
    let (mut base, mut power) = (1 << 30, 1 << 31);
    while n > 0 {
        if n & 1 == 1 {
            power = multiply(power, base);
        }
        base = multiply(base, base);
        n >>= 1;
    }
    power
}
