//! Playlists as text (RFC 8216, version 7), from the seal.
//!
//! Written here and not by the `m3u8-rs` crate: that keeps durations as 32-bit floats, which hold 30.030000 s only to
//! 2 µs, leaves frame rates without their three decimals, and does not keep quotes out of quoted strings. The tests read
//! everything back with it.

use std::fmt::{self, Write as _};

use farm::keys;
use farm::plan::RenditionId;
use farm::rate::SECOND_NS;
use farm::text::{TextTrackPlan, Texts};

use crate::seal::{Medium, Placed, PlacedInit, Rendition, Seal, TextRendition};

/// Version of the playlists: 6 and above for `EXT-X-MAP` in lists that are not of I-frames alone; 7 is what fMP4 is made with.
const VERSION: u32 = 7;

/// Short edge in pixels up to which a rendition may be named first.
const FIRST_SHORT_PX_MAX: u32 = 480;

/// Name of the group of all sound.
const AUDIO_GROUP: &str = "audio";

/// Name of the group of all text.
const TEXT_GROUP: &str = "text";

/// Playlists that belong together: a multivariant one and those it names.
#[derive(Clone, Copy)]
pub struct Set<'a> {
    /// Picture and sound.
    pub renditions: &'a [Rendition],
    /// Text, of which there are no playlists besides.
    pub text: &'a [TextRendition],
    /// What they are called.
    pub names: Names,
}

impl<'a> Set<'a> {
    /// Every set of a result, the usual one first; none of one of still pictures alone.
    pub fn all(seal: &'a Seal) -> Vec<Self> {
        let usual = Self { renditions: &seal.renditions, text: &seal.text, names: Names::Usual };
        let files = Self { renditions: &seal.files, text: &seal.text, names: Names::Files };
        [usual, files].into_iter().filter(|set| !set.renditions.is_empty()).collect()
    }
}

/// What playlists are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// As always.
    Usual,
    /// As those of a file per rendition are, beside the usual ones of segments.
    Files,
}

impl Names {
    /// Key of the multivariant playlist.
    pub fn master(self) -> &'static str {
        match self {
            Self::Usual => keys::MASTER,
            Self::Files => keys::FILES_MASTER,
        }
    }

    /// Key of a rendition's media playlist.
    pub fn media(self, rendition: &RenditionId) -> String {
        match self {
            Self::Usual => keys::playlist(rendition),
            Self::Files => keys::file_playlist(rendition),
        }
    }

    /// Key of the playlist of a rendition's key frames alone.
    pub fn i_frames(self, rendition: &RenditionId) -> String {
        match self {
            Self::Usual => keys::i_frame_playlist(rendition),
            Self::Files => keys::file_i_frame_playlist(rendition),
        }
    }
}

/// What a rendition costs to fetch, in bit/s, rounded up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// Peak as RFC 8216 defines it: the highest rate of any run of segments that lasts from half to one and a half
    /// target durations.
    pub peak_bps: u64,
    /// All bits over the whole duration.
    pub average_bps: u64,
}

impl Bandwidth {
    /// The bandwidth of a rendition, from the true sizes of its segments.
    pub fn of(rendition: &Rendition) -> Self {
        let segments: Vec<(u64, u64)> = rendition.segments().map(|segment| (segment.ticks, segment.bytes)).collect();
        Self::of_entries(&segments, rendition.timescale)
    }

    /// The bandwidth of a rendition's key frames alone.
    pub fn of_i_frames(rendition: &Rendition) -> Self {
        Self::of_entries(&i_frames(rendition), rendition.timescale)
    }

    /// Of a playlist's entries: each with its duration in ticks and its bytes.
    fn of_entries(entries: &[(u64, u64)], timescale: u32) -> Self {
        let (all_ticks, all_bytes) = entries.iter().fold((0, 0), |sum, entry| (sum.0 + entry.0, sum.1 + entry.1));
        let target = u128::from(target_duration(entries.iter().map(|(ticks, _)| *ticks), timescale));
        let timescale = u128::from(timescale);
        let average_bps = bps(all_bytes, all_ticks, timescale);
        // Twice a run's duration against one and three target durations, so that all are whole numbers.
        let (shortest, longest) = (target * timescale, 3 * target * timescale);
        let mut peak_bps = None;
        for first in 0..entries.len() {
            let (mut ticks, mut bytes) = (0_u64, 0_u64);
            for entry in entries.iter().skip(first) {
                (ticks, bytes) = (ticks + entry.0, bytes + entry.1);
                let twice = 2 * u128::from(ticks);
                if twice > longest {
                    break;
                }
                if twice >= shortest {
                    peak_bps = peak_bps.max(Some(bps(bytes, ticks, timescale)));
                }
            }
        }
        // A rendition of less than half a second has no such run.
        Self { peak_bps: peak_bps.unwrap_or(average_bps).max(average_bps), average_bps }
    }
}

fn bps(bytes: u64, ticks: u64, timescale: u128) -> u64 {
    let bits = u128::from(bytes) * 8 * timescale;
    u64::try_from(bits.div_ceil(u128::from(ticks).max(1))).unwrap_or(u64::MAX)
}

/// The longest of these durations in whole seconds, to the nearest; at least 1.
fn target_duration(ticks: impl Iterator<Item = u64>, timescale: u32) -> u64 {
    let (longest, timescale) = (u128::from(ticks.max().unwrap_or(0)), u128::from(timescale).max(1));
    u64::try_from((2 * longest + timescale) / (2 * timescale)).unwrap_or(u64::MAX).max(1)
}

/// The media playlist of a rendition, to stand at [`Names::media`].
pub fn media(rendition: &Rendition) -> String {
    let mut text = head(target_duration(rendition.segments().map(|segment| segment.ticks), rendition.timescale));
    let mut clock = Clock { timescale: rendition.timescale, ticks: 0 };
    for Placed { segment, object, offset, init } in rendition.placed_segments() {
        map(&mut text, rendition, init);
        line(&mut text, format_args!("#EXTINF:{},", clock.advance(segment.ticks)));
        if let Some(offset) = offset {
            line(&mut text, format_args!("#EXT-X-BYTERANGE:{}@{offset}", segment.bytes));
        }
        line(&mut text, format_args!("{}", relative(&rendition.id, &object.key)));
    }
    line(&mut text, format_args!("#EXT-X-ENDLIST"));
    text
}

/// The playlist of a rendition's key frames alone, for seeking and fast play, to stand at [`Names::i_frames`]. They are
/// byte ranges of the objects that [`media`] names.
pub fn i_frames_only(rendition: &Rendition) -> String {
    let durations = i_frames(rendition);
    let mut text = head(target_duration(durations.iter().map(|(ticks, _)| *ticks), rendition.timescale));
    line(&mut text, format_args!("#EXT-X-I-FRAMES-ONLY"));
    let mut clock = Clock { timescale: rendition.timescale, ticks: 0 };
    let mut durations = durations.into_iter();
    for Placed { segment, object, offset, init } in rendition.placed_segments() {
        map(&mut text, rendition, init);
        for (key, (ticks, _)) in segment.key_frames.iter().zip(&mut durations) {
            let (duration, offset) = (clock.advance(ticks), offset.unwrap_or(0) + key.offset);
            let range = format!("#EXT-X-BYTERANGE:{}@{offset}", key.bytes);
            line(&mut text, format_args!("#EXTINF:{duration},\n{range}\n{}", relative(&rendition.id, &object.key)));
        }
    }
    line(&mut text, format_args!("#EXT-X-ENDLIST"));
    text
}

/// Each key frame of a rendition in order: how many ticks it is until the next one or the end, and its bytes.
fn i_frames(rendition: &Rendition) -> Vec<(u64, u64)> {
    let (mut starts, mut bytes, mut now) = (Vec::new(), Vec::new(), 0);
    for segment in rendition.segments() {
        starts.extend(segment.key_frames.iter().map(|key| now + key.ticks));
        bytes.extend(segment.key_frames.iter().map(|key| key.bytes));
        now += segment.ticks;
    }
    let ends = starts.iter().skip(1).copied().chain([now]);
    starts.iter().zip(ends).map(|(start, end)| end.saturating_sub(*start)).zip(bytes).collect()
}

/// The playlist of a rendition of text, whose segments last so many ns each. They may be longer than those of picture and
/// sound: of all renditions these alone may have a target duration of their own (RFC 8216bis, 6.2.4).
pub fn text(made: &Texts, durations_ns: &[u64]) -> String {
    let timescale = u32::try_from(SECOND_NS).unwrap_or(u32::MAX);
    let mut text = head(target_duration(durations_ns.iter().copied(), timescale));
    let mut clock = Clock { timescale, ticks: 0 };
    for (object, duration_ns) in made.segments.iter().zip(durations_ns) {
        line(&mut text, format_args!("#EXTINF:{},\n{}", clock.advance(*duration_ns), relative(&made.rendition, &object.key)));
    }
    line(&mut text, format_args!("#EXT-X-ENDLIST"));
    text
}

/// The init segment, where another one is needed from here on. Times run on, so this is no discontinuity.
fn map(text: &mut String, rendition: &Rendition, init: Option<PlacedInit<'_>>) {
    if let Some(PlacedInit { object, bytes }) = init {
        let range = bytes.map(|bytes| format!(",BYTERANGE=\"{bytes}@0\"")).unwrap_or_default();
        line(text, format_args!("#EXT-X-MAP:URI={}{range}", Quoted(&relative(&rendition.id, &object.key))));
    }
}

/// What every media playlist begins with.
fn head(target_duration: u64) -> String {
    let mut text = format!("#EXTM3U\n#EXT-X-VERSION:{VERSION}\n");
    line(&mut text, format_args!("#EXT-X-TARGETDURATION:{target_duration}"));
    line(&mut text, format_args!("#EXT-X-MEDIA-SEQUENCE:0"));
    line(&mut text, format_args!("#EXT-X-PLAYLIST-TYPE:VOD"));
    text
}

/// The multivariant playlist, to stand at [`Names::master`].
///
/// Many players start with the variant that is named first. So one of medium size is, and the others follow from the
/// largest to the smallest.
pub fn multivariant(set: &Set<'_>) -> String {
    let (picture, sound): (Vec<&Rendition>, Vec<&Rendition>) =
        set.renditions.iter().partition(|rendition| matches!(rendition.medium, Medium::Picture { .. }));
    let mut text = format!("#EXTM3U\n#EXT-X-VERSION:{VERSION}\n#EXT-X-INDEPENDENT-SEGMENTS\n");
    let grouped = !picture.is_empty() || sound.len() > 1;
    if grouped {
        alternatives(&mut text, &sound, set.names);
    }
    subtitles(&mut text, set.text);
    let groups = Groups { sound: grouped && !sound.is_empty(), text: !set.text.is_empty(), names: set.names };
    let largest = |of: fn(Bandwidth) -> u64| sound.iter().map(|rendition| of(Bandwidth::of(rendition))).max().unwrap_or(0);
    let sound_bandwidth = Bandwidth { peak_bps: largest(|own| own.peak_bps), average_bps: largest(|own| own.average_bps) };
    if picture.is_empty() {
        // Different languages are no variants of each other: the default stands for all of its group.
        if let Some(first) = sound.first() {
            variant(&mut text, first, sound_bandwidth, &first.codecs, groups);
        }
        return text;
    }
    for rendition in starting_in_the_middle(picture.clone()) {
        let own = Bandwidth::of(rendition);
        let both = Bandwidth {
            peak_bps: own.peak_bps + sound_bandwidth.peak_bps,
            average_bps: own.average_bps + sound_bandwidth.average_bps,
        };
        let mut codecs = vec![rendition.codecs.as_str()];
        for other in sound.iter().map(|rendition| rendition.codecs.as_str()) {
            if !codecs.contains(&other) {
                codecs.push(other);
            }
        }
        variant(&mut text, rendition, both, &codecs.join(","), groups);
    }
    picture.into_iter().for_each(|rendition| i_frame_variant(&mut text, rendition, set.names));
    text
}

/// From the largest to the smallest, but the largest of medium size (or else the smallest) before all.
fn starting_in_the_middle(mut picture: Vec<&Rendition>) -> Vec<&Rendition> {
    let is_medium = |rendition: &&Rendition| match rendition.medium {
        Medium::Picture { width, height, .. } => width.min(height) <= FIRST_SHORT_PX_MAX,
        Medium::Sound { .. } => false,
    };
    let first = picture.iter().position(is_medium).unwrap_or(picture.len().saturating_sub(1));
    if let Some(upto_first) = picture.get_mut(..=first) {
        upto_first.rotate_right(1);
    }
    picture
}

fn alternatives(text: &mut String, sound: &[&Rendition], names: Names) {
    let mut languages: Vec<Option<&str>> = Vec::new();
    for rendition in sound {
        let Medium::Sound { channels, language, name, default, .. } = &rendition.medium else { continue };
        let _ = write!(text, "#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID={},NAME={}", Quoted(AUDIO_GROUP), Quoted(name));
        let language = language.as_deref();
        if let Some(tag) = language {
            let _ = write!(text, ",LANGUAGE={}", Quoted(tag));
        }
        // A player may choose by language, as long as that tells one from another.
        let autoselect = *default || !languages.contains(&language);
        languages.push(language);
        let yes = |yes| if yes { "YES" } else { "NO" };
        let uri = names.media(&rendition.id);
        line(
            text,
            format_args!(
                ",DEFAULT={},AUTOSELECT={},CHANNELS=\"{channels}\",URI={}",
                yes(*default),
                yes(autoselect),
                Quoted(&uri)
            ),
        );
    }
}

/// Text is shown when somebody wants it: sources do not say whether a track is for all.
fn subtitles(text: &mut String, renditions: &[TextRendition]) {
    for TextTrackPlan { id, language, name, .. } in renditions.iter().map(|rendition| &rendition.track) {
        let _ = write!(text, "#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID={},NAME={}", Quoted(TEXT_GROUP), Quoted(name));
        if let Some(tag) = language {
            let _ = write!(text, ",LANGUAGE={}", Quoted(tag));
        }
        line(text, format_args!(",DEFAULT=NO,AUTOSELECT=YES,FORCED=NO,URI={}", Quoted(&keys::playlist(id))));
    }
}

/// Which groups there are, and what playlists are called.
#[derive(Clone, Copy)]
struct Groups {
    sound: bool,
    text: bool,
    names: Names,
}

fn variant(text: &mut String, rendition: &Rendition, bandwidth: Bandwidth, codecs: &str, groups: Groups) {
    let _ = write!(text, "#EXT-X-STREAM-INF:{bandwidth},CODECS={}", Quoted(codecs));
    if let Medium::Picture { width, height, rate } = rendition.medium {
        let thousandths = (2000 * u64::from(rate.num()) + u64::from(rate.den())) / (2 * u64::from(rate.den()));
        let _ = write!(text, ",RESOLUTION={width}x{height},FRAME-RATE={}.{:03}", thousandths / 1000, thousandths % 1000);
    }
    if groups.sound {
        let _ = write!(text, ",AUDIO={}", Quoted(AUDIO_GROUP));
    }
    if groups.text {
        let _ = write!(text, ",SUBTITLES={}", Quoted(TEXT_GROUP));
    }
    line(text, format_args!("\n{}", groups.names.media(&rendition.id)));
}

fn i_frame_variant(text: &mut String, rendition: &Rendition, names: Names) {
    let Medium::Picture { width, height, .. } = rendition.medium else { return };
    let (bandwidth, uri) = (Bandwidth::of_i_frames(rendition), names.i_frames(&rendition.id));
    let codecs = Quoted(&rendition.codecs);
    line(
        text,
        format_args!("#EXT-X-I-FRAME-STREAM-INF:{bandwidth},CODECS={codecs},RESOLUTION={width}x{height},URI={}", Quoted(&uri)),
    );
}

/// As attributes.
impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BANDWIDTH={},AVERAGE-BANDWIDTH={}", self.peak_bps, self.average_bps)
    }
}

/// Writing to a text cannot fail.
fn line(text: &mut String, line: fmt::Arguments<'_>) {
    let _ = writeln!(text, "{line}");
}

/// The key of a rendition's object as its playlist sees it. The seal holds no others.
fn relative(rendition: &RenditionId, key: &str) -> String {
    let inside = key.strip_prefix(&rendition.0).and_then(|rest| rest.strip_prefix('/'));
    inside.unwrap_or(key).to_owned()
}

/// Durations as text, to the microsecond. Each is the difference of rounded times, so that their sum stays exact however
/// many there are.
struct Clock {
    timescale: u32,
    ticks: u64,
}

impl Clock {
    fn now_us(&self) -> u128 {
        let timescale = u128::from(self.timescale).max(1);
        (2 * u128::from(self.ticks) * 1_000_000 + timescale) / (2 * timescale)
    }

    fn advance(&mut self, ticks: u64) -> String {
        let start_us = self.now_us();
        self.ticks += ticks;
        let duration_us = self.now_us() - start_us;
        format!("{}.{:06}", duration_us / 1_000_000, duration_us % 1_000_000)
    }
}

/// A quoted string: line ends and quotes cannot stand in one (RFC 8216 §4.2), so they become spaces and apostrophes.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            f.write_char(match c {
                '"' => '\'',
                c if c.is_control() => ' ',
                c => c,
            })?;
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests;
