//! What is published of a finished job: every object that its result consists of or that leads to it, and what each is.

use std::collections::BTreeMap;

use farm::keys;
use farm::stills::Stills;
use farm::storage::Kind;

use crate::playlist::Set;
use crate::seal::{Media, Medium, Rendition, Seal};

/// An object that is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// What workers made: it never changes.
    Made {
        /// What it is.
        kind: Kind,
        /// Its size in bytes.
        bytes: u64,
    },
    /// What was written at the end, and leads to the others. How large it is, storage knows.
    Document {
        /// What it is.
        kind: Kind,
    },
}

/// Everything that is published, by key under the output prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    items: BTreeMap<String, Item>,
}

impl Published {
    /// What is published of a sealed job.
    pub fn of(seal: &Seal) -> Self {
        let mut all = Self::default();
        all.document(keys::REPORT, Kind::Json);
        for set in Set::all(seal) {
            all.document(set.names.master(), Kind::Playlist);
            for rendition in set.renditions {
                all.document(set.names.media(&rendition.id), Kind::Playlist);
                if let Medium::Picture { .. } = rendition.medium {
                    all.document(set.names.i_frames(&rendition.id), Kind::Playlist);
                }
                all.rendition(rendition);
            }
        }
        for text in &seal.text {
            all.document(keys::playlist(&text.track.id), Kind::Playlist);
            text.made.segments.iter().for_each(|object| all.made(&object.key, Kind::TextTrack, object.bytes));
        }
        if let Some(stills) = &seal.stills {
            all.stills(stills);
        }
        for download in &seal.mp4 {
            let of = seal.renditions.iter().find(|rendition| rendition.id == download.id);
            let kind = of.map_or(Kind::VideoMp4, |rendition| kinds(rendition).0);
            all.made(&download.object.key, kind, download.object.bytes);
        }
        all
    }

    /// What stands under a key; nothing where that is not published.
    pub fn get(&self, key: &str) -> Option<Item> {
        self.items.get(key).copied()
    }

    /// Keys of what was written at the end, in their order.
    pub fn documents(&self) -> impl Iterator<Item = &str> {
        self.items.iter().filter(|(_, item)| matches!(item, Item::Document { .. })).map(|(key, _)| key.as_str())
    }

    fn document(&mut self, key: impl Into<String>, kind: Kind) {
        self.items.insert(key.into(), Item::Document { kind });
    }

    fn made(&mut self, key: &str, kind: Kind, bytes: u64) {
        self.items.insert(key.to_owned(), Item::Made { kind, bytes });
    }

    fn rendition(&mut self, rendition: &Rendition) {
        let (whole, segment) = kinds(rendition);
        match &rendition.media {
            Media::File { object, .. } => self.made(&object.key, whole, object.bytes),
            Media::Objects { pieces } => {
                rendition.inits().into_iter().for_each(|(_, init)| self.made(&init.key, whole, init.bytes));
                let objects = pieces.iter().flat_map(|piece| &piece.objects);
                objects.for_each(|object| self.made(&object.key, segment, object.bytes));
            }
        }
    }

    fn stills(&mut self, stills: &Stills) {
        stills.objects().for_each(|object| self.made(&object.key, Kind::Jpeg, object.bytes));
        if !stills.sheets.is_empty() {
            self.document(keys::STORYBOARD, Kind::TextTrack);
        }
    }
}

/// What init segments and whole files of a rendition are, and what its segments are.
fn kinds(rendition: &Rendition) -> (Kind, Kind) {
    match rendition.medium {
        Medium::Picture { .. } => (Kind::VideoMp4, Kind::VideoSegment),
        Medium::Sound { .. } => (Kind::AudioMp4, Kind::AudioSegment),
    }
}

#[cfg(test)]
mod tests;
