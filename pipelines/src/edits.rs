//! Edit lists of MP4 and MOV files (ISO/IEC 14496-12, 8.6.6): what of a track's media is presented, and when.
//!
//! GStreamer's demuxer (1.22) loses the end of sound whose start an edit list has cut, and after a seek gives other times than
//! before. So lists of the usual kind are kept from it, and what they say is put into the segments that it sends:
//! everything downstream then agrees on stream time, and decoders cut what lies before it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use farm::rate::SECOND_NS;
use gst::prelude::*;

use crate::source::track_number;

/// Stretches of an edit list that are read; a list of more is left to the demuxer.
const ENTRIES_MAX: usize = 16;
/// What is decoded before the start of what is presented: decoders of sound need some packets to warm up on.
const WARM_UP_NS: u64 = SECOND_NS;
/// The rate of an edit that plays its media as it is, as 16.16 fixed point.
const NORMAL_RATE: u32 = 0x0001_0000;

/// The edits of a source. Streams that have none here keep the times that the demuxer gives them.
#[derive(Clone, Debug, Default)]
pub enum Edits {
    /// None.
    #[default]
    None,
    /// By the number of the track in an MP4 or MOV file.
    Tracks(Arc<HashMap<u32, Edit>>),
    /// That of an MP3 file's only stream.
    Mp3(Edit),
}

/// One stretch of a track's media that is presented, at its own speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Where in its media it starts, in ns.
    pub media_ns: u64,
    /// When it starts, in ns of stream time.
    pub start_ns: u64,
    /// When it ends, in ns of stream time; none where the end of the media is its end.
    pub end_ns: Option<u64>,
}

impl Edits {
    /// The edit of the stream on a pad that leads back to the demuxer.
    pub fn of(&self, pad: &gst::Pad) -> Option<Edit> {
        match self {
            Self::None => None,
            Self::Tracks(edits) => edits.get(&track_number(pad)?).copied(),
            Self::Mp3(edit) => Some(*edit),
        }
    }

    /// Has the segments of demuxer or parser say what the edits say.
    pub fn apply(&self, pipeline: &gst::Pipeline) {
        let edits = self.clone();
        pipeline.connect_deep_element_added(move |_, _, element| {
            let factory = element.factory().map(|factory| factory.name());
            match (&edits, factory.as_deref()) {
                (Self::Tracks(_), Some("qtdemux")) => {
                    let edits = edits.clone();
                    element.connect_pad_added(move |_, pad| edits.apply_at(pad));
                }
                (Self::Mp3(_), Some("mpegaudioparse")) => {
                    if let Some(pad) = element.static_pad("src") {
                        edits.apply_at(&pad);
                    }
                }
                _ => {}
            }
        });
    }

    fn apply_at(&self, pad: &gst::Pad) {
        let edits = self.clone();
        pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |pad, info| {
            if let Some(gst::PadProbeData::Event(event)) = &mut info.data
                && let gst::EventView::Segment(told) = event.view()
                && let Some(edit) = edits.of(pad)
                && let Some(edited) = edit.event(told)
            {
                *event = edited;
            }
            gst::PadProbeReturn::Ok
        });
    }

    /// Has a stream that `parsebin` shows start with what the edits say. While it puts the stream together, it blocks the
    /// parser's pad and passes on by itself what the parser tells, behind the back of other probes (1.22; one run in fifty).
    pub fn apply_to_shown(&self, pad: &gst::Pad) {
        let Self::Mp3(edit) = *self else { return };
        // A parser's stream time is its own time until it is edited.
        let is_edited = |segment: &gst::Segment| {
            segment.downcast_ref::<gst::ClockTime>().is_some_and(|segment| segment.start() != segment.time())
        };
        // What is stored by a blocking probe is told before the data that it was called for.
        pad.add_probe(gst::PadProbeType::BLOCK | gst::PadProbeType::BUFFER, move |pad, _| {
            let told = pad.sticky_event::<gst::event::Segment>(0).filter(|told| !is_edited(told.segment()));
            if let Some(edited) = told.and_then(|told| edit.event(&told)) {
                // It is refused on pads that are being shut down, where nothing is played any more.
                let _ = pad.store_sticky_event(&edited);
            }
            gst::PadProbeReturn::Remove
        });
    }
}

impl Edit {
    /// The whole media, from time 0 on.
    pub const WHOLE: Self = Self { media_ns: 0, start_ns: 0, end_ns: None };

    /// Where to seek in the media to decode from stream time `from_ns` on. For 0, the start of what is presented.
    pub fn seek_target(self, from_ns: u64) -> u64 {
        match from_ns {
            0 => self.media_ns.saturating_sub(WARM_UP_NS),
            from_ns => self.media_ns.saturating_add(from_ns).saturating_sub(self.start_ns),
        }
    }

    /// What is to be told instead of a segment in time.
    fn event(self, told: &gst::event::Segment) -> Option<gst::Event> {
        let edited = self.segment(told.segment().downcast_ref()?);
        Some(gst::event::Segment::builder(&edited).seqnum(told.seqnum()).build())
    }

    /// A segment of the demuxer, which does not know of the edit. It has no end: parsers stop at the first packet behind
    /// it, though of reordered pictures some that come later are to be shown earlier.
    fn segment(self, told: &gst::FormattedSegment<gst::ClockTime>) -> gst::FormattedSegment<gst::ClockTime> {
        let (start, time) = (told.start().unwrap_or_default(), told.time().unwrap_or_default());
        // The demuxer raises all times where composition offsets are negative.
        let raised = start.saturating_sub(time);
        let mut segment = told.clone();
        segment.set_start(raised + gst::ClockTime::from_nseconds(self.media_ns));
        segment.set_time(gst::ClockTime::from_nseconds(self.start_ns));
        segment.set_stop(gst::ClockTime::NONE);
        segment.set_position(segment.start());
        segment
    }
}

/// What the body of an `elst` box says, and what the demuxer is to read instead: that the whole media is presented. Nothing
/// when it is no list that is understood here: empty edits, then one stretch of media at normal speed, then nothing but
/// empty edits. `is_fragmented` lists have no end: they are written before the media is.
pub fn read(elst: &[u8], media_timescale: u32, movie_timescale: u32, is_fragmented: bool) -> Option<(Edit, Vec<u8>)> {
    let (&version, rest) = elst.split_first()?;
    let (count, mut rest) = rest.get(3..)?.split_first_chunk::<4>()?;
    let count = usize::try_from(u32::from_be_bytes(*count)).ok().filter(|&count| count <= ENTRIES_MAX)?;
    let mut start_ticks = 0_u64;
    let mut edit: Option<Edit> = None;
    for _ in 0..count {
        let entry;
        (entry, rest) = Entry::split_from(rest, version)?;
        match (entry.media_time, edit) {
            (None, None) => start_ticks = start_ticks.checked_add(entry.duration)?,
            (None, Some(_)) => {}
            (Some(media_time), None) if entry.rate == NORMAL_RATE => {
                let start_ns = scaled(start_ticks, movie_timescale)?;
                let duration = Some(entry.duration).filter(|&ticks| ticks > 0 && !is_fragmented);
                let end_ns = match duration {
                    Some(ticks) => Some(scaled(start_ticks.checked_add(ticks)?, movie_timescale)?),
                    None => None,
                };
                edit = Some(Edit { media_ns: scaled(media_time, media_timescale)?, start_ns, end_ns });
            }
            _ => return None,
        }
    }
    let head = [[version, 0, 0, 0], 1_u32.to_be_bytes()].concat();
    let times = vec![0; if version == 1 { 16 } else { 8 }];
    Some((edit?, [head, times, NORMAL_RATE.to_be_bytes().to_vec()].concat()))
}

struct Entry {
    /// In ticks of the movie.
    duration: u64,
    /// In ticks of the media; none for an empty edit.
    media_time: Option<u64>,
    rate: u32,
}

impl Entry {
    /// The first entry, and the rest.
    fn split_from(bytes: &[u8], version: u8) -> Option<(Self, &[u8])> {
        let (duration, media_time, rest) = if version == 1 {
            let (duration, rest) = bytes.split_first_chunk::<8>()?;
            let (media_time, rest) = rest.split_first_chunk::<8>()?;
            (u64::from_be_bytes(*duration), i64::from_be_bytes(*media_time), rest)
        } else {
            let (duration, rest) = bytes.split_first_chunk::<4>()?;
            let (media_time, rest) = rest.split_first_chunk::<4>()?;
            (u32::from_be_bytes(*duration).into(), i32::from_be_bytes(*media_time).into(), rest)
        };
        let (rate, rest) = rest.split_first_chunk::<4>()?;
        let media_time = match media_time {
            -1 => None,
            time => Some(u64::try_from(time).ok()?),
        };
        Some((Self { duration, media_time, rate: u32::from_be_bytes(*rate) }, rest))
    }
}

/// Ticks in ns, rounded to the nearest; none when they are beyond all reason.
fn scaled(ticks: u64, timescale: u32) -> Option<u64> {
    let timescale = u128::from(timescale);
    let ns = (u128::from(ticks) * u128::from(SECOND_NS) + timescale / 2).checked_div(timescale)?;
    u64::try_from(ns).ok().filter(|&ns| ns < u64::MAX / 4)
}

/// What of a packet or buffer is presented, in ns of stream time: from its start, or from where the segment starts when it
/// lies across. Nothing of what ends before the segment starts.
pub fn presented(
    segment: &gst::FormattedSegment<gst::ClockTime>,
    start: gst::ClockTime,
    duration: Option<gst::ClockTime>,
) -> Option<Range<u64>> {
    let end = duration.map_or(start, |duration| start + duration);
    let start = segment.start().filter(|&first| start < first && end > first).unwrap_or(start);
    let start_ns = segment.to_stream_time(start)?.nseconds();
    Some(start_ns..start_ns + end.saturating_sub(start).nseconds())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The body of an `elst` box, in either version.
    fn list(version: u8, entries: &[(u64, i64, u32)]) -> Vec<u8> {
        let mut bytes = vec![version, 0, 0, 0];
        bytes.extend(u32::try_from(entries.len()).expect("few").to_be_bytes());
        for &(duration, media_time, rate) in entries {
            if version == 1 {
                bytes.extend(duration.to_be_bytes());
                bytes.extend(media_time.to_be_bytes());
            } else {
                bytes.extend(u32::try_from(duration).expect("small").to_be_bytes());
                bytes.extend(i32::try_from(media_time).expect("small").to_be_bytes());
            }
            bytes.extend(rate.to_be_bytes());
        }
        bytes
    }

    fn seen(entries: &[(u64, i64, u32)]) -> Option<Edit> {
        let both = [0, 1].map(|version| read(&list(version, entries), 48_000, 1000, false));
        let [short, long] = both.map(|found| found.map(|(edit, told)| (edit, told.len())));
        assert_eq!((short.map(|s| s.0), short.map(|s| s.1)), (long.map(|l| l.0), long.map(|l| l.1 - 8)));
        short.map(|s| s.0)
    }

    #[test]
    fn usual_lists_are_understood() {
        const MS: u64 = 1_000_000;
        let priming = Edit { media_ns: 21_333_333, start_ns: 0, end_ns: Some(5_000 * MS) };
        assert_eq!(seen(&[(5000, 1024, NORMAL_RATE)]), Some(priming));
        let late = Edit { media_ns: 0, start_ns: 700 * MS, end_ns: Some(5_700 * MS) };
        assert_eq!(seen(&[(300, -1, NORMAL_RATE), (400, -1, NORMAL_RATE), (5000, 0, NORMAL_RATE)]), Some(late));
        assert_eq!(seen(&[(5000, 0, NORMAL_RATE), (100, -1, NORMAL_RATE)]).and_then(|e| e.end_ns), Some(5_000 * MS));
        assert_eq!(seen(&[(0, 0, NORMAL_RATE)]), Some(Edit::WHOLE), "no duration is no end");
        let fragmented = read(&list(0, &[(5000, 1024, NORMAL_RATE)]), 48_000, 1000, true);
        assert_eq!(fragmented.map(|f| f.0), Some(Edit { end_ns: None, ..priming }));
    }

    #[test]
    fn the_demuxer_is_told_of_the_whole_media() {
        for version in [0, 1] {
            let (_, told) =
                read(&list(version, &[(700, -1, NORMAL_RATE), (5000, 1024, NORMAL_RATE)]), 48_000, 1000, false).expect("usual");
            assert_eq!(told, list(version, &[(0, 0, NORMAL_RATE)]));
            assert_eq!(read(&told, 48_000, 1000, false).map(|f| f.0), Some(Edit::WHOLE));
        }
    }

    #[test]
    fn other_lists_are_left_alone() {
        assert_eq!(seen(&[(5000, 0, NORMAL_RATE), (5000, 48_000, NORMAL_RATE)]), None, "two stretches");
        assert_eq!(seen(&[(5000, 0, NORMAL_RATE / 2)]), None, "half speed");
        assert_eq!(seen(&[(5000, 0, 0)]), None, "a still");
        assert_eq!(seen(&[(5000, -1, NORMAL_RATE)]), None, "nothing is presented");
        assert_eq!(seen(&[]), None, "no entries");
        assert_eq!(seen(&[(5000, -2, NORMAL_RATE)]), None, "before the media");
        assert_eq!(read(&list(0, &[(5000, 0, NORMAL_RATE)]), 0, 1000, false), None, "no time scale");
    }

    #[test]
    fn decoding_starts_early_enough_for_the_sound_to_warm_up() {
        let edit = Edit { media_ns: 4_500_000_000, start_ns: 700_000_000, end_ns: None };
        assert_eq!(edit.seek_target(0), 3_500_000_000);
        assert_eq!(edit.seek_target(1_700_000_000), 5_500_000_000);
        assert_eq!(Edit { media_ns: 7, ..edit }.seek_target(1), 0);
    }

    proptest! {
        #[test]
        fn a_list_of_any_bytes_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..80), scales in any::<(u32, u32)>()) {
            let edit = read(&bytes, scales.0, scales.1, false);
            if let Some((edit, told)) = edit {
                prop_assert!(told.len() <= bytes.len());
                prop_assert!(edit.media_ns < u64::MAX / 4 && edit.start_ns < u64::MAX / 4);
            }
        }
    }
}
