//! WAV files whose samples take an odd number of bytes: the byte that makes it even is all that follows them, and GStreamer's
//! demuxer (1.22) takes it for the start of another chunk, which is cut off: it then gives up the file.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::Reader;

/// Most chunks before the samples that are passed over.
const CHUNKS_MAX: usize = 64;
/// Bytes of the head of a file, before its first chunk.
const HEAD_BYTES: u64 = 12;
/// Bytes of the head of a chunk: what it is, and its size.
const CHUNK_HEAD_BYTES: u64 = 8;

/// Where a file without that last byte ends, if it has one.
///
/// # Errors
/// When the source cannot be read.
pub fn end(reader: &dyn Reader) -> io::Result<Option<u64>> {
    let head = reader.read_at(0, 12)?;
    if !head.starts_with(b"RIFF") || !head.ends_with(b"WAVE") {
        return Ok(None);
    }
    let mut at = HEAD_BYTES;
    for _ in 0..CHUNKS_MAX {
        let head = reader.read_at(at, 8)?;
        let (Some(kind), Some(size)) = (head.first_chunk::<4>(), head.get(4..).and_then(|size| size.first_chunk::<4>())) else {
            return Ok(None);
        };
        let size = u64::from(u32::from_le_bytes(*size));
        let end = at + CHUNK_HEAD_BYTES + size;
        if kind == b"data" {
            return Ok(Some(end).filter(|end| size % 2 == 1 && end + 1 == reader.bytes()));
        }
        at = end + size % 2;
    }
    Ok(None)
}

/// The beginning of a source.
pub struct Beginning {
    /// All of it.
    pub reader: Arc<dyn Reader>,
    /// How much is shown.
    pub bytes: u64,
}

impl Reader for Beginning {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let left = self.bytes.saturating_sub(offset);
        self.reader.read_at(offset, len.min(usize::try_from(left).unwrap_or(usize::MAX)))
    }
}
