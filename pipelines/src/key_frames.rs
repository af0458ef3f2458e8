//! Lets only some key frames of a stream through to its decoder, each to be decoded by itself.

use std::sync::atomic::{AtomicBool, Ordering};

use gst::prelude::*;

use crate::decode::SAME_TIME_NS;
use crate::edits::presented;

/// How much of a stream after the last that is wanted is waited for, before it is ended.
pub const END_MARGIN_NS: u64 = 1_000_000_000;

/// Key frames that are wanted.
pub struct Wanted {
    /// Stream times in ns, in order, each once.
    times_ns: Vec<u64>,
    /// Whether the packet after each is let through too: the other field of a frame may be in it.
    with_next: bool,
}

impl Wanted {
    /// Those at these stream times, in any order.
    pub fn new(mut times_ns: Vec<u64>, with_next: bool) -> Self {
        times_ns.sort_unstable();
        times_ns.dedup();
        Self { times_ns, with_next }
    }

    /// Which of them is at a stream time.
    pub fn at(&self, time_ns: u64) -> Option<u64> {
        let next = self.times_ns.partition_point(|wanted_ns| *wanted_ns < time_ns);
        let near = [next.checked_sub(1), Some(next)].into_iter().flatten().filter_map(|index| self.times_ns.get(index));
        near.copied()
            .min_by_key(|wanted_ns| wanted_ns.abs_diff(time_ns))
            .filter(|wanted_ns| wanted_ns.abs_diff(time_ns) <= SAME_TIME_NS)
    }

    fn is_past(&self, time_ns: u64) -> bool {
        self.times_ns.last().is_none_or(|last_ns| time_ns > last_ns.saturating_add(END_MARGIN_NS))
    }
}

/// Drops everything else at the pad that a decoder is linked to, and ends the stream after the last.
///
/// The decoder is told that the stream is played by key frames and jumps before each: so it hands each out before it takes the
/// next one, and none leans on the one before.
pub fn pick(pad: &gst::Pad, wanted: std::sync::Arc<Wanted>) {
    let kept_last = AtomicBool::new(false);
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, |_, info| {
        if let Some(gst::PadProbeData::Event(event)) = &mut info.data
            && let gst::EventView::Segment(told) = event.view()
            && let Some(mut segment) = told.segment().downcast_ref::<gst::ClockTime>().cloned()
        {
            segment.set_flags(segment.flags() | gst::SegmentFlags::TRICKMODE_KEY_UNITS);
            *event = gst::event::Segment::builder(&segment).seqnum(event.seqnum()).build();
        }
        gst::PadProbeReturn::Ok
    });
    pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let Some(gst::PadProbeData::Buffer(buffer)) = &mut info.data else { return gst::PadProbeReturn::Ok };
        let time_ns = stream_time(pad, buffer);
        let is_key = !buffer.flags().contains(gst::BufferFlags::DELTA_UNIT);
        let is_next = wanted.with_next && kept_last.swap(false, Ordering::Relaxed) && !is_key;
        if is_key && time_ns.is_some_and(|time_ns| wanted.at(time_ns).is_some()) {
            kept_last.store(true, Ordering::Relaxed);
            buffer.make_mut().set_flags(gst::BufferFlags::DISCONT);
            return gst::PadProbeReturn::Ok;
        }
        if is_next {
            return gst::PadProbeReturn::Ok;
        }
        if time_ns.is_some_and(|time_ns| wanted.is_past(time_ns)) {
            end(pad);
        }
        gst::PadProbeReturn::Drop
    });
}

/// Ends the stream for what is linked to a pad. The pad itself has not ended then: what still comes is dropped there, where
/// Matroska's demuxer would fail at a pad that takes no more (seen in 1.22).
pub fn end(pad: &gst::Pad) {
    if let Some(next) = pad.peer() {
        next.send_event(gst::event::Eos::new());
    }
}

/// Stream time of a packet in ns, as the probe tells key frames.
pub fn stream_time(pad: &gst::Pad, packet: &gst::BufferRef) -> Option<u64> {
    let event = pad.sticky_event::<gst::event::Segment>(0)?;
    let segment = event.segment().downcast_ref::<gst::ClockTime>()?;
    Some(presented(segment, packet.pts().or(packet.dts())?, packet.duration())?.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_the_same_up_to_rounding() {
        let wanted = Wanted::new(vec![2_000_000_000, 0, 2_000_000_000, 4_000_000_000], false);
        assert_eq!([0, 900_000, 1_100_000].map(|time_ns| wanted.at(time_ns)), [Some(0), Some(0), None]);
        assert_eq!([1_999_000_000, 2_000_999_999].map(|time_ns| wanted.at(time_ns)), [Some(2_000_000_000); 2]);
        assert!(!wanted.is_past(5_000_000_000) && wanted.is_past(5_000_000_001));
    }
}
