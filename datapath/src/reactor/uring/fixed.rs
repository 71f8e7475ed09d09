//! Buffers registered with the ring, which saves the kernel from finding and pinning their pages for every transfer.
//!
//! The pool's chunks are registered one by one when first used, so memory that no disk needs is not pinned. Registering counts against
//! RLIMIT_MEMLOCK (8 MiB for all of a user's rings where it is not raised): what fits is registered, the rest works without (RULES S10).

use std::cell::RefCell;

use keelblock_hugepages::{BUFFER_BYTES_MAX, Buffer, BufferPool};

use super::Uring;

/// What is known of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    Unknown,
    Registered,
    Refused,
}

/// Chunks of the reactor's own pool; empty if the kernel offers no table for them.
#[derive(Debug, Default)]
pub(super) struct FixedBuffers(RefCell<Vec<Chunk>>);

impl Uring {
    /// Makes the kernel's table, with nothing in it.
    pub(crate) fn prepare_fixed_buffers(&self, pool: &BufferPool) {
        let chunks = pool.span().1 / BUFFER_BYTES_MAX;
        let Ok(entries) = u16::try_from(chunks) else {
            return;
        };
        if self
            .ring
            .borrow()
            .submitter()
            .register_buffers_sparse(u32::from(entries))
            .is_ok()
        {
            *self.fixed.0.borrow_mut() = vec![Chunk::Unknown; chunks];
        }
    }

    /// The number under which a buffer is registered, if it is or can be.
    pub(super) fn fixed_index(&self, pool: &BufferPool, buffer: &Buffer) -> Option<u16> {
        let (base, bytes) = pool.span();
        // A buffer of another reactor's pool is not in our table.
        let offset = buffer
            .as_ptr()
            .addr()
            .checked_sub(base.as_ptr().addr())
            .filter(|offset| *offset < bytes)?;
        let index = offset / BUFFER_BYTES_MAX;
        let mut chunks = self.fixed.0.borrow_mut();
        let chunk = chunks.get_mut(index)?;
        if *chunk == Chunk::Unknown {
            *chunk = self.register_chunk(base.as_ptr(), index);
            if *chunk == Chunk::Refused {
                // The limit is reached: further chunks would be refused as well.
                chunks
                    .iter_mut()
                    .filter(|c| **c == Chunk::Unknown)
                    .for_each(|c| *c = Chunk::Refused);
            }
        }
        (chunks[index] == Chunk::Registered).then_some(index as u16)
    }

    fn register_chunk(&self, base: *mut u8, index: usize) -> Chunk {
        let chunk = libc::iovec {
            iov_base: base.wrapping_add(index * BUFFER_BYTES_MAX).cast(),
            iov_len: BUFFER_BYTES_MAX,
        };
        // SAFETY: the chunk is memory of the pool's mapping, whose pages the kernel keeps as long as they are registered.
        let done = unsafe {
            self.ring
                .borrow()
                .submitter()
                .register_buffers_update(index as u32, &[chunk], None)
        };
        match done {
            Ok(()) => Chunk::Registered,
            Err(e) => {
                tracing::debug!("buffers from chunk {index} on are used unregistered: {e}");
                Chunk::Refused
            }
        }
    }
}
