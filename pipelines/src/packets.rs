//! Whether a track's packets could be handed on as they are: what the probe has to see of each.

use std::collections::VecDeque;

use farm::media::{AacPackets, H264Packets};
use farm::rate::SECOND_NS;

/// Samples of a packet of AAC-LC.
const AAC_SAMPLES: u64 = farm::plan::AudioPlan::PACKET_SAMPLES as u64;
/// By how much the time of a packet of sound may be off: containers round to milliseconds. Less than half a packet.
const AAC_OFF_NS_MAX: u64 = 5_000_000;
/// Frames that H.264 may hold back for reordering.
const REORDER_FRAMES_MAX: usize = 16;
/// Over how long the peak of the bit rate is taken, as the cap of an encoded rung is.
const PEAK_NS: u64 = 2 * SECOND_NS;

/// What is seen of a track's packets.
#[derive(Default)]
pub enum Packets {
    /// They could not be handed on.
    #[default]
    Unfit,
    /// H.264.
    H264(H264),
    /// AAC.
    Aac(Aac),
}

impl Packets {
    /// For packets that these caps tell of.
    pub fn of(caps: &gst::CapsRef) -> Self {
        let Some(caps) = caps.structure(0) else { return Self::Unfit };
        match caps.name().as_str() {
            "video/x-h264" => H264::of(caps).map_or(Self::Unfit, Self::H264),
            "audio/mpeg" => Aac::of(caps).map_or(Self::Unfit, Self::Aac),
            _ => Self::Unfit,
        }
    }

    /// The track goes on with other caps.
    pub fn set_caps(&mut self, caps: &gst::CapsRef) {
        let goes_on = match (&*self, Self::of(caps)) {
            (Self::H264(now), Self::H264(next)) => now.parameters == next.parameters,
            (Self::Aac(now), Self::Aac(next)) => now.rate == next.rate && now.channels == next.channels,
            _ => false,
        };
        let has_begun = match self {
            Self::Unfit => false,
            Self::H264(h264) => h264.packets > 0,
            Self::Aac(aac) => aac.count > 0,
        };
        *self = match has_begun {
            true if goes_on => return,
            true => Self::Unfit,
            false => Self::of(caps),
        };
    }

    /// The next packet, with its signed stream time.
    pub fn push(&mut self, time_ns: i64, packet: &gst::BufferRef) {
        let fits = match self {
            Self::Unfit => return,
            Self::H264(h264) => h264.push(time_ns, packet),
            Self::Aac(aac) => aac.push(time_ns),
        };
        if !fits {
            *self = Self::Unfit;
        }
    }

    /// What the planner has to know of H.264 of which so many packets are presented: all of them, where it fits.
    pub fn h264(&self, presented: usize) -> Option<H264Packets> {
        let Self::H264(h264) = self else { return None };
        let peak_bps = u64::try_from(u128::from(h264.peak_bytes) * 8 * u128::from(SECOND_NS) / u128::from(PEAK_NS)).ok()?;
        (h264.packets == presented).then_some(H264Packets {
            keys_are_idr: h264.keys_are_idr,
            reorder_frames: h264.reorder_frames,
            peak_bps,
        })
    }

    /// What the planner has to know of AAC that decodes to sound of this form.
    pub fn aac(&self, decoded: &gst_audio::AudioInfo) -> Option<AacPackets> {
        let Self::Aac(aac) = self else { return None };
        // Where they differ, there is more in the packets than their header says: HE-AAC.
        let is_plain = aac.rate == decoded.rate() && aac.channels == decoded.channels();
        aac.first_ns.filter(|_| is_plain).map(|first_ns| AacPackets { first_ns, count: aac.count })
    }
}

/// H.264 with one set of parameters beside the packets.
pub struct H264 {
    parameters: gst::Buffer,
    /// Bytes of the length before each NAL unit.
    length_bytes: usize,
    /// The parameter sets in `parameters`.
    sets: Vec<Vec<u8>>,
    packets: usize,
    keys_are_idr: bool,
    reorder_frames: u32,
    /// Times of the last packets in order of decoding.
    last_ns: VecDeque<i64>,
    /// Times and bytes of the packets within [`PEAK_NS`].
    window: VecDeque<(i64, u64)>,
    window_bytes: u64,
    peak_bytes: u64,
}

impl H264 {
    fn of(caps: &gst::StructureRef) -> Option<Self> {
        let is = |field: &str, values: &[&str]| caps.get::<String>(field).is_ok_and(|value| values.contains(&value.as_str()));
        let is_usual = is("stream-format", &["avc"])
            && is("alignment", &["au"])
            && is("profile", &["constrained-baseline", "main", "high", "constrained-high", "progressive-high"]);
        let parameters = caps.get::<gst::Buffer>("codec_data").ok().filter(|_| is_usual)?;
        let (length_bytes, sets) = configuration(&parameters.map_readable().ok()?)?;
        Some(Self::new(parameters, length_bytes, sets))
    }

    fn new(parameters: gst::Buffer, length_bytes: usize, sets: Vec<Vec<u8>>) -> Self {
        Self {
            parameters,
            length_bytes,
            sets,
            packets: 0,
            keys_are_idr: true,
            reorder_frames: 0,
            last_ns: VecDeque::new(),
            window: VecDeque::new(),
            window_bytes: 0,
            peak_bytes: 0,
        }
    }

    fn push(&mut self, time_ns: i64, packet: &gst::BufferRef) -> bool {
        let Ok(bytes) = packet.map_readable() else { return false };
        let Some(units) = units(&bytes, self.length_bytes) else { return false };
        let is_known = |unit: &Unit<'_>| self.sets.iter().any(|set| set == unit.bytes);
        // Parameters within packets must not be others than those beside them, which the copy has alone.
        if units.iter().any(|unit| unit.kind.is_parameters() && !is_known(unit)) {
            return false;
        }
        let is_idr = units.iter().any(|unit| unit.kind == UnitKind::Idr);
        self.keys_are_idr &= packet.flags().contains(gst::BufferFlags::DELTA_UNIT) || is_idr;
        let later = self.last_ns.iter().filter(|&&before| before > time_ns).count();
        self.reorder_frames = self.reorder_frames.max(u32::try_from(later).unwrap_or(u32::MAX));
        self.last_ns.push_back(time_ns);
        if self.last_ns.len() > REORDER_FRAMES_MAX + 1 {
            self.last_ns.pop_front();
        }
        self.window.push_back((time_ns, bytes.len() as u64));
        self.window_bytes += bytes.len() as u64;
        while let Some(&(first_ns, first_bytes)) = self.window.front()
            && first_ns.saturating_add_unsigned(PEAK_NS) <= time_ns
        {
            self.window_bytes -= first_bytes;
            self.window.pop_front();
        }
        self.peak_bytes = self.peak_bytes.max(self.window_bytes);
        self.packets += 1;
        true
    }
}

/// What a NAL unit of H.264 is (ITU-T H.264, table 7-1), as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitKind {
    /// A slice of an IDR picture.
    Idr,
    /// A sequence parameter set.
    Sequence,
    /// A picture parameter set.
    Picture,
    /// Another.
    Other,
}

impl UnitKind {
    /// Whether it is a parameter set.
    pub fn is_parameters(self) -> bool {
        matches!(self, Self::Sequence | Self::Picture)
    }
}

/// A NAL unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit<'a> {
    /// What it is.
    pub kind: UnitKind,
    /// It all, without its length.
    pub bytes: &'a [u8],
}

/// The NAL units of a packet; none when it is not made of whole ones.
pub fn units(mut packet: &[u8], length_bytes: usize) -> Option<Vec<Unit<'_>>> {
    let mut units = Vec::new();
    while !packet.is_empty() {
        let (length, rest) = packet.split_at_checked(length_bytes)?;
        let length = length.iter().fold(0_usize, |length, &byte| length << 8 | usize::from(byte));
        let (bytes, rest) = rest.split_at_checked(length)?;
        // ITU-T H.264, 7.3.1: forbidden_zero_bit, nal_ref_idc, nal_unit_type.
        let kind = match bytes.first().filter(|header| *header & 0x80 == 0)? & 0x1f {
            5 => UnitKind::Idr,
            7 => UnitKind::Sequence,
            8 => UnitKind::Picture,
            _ => UnitKind::Other,
        };
        units.push(Unit { kind, bytes });
        packet = rest;
    }
    Some(units)
}

/// How many bytes a NAL unit's length has, and the parameter sets, by the body of an `avcC` box (ISO/IEC 14496-15, 5.3.3.1).
pub fn configuration(body: &[u8]) -> Option<(usize, Vec<Vec<u8>>)> {
    let length_bytes = usize::from(body.get(4)? & 3) + 1;
    let (&sequences, mut rest) = body.get(5..)?.split_first()?;
    let mut sets = Vec::new();
    let mut count = sequences & 0x1f;
    for _ in 0..2 {
        for _ in 0..count {
            let (length, after) = rest.split_first_chunk::<2>()?;
            let (set, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
            sets.push(set.to_vec());
            rest = after;
        }
        (count, rest) = rest.split_first().map_or((0, rest), |(&count, after)| (count, after));
    }
    Some((length_bytes, sets))
}

/// A packet without the parameter sets in it, which stand beside the packets; none when there are none to take out.
pub fn without_parameters(packet: &[u8], length_bytes: usize) -> Option<Vec<u8>> {
    let units = units(packet, length_bytes).filter(|units| units.iter().any(|unit| unit.kind.is_parameters()))?;
    let mut bare = Vec::with_capacity(packet.len());
    for unit in units.iter().filter(|unit| !unit.kind.is_parameters()) {
        let length = u32::try_from(unit.bytes.len()).ok()?.to_be_bytes();
        bare.extend_from_slice(length.get(length.len().checked_sub(length_bytes)?..)?);
        bare.extend_from_slice(unit.bytes);
    }
    Some(bare)
}

/// AAC-LC.
pub struct Aac {
    rate: u32,
    channels: u32,
    first_ns: Option<i64>,
    count: u64,
}

impl Aac {
    fn of(caps: &gst::StructureRef) -> Option<Self> {
        let is_lc =
            ["profile", "base-profile"].into_iter().all(|field| caps.get::<String>(field).is_ok_and(|value| value == "lc"));
        let positive = |field: &str| caps.get::<i32>(field).ok().and_then(|value| u32::try_from(value).ok()).filter(|&v| v > 0);
        is_lc.then_some(Self { rate: positive("rate")?, channels: positive("channels")?, first_ns: None, count: 0 })
    }

    fn push(&mut self, time_ns: i64) -> bool {
        let first_ns = *self.first_ns.get_or_insert(time_ns);
        let expected_ns = first_ns.saturating_add_unsigned(samples_ns(self.count.saturating_mul(AAC_SAMPLES), self.rate));
        self.count += 1;
        expected_ns.abs_diff(time_ns) <= AAC_OFF_NS_MAX
    }
}

/// How long so many samples last at a rate, in ns, rounded down.
pub fn samples_ns(samples: u64, rate: u32) -> u64 {
    u64::try_from(u128::from(samples) * u128::from(SECOND_NS) / u128::from(rate.max(1))).unwrap_or(u64::MAX)
}

/// Where a time of the segment is on the source's stream time, also before its start.
pub fn signed_stream_time(segment: &gst::FormattedSegment<gst::ClockTime>, time: gst::ClockTime) -> Option<i64> {
    match segment.to_stream_time_full(time)? {
        gst::Signed::Positive(time) => i64::try_from(time.nseconds()).ok(),
        gst::Signed::Negative(time) => i64::try_from(time.nseconds()).ok().map(|ns| -ns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_whole_nal_units_or_unfit() {
        let packet = [&[0, 0, 0, 2, 0x09, 0xf0][..], &[0, 0, 0, 3, 0x65, 1, 2]].concat();
        let kinds = |packet: &[u8], bytes| units(packet, bytes).map(|units| units.iter().map(|u| u.kind).collect::<Vec<_>>());
        assert_eq!(kinds(&packet, 4), Some(vec![UnitKind::Other, UnitKind::Idr]));
        assert_eq!(kinds(&packet[..12], 4), None, "cut off");
        assert_eq!(kinds(&[0, 0, 0, 1, 0xe5], 4), None, "the forbidden bit");
        assert_eq!(kinds(&[0, 0, 0, 0], 4), None, "an empty unit");
        assert_eq!(kinds(&[1, 0x41], 1), Some(vec![UnitKind::Other]));
        assert_eq!(kinds(&[], 4), Some(vec![]));
    }

    #[test]
    fn parameter_sets_are_taken_out_of_packets_and_nothing_else() {
        let avcc = [1, 100, 0, 31, 0xfd, 0xe1, 0, 2, 0x67, 1, 1, 0, 3, 0x68, 2, 3];
        assert_eq!(configuration(&avcc), Some((2, vec![vec![0x67, 1], vec![0x68, 2, 3]])));
        assert_eq!(configuration(&avcc[..14]), None, "cut off");
        let packet = [0, 2, 0x67, 1, 0, 3, 0x68, 2, 3, 0, 1, 0x06, 0, 2, 0x65, 9];
        assert_eq!(without_parameters(&packet, 2), Some(vec![0, 1, 0x06, 0, 2, 0x65, 9]));
        assert_eq!(without_parameters(&packet[9..], 2), None);
    }

    #[test]
    fn a_gap_in_the_sound_is_no_rounding() {
        let packet = |n: u64| samples_ns(n * 1024, 44_100).cast_signed() - 23_219_955;
        let run = |times: &[i64]| {
            let mut aac = Aac { rate: 44_100, channels: 2, first_ns: None, count: 0 };
            times.iter().all(|&time| aac.push(time))
        };
        let rounded: Vec<_> = (0..1000).map(|n| packet(n) / 1_000_000 * 1_000_000).collect();
        assert!(run(&rounded));
        let gap: Vec<_> = (0..1000).map(|n| packet(if n < 500 { n } else { n + 1 })).collect();
        assert!(!run(&gap));
        let drift: Vec<_> = (0..1000).map(|n| packet(n) + n.cast_signed() * 10_000).collect();
        assert!(!run(&drift));
    }

    #[test]
    fn frames_are_counted_that_are_decoded_before_one_that_is_shown_sooner() {
        gst::init().expect("GStreamer");
        let frames = |order: &[i64]| {
            let mut h264 = H264::new(gst::Buffer::new(), 4, Vec::new());
            for time in order {
                let packet = gst::Buffer::from_slice([0_u8, 0, 0, 1, 0x65]);
                assert!(h264.push(time * 1_000_000_000, &packet));
            }
            (h264.reorder_frames, h264.peak_bytes)
        };
        assert_eq!(frames(&[0, 1, 2, 3]), (0, 10));
        assert_eq!(frames(&[0, 2, 1, 4, 3]).0, 1);
        assert_eq!(frames(&[0, 4, 2, 1, 3]).0, 2);
    }
}
