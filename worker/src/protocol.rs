//! Frames between a worker and its child, over one stream socket.
//!
//! A frame is two lengths in bytes (u32, little endian: of all that follows the first length, and of the header), a header
//! in JSON, and a payload that fills the rest. Parent to child: one [`ToChild::Order`], then only answers to reads. Child
//! to parent: [`FromChild`]. Limits are checked before anything is kept in memory; what the frames *mean* is checked by
//! [`crate::session`].

use std::io::{self, Read};
use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use farm::Failure;
use farm::task::Segment;
use farm::text::Cue;
use pipelines::{Done, Order, StillPlace};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_util::codec::Decoder;

/// Most bytes that a child may ask for in one read: as [`pipelines::Reader`] has it.
pub(crate) const READ_BYTES_MAX: u32 = 4 << 20;
/// Longest header of the two frames that carry lists: an order, and what a probe found.
const LONG_HEADER_BYTES_MAX: usize = 8 << 20;
/// Longest header of any other frame.
const SHORT_HEADER_BYTES_MAX: usize = 64 << 10;
/// Largest media segment: 30 s of 4K.
const SEGMENT_BYTES_MAX: usize = 64 << 20;
/// Largest init segment.
const INIT_BYTES_MAX: usize = 1 << 20;
/// Largest still picture.
const STILL_BYTES_MAX: usize = 32 << 20;
/// Largest list of cues: their texts in JSON, where some characters take two bytes, and 128 bytes for each beside.
const CUES_BYTES_MAX: usize = 2 * Cue::TEXT_BYTES_MAX + 128 * Cue::COUNT_MAX;
/// Bytes of the two lengths in front.
const LENGTHS_BYTES: usize = 8;

/// What a parent says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToChild {
    /// What is to be done. Said once, first.
    Order {
        /// The order.
        order: Box<Order>,
        /// Size of the source in bytes.
        source_bytes: u64,
    },
    /// The answer to a read: its payload.
    Data,
}

/// What a child says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromChild {
    /// Asks for bytes of the source. One at a time.
    Read {
        /// First byte.
        offset: u64,
        /// How many, at most [`READ_BYTES_MAX`].
        len: u32,
    },
    /// The init segment of a rendition: its payload.
    Init {
        /// Place of the rendition in the order.
        rendition: u32,
        /// Ticks per second of its segments' durations.
        timescale: u32,
    },
    /// The next media segment of a rendition: its payload.
    Segment {
        /// Place of the rendition in the order.
        rendition: u32,
        /// What it is.
        segment: Segment,
    },
    /// A still picture: its payload.
    Still {
        /// Which.
        place: StillPlace,
    },
    /// All cues of the next rendition of text: its payload, a list of [`Cue`] in JSON.
    Cues {
        /// Place of the rendition in the order.
        rendition: u32,
    },
    /// How much media has been gone through, in ns.
    Progress {
        /// Nanoseconds of media.
        media_ns: u64,
    },
    /// The order is done. Said once, last.
    Done(Done),
    /// The order cannot be done. Said once, last.
    Failed(Failure),
}

/// A direction of the talk: its headers, and how large header and payload may be.
pub(crate) trait Header: Serialize + DeserializeOwned {
    /// Longest header of this kind in bytes.
    fn header_bytes_max(&self) -> usize;
    /// Largest payload of this kind in bytes.
    fn payload_bytes_max(&self) -> usize;
}

impl Header for ToChild {
    fn header_bytes_max(&self) -> usize {
        match self {
            Self::Order { .. } => LONG_HEADER_BYTES_MAX,
            Self::Data => SHORT_HEADER_BYTES_MAX,
        }
    }

    fn payload_bytes_max(&self) -> usize {
        match self {
            Self::Order { .. } => 0,
            Self::Data => READ_BYTES_MAX as usize,
        }
    }
}

impl Header for FromChild {
    fn header_bytes_max(&self) -> usize {
        match self {
            Self::Done(_) => LONG_HEADER_BYTES_MAX,
            _ => SHORT_HEADER_BYTES_MAX,
        }
    }

    fn payload_bytes_max(&self) -> usize {
        match self {
            Self::Init { .. } => INIT_BYTES_MAX,
            Self::Segment { .. } => SEGMENT_BYTES_MAX,
            Self::Still { .. } => STILL_BYTES_MAX,
            Self::Cues { .. } => CUES_BYTES_MAX,
            Self::Read { .. } | Self::Progress { .. } | Self::Done(_) | Self::Failed(_) => 0,
        }
    }
}

/// A frame.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frame<H> {
    pub(crate) header: H,
    pub(crate) payload: Bytes,
}

/// Why a stream of frames ends badly.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtocolError {
    /// The other side is gone, or the socket does not work.
    #[error("socket: {0}")]
    Io(#[from] io::Error),
    /// A length is above its limit, or the two do not fit each other.
    #[error("a frame's {part} of {bytes} bytes is not allowed")]
    Length {
        /// Which length.
        part: &'static str,
        /// What it is said to be.
        bytes: usize,
    },
    /// A header that is not one.
    #[error("a frame's header cannot be understood: {0}")]
    Header(#[from] serde_json::Error),
}

/// The first bytes of a frame: lengths and header. The payload of `payload_bytes` is to be written right after.
///
/// # Errors
/// [`ProtocolError::Length`] when the frame would be above its limits.
pub(crate) fn head<H: Header>(header: &H, payload_bytes: usize) -> Result<Vec<u8>, ProtocolError> {
    let mut out = vec![0; LENGTHS_BYTES];
    serde_json::to_writer(&mut out, header)?;
    let header_bytes = out.len() - LENGTHS_BYTES;
    check(header, header_bytes, payload_bytes)?;
    // Both fit: the limits are far below 2³².
    let (all, header) = ((4 + header_bytes + payload_bytes) as u32, header_bytes as u32);
    let mut lengths = out.as_mut_slice();
    lengths.put_u32_le(all);
    lengths.put_u32_le(header);
    Ok(out)
}

fn check<H: Header>(header: &H, header_bytes: usize, payload_bytes: usize) -> Result<(), ProtocolError> {
    if header_bytes > header.header_bytes_max() {
        return Err(ProtocolError::Length { part: "header", bytes: header_bytes });
    }
    if payload_bytes > header.payload_bytes_max() {
        return Err(ProtocolError::Length { part: "payload", bytes: payload_bytes });
    }
    Ok(())
}

/// Reads frames. A header is looked at, and the payload's length held against its limit, before the payload is awaited.
pub(crate) struct Frames<H> {
    awaited: Awaited<H>,
}

enum Awaited<H> {
    Lengths,
    Header { header_bytes: usize, payload_bytes: usize },
    Payload { header: H, payload_bytes: usize },
}

impl<H> Default for Frames<H> {
    fn default() -> Self {
        Self { awaited: Awaited::Lengths }
    }
}

impl<H: Header> Decoder for Frames<H> {
    type Item = Frame<H>;
    type Error = ProtocolError;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame<H>>, ProtocolError> {
        loop {
            match std::mem::replace(&mut self.awaited, Awaited::Lengths) {
                Awaited::Lengths => {
                    if buffer.len() < LENGTHS_BYTES {
                        return Ok(None);
                    }
                    let (all, header_bytes) = (buffer.get_u32_le() as usize, buffer.get_u32_le() as usize);
                    if header_bytes > LONG_HEADER_BYTES_MAX {
                        return Err(ProtocolError::Length { part: "header", bytes: header_bytes });
                    }
                    let payload_bytes = all.checked_sub(4 + header_bytes).filter(|bytes| *bytes <= SEGMENT_BYTES_MAX);
                    let payload_bytes = payload_bytes.ok_or(ProtocolError::Length { part: "total", bytes: all })?;
                    self.awaited = Awaited::Header { header_bytes, payload_bytes };
                }
                Awaited::Header { header_bytes, payload_bytes } => {
                    if buffer.len() < header_bytes {
                        buffer.reserve(header_bytes - buffer.len());
                        self.awaited = Awaited::Header { header_bytes, payload_bytes };
                        return Ok(None);
                    }
                    let header: H = serde_json::from_slice(&buffer.split_to(header_bytes))?;
                    check(&header, header_bytes, payload_bytes)?;
                    self.awaited = Awaited::Payload { header, payload_bytes };
                }
                Awaited::Payload { header, payload_bytes } => {
                    if buffer.len() < payload_bytes {
                        buffer.reserve(payload_bytes - buffer.len());
                        self.awaited = Awaited::Payload { header, payload_bytes };
                        return Ok(None);
                    }
                    return Ok(Some(Frame { header, payload: buffer.split_to(payload_bytes).freeze() }));
                }
            }
        }
    }
}

/// Frames from a blocking stream: the child's side.
pub(crate) struct BlockingFrames<R, H> {
    stream: R,
    buffer: BytesMut,
    frames: Frames<H>,
    _headers: PhantomData<H>,
}

impl<R: Read, H: Header> BlockingFrames<R, H> {
    /// Bytes asked of the stream at a time.
    const STEP_BYTES: usize = 256 << 10;

    pub(crate) fn new(stream: R) -> Self {
        Self { stream, buffer: BytesMut::new(), frames: Frames::default(), _headers: PhantomData }
    }

    /// Waits for the next frame.
    ///
    /// # Errors
    /// As [`Frames`]; the end of the stream is [`io::ErrorKind::UnexpectedEof`].
    pub(crate) fn next(&mut self) -> Result<Frame<H>, ProtocolError> {
        loop {
            if let Some(frame) = self.frames.decode(&mut self.buffer)? {
                return Ok(frame);
            }
            let had = self.buffer.len();
            self.buffer.resize(had + Self::STEP_BYTES, 0);
            let room = self.buffer.get_mut(had..).unwrap_or_default();
            let read = retry_interrupted(|| self.stream.read(room));
            self.buffer.truncate(had + read.as_ref().copied().unwrap_or(0));
            if read? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }
}

fn retry_interrupted(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farm::task::KeyFrame;
    use proptest::prelude::*;

    fn whole<H: Header>(header: &H, payload: &[u8]) -> Vec<u8> {
        let mut bytes = head(header, payload.len()).expect("within limits");
        bytes.extend_from_slice(payload);
        bytes
    }

    fn some_segment() -> impl Strategy<Value = FromChild> {
        (any::<u32>(), any::<u64>(), any::<u32>(), any::<u64>()).prop_map(|(rendition, ticks, samples, bytes)| {
            let key_frames = vec![KeyFrame { ticks, offset: bytes, bytes }];
            FromChild::Segment { rendition, segment: Segment { ticks, samples, bytes, key_frames } }
        })
    }

    fn some_header() -> impl Strategy<Value = FromChild> {
        prop_oneof![
            (any::<u64>(), any::<u32>()).prop_map(|(offset, len)| FromChild::Read { offset, len }),
            any::<u64>().prop_map(|media_ns| FromChild::Progress { media_ns }),
            some_segment(),
            ".{0,50}".prop_map(|text| FromChild::Failed(Failure::new(farm::Code::Undecodable, text))),
            Just(FromChild::Done(Done::Encoded(farm::task::Account::default()))),
        ]
    }

    proptest! {
        #[test]
        fn frames_are_read_as_they_were_written_however_they_arrive(
            headers in prop::collection::vec(some_header(), 1..8),
            payload in prop::collection::vec(any::<u8>(), 0..300),
            step in 1_usize..64,
        ) {
            let frames: Vec<_> = headers.into_iter().map(|header| {
                let payload = if header.payload_bytes_max() > 0 { Bytes::copy_from_slice(&payload) } else { Bytes::new() };
                Frame { header, payload }
            }).collect();
            let stream: Vec<u8> = frames.iter().flat_map(|frame| whole(&frame.header, &frame.payload)).collect();
            let (mut decoder, mut buffer, mut read) = (Frames::<FromChild>::default(), BytesMut::new(), Vec::new());
            for piece in stream.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = decoder.decode(&mut buffer).expect("good frames") {
                    read.push(frame);
                }
            }
            prop_assert_eq!(&read, &frames);
            let mut blocking = BlockingFrames::<_, FromChild>::new(stream.as_slice());
            for frame in frames {
                prop_assert_eq!(blocking.next().expect("good frames"), frame);
            }
            prop_assert!(blocking.next().is_err());
        }

        #[test]
        fn garbage_ends_in_an_error_or_in_waiting_never_in_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let (mut decoder, mut buffer) = (Frames::<FromChild>::default(), BytesMut::from(bytes.as_slice()));
            while let Ok(Some(_)) = decoder.decode(&mut buffer) {}
            prop_assert!(buffer.capacity() <= 2 * (LONG_HEADER_BYTES_MAX + SEGMENT_BYTES_MAX));
        }

        #[test]
        fn garbage_in_the_place_of_a_header_is_refused(text in "[^{\"]{1,100}") {
            let mut buffer = BytesMut::new();
            buffer.put_u32_le(4 + text.len() as u32);
            buffer.put_u32_le(text.len() as u32);
            buffer.put_slice(text.as_bytes());
            prop_assert!(Frames::<FromChild>::default().decode(&mut buffer).is_err());
        }
    }

    #[test]
    fn a_frame_above_its_limit_is_refused_before_its_payload_arrives() {
        for (header, payload_bytes) in [
            (r#"{"segment":{"rendition":0,"segment":{"ticks":1,"samples":1,"bytes":1}}}"#, SEGMENT_BYTES_MAX + 1),
            (r#"{"init":{"rendition":0,"timescale":1}}"#, INIT_BYTES_MAX + 1),
            (r#"{"still":{"place":"poster"}}"#, STILL_BYTES_MAX + 1),
            (r#"{"progress":{"media_ns":0}}"#, 1),
            (r#"{"read":{"offset":0,"len":1}}"#, 1),
        ] {
            let mut buffer = BytesMut::new();
            buffer.put_u32_le((4 + header.len() + payload_bytes) as u32);
            buffer.put_u32_le(header.len() as u32);
            buffer.put_slice(header.as_bytes());
            let refused = Frames::<FromChild>::default().decode(&mut buffer);
            assert!(matches!(refused, Err(ProtocolError::Length { .. })), "{header}: {refused:?}");
        }
        for (all, header_bytes) in [(u32::MAX, 10), (3, 0), (10, 7), (u32::MAX, u32::MAX)] {
            let mut buffer = BytesMut::new();
            buffer.put_u32_le(all);
            buffer.put_u32_le(header_bytes);
            assert!(Frames::<FromChild>::default().decode(&mut buffer).is_err(), "{all} {header_bytes}");
        }
    }

    #[test]
    fn a_long_header_is_only_for_what_a_probe_found() {
        let padding = " ".repeat(SHORT_HEADER_BYTES_MAX);
        for (header, allowed) in [
            (r#"{"progress":{"media_ns":0}}"#, false),
            (r#"{"done":{"encoded":{"kept":0,"dropped":0,"filled":0,"missing":0,"decode_errors":0}}}"#, true),
        ] {
            let text = format!("{padding}{header}");
            let mut buffer = BytesMut::new();
            buffer.put_u32_le(4 + text.len() as u32);
            buffer.put_u32_le(text.len() as u32);
            buffer.put_slice(text.as_bytes());
            assert_eq!(Frames::<FromChild>::default().decode(&mut buffer).is_ok(), allowed, "{header}");
        }
    }
}
