//! Several objects joined into one. What is large enough is copied by the server; the rest passes through here, a bounded
//! number of bytes at a time.
//!
//! Copies are as large as the objects, so parts differ in size. Most servers take that. Cloudflare's R2 wants all parts but the last
//! to be equal, and says so when all are there; a server that does, or that cannot copy, gets parts of equal size, which all pass
//! through here. It is asked once: the next join begins that way.

use std::ops::Range;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::multipart::{PART_BYTES, PARTS_MAX, Unfinished, Upload, gather, part_bytes};
use super::{Bucket, Kind, StorageError};

/// Smallest part that S3 takes, the last one excepted, in bytes.
const PART_BYTES_MIN: u64 = 5 << 20;
/// Largest part that is copied with one request, in bytes. S3 takes 5 GiB; this keeps a request short.
const COPY_BYTES_MAX: u64 = 512 << 20;
/// Sizes asked for at a time.
const SIZES_AT_ONCE: usize = 8;

/// Dead bytes between two ranges of an object up to which both are read at once.
const GAP_BYTES_MAX: u64 = 64 << 10;

/// What is joined.
pub(super) enum Source {
    /// An object, or some of its bytes.
    Object {
        /// Its path in the bucket.
        path: String,
        /// Which of its bytes; none for all.
        range: Option<Range<u64>>,
    },
    /// These bytes.
    Bytes(Bytes),
}

/// How many bytes a source has.
enum Size {
    /// So many.
    Known(u64),
    /// As many as the object at this path.
    Of(String),
}

impl Source {
    fn size(&self) -> Size {
        match self {
            Self::Object { range: Some(range), .. } => Size::Known(range.end.saturating_sub(range.start)),
            Self::Object { path, range: None } => Size::Of(path.clone()),
            Self::Bytes(content) => Size::Known(content.len() as u64),
        }
    }

    /// Where the first of its bytes stands in its object.
    fn start(&self) -> u64 {
        match self {
            Self::Object { range: Some(range), .. } => range.start,
            Self::Object { range: None, .. } | Self::Bytes(_) => 0,
        }
    }
}

/// A range of one of the sources.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    /// Which, by its place in the list.
    source: usize,
    /// Which of its bytes.
    range: Range<u64>,
}

/// A part of the new object.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// Copied by the server.
    Copied(Piece),
    /// Fetched from these one after another, and uploaded.
    Carried(Vec<Piece>),
}

impl Part {
    #[cfg(test)]
    fn pieces(&self) -> &[Piece] {
        match self {
            Self::Copied(piece) => std::slice::from_ref(piece),
            Self::Carried(pieces) => pieces,
        }
    }
}

fn bytes_of(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| piece.range.end - piece.range.start).sum()
}

/// Parts such that as much as possible is copied: whatever of an object is at least a part's smallest size. Objects too
/// small for that, and as much of the next as is needed to fill a part, are carried.
fn with_copies(sizes: &[u64]) -> Vec<Part> {
    let least = sizes.iter().sum::<u64>().div_ceil(PARTS_MAX).max(PART_BYTES_MIN);
    let most = COPY_BYTES_MAX.max(least);
    let mut parts = Vec::new();
    let mut carried: Vec<Piece> = Vec::new();
    for (source, bytes) in sizes.iter().enumerate() {
        let mut at = 0;
        while at < *bytes {
            let (left, missing) = (bytes - at, least.saturating_sub(bytes_of(&carried)));
            let end = if carried.is_empty() && left >= least {
                // The rest must not be too small to be copied.
                if left > most { at + most.min(left - least) } else { *bytes }
            } else if missing == 0 || left < missing + least {
                *bytes
            } else {
                at + missing
            };
            let piece = Piece { source, range: at..end };
            match carried.is_empty() && left >= least {
                true => parts.push(Part::Copied(piece)),
                false => carried.push(piece),
            }
            at = end;
            if bytes_of(&carried) >= least {
                parts.push(Part::Carried(std::mem::take(&mut carried)));
            }
        }
    }
    if !carried.is_empty() {
        parts.push(Part::Carried(carried));
    }
    parts
}

/// Parts of equal size, all carried.
fn carried(sizes: &[u64]) -> Vec<Part> {
    let size = part_bytes(sizes.iter().sum());
    let mut parts = Vec::new();
    let mut part = Vec::new();
    for (source, bytes) in sizes.iter().enumerate() {
        let mut at = 0;
        while at < *bytes {
            let end = (at + size - bytes_of(&part)).min(*bytes);
            part.push(Piece { source, range: at..end });
            at = end;
            if bytes_of(&part) == size {
                parts.push(Part::Carried(std::mem::take(&mut part)));
            }
        }
    }
    if !part.is_empty() {
        parts.push(Part::Carried(part));
    }
    parts
}

impl Bucket {
    /// Joins sources; the size of the new object.
    pub(super) async fn join_sources(&self, path: &str, sources: &[Source], kind: Kind) -> Result<u64, StorageError> {
        let known: Vec<Size> = sources.iter().map(Source::size).collect();
        let sizes = stream::iter(known).map(|size| async move {
            match size {
                Size::Known(bytes) => Ok(bytes),
                Size::Of(path) => self.size(&path).await,
            }
        });
        let sizes: Vec<u64> = sizes.buffered(SIZES_AT_ONCE).try_collect().await?;
        let bytes = sizes.iter().sum();
        if bytes < PART_BYTES {
            let all: Vec<Piece> = sizes.iter().enumerate().map(|(source, bytes)| Piece { source, range: 0..*bytes }).collect();
            let content = self.carry(sources, &all).await?;
            self.put_whole(path, content, kind).await?;
            return Ok(bytes);
        }
        if self.copies() {
            match self.join_parts(path, sources, with_copies(&sizes), kind, bytes).await {
                Err(NotJoined::Refused(error)) => {
                    tracing::info!(%error, "parts that are copied do not make an object here: they are carried");
                    self.s3.unsupported.copies.store(true, Ordering::Relaxed);
                }
                Err(NotJoined::Failed(error)) => return Err(error),
                Ok(()) => return Ok(bytes),
            }
        }
        match self.join_parts(path, sources, carried(&sizes), kind, bytes).await {
            Ok(()) => Ok(bytes),
            Err(NotJoined::Refused(error) | NotJoined::Failed(error)) => Err(error),
        }
    }

    /// Stores the parts as one object.
    async fn join_parts(
        &self,
        path: &str,
        sources: &[Source],
        parts: Vec<Part>,
        kind: Kind,
        bytes: u64,
    ) -> Result<(), NotJoined> {
        let upload = Upload::begin(self, path, kind).await.map_err(NotJoined::Failed)?;
        let storing = (1..).zip(parts).map(|(number, part)| self.store_part(&upload, number, part, sources));
        let stored = gather(storing).await;
        let why = match stored.map(|parts| parts.into_iter().collect::<Option<Vec<_>>>()) {
            Ok(Some(parts)) => {
                return upload.finish(parts, bytes).await.map_err(|unfinished| match unfinished {
                    Unfinished::PartsUnfit(error) => NotJoined::Refused(error),
                    Unfinished::Failed(error) => NotJoined::Failed(error),
                });
            }
            Ok(None) => NotJoined::Refused(self.unfit(path, "it does not copy")),
            Err(error) => NotJoined::Failed(error),
        };
        upload.abort().await;
        Err(why)
    }

    async fn store_part(
        &self,
        upload: &Upload,
        number: i32,
        part: Part,
        sources: &[Source],
    ) -> Result<Option<aws_sdk_s3::types::CompletedPart>, StorageError> {
        let pieces = match part {
            Part::Copied(piece) => match sources.get(piece.source) {
                Some(source @ Source::Object { path, .. }) => {
                    let start = source.start();
                    return upload.copy(number, path, start + piece.range.start..start + piece.range.end).await;
                }
                _ => vec![piece],
            },
            Part::Carried(pieces) => pieces,
        };
        upload.put(number, self.carry(sources, &pieces).await?).await.map(Some)
    }

    /// The bytes of pieces, one after another.
    async fn carry(&self, sources: &[Source], pieces: &[Piece]) -> Result<Bytes, StorageError> {
        let mut content = BytesMut::with_capacity(usize::try_from(bytes_of(pieces)).unwrap_or(0));
        for reading in readings(sources, pieces) {
            match reading {
                Reading::Bytes(bytes) => content.extend_from_slice(&bytes),
                Reading::Object { path, span, ranges } => {
                    let read = self.read(path, Some(span.clone())).await?;
                    for range in ranges {
                        let place = |at: u64| usize::try_from(at - span.start).unwrap_or(usize::MAX);
                        let bytes = read.get(place(range.start)..place(range.end));
                        content.extend_from_slice(bytes.ok_or_else(|| self.unfit(path, "an object is shorter than it was"))?);
                    }
                }
            }
        }
        Ok(content.freeze())
    }
}

/// What is read at once.
#[derive(Debug, PartialEq, Eq)]
enum Reading<'a> {
    /// A part of an object.
    Object {
        /// Its path in the bucket.
        path: &'a str,
        /// What is asked for.
        span: Range<u64>,
        /// What is kept of it, in order.
        ranges: Vec<Range<u64>>,
    },
    /// Nothing: the bytes are here.
    Bytes(Bytes),
}

/// How pieces are read: those of one object that follow closely on each other with one request.
fn readings<'a>(sources: &'a [Source], pieces: &[Piece]) -> Vec<Reading<'a>> {
    let mut readings: Vec<Reading<'a>> = Vec::new();
    for piece in pieces.iter().filter(|piece| !piece.range.is_empty()) {
        match sources.get(piece.source) {
            Some(Source::Bytes(content)) => {
                let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(content.len());
                readings.push(Reading::Bytes(content.slice(place(piece.range.start)..place(piece.range.end))));
            }
            Some(source @ Source::Object { path, .. }) => {
                let range = source.start() + piece.range.start..source.start() + piece.range.end;
                match readings.last_mut() {
                    Some(Reading::Object { path: before, span, ranges })
                        if before == path && (span.end..=span.end + GAP_BYTES_MAX).contains(&range.start) =>
                    {
                        span.end = range.end;
                        ranges.push(range);
                    }
                    _ => readings.push(Reading::Object { path, span: range.clone(), ranges: vec![range] }),
                }
            }
            None => {}
        }
    }
    readings
}

/// Why objects were not joined.
enum NotJoined {
    /// The server will not copy, or not take such parts.
    Refused(StorageError),
    /// Anything else.
    Failed(StorageError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every byte once, in order.
    fn check_whole(sizes: &[u64], parts: &[Part]) -> Result<(), TestCaseError> {
        let mut next = (0, 0);
        for Piece { source, range } in parts.iter().flat_map(Part::pieces) {
            while next.1 == sizes[next.0] {
                next = (next.0 + 1, 0);
            }
            prop_assert_eq!(next, (*source, range.start));
            prop_assert!(range.start < range.end && range.end <= sizes[*source]);
            next = (*source, range.end);
        }
        prop_assert_eq!(parts.iter().map(|part| bytes_of(part.pieces())).sum::<u64>(), sizes.iter().sum::<u64>());
        Ok(())
    }

    proptest! {
        #[test]
        fn every_byte_is_there_once_and_every_part_is_allowed(
            sizes in prop::collection::vec(prop_oneof![0..2_000_u64, 0..12_000_000_u64, 0..3_000_000_000_u64], 1..40)
        ) {
            for parts in [with_copies(&sizes), carried(&sizes)] {
                check_whole(&sizes, &parts)?;
                prop_assert!(parts.len() <= 10_000);
                let (_, all_but_last) = parts.split_last().map_or((None, &[][..]), |(last, rest)| (Some(last), rest));
                prop_assert!(all_but_last.iter().all(|part| bytes_of(part.pieces()) >= PART_BYTES_MIN));
                for part in &parts {
                    let is_bounded = match part {
                        Part::Copied(_) => bytes_of(part.pieces()) <= 2 * COPY_BYTES_MAX,
                        Part::Carried(pieces) => bytes_of(pieces) <= 2 * PART_BYTES,
                    };
                    prop_assert!(is_bounded, "{:?}", part);
                }
            }
            let equal = carried(&sizes);
            let sizes_of: Vec<u64> = equal.iter().map(|part| bytes_of(part.pieces())).collect();
            prop_assert!(sizes_of.windows(2).all(|pair| pair[1] <= pair[0] && (pair[0] == sizes_of[0])));
        }
    }

    #[test]
    fn a_small_beginning_takes_what_it_lacks_from_the_next() {
        let parts = with_copies(&[1000, 20_000_000, 6_000_000]);
        let piece = |source, range| Piece { source, range };
        let cut = PART_BYTES_MIN - 1000;
        assert_eq!(
            parts,
            [
                Part::Carried(vec![piece(0, 0..1000), piece(1, 0..cut)]),
                Part::Copied(piece(1, cut..20_000_000)),
                Part::Copied(piece(2, 0..6_000_000)),
            ]
        );
    }

    #[test]
    fn ranges_of_an_object_that_are_close_are_read_at_once() {
        let object = |path: &str, range: Range<u64>| Source::Object { path: path.to_owned(), range: Some(range) };
        let sources = [
            Source::Bytes(Bytes::from_static(b"head")),
            object("a", 100..200),
            object("a", 300..400),
            object("b", 0..10),
            object("a", 500..600),
            object("a", 500_000..500_010),
        ];
        let sizes: Vec<u64> = vec![4, 100, 100, 10, 100, 10];
        let pieces: Vec<Piece> = sizes.iter().enumerate().map(|(source, bytes)| Piece { source, range: 0..*bytes }).collect();
        let one = |path, range: Range<u64>| Reading::Object { path, span: range.clone(), ranges: vec![range] };
        assert_eq!(
            readings(&sources, &pieces),
            [
                Reading::Bytes(Bytes::from_static(b"head")),
                Reading::Object { path: "a", span: 100..400, ranges: vec![100..200, 300..400] },
                one("b", 0..10),
                one("a", 500..600),
                one("a", 500_000..500_010),
            ]
        );
    }

    #[test]
    fn many_small_objects_make_few_parts() {
        let parts = with_copies(&vec![100_000; 50_000]);
        assert!(parts.len() <= 1000, "{}", parts.len());
    }
}
