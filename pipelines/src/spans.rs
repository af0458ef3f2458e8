//! Lets only some spans of a stream through to its decoder: each from a key frame up to a frame that leans on it.

use std::sync::{Mutex, PoisonError};

use gst::prelude::*;

use crate::decode::SAME_TIME_NS;
use crate::key_frames::{self, END_MARGIN_NS, stream_time};
use crate::packets::signed_stream_time;

/// Packets that are let through when the times at which packets are decoded are past the end of a span: the other field of the
/// frame may be in one.
const BEYOND: u32 = 2;
/// The same where packets are not told when they are decoded: so many may stand before one that is shown earlier than all of
/// them (16 frames in H.264 and HEVC, of two fields each).
const BEYOND_UNTOLD: u32 = 32;

/// From a key frame up to a frame, by stream time in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The key frame that decoding starts at; 0 for the start of the source.
    pub from_ns: u64,
    /// A time at which the last frame is on screen that is wanted of it.
    pub until_ns: u64,
}

/// Drops everything else at the pad that a decoder is linked to, and ends the stream after the last.
///
/// Where a span ends the decoder is told to hand out all it has, and it meets the next one as if nothing had been before. Frames
/// after a key frame that lean on what was dropped are shown before it, and are not wanted.
pub fn pick(pad: &gst::Pad, spans: &[Span]) {
    let gate = Mutex::new(Gate::new(spans.to_vec()));
    pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let Some(gst::PadProbeData::Buffer(buffer)) = &mut info.data else { return gst::PadProbeReturn::Ok };
        let verdict = gate.lock().unwrap_or_else(PoisonError::into_inner).take(Packet::of(pad, buffer));
        match verdict {
            Verdict::Pass => {
                // What demuxers call a jump is none that a decoder would have to know of.
                if buffer.flags().contains(gst::BufferFlags::DISCONT) {
                    buffer.make_mut().unset_flags(gst::BufferFlags::DISCONT);
                }
                return gst::PadProbeReturn::Ok;
            }
            Verdict::Jump => {
                buffer.make_mut().set_flags(gst::BufferFlags::DISCONT);
                return gst::PadProbeReturn::Ok;
            }
            Verdict::Drop => {}
            // Decoders hand out all they have at this (seen in 1.22), and go on after it.
            Verdict::Close => {
                pad.push_event(gst::event::SegmentDone::new(gst::ClockTime::ZERO));
            }
            Verdict::End => {
                key_frames::end(pad);
            }
        }
        gst::PadProbeReturn::Drop
    });
}

/// A packet, as far as it is looked at.
#[derive(Clone, Copy, Debug)]
struct Packet {
    is_key: bool,
    /// When it is shown, in ns of stream time, as the probe tells key frames; none before the start of what is presented.
    shown_ns: Option<u64>,
    /// When it is decoded, in ns of stream time, where that is told.
    decoded_ns: Option<i64>,
}

impl Packet {
    fn of(pad: &gst::Pad, buffer: &gst::BufferRef) -> Self {
        let event = pad.sticky_event::<gst::event::Segment>(0);
        let segment = event.as_ref().and_then(|event| event.segment().downcast_ref::<gst::ClockTime>());
        Self {
            is_key: !buffer.flags().contains(gst::BufferFlags::DELTA_UNIT),
            shown_ns: stream_time(pad, buffer),
            decoded_ns: segment.zip(buffer.dts()).and_then(|(segment, dts)| signed_stream_time(segment, dts)),
        }
    }

    /// Whether neither it nor what follows it is shown by then, as far as it tells.
    fn is_past(self, time_ns: u64) -> bool {
        let latest_ns = time_ns.saturating_add(SAME_TIME_NS);
        match self.decoded_ns {
            Some(decoded_ns) => u64::try_from(decoded_ns).is_ok_and(|decoded_ns| decoded_ns > latest_ns),
            None => self.shown_ns.is_some_and(|shown_ns| shown_ns > latest_ns),
        }
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is let through, after the one before it.
    Pass,
    /// It is let through, and what was let through last is not what it follows.
    Jump,
    /// It is dropped.
    Drop,
    /// It is the first that is dropped after a span.
    Close,
    /// It is dropped, and nothing is let through any more.
    End,
}

/// Which packets are let through.
struct Gate {
    /// In order of time, none touching the next.
    spans: Vec<Span>,
    open: Option<Open>,
}

/// A span that is being let through.
struct Open {
    until_ns: u64,
    /// Packets past its end so far.
    beyond: u32,
}

impl Gate {
    fn new(mut spans: Vec<Span>) -> Self {
        spans.sort_unstable_by_key(|span| span.from_ns);
        let mut apart: Vec<Span> = Vec::with_capacity(spans.len());
        for span in spans {
            match apart.last_mut() {
                Some(last) if span.from_ns <= last.until_ns => last.until_ns = last.until_ns.max(span.until_ns),
                _ => apart.push(span),
            }
        }
        // The source may start with what is no key frame, or before time 0.
        let first = apart.first().filter(|span| span.from_ns == 0);
        let open = first.map(|span| Open { until_ns: span.until_ns, beyond: 0 });
        Self { spans: apart, open }
    }

    fn take(&mut self, packet: Packet) -> Verdict {
        if let Some(span) = packet.shown_ns.filter(|_| packet.is_key).and_then(|time_ns| self.at(time_ns)) {
            let is_open = self.open.replace(Open { until_ns: span.until_ns, beyond: 0 }).is_some();
            return if is_open { Verdict::Pass } else { Verdict::Jump };
        }
        let Some(open) = &mut self.open else {
            let is_over = packet.shown_ns.is_some_and(|time_ns| self.is_over(time_ns));
            return if is_over { Verdict::End } else { Verdict::Drop };
        };
        open.beyond += u32::from(packet.is_past(open.until_ns));
        let most = if packet.decoded_ns.is_some() { BEYOND } else { BEYOND_UNTOLD };
        if open.beyond <= most {
            return Verdict::Pass;
        }
        self.open = None;
        Verdict::Close
    }

    /// The span that a time is in.
    fn at(&self, time_ns: u64) -> Option<Span> {
        let next = self.spans.partition_point(|span| span.until_ns.saturating_add(SAME_TIME_NS) < time_ns);
        self.spans.get(next).copied().filter(|span| span.from_ns <= time_ns.saturating_add(SAME_TIME_NS))
    }

    fn is_over(&self, time_ns: u64) -> bool {
        self.spans.last().is_none_or(|last| time_ns > last.until_ns.saturating_add(END_MARGIN_NS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn span(from_ms: u64, until_ms: u64) -> Span {
        Span { from_ns: from_ms * MS, until_ns: until_ms * MS }
    }

    /// What becomes of frames of 100 ms with a key frame every second, each of which is decoded `early_ms` before it is shown; or
    /// at a time that is not told.
    fn passed(spans: &[Span], early_ms: Option<i64>, until_ms: u64) -> Vec<(u64, Verdict)> {
        let mut gate = Gate::new(spans.to_vec());
        let packet = |shown_ms: u64| Packet {
            is_key: shown_ms.is_multiple_of(1000),
            shown_ns: Some(shown_ms * MS),
            decoded_ns: early_ms.map(|early_ms| (shown_ms.cast_signed() - early_ms) * MS.cast_signed()),
        };
        let verdicts = (0..until_ms).step_by(100).map(|shown_ms| (shown_ms, gate.take(packet(shown_ms))));
        verdicts.filter(|(_, verdict)| *verdict != Verdict::Drop).collect()
    }

    fn let_through(verdicts: &[(u64, Verdict)]) -> Vec<u64> {
        let is_through = |verdict: &Verdict| matches!(verdict, Verdict::Pass | Verdict::Jump);
        verdicts.iter().filter(|(_, verdict)| is_through(verdict)).map(|(shown_ms, _)| *shown_ms).collect()
    }

    #[test]
    fn each_span_is_let_through_from_its_key_frame_to_its_end_and_little_more() {
        let verdicts = passed(&[span(3000, 3200), span(1000, 1100)], Some(0), 5000);
        assert_eq!(let_through(&verdicts), [1000, 1100, 1200, 1300, 3000, 3100, 3200, 3300, 3400]);
        let others: Vec<_> = verdicts.iter().filter(|(_, verdict)| *verdict != Verdict::Pass).take(5).copied().collect();
        assert_eq!(
            others,
            [(1000, Verdict::Jump), (1400, Verdict::Close), (3000, Verdict::Jump), (3500, Verdict::Close), (4300, Verdict::End)]
        );
        let reordered = passed(&[span(1000, 1100)], Some(200), 5000);
        assert_eq!(let_through(&reordered), [1000, 1100, 1200, 1300, 1400, 1500], "all that may be shown by then");
        let untold = passed(&[span(1000, 1100)], None, 9000);
        assert_eq!(let_through(&untold).len(), 2 + BEYOND_UNTOLD as usize);
    }

    #[test]
    fn spans_that_touch_are_one_and_the_start_of_the_source_needs_no_key_frame() {
        let verdicts = passed(&[span(0, 500), span(0, 900), span(1000, 1400), span(1000, 1300)], Some(0), 3000);
        assert_eq!(let_through(&verdicts), (0..=1600).step_by(100).collect::<Vec<_>>());
        assert!(verdicts.iter().all(|(_, verdict)| *verdict != Verdict::Jump), "one follows the other: {verdicts:?}");
        let mut gate = Gate::new(vec![span(0, 500)]);
        let before = Packet { is_key: false, shown_ns: None, decoded_ns: Some(-40) };
        assert_eq!(gate.take(before), Verdict::Pass);
    }

    #[test]
    fn a_key_frame_that_is_missed_does_not_close_what_comes_later() {
        let mut gate = Gate::new(vec![span(1000, 1500), span(3000, 3000)]);
        let packet = |is_key, shown_ms: u64| Packet { is_key, shown_ns: Some(shown_ms * MS), decoded_ns: None };
        assert_eq!(gate.take(packet(false, 1000)), Verdict::Drop, "it is none");
        assert_eq!(gate.take(packet(true, 1200)), Verdict::Jump, "a later one will do");
        assert_eq!(gate.take(packet(true, 2000)), Verdict::Pass, "it is still open");
        assert_eq!(gate.take(packet(true, 3001)), Verdict::Pass, "the same time, rounded");
        assert_eq!(Gate::new(Vec::new()).take(packet(true, 0)), Verdict::End);
    }
}
