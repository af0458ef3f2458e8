//! The bytes of a source, wherever it is: opened, then read at any place. One enum variant per kind of place.
//!
//! A source is pinned when it is opened: its size, and a time stamp or an ETag. One that changes while it is read fails
//! with [`Code::SourceChanged`], so no result is ever made of two versions.

mod blocks;
mod file;
mod http;
mod s3;

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use farm::job::{SourceSpec, shown_url};
use farm::media::SourceVersion;
use farm::outbound::Reach;
use farm::storage::Stores;
use farm::{Code, Failure};

use self::blocks::Blocks;
use crate::retry::Patience;

/// An open source.
pub(crate) struct Source {
    place: Place,
}

enum Place {
    /// None: there are no bytes.
    Nowhere,
    File(file::FileSource),
    Http(Blocks<http::HttpRemote>),
    S3(Blocks<s3::S3Remote>),
    /// Several, one after the other. Blocks are kept of the one that was read last.
    Row(Vec<Source>, AtomicUsize),
}

impl Source {
    /// Opens a source and finds out its size. Those in S3 are reached as `stores` are, those behind HTTP within `reach`.
    ///
    /// With [`Patience::Short`], for a source that nobody has read yet, what cannot be reached at all is not tried again: a URL
    /// that leads nowhere is said to at once, and whoever ordered the attempt makes another. With [`Patience::Long`], for one
    /// that was read before, and in any case once bytes have come, an outage of two minutes is borne.
    ///
    /// # Errors
    /// [`Code::SourceUnreadable`] when it is not there, not allowed, or in a place that cannot be read at an offset;
    /// [`Code::InvalidRequest`] for a kind of URL that is not known.
    pub(crate) async fn open(spec: &SourceSpec, (stores, reach): (&Stores, &Reach), patience: Patience) -> Result<Self, Failure> {
        let place = match spec.url.scheme() {
            "file" => Place::File(file::FileSource::open(&spec.url).await?),
            "http" | "https" => Place::Http(Blocks::new(http::HttpRemote::open(spec, reach, patience).await?, patience)),
            "s3" => Place::S3(Blocks::new(s3::S3Remote::open(spec, stores, patience).await?, patience)),
            scheme => {
                let message =
                    format!("{}: '{scheme}:' is no kind of source: use file:, http:, https: or s3:", shown_url(&spec.url));
                return Err(Failure::new(Code::InvalidRequest, message));
            }
        };
        Ok(Self { place })
    }

    /// Several as one: the bytes of each after those of the one before.
    pub(crate) fn row(sources: Vec<Self>) -> Self {
        Self { place: Place::Row(sources, AtomicUsize::new(0)) }
    }

    /// No bytes, for orders that read none.
    pub(crate) fn empty() -> Self {
        Self { place: Place::Nowhere }
    }

    /// Keeps nothing of it in memory.
    fn forget(&self) {
        match &self.place {
            Place::Nowhere | Place::File(_) => {}
            Place::Http(http) => http.forget(),
            Place::S3(s3) => s3.forget(),
            Place::Row(sources, _) => sources.iter().for_each(Self::forget),
        }
    }

    /// Which version of it was opened, and is read.
    pub(crate) fn version(&self) -> SourceVersion {
        match &self.place {
            Place::Nowhere => SourceVersion { bytes: 0, etag: None, modified: None },
            Place::File(file) => file.version(),
            Place::Http(http) => http.version().clone(),
            Place::S3(s3) => s3.version().clone(),
            Place::Row(sources, _) => {
                let bytes = sources.iter().map(Self::bytes).fold(0, u64::saturating_add);
                SourceVersion { bytes, etag: None, modified: None }
            }
        }
    }

    /// Size in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.version().bytes
    }

    /// Refuses a source that is not of the version that was planned for.
    ///
    /// # Errors
    /// [`Code::SourceChanged`].
    pub(crate) fn check(self, planned: Option<&SourceVersion>, spec: &SourceSpec) -> Result<Self, Failure> {
        if planned.is_none_or(|planned| planned.fits(&self.version())) {
            return Ok(self);
        }
        let message = format!("{} is not what it was when it was first read", shown_url(&spec.url));
        Err(Failure::new(Code::SourceChanged, message))
    }

    /// `len` bytes from `offset` on. The caller sees to it that they are all within [`Source::bytes`].
    ///
    /// # Errors
    /// [`Code::SourceUnreadable`], or [`Code::SourceChanged`] when it is not the same source any more.
    pub(crate) async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, Failure> {
        match &self.place {
            Place::Nowhere => Err(Failure::new(Code::Internal, "a read of a source that has no bytes")),
            Place::File(file) => file.read_at(offset, len).await,
            Place::Http(http) => http.read_at(offset, len).await,
            Place::S3(s3) => s3.read_at(offset, len).await,
            Place::Row(sources, last) => read_row((sources, last), offset, len).await,
        }
    }
}

/// Reads what may lie across several sources.
async fn read_row((sources, last): (&[Source], &AtomicUsize), offset: u64, len: usize) -> Result<Bytes, Failure> {
    let (mut start, end, mut gathered) = (0_u64, offset.saturating_add(len as u64), BytesMut::new());
    for (place, source) in sources.iter().enumerate() {
        let own = start..start.saturating_add(source.bytes());
        start = own.end;
        let wanted = own.start.max(offset)..own.end.min(end);
        if wanted.is_empty() {
            continue;
        }
        let before = last.swap(place, Ordering::Relaxed);
        if let Some(before) = sources.get(before).filter(|_| before != place) {
            before.forget();
        }
        let bytes = usize::try_from(wanted.end - wanted.start).unwrap_or(len);
        let part = Box::pin(source.read_at(wanted.start - own.start, bytes)).await?;
        if bytes == len {
            return Ok(part);
        }
        gathered.extend_from_slice(&part);
    }
    Ok(gathered.freeze())
}
