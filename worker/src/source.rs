//! The bytes of a source, wherever it is: opened, then read at any place. One enum variant per kind of place.
//!
//! A source is pinned when it is opened: its size, and a time stamp or an ETag. One that changes while it is read fails
//! with [`Code::SourceChanged`], so no result is ever made of two versions.

mod file;
mod http;

use bytes::Bytes;
use farm::job::{SourceSpec, shown_url};
use farm::{Code, Failure};

/// An open source.
pub(crate) struct Source {
    place: Place,
}

enum Place {
    File(file::FileSource),
    Http(http::HttpSource),
}

impl Source {
    /// Opens a source and finds out its size.
    ///
    /// # Errors
    /// [`Code::SourceUnreadable`] when it is not there, not allowed, or in a place that cannot be read at an offset;
    /// [`Code::InvalidRequest`] for a kind of URL that is not known.
    pub(crate) async fn open(spec: &SourceSpec) -> Result<Self, Failure> {
        let place = match spec.url.scheme() {
            "file" => Place::File(file::FileSource::open(&spec.url).await?),
            "http" | "https" => Place::Http(http::HttpSource::open(spec).await?),
            scheme => {
                let message = format!("{}: '{scheme}:' is no kind of source: use file:, http: or https:", shown_url(&spec.url));
                return Err(Failure::new(Code::InvalidRequest, message));
            }
        };
        Ok(Self { place })
    }

    /// Size in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        match &self.place {
            Place::File(file) => file.bytes(),
            Place::Http(http) => http.bytes(),
        }
    }

    /// `len` bytes from `offset` on. The caller sees to it that they are all within [`Source::bytes`].
    ///
    /// # Errors
    /// [`Code::SourceUnreadable`], or [`Code::SourceChanged`] when it is not the same source any more.
    pub(crate) async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, Failure> {
        match &self.place {
            Place::File(file) => file.read_at(offset, len).await,
            Place::Http(http) => http.read_at(offset, len).await,
        }
    }
}
