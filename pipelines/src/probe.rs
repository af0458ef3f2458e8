//! Finds out what a source is: every packet is read and counted, then one buffer of each track is decoded. Headers are
//! not believed where content says otherwise.

use std::ops::Range;
use std::sync::Arc;

use farm::media::{
    AacPackets, AudioTrack, Chapter, Colour, DroppedTrack, MediaInfo, Orientation, TextTrack, TrackId, VideoTrack,
};
use farm::text::StreamName;
use farm::{Code, Failure, Rate};

use crate::cue_text::Form;
use crate::decode::{SAME_TIME_NS, decode};
use crate::edits::presented;
use crate::interlace::interlace;
use crate::leaps;
use crate::looks::Look;
use crate::mend::Source;
use crate::packets::{Packets, signed_stream_time};
use crate::scan::{Scan, Watch, scan};
use crate::source;
use crate::timing::timing;

/// Most packets of a track: a hundred hours of 100 frames per second.
const PACKETS_MAX: usize = 36_000_000;
/// Most chapters that are listed.
const CHAPTERS_MAX: usize = 1000;
/// A source that ends this much before its header says is called truncated.
const SHORTFALL_NS: u64 = 2_000_000_000;

/// Describes a source that should have so many bytes, if it says how many. `warnings` come first among its own.
///
/// # Errors
/// When nothing in it can be decoded: the failure of its first picture or sound track, or of the container.
pub fn probe(source: &Source, mut warnings: Vec<String>, promised_bytes: Option<u64>) -> Result<MediaInfo, Failure> {
    if let Some(promised) = promised_bytes.filter(|promised| *promised > source.bytes) {
        warnings.push(format!("the source is cut off: {} of its {promised} bytes are there", source.bytes));
    }
    let (edits, looks) = (source.edits.clone(), Arc::clone(&source.looks));
    let watch = move |pad: &gst::Pad| Record {
        stream: source::stream_name(pad),
        packets: Packets::of(&source::stream_caps(pad)),
        caps: Some(source::stream_caps(pad)),
        limit_ns: edits.of(pad).and_then(|edit| edit.end_ns),
        look: source::track_number(pad).and_then(|number| looks.get(&number).copied()).unwrap_or_default(),
        ..Record::default()
    };
    let mut scan: Scan<Record> = scan(source, watch)?;
    warnings.extend(cut_leaps(&mut scan.streams));
    // A text or a picture by itself is shown as its own only stream.
    if scan.streams.iter().all(|r| r.media_type() == scan.container) && !is_sound_or_picture(&scan.container) {
        return Err(Failure::new(Code::NotMedia, format!("the source is {}, not audio or video", scan.container)));
    }
    let mut info = MediaInfo {
        bytes: source.bytes,
        version: None,
        container: scan.container,
        duration_ns: 0,
        header_duration_ns: scan.header_duration_ns,
        video: Vec::new(),
        audio: Vec::new(),
        text: Vec::new(),
        dropped: Vec::new(),
        chapters: chapters(source, &scan.streams),
        warnings,
    };
    let mut range: Option<(u64, u64)> = None;
    let is_alone = scan.streams.len() == 1;
    for (record, track) in scan.streams.into_iter().zip(0..) {
        let track = TrackId(track);
        if record.look.names_chapters && !record.chapters.is_empty() {
            continue;
        }
        let kind = record.codec();
        match describe(source, track, record, scan.header_duration_ns) {
            Ok(mut described) => {
                if is_alone {
                    described.end_by_header(scan.header_duration_ns);
                }
                if let Some((start, end)) = described.range() {
                    range = Some(range.map_or((start, end), |(s, e)| (s.min(start), e.max(end))));
                }
                match described {
                    Track::Video(video) => info.video.push(video),
                    Track::Audio(audio, _) => info.audio.push(audio),
                    Track::Text(text) => info.text.push(text),
                }
            }
            Err(why) => info.dropped.push(DroppedTrack { track, kind, why }),
        }
    }
    info.text.sort_by(|a, b| a.stream.cmp(&b.stream));
    let Some((start, end)) = range else { return Err(nothing_usable(&info)) };
    info.duration_ns = end - start;
    if let Some(claimed) = info.header_duration_ns.filter(|&claimed| claimed > info.duration_ns + SHORTFALL_NS) {
        let seconds = |ns: u64| ns as f64 / 1e9;
        let warning = format!(
            "the source holds {:.1} s of the {:.1} s that its header promises",
            seconds(info.duration_ns),
            seconds(claimed)
        );
        info.warnings.push(warning);
    }
    Ok(info)
}

fn is_sound_or_picture(media_type: &str) -> bool {
    media_type.starts_with("video/") || media_type.starts_with("audio/")
}

/// Why a source without a usable track is refused: the worst that happened to picture or sound.
fn nothing_usable(info: &MediaInfo) -> Failure {
    let rank = |code: Code| match code {
        Code::SourceUnreadable => 0,
        Code::MissingElement => 1,
        Code::Truncated => 2,
        Code::UnsupportedCodec => 3,
        Code::Undecodable => 4,
        _ => 5,
    };
    let worst = info.dropped.iter().min_by_key(|d| rank(d.why.code));
    worst.map_or_else(|| Failure::new(Code::NoDecodableStream, "the source holds neither picture nor sound"), |d| d.why.clone())
}

/// A track that can be used.
enum Track {
    Video(VideoTrack),
    /// With the start of its last packet in ns of stream time.
    Audio(AudioTrack, u64),
    Text(TextTrack),
}

impl Track {
    /// Ends sound within its last packet where the header says so: encoders fill the last packet up, and formats such as
    /// FLAC tell nowhere else how far.
    fn end_by_header(&mut self, header_ns: Option<u64>) {
        if let (Self::Audio(audio, last_ns), Some(header_ns)) = (self, header_ns)
            && (*last_ns + 1..audio.end_ns).contains(&header_ns)
        {
            audio.end_ns = header_ns;
        }
    }

    /// When picture or sound begins and ends, in ns of stream time.
    fn range(&self) -> Option<(u64, u64)> {
        match self {
            Self::Video(video) => Some((video.timing.start_ns, video.timing.end_ns)),
            Self::Audio(audio, _) => Some((audio.start_ns, audio.end_ns)),
            Self::Text(_) => None,
        }
    }
}

fn describe(source: &Source, track: TrackId, record: Record, header_ns: Option<u64>) -> Result<Track, Failure> {
    let kind = record.media_type();
    let name = record.codec();
    if record.form().is_some() && record.stream.is_some() && !record.times.is_empty() {
        return Ok(Track::Text(record.text()));
    }
    if !is_sound_or_picture(&kind) && !record.is_motion_jpeg() {
        let why = match () {
            () if kind.starts_with("image/") => "a still picture is not a video track",
            () if kind.starts_with("subpicture/") => "subtitles that are pictures cannot be made text",
            () if record.form().is_some() => "there is no text in it",
            () => "it is neither picture nor sound",
        };
        return Err(Failure::new(Code::UnsupportedCodec, format!("{name}: {why}")).on_stream(name));
    }
    if record.times.is_empty() {
        let promised = header_ns.filter(|&ns| ns > SHORTFALL_NS).map(|ns| format!(" of the {:.1} s promised", ns as f64 / 1e9));
        let code = if promised.is_some() { Code::Truncated } else { Code::NoDecodableStream };
        return Err(
            Failure::new(code, format!("{name}: the track holds no data{}", promised.unwrap_or_default())).on_stream(name)
        );
    }
    let mut decoded = decode(source, track, 0, Vec::new(), &gst::Caps::new_any())?;
    let first = decoded
        .next()
        .and_then(|first| first.ok_or_else(|| Failure::new(Code::Undecodable, format!("{name}: not one buffer of it decodes"))));
    let first = first.map_err(|failure| failure.on_stream(name))?;
    let caps = first.sample.caps_owned().ok_or_else(|| source::internal("decoded data without caps"))?;
    if !kind.starts_with("audio/") {
        drop(decoded);
        video(source, track, record, &caps, first.start_ns).map(Track::Video)
    } else {
        audio(track, &record, &caps).map(|sound| Track::Audio(sound, record.times.last().copied().unwrap_or(0)))
    }
}

fn video(source: &Source, track: TrackId, record: Record, caps: &gst::Caps, first_ns: u64) -> Result<VideoTrack, Failure> {
    let raw = gst_video::VideoInfo::from_caps(caps).map_err(|e| Failure::new(Code::Undecodable, format!("odd picture: {e}")))?;
    let claimed = record.caps.as_ref().and_then(|caps| {
        let fraction = caps.structure(0)?.get::<gst::Fraction>("framerate").ok()?;
        Rate::new(fraction.numer().try_into().ok()?, fraction.denom().try_into().ok()?)
    });
    let mut times = record.times.clone();
    let presented = times.len();
    // Frames before the first one that decodes cannot be shown: they lean on some that are not there.
    let half_frame = times.first().zip(times.get(1)).map_or(0, |(a, b)| (b - a) / 2);
    times.retain(|&t| t + half_frame >= first_ns);
    let timing = timing(&times, claimed, record.last_duration_ns);
    let timing = timing.ok_or_else(|| Failure::new(Code::Undecodable, "no frame of the picture decodes"))?;
    let span_ns = (timing.end_ns - timing.start_ns).max(1);
    let (par, colour) = (raw.par(), colour(&raw));
    let interlace = interlace(source, track, &record.key_frames, (&raw, timing.rate));
    Ok(VideoTrack {
        track,
        codec: record.codec(),
        width: raw.width(),
        height: raw.height(),
        pixel_aspect: (par.numer().unsigned_abs().max(1), par.denom().unsigned_abs().max(1)),
        orientation: record.look.orientation.filter(|turn| *turn != Orientation::default()).unwrap_or(record.orientation),
        format: raw.format().to_str().to_string(),
        colour: Colour { full_range: colour.full_range || record.look.full_range, ..colour },
        interlace,
        timing,
        bitrate: bits_per_second(record.bytes, span_ns),
        h264: record.packets.h264(presented),
        key_frames_ns: record.key_frames,
        language: record.language,
    })
}

fn audio(track: TrackId, record: &Record, caps: &gst::Caps) -> Result<AudioTrack, Failure> {
    let raw = gst_audio::AudioInfo::from_caps(caps).map_err(|e| Failure::new(Code::Undecodable, format!("odd sound: {e}")))?;
    let (start_ns, last_ns) = (record.times.first().copied().unwrap_or(0), record.times.last().copied().unwrap_or(0));
    let aac = record.packets.aac(&raw);
    // Matroska does not say how long the last packet lasts; all of AAC last equally long.
    let packet_ns = aac.filter(|_| record.end_ns <= last_ns).map_or(0, |_| AacPackets::packet_ns(raw.rate()));
    let end_ns = record.end_ns.max(last_ns + packet_ns);
    Ok(AudioTrack {
        track,
        codec: record.codec(),
        rate: raw.rate(),
        channels: raw.channels(),
        start_ns,
        end_ns,
        bitrate: bits_per_second(record.bytes, (end_ns - start_ns).max(1)),
        aac,
        language: record.language.clone(),
        title: record.title.clone(),
    })
}

fn bits_per_second(bytes: u64, span_ns: u64) -> u64 {
    u64::try_from(u128::from(bytes) * 8_000_000_000 / u128::from(span_ns)).unwrap_or(u64::MAX)
}

/// Colours by H.273; GStreamer has filled in its guess (BT.601 below 720 lines, BT.709 above) where the source says nothing.
fn colour(raw: &gst_video::VideoInfo) -> Colour {
    let colorimetry = raw.colorimetry();
    let known = |iso: u32, otherwise: u8| u8::try_from(iso).ok().filter(|&n| n != 0 && n != 2).unwrap_or(otherwise);
    Colour {
        primaries: known(colorimetry.primaries().to_iso(), 1),
        transfer: known(colorimetry.transfer().to_iso(), 1),
        matrix: if raw.is_rgb() { 0 } else { known(colorimetry.matrix().to_iso(), 1) },
        full_range: colorimetry.range() == gst_video::VideoColorRange::Range0_255,
    }
}

/// What was seen of one stream.
#[derive(Default)]
struct Record {
    stream: Option<StreamName>,
    caps: Option<gst::Caps>,
    segment: Option<gst::FormattedSegment<gst::ClockTime>>,
    packets: Packets,
    /// When the edit list ends the track, in ns of stream time.
    limit_ns: Option<u64>,
    /// What the container says of the picture.
    look: Look,
    /// Stream times of packets that are shown, in ns.
    times: Vec<u64>,
    key_frames: Vec<u64>,
    /// Key frames that come sooner after the one before are not listed.
    key_frame_distance_ns: u64,
    end_ns: u64,
    last_duration_ns: Option<u64>,
    bytes: u64,
    orientation: Orientation,
    language: Option<String>,
    title: Option<String>,
    chapters: Vec<Chapter>,
    ended: bool,
}

impl Record {
    fn codec(&self) -> String {
        self.caps.as_ref().map_or_else(|| "unknown".to_owned(), |caps| source::codec_name(caps))
    }

    fn media_type(&self) -> String {
        self.caps.as_ref().and_then(|caps| Some(caps.structure(0)?.name().to_string())).unwrap_or_default()
    }

    /// Whether it is a film of JPEG pictures: more than one a second. Pictures of chapters are fewer, and a cover is one.
    fn is_motion_jpeg(&self) -> bool {
        let span_ns = self.times.iter().max().zip(self.times.iter().min()).map_or(0, |(last, first)| last - first);
        self.media_type() == "image/jpeg" && self.times.len() as u64 > 1 + span_ns / farm::rate::SECOND_NS
    }

    /// How its texts are written, if it is text.
    fn form(&self) -> Option<Form> {
        let format = self.caps.as_ref().and_then(|caps| caps.structure(0)?.get::<String>("format").ok());
        Form::of(&self.media_type(), format.as_deref())
    }

    fn text(self) -> TextTrack {
        TextTrack {
            codec: self.codec(),
            packets: self.times.len() as u64,
            stream: self.stream.unwrap_or_default(),
            language: self.language,
            title: self.title,
        }
    }

    fn read_packet(&mut self, buffer: &gst::BufferRef) {
        self.bytes += buffer.size() as u64;
        let Some(segment) = &self.segment else { return };
        let Some(pts) = buffer.pts().or(buffer.dts()) else { return };
        if let Some(time_ns) = signed_stream_time(segment, pts) {
            self.packets.push(time_ns, buffer);
        }
        let Some(Range { start, mut end }) = presented(segment, pts, buffer.duration()) else { return };
        if let Some(limit) = self.limit_ns {
            if start + SAME_TIME_NS >= limit {
                return;
            }
            end = end.min(limit);
        }
        if self.look.names_chapters
            && self.chapters.len() < CHAPTERS_MAX
            && let Some(title) =
                buffer.map_readable().ok().and_then(|bytes| Some(std::str::from_utf8(&bytes).ok()?.trim().to_owned()))
        {
            self.chapters.push(Chapter { start_ns: start, end_ns: end, title });
        }
        if self.times.len() < PACKETS_MAX {
            self.times.push(start);
        }
        if !buffer.flags().contains(gst::BufferFlags::DELTA_UNIT) {
            self.key_frame(start);
        }
        if start >= self.end_ns || end > self.end_ns {
            self.end_ns = self.end_ns.max(end);
            self.last_duration_ns = buffer.duration().map(|_| end - start);
        }
    }

    /// Leaves out packets outside of these times; how many.
    fn keep(&mut self, believable: &Range<u64>) -> usize {
        let had = self.times.len();
        self.times.retain(|time| believable.contains(time));
        self.key_frames.retain(|time| believable.contains(time));
        if self.end_ns > believable.end {
            let usual_ns = self.times.last_chunk::<2>().map_or(0, |[before, last]| last - before);
            self.end_ns = self.times.last().map_or(0, |last| last + usual_ns);
            self.last_duration_ns = None;
        }
        had - self.times.len()
    }

    fn key_frame(&mut self, time_ns: u64) {
        if self.key_frames.last().is_some_and(|&last| time_ns < last + self.key_frame_distance_ns) {
            return;
        }
        if self.key_frames.len() >= VideoTrack::KEY_FRAMES_MAX {
            let mut index = 0_usize;
            self.key_frames.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            let span_ns = time_ns - self.key_frames.first().copied().unwrap_or(0);
            self.key_frame_distance_ns = span_ns / self.key_frames.len().max(1) as u64;
        }
        self.key_frames.push(time_ns);
    }

    fn read_event(&mut self, event: &gst::EventRef) {
        match event.view() {
            gst::EventView::FlushStop(_) => {
                let kept = std::mem::take(self);
                *self = Self {
                    packets: kept.caps.as_deref().map(Packets::of).unwrap_or_default(),
                    stream: kept.stream,
                    caps: kept.caps,
                    limit_ns: kept.limit_ns,
                    look: kept.look,
                    orientation: kept.orientation,
                    language: kept.language,
                    title: kept.title,
                    chapters: if kept.look.names_chapters { Vec::new() } else { kept.chapters },
                    ..Self::default()
                };
            }
            gst::EventView::Caps(caps) => {
                self.packets.set_caps(caps.caps());
                self.caps = Some(caps.caps_owned());
            }
            gst::EventView::Segment(segment) => self.segment = segment.segment().downcast_ref().cloned(),
            gst::EventView::Tag(tag) => self.tags(tag.tag()),
            gst::EventView::Toc(toc) => self.chapters = chapters_of(&toc.toc().0.to_owned()),
            gst::EventView::Eos(_) => self.ended = true,
            _ => {}
        }
    }

    fn tags(&mut self, tags: &gst::TagListRef) {
        if let Some(language) = tags.get::<gst::tags::LanguageCode>() {
            self.language = Some(language.get().to_owned()).filter(|l| l != "und");
        }
        if let Some(title) = tags.get::<gst::tags::Title>() {
            self.title = Some(title.get().to_owned());
        }
        if let Some(turn) = tags.get::<gst::tags::ImageOrientation>() {
            self.orientation = orientation(turn.get());
        }
    }
}

impl Watch for Record {
    fn event(&mut self, event: &gst::EventRef) {
        self.read_event(event);
    }

    fn packet(&mut self, packet: &gst::BufferRef) {
        self.read_packet(packet);
    }

    fn has_data(&self) -> bool {
        !self.times.is_empty()
    }

    fn has_ended(&self) -> bool {
        self.ended
    }
}

/// Leaves out packets whose times cannot be true; says so.
fn cut_leaps(records: &mut [Record]) -> Option<String> {
    records.iter_mut().for_each(|record| record.times.sort_unstable());
    let timed = records.iter().filter(|record| is_sound_or_picture(&record.media_type()) || record.is_motion_jpeg());
    let believable = leaps::believable(&timed.map(|record| record.times.as_slice()).collect::<Vec<_>>());
    let cut: usize = records.iter_mut().map(|record| record.keep(&believable)).sum();
    (cut > 0).then(|| format!("{cut} packets are left out: by their times they are far away from all others"))
}

/// The chapters that a stream tells of, or else the header.
fn chapters(source: &Source, records: &[Record]) -> Vec<Chapter> {
    let told = records.iter().map(|record| &record.chapters).find(|chapters| !chapters.is_empty());
    told.unwrap_or(&source.chapters).iter().take(CHAPTERS_MAX).cloned().collect()
}

/// GStreamer's `image-orientation`: `flip-` mirrors left-right first, then it turns clockwise.
fn orientation(tag: &str) -> Orientation {
    let (mirrored, turn) = tag.strip_prefix("flip-").map_or((false, tag), |turn| (true, turn));
    let quarter_turns = match turn {
        "rotate-90" => 1,
        "rotate-180" => 2,
        "rotate-270" => 3,
        _ => 0,
    };
    Orientation { mirrored, quarter_turns }
}

fn chapters_of(toc: &gst::Toc) -> Vec<Chapter> {
    let entries = toc.entries();
    let nested = entries.iter().flat_map(|entry| entry.sub_entries());
    let all = nested.chain(entries.iter().filter(|e| e.sub_entries().is_empty()).cloned());
    let chapter = |entry: gst::TocEntry| {
        let (start, stop) = entry.start_stop_times()?;
        let title = entry.tags().and_then(|tags| tags.get::<gst::tags::Title>().map(|t| t.get().to_owned()));
        Some(Chapter { start_ns: start.try_into().ok()?, end_ns: stop.try_into().unwrap_or(0), title: title.unwrap_or_default() })
    };
    all.filter_map(chapter).take(CHAPTERS_MAX).collect()
}
