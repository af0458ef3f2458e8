//! From encoded samples to segments: `cmafmux`, then exact integer times.
//!
//! `cmafmux` computes in nanoseconds and writes negative composition offsets, which some readers play late. Here every
//! segment is read and written again: decode times are whole frames, and all offsets are raised by the *lead*, which an
//! edit list takes off again. So readers that honour edit lists and readers that do not agree about sync.
//!
//! Every key frame of picture is a fragment by itself, so that a list of key frames alone can name it by its bytes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use bytes::BytesMut;
use farm::{Code, Failure};
use gst::prelude::*;

use farm::boxes::BoxError;

use crate::boxes::{self, Fragment};
use crate::source::{element, internal};
use crate::{Init, Output};

/// Media time of a track in ticks.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Ticks per second.
    pub timescale: u32,
    /// Ticks of a sample: a frame, or a packet of sound.
    pub sample_ticks: u32,
    /// Ticks after whole samples at which samples start: sound that is copied keeps its own.
    pub phase_ticks: u32,
    /// Ticks of the lead.
    pub lead_ticks: u32,
    /// Whether composition offsets are raised by the lead (picture), or the samples themselves carry it (sound).
    pub raise_offsets: bool,
}

impl Grid {
    /// `lead_ns` in ticks of a time scale, to the nearest.
    pub fn lead_ticks(lead_ns: u64, timescale: u32) -> u32 {
        let ticks = (u128::from(lead_ns) * u128::from(timescale) + 500_000_000) / 1_000_000_000;
        u32::try_from(ticks).unwrap_or(u32::MAX)
    }

    /// The fragment with each sample on its place of the grid.
    fn align(&self, fragment: &mut Fragment) {
        let unit = u64::from(self.sample_ticks);
        let phase = u64::from(self.phase_ticks);
        fragment.base_time = (fragment.base_time + unit / 2).saturating_sub(phase) / unit * unit + phase;
        for sample in &mut fragment.samples {
            let unit = i64::from(self.sample_ticks);
            let frames = (i64::from(sample.composition_offset) * 2 + unit).div_euclid(2 * unit);
            let raised = frames * unit + if self.raise_offsets { i64::from(self.lead_ticks) } else { 0 };
            sample.composition_offset = i32::try_from(raised).unwrap_or(i32::MAX);
            sample.duration = self.sample_ticks;
        }
    }
}

/// What a muxer of one rendition needs to know.
#[derive(Clone, Debug)]
pub struct Muxer {
    /// Place of the rendition in the order.
    pub rendition: u32,
    /// Its media time.
    pub grid: Grid,
    /// Longest duration of a fragment in ns: it ends with the last whole GOP that fits, or the first when none does.
    pub fragment_ns: u64,
    /// Samples of each segment, in order: fragments are joined and split to make just these.
    pub segments: VecDeque<u64>,
    /// Number of the first fragment, from 1.
    pub first_sequence: u32,
    /// Whether each key frame becomes a fragment of its own.
    pub key_frames_apart: bool,
}

/// What came of a muxer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Muxed {
    /// Samples in all segments.
    pub samples: u64,
    /// Fragments.
    pub fragments: u32,
}

impl Muxer {
    /// `cmafmux` and a sink that hands segments on as they close. The thread that reports the end on `ended` is the
    /// muxer's own.
    ///
    /// # Errors
    /// When an element is missing.
    pub fn elements(
        self,
        output: Arc<dyn Output>,
        ended: mpsc::Sender<Result<Muxed, Failure>>,
    ) -> Result<[gst::Element; 2], Failure> {
        let mux = element("cmafmux")?;
        mux.set_property("fragment-duration", gst::ClockTime::from_nseconds(self.fragment_ns));
        mux.set_property("send-force-keyunit", false);
        let pad = mux.static_pad("sink").ok_or_else(|| internal("cmafmux has no sink pad"))?;
        pad.set_property("trak-timescale", self.grid.timescale);
        let sink = gst_app::AppSink::builder()
            .sync(false)
            .async_(false)
            .buffer_list(true)
            .max_buffers(2)
            .enable_last_sample(false)
            .build();
        let joiner = Arc::new(Mutex::new(Joiner { muxer: self, output, open: None, muxed: Muxed::default() }));
        let (at_end, ended_at_end) = (Arc::clone(&joiner), ended.clone());
        let lock = |joiner: &Arc<Mutex<Joiner>>, take: &dyn Fn(&mut Joiner) -> Result<Muxed, Failure>| {
            take(&mut joiner.lock().unwrap_or_else(PoisonError::into_inner))
        };
        sink.set_callbacks(
            gst_app::AppSinkCallbacks::builder()
                .new_sample(move |sink| {
                    let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
                    lock(&joiner, &|joiner| joiner.take(&sample)).map(|_| gst::FlowSuccess::Ok).map_err(|failure| {
                        // Nobody listens any more when another rendition has failed already.
                        let _ = ended.send(Err(failure));
                        gst::FlowError::Error
                    })
                })
                .eos(move |_| {
                    // As above.
                    let _ = ended_at_end.send(lock(&at_end, &Joiner::close));
                })
                .build(),
        );
        Ok([mux, sink.upcast()])
    }
}

/// Joins the muxer's fragments to segments and hands them on.
struct Joiner {
    muxer: Muxer,
    output: Arc<dyn Output>,
    /// The segment that is being put together.
    open: Option<Fragment>,
    muxed: Muxed,
}

impl Joiner {
    /// Takes what a sample of the muxer holds: the init segment, a fragment, or both.
    fn take(&mut self, sample: &gst::Sample) -> Result<Muxed, Failure> {
        let buffers = sample.buffer_list_owned().ok_or_else(|| Failure::new(Code::Internal, "cmafmux gave no buffer list"))?;
        let mut media = BytesMut::new();
        for buffer in buffers.iter() {
            let map = buffer.map_readable().map_err(internal)?;
            if buffer.flags().contains(gst::BufferFlags::HEADER | gst::BufferFlags::DISCONT) {
                self.hand_on_init(&map)?;
            } else {
                media.extend_from_slice(&map);
            }
        }
        if media.is_empty() {
            return Ok(self.muxed);
        }
        let fragment = Fragment::read(&media.freeze()).map_err(broken)?;
        match self.open.as_mut() {
            Some(open) => open.append(fragment),
            None => self.open = Some(fragment),
        }
        // At its end the muxer puts the last GOPs into one fragment.
        while let Some(&wanted) = self.muxer.segments.front() {
            let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
            let Some(rest) = self.open.as_mut().and_then(|open| open.split_off(wanted)) else { break };
            self.muxer.segments.pop_front();
            self.close()?;
            self.open = Some(rest).filter(|rest| !rest.samples.is_empty());
        }
        Ok(self.muxed)
    }

    /// Hands on the open segment, if there is one.
    fn close(&mut self) -> Result<Muxed, Failure> {
        let Some(mut fragment) = self.open.take() else { return Ok(self.muxed) };
        let grid = self.muxer.grid;
        grid.align(&mut fragment);
        if !fragment.samples.first().is_some_and(|s| s.sync) {
            return Err(Failure::new(Code::EncoderFailed, "a segment does not start with a key frame"));
        }
        if fragment.samples.iter().any(|s| s.composition_offset < 0) {
            return Err(Failure::new(Code::EncoderFailed, "the encoder reorders frames further than the lead allows"));
        }
        let mut fragments = if self.muxer.key_frames_apart { key_frames_apart(fragment) } else { vec![fragment] };
        for fragment in &mut fragments {
            fragment.sequence = self.muxer.first_sequence.saturating_add(self.muxed.fragments);
            self.muxed.fragments += 1;
        }
        let bytes = boxes::write_segment(&fragments);
        let segment = boxes::segment(&bytes).map_err(broken)?;
        self.muxed.samples += u64::from(segment.samples);
        self.output.segment(self.muxer.rendition, segment, bytes).map_err(handed_on)?;
        Ok(self.muxed)
    }

    fn hand_on_init(&self, init: &[u8]) -> Result<(), Failure> {
        let (rendition, grid) = (self.muxer.rendition, self.muxer.grid);
        let bytes = boxes::finish_init(init, grid.lead_ticks).map_err(broken)?;
        if boxes::timescale(&bytes).map_err(broken)? != grid.timescale {
            return Err(Failure::new(Code::Internal, "cmafmux chose another time scale"));
        }
        self.output.init(Init { rendition, timescale: grid.timescale, bytes }).map_err(handed_on)
    }
}

/// The fragment cut up before and after each key frame.
fn key_frames_apart(mut whole: Fragment) -> Vec<Fragment> {
    let mut fragments = Vec::new();
    loop {
        let is_key = whole.samples.first().is_some_and(|sample| sample.sync);
        let next_key = whole.samples.iter().skip(1).position(|sample| sample.sync).map_or(whole.samples.len(), |n| n + 1);
        let rest = whole.split_off(if is_key { 1 } else { next_key });
        fragments.push(whole);
        match rest.filter(|rest| !rest.samples.is_empty()) {
            Some(rest) => whole = rest,
            None => return fragments,
        }
    }
}

fn broken(error: BoxError) -> Failure {
    Failure::new(Code::Internal, format!("cmafmux made a segment that cannot be read: {error}"))
}

/// Why an output did not take something, as a failure.
pub fn handed_on(error: std::io::Error) -> Failure {
    Failure::new(Code::Internal, format!("output cannot be handed on: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boxes::Sample;
    use bytes::Bytes;

    #[test]
    fn rounded_times_come_back_onto_the_grid_and_offsets_are_raised() {
        let grid = Grid { timescale: 30_000, sample_ticks: 1001, phase_ticks: 0, lead_ticks: 2002, raise_offsets: true };
        let sample = |duration, composition_offset| Sample { duration, bytes: 0, composition_offset, sync: false };
        let samples = vec![sample(1000, 0), sample(1002, 3002), sample(1001, -1001), sample(1001, -2003)];
        let mut fragment = Fragment { sequence: 1, base_time: 60 * 1001 - 1, samples, data: Bytes::new() };
        grid.align(&mut fragment);
        assert_eq!(fragment.base_time, 60 * 1001);
        let offsets: Vec<_> = fragment.samples.iter().map(|s| s.composition_offset).collect();
        assert_eq!(offsets, [2002, 5005, 1001, 0]);
        assert!(fragment.samples.iter().all(|s| s.duration == 1001));
    }

    #[test]
    fn key_frames_are_cut_out_wherever_they_are() {
        for (pattern, cut) in [("K", "K"), ("KddKdd", "K dd K dd"), ("KK", "K K"), ("Kd", "K d"), ("dKdKK", "d K d K K")] {
            let sample = |kind| Sample { duration: 10, bytes: 1, composition_offset: 0, sync: kind == 'K' };
            let data = Bytes::copy_from_slice(pattern.as_bytes());
            let whole = Fragment { sequence: 1, base_time: 0, samples: pattern.chars().map(sample).collect(), data };
            let fragments = key_frames_apart(whole);
            let texts: Vec<_> = fragments.iter().map(|f| String::from_utf8_lossy(&f.data).into_owned()).collect();
            assert_eq!(texts.join(" "), cut);
            let ends = fragments.iter().map(|f| f.base_time + f.ticks()).collect::<Vec<_>>();
            assert!(fragments.iter().skip(1).zip(&ends).all(|(next, end)| next.base_time == *end), "{pattern}: {ends:?}");
        }
    }
}
