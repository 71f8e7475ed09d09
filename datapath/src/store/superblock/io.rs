//! Reading and committing superblocks.

use keelblock_hugepages::{Buffer, BufferPool};

use super::{COPIES, COPY_BYTES, CopyError, Superblock};
use crate::device::{Device, IoError};

/// What is where a superblock should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A superblock.
    Present(Box<Present>),
    /// Nothing of ours.
    Blank,
    /// Something of ours, and no valid copy: what is wrong with the one that came furthest.
    Corrupt(CopyError),
}

/// The present superblock of a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// The valid copy with the highest sequence. It may only be in the drive's cache.
    pub superblock: Superblock,
    /// Whether no promise of a replica can be lost: another copy has the same version of them, or two others the one before, so that a
    /// commit was under way of which nobody was told.
    pub promises_whole: bool,
    /// The copy that should be like it and is not.
    pub torn: Option<usize>,
}

impl Present {
    fn of(copies: [Option<Superblock>; COPIES]) -> Option<Self> {
        let best = copies.iter().flatten().max_by_key(|s| s.sequence)?.clone();
        let version = best.replicas_version;
        let with = |v: Option<u64>| {
            let versions = copies.iter().flatten().map(|s| Some(s.replicas_version));
            versions.filter(|found| *found == v).count()
        };
        let newer = copies
            .iter()
            .flatten()
            .any(|s| s.replicas_version > version);
        let agree = with(Some(version)) >= 2 || with(version.checked_sub(1)) >= 2;
        let pair = Superblock::pair(best.sequence);
        let like = |copy: usize| {
            copies[copy]
                .as_ref()
                .is_some_and(|s| s.sequence == best.sequence)
        };
        Some(Self {
            promises_whole: version == 0 || agree && !newer,
            torn: pair.into_iter().find(|copy| !like(*copy)),
            superblock: best,
        })
    }
}

/// Why it is not known what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// No valid copy was read, and this one could not be read.
    #[error("superblock copy {copy}: {source}")]
    Unreadable {
        /// Which.
        copy: usize,
        /// What happened.
        source: IoError,
    },
}

/// Reads one copy, 0 to 3: what it says, or what is wrong with it.
///
/// # Errors
/// [`IoError`].
pub async fn read_copy(
    device: &Device,
    copy: usize,
    buffers: &BufferPool,
) -> Result<Result<Superblock, CopyError>, IoError> {
    assert!(copy < COPIES);
    let at = (copy * COPY_BYTES) as u64;
    if at + COPY_BYTES as u64 > device.size_bytes() {
        return Ok(Err(CopyError::Blank));
    }
    let buffer = buffers.take(COPY_BYTES).await;
    let (buffer, read) = device.read(at, buffer, COPY_BYTES).await;
    read?;
    Ok(Superblock::decode(&buffer[..COPY_BYTES]))
}

/// Finds a drive's present superblock.
///
/// # Errors
/// [`SuperblockError`]: a copy cannot be read, and no other one is valid. So a drive is blank only if all copies say so.
pub async fn find(device: &Device, buffers: &BufferPool) -> Result<Found, SuperblockError> {
    let mut copies = [const { None }; COPIES];
    let mut wrong: Option<CopyError> = None;
    let mut unreadable = None;
    for (copy, found) in copies.iter_mut().enumerate() {
        match read_copy(device, copy, buffers).await {
            // One copy that cannot be read is what the others are for.
            Err(source) => unreadable = Some(SuperblockError::Unreadable { copy, source }),
            Ok(Ok(superblock)) => *found = Some(superblock),
            Ok(Err(why)) if why.ours() => wrong = Some(further(wrong, why)),
            Ok(Err(_)) => {}
        }
    }
    match (Present::of(copies), unreadable, wrong) {
        (Some(present), ..) => Ok(Found::Present(Box::new(present))),
        (None, Some(e), _) => Err(e),
        (None, None, Some(why)) => Ok(Found::Corrupt(why)),
        (None, None, None) => Ok(Found::Blank),
    }
}

/// Of two things that are wrong, the one that says more: a checksum says least.
fn further(before: Option<CopyError>, now: CopyError) -> CopyError {
    match (before, &now) {
        (Some(before), CopyError::Checksum { .. }) => before,
        _ => now,
    }
}

/// Writes the copy that should be like the present one and is not, and flushes: from then on the present pair is whole, so that no crash
/// leaves one copy alone with a promise. The caller has flushed what was found.
///
/// # Errors
/// [`IoError`].
pub async fn heal(
    device: &Device,
    present: &Present,
    mut buffer: Buffer,
) -> (Buffer, Result<(), IoError>) {
    let Some(copy) = present.torn else {
        return (buffer, Ok(()));
    };
    present.superblock.encode(&mut buffer[..COPY_BYTES]);
    let at = (copy * COPY_BYTES) as u64;
    let (buffer, written) = device.write(at, buffer, COPY_BYTES, false).await;
    match written {
        Ok(()) => (buffer, device.flush().await),
        Err(e) => (buffer, Err(e)),
    }
}

/// Makes `superblock` what the drive says, under the next sequence: both copies of the pair that the present one is not in, then FLUSH.
/// The caller has flushed what it refers to. When this succeeds, a crash does not undo it; when it fails, the state before is still
/// there, or the new one was reached. The buffer, of a copy's size, is the caller's: the pool may be held by those who wait for this commit.
///
/// # Errors
/// [`IoError`]; the sequence is another, so that the next commit writes the same pair under a number of its own
/// ([`Superblock::leave_unfinished_behind`]). The caller keeps it.
///
/// # Panics
/// If the superblock contradicts itself.
pub async fn commit(
    device: &Device,
    superblock: &mut Superblock,
    buffer: Buffer,
) -> (Buffer, Result<(), IoError>) {
    superblock.sequence += 1;
    let (buffer, done) = write_pair(device, superblock, buffer).await;
    if done.is_err() {
        superblock.sequence -= 1;
        superblock.leave_unfinished_behind();
    }
    (buffer, done)
}

async fn write_pair(
    device: &Device,
    superblock: &Superblock,
    mut buffer: Buffer,
) -> (Buffer, Result<(), IoError>) {
    superblock.encode(&mut buffer[..COPY_BYTES]);
    let pair = Superblock::pair(superblock.sequence);
    #[cfg(planted)]
    let pair = {
        use crate::store::planted::{Bug, is};
        if is(Bug::SuperblockInPlace) {
            Superblock::pair(0)
        } else {
            pair
        }
    };
    for copy in pair {
        let at = (copy * COPY_BYTES) as u64;
        let written;
        (buffer, written) = device.write(at, buffer, COPY_BYTES, false).await;
        if written.is_err() {
            return (buffer, written);
        }
    }
    // Only now: whoever acts on the new state (reuses space, answers) must not be ahead of the media.
    (buffer, device.flush().await)
}
