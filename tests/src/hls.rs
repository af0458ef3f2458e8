//! An HLS presentation as it lies in a folder: its playlists, read with `m3u8-rs`, and the bytes they name.
//!
//! Here it is only read; what must hold of it is in [`crate::rules`].

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use m3u8_rs::{ByteRange, MasterPlaylist, MediaPlaylist, VariantStream};

use crate::mp4::{self, Kind, Sample, Track};
use crate::text;

/// A presentation: the multivariant playlist and all it leads to.
#[derive(Debug)]
pub struct Presentation {
    /// The folder it lies in.
    pub folder: PathBuf,
    /// `master.m3u8`.
    pub master: MasterPlaylist,
    /// Every media playlist of fragmented MP4, pictures from the largest to the smallest and then sound.
    pub renditions: Vec<Rendition>,
    /// Every I-frame playlist, in the order of the multivariant playlist.
    pub i_frames: Vec<IFrames>,
    /// Every rendition of text, in the order of the multivariant playlist.
    pub texts: Vec<text::Rendition>,
}

/// An I-frame playlist and its media.
#[derive(Debug)]
pub struct IFrames {
    /// Where the multivariant playlist names it.
    pub variant: VariantStream,
    /// The playlist.
    pub playlist: MediaPlaylist,
    /// Where the playlist lies.
    pub path: PathBuf,
    /// Bytes of the init segment.
    pub init: Vec<u8>,
    /// Bytes of each entry, in order.
    pub entries: Vec<Vec<u8>>,
    /// Every file it is made of.
    pub files: BTreeSet<PathBuf>,
}

/// A media playlist and its media.
#[derive(Debug)]
pub struct Rendition {
    /// Its URI in the multivariant playlist, `v720/index.m3u8`.
    pub uri: String,
    /// The playlist.
    pub playlist: MediaPlaylist,
    /// Where the playlist lies.
    pub path: PathBuf,
    /// The track, by its init segment.
    pub track: Track,
    /// Bytes of the init segment.
    pub init: Vec<u8>,
    /// The media segments, in order.
    pub segments: Vec<Segment>,
    /// Every file it is made of.
    pub files: BTreeSet<PathBuf>,
}

/// A media segment.
#[derive(Debug)]
pub struct Segment {
    /// What the playlist says it lasts, in s.
    pub extinf_s: f64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its samples, in decoding order.
    pub samples: Vec<Sample>,
}

impl Segment {
    /// How long its samples last, in ticks.
    pub fn ticks(&self) -> u64 {
        self.samples.iter().map(|sample| u64::from(sample.duration)).sum()
    }
}

impl Rendition {
    /// Its name: the folder of its playlist, `v720`.
    pub fn name(&self) -> &str {
        self.uri.split('/').next().unwrap_or(&self.uri)
    }

    /// Whether it is picture.
    pub fn is_video(&self) -> bool {
        matches!(self.track.kind, Kind::Video { .. })
    }

    /// Every sample, in decoding order.
    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.segments.iter().flat_map(|segment| &segment.samples)
    }

    /// How long its samples last, in ns.
    pub fn duration_ns(&self) -> i64 {
        self.track.ns(self.segments.iter().map(Segment::ticks).sum::<u64>().cast_signed())
    }

    /// Presentation times in ticks, without the edit list, in order of presentation.
    pub fn presentation_order(&self) -> Vec<i64> {
        let mut times: Vec<i64> = self.samples().map(|sample| sample.pts).collect();
        times.sort_unstable();
        times
    }

    /// Presentation times of the samples where decoding can start, in ns, by the edit list.
    pub fn key_times_ns(&self) -> Vec<i64> {
        self.samples().filter(|sample| sample.sync).map(|sample| self.track.presented_ns(sample.pts)).collect()
    }

    /// Durations in ticks, sample counts and sizes of the segments: what must be the same however the work was divided.
    pub fn segment_list(&self) -> Vec<(u64, usize, usize)> {
        self.segments.iter().map(|segment| (segment.ticks(), segment.samples.len(), segment.bytes.len())).collect()
    }

    /// Writes init and media segments as one file into `folder`, for readers of files.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn joined(&self, folder: &Path) -> Result<PathBuf> {
        let file = folder.join(format!("{}.mp4", self.name()));
        let parts = std::iter::once(&self.init).chain(self.segments.iter().map(|segment| &segment.bytes));
        fs::write(&file, parts.flatten().copied().collect::<Vec<u8>>())?;
        Ok(file)
    }
}

impl Presentation {
    /// Reads the presentation in a folder: every playlist and every byte.
    ///
    /// # Errors
    /// When a playlist cannot be read, names what is not there, or media is not fragmented MP4 of one track.
    pub fn read(folder: &Path) -> Result<Self> {
        let text = fs::read(folder.join("master.m3u8")).context("master.m3u8")?;
        let master = match m3u8_rs::parse_master_playlist_res(&text) {
            Ok(master) => master,
            Err(error) => bail!("master.m3u8: {error}"),
        };
        let (texts, sounds): (Vec<_>, Vec<_>) = master.alternatives.iter().partition(|media| text::Rendition::is_one(media));
        let texts = texts.into_iter().map(|media| text::Rendition::read(folder, media)).collect::<Result<_>>()?;
        let sounds = sounds.into_iter().filter_map(|media| media.uri.clone());
        let (i_frames, variants): (Vec<_>, Vec<_>) = master.variants.iter().partition(|variant| variant.is_i_frame);
        let uris: BTreeSet<String> = variants.into_iter().map(|variant| variant.uri.clone()).chain(sounds).collect();
        let read = |uri: String| Rendition::read(folder, &uri).with_context(|| uri.clone());
        let mut renditions: Vec<Rendition> = uris.into_iter().map(read).collect::<Result<_>>()?;
        renditions.sort_by_key(|rendition| match rendition.track.kind {
            Kind::Video { width, height, .. } => (0, -(i64::from(width) * i64::from(height))),
            Kind::Audio { .. } => (1, 0),
        });
        let read = |variant: &VariantStream| IFrames::read(folder, variant).with_context(|| variant.uri.clone());
        let i_frames = i_frames.into_iter().map(read).collect::<Result<_>>()?;
        Ok(Self { folder: folder.to_owned(), master, renditions, i_frames, texts })
    }

    /// The renditions of picture, from the largest to the smallest.
    pub fn videos(&self) -> impl Iterator<Item = &Rendition> {
        self.renditions.iter().filter(|rendition| rendition.is_video())
    }

    /// The renditions of sound.
    pub fn audios(&self) -> impl Iterator<Item = &Rendition> {
        self.renditions.iter().filter(|rendition| !rendition.is_video())
    }

    /// The rendition with this name.
    ///
    /// # Errors
    /// When there is none; the message says which there are.
    pub fn rendition(&self, name: &str) -> Result<&Rendition> {
        let names = || self.renditions.iter().map(|r| r.name().to_owned()).collect::<Vec<_>>();
        self.renditions
            .iter()
            .find(|rendition| rendition.name() == name)
            .with_context(|| format!("no {name} among {:?}", names()))
    }

    /// The rendition a variant names itself, and those its audio group may add.
    pub fn renditions_of(&self, variant: &VariantStream) -> (Option<&Rendition>, Vec<&Rendition>) {
        let named = |uri: &str| self.renditions.iter().find(|rendition| rendition.uri == uri);
        let of_group = self.master.alternatives.iter().filter(|media| Some(&media.group_id) == variant.audio.as_ref());
        (named(&variant.uri), of_group.filter_map(|media| named(media.uri.as_deref()?)).collect())
    }
}

/// A media playlist and the bytes it names.
struct Listed {
    playlist: MediaPlaylist,
    path: PathBuf,
    init: Vec<u8>,
    entries: Vec<Vec<u8>>,
    files: BTreeSet<PathBuf>,
}

impl Listed {
    fn read(folder: &Path, uri: &str) -> Result<Self> {
        let path = folder.join(uri);
        let text = fs::read(&path)?;
        let playlist = match m3u8_rs::parse_media_playlist_res(&text) {
            Ok(playlist) => playlist,
            Err(error) => bail!("{error}"),
        };
        let mut files = BTreeSet::new();
        // End of the last byte range: the next one begins there when it does not say where.
        let mut last_end = 0;
        let mut bytes_of = |uri: &str, range: Option<&ByteRange>| -> Result<Vec<u8>> {
            let file = path.parent().unwrap_or(folder).join(uri);
            let content = fs::read(&file).with_context(|| uri.to_owned())?;
            files.insert(file);
            let Some(range) = range else { return Ok(content) };
            let start = range.offset.unwrap_or(last_end);
            last_end = start + range.length;
            let place = usize::try_from(start)?..usize::try_from(last_end)?;
            Ok(content.get(place).with_context(|| format!("{uri}: bytes {start}..{last_end} are not there"))?.to_vec())
        };
        let first = playlist.segments.first().context("no segments")?;
        let map = first.map.as_ref().context("no EXT-X-MAP before the first segment")?;
        ensure!(playlist.segments.iter().all(|s| s.map.as_ref().is_none_or(|m| m == map)), "more than one EXT-X-MAP");
        let init = bytes_of(&map.uri, map.byte_range.as_ref())?;
        let entries = playlist.segments.iter().map(|listed| bytes_of(&listed.uri, listed.byte_range.as_ref()));
        let entries = entries.collect::<Result<_>>()?;
        Ok(Self { playlist, path, init, entries, files })
    }
}

impl Rendition {
    fn read(folder: &Path, uri: &str) -> Result<Self> {
        let Listed { playlist, path, init, entries, files } = Listed::read(folder, uri)?;
        let track = mp4::track(&init).context("init segment")?;
        let mut segments = Vec::new();
        for ((number, bytes), listed) in entries.into_iter().enumerate().zip(&playlist.segments) {
            let samples = track.samples(&bytes).with_context(|| format!("segment {number}"))?;
            segments.push(Segment { extinf_s: f64::from(listed.duration), bytes, samples });
        }
        Ok(Self { uri: uri.to_owned(), playlist, path, track, init, segments, files })
    }
}

impl IFrames {
    fn read(folder: &Path, variant: &VariantStream) -> Result<Self> {
        let Listed { playlist, path, init, entries, files } = Listed::read(folder, &variant.uri)?;
        Ok(Self { variant: variant.clone(), playlist, path, init, entries, files })
    }

    /// The folder of its playlist: the name of the rendition it belongs to.
    pub fn name(&self) -> &str {
        self.variant.uri.split('/').next().unwrap_or(&self.variant.uri)
    }
}
