//! Still pictures go to the output storage one after another, under the token of their execution: there are few.

use bytes::Bytes;
use farm::stills::Stills;
use farm::storage::{Kind, Storage};
use farm::task::{Object, Token};
use farm::{Code, Failure, keys};
use pipelines::{Pictured, StillPlace};

use crate::upload::{discard, put};

/// The still pictures of one execution, as far as they are stored.
pub(crate) struct StillUploads {
    output: Storage,
    token: Token,
    poster: Option<Object>,
    sheets: Vec<Object>,
    /// What may be stored, of uploads that failed too.
    keys: Vec<String>,
}

impl StillUploads {
    /// None yet.
    pub(crate) fn new(output: Storage, token: Token) -> Self {
        Self { output, token, poster: None, sheets: Vec::new(), keys: Vec::new() }
    }

    /// Stores a picture.
    ///
    /// # Errors
    /// The storage's.
    pub(crate) async fn take(&mut self, place: StillPlace, bytes: Bytes) -> Result<(), Failure> {
        let key = match place {
            StillPlace::Poster => keys::poster(&self.token),
            StillPlace::Sheet(number) => keys::sheet(&self.token, number as usize),
        };
        self.keys.push(key.clone());
        let object = put(&self.output, key, Kind::Jpeg, bytes).await?;
        match place {
            StillPlace::Poster => self.poster = Some(object),
            StillPlace::Sheet(_) => self.sheets.push(object),
        }
        Ok(())
    }

    /// What was made, with what is told of it.
    ///
    /// # Errors
    /// [`Code::Internal`] when there is a poster and none was told of, or the other way round.
    pub(crate) fn finish(&mut self, told: Pictured) -> Result<Stills, Failure> {
        let poster = match (self.poster.take(), told.poster_ns) {
            (Some(poster), Some(shown_ns)) => Some((poster, shown_ns)),
            (None, None) => None,
            _ => return Err(Failure::new(Code::Internal, "a poster that nobody told of")),
        };
        Ok(Stills { poster, sheets: std::mem::take(&mut self.sheets), tiles: told.tiles })
    }

    /// Deletes whatever may be stored: the execution came to nothing.
    pub(crate) async fn abandon(self) {
        discard(&self.output, &self.keys).await;
    }
}
