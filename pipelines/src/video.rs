//! One chunk of the picture into every rung: decoded once, scaled and encoded per rung.
//!
//! ```text
//! decoded frames → cadence ─┬→ appsrc (every frame)     → scale → tee → queue → encoder → cmafmux → segments
//!                           │                                      └→ queue → scale → tee → …   (rungs in cascade)
//!                           └→ appsrc (every 2nd frame) → scale → …
//! ```
//!
//! Key frames come from `key-int-max` alone on a constant-rate stream that starts on the GOP grid; devices are asked for each
//! besides, and what they make is looked at.

use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc;

use farm::edit::Clip;
use farm::media::TrackId;
use farm::plan::{Chunk, PicturePlan, Rung, VideoPlan};
use farm::task::Account;
use farm::{Code, Failure, Rate};
use gst::prelude::*;

use crate::cadence::{Cadence, Show};
use crate::canvas::{Canvas, Overlays};
use crate::copy::PictureCopy;
use crate::decode::{self, Frames, decode_picked};
use crate::fragment::{Grid, Muxed, Muxer, handed_on};
use crate::likeness::{Likeness, Part};
use crate::picture_encoder::{Maker, picture_encoder};
use crate::scale;
use crate::source::{buffers_waiting, element, frames_waiting, internal, push};
use crate::sources::Sources;
use crate::{OnDevice, Output, VideoOrder};

/// Every how many places of the grid progress is told, where all is H.264: with dearer codecs as much more often.
const PROGRESS_FRAMES: u64 = 12;

/// Encodes one chunk into every rung.
///
/// # Errors
/// When a source does not decode, or an encoder fails.
pub fn encode(order: &VideoOrder, sources: &Sources, output: &Arc<dyn Output>) -> Result<Account, Failure> {
    let chunk = order.plan.chunks.get(order.chunk as usize);
    let chunk = chunk.ok_or_else(|| Failure::new(Code::Internal, "the plan has no such chunk"))?;
    let copies = copies(order, chunk, output)?;
    let (mut ladder, mut account) = (None, Account::default());
    let mut overlays = Overlays::default();
    for piece in pieces(order, chunk) {
        let canvas = match (&order.edit, piece.clip) {
            (Some(edit), Some(clip)) => Canvas::new(&edit.plan, clip, sources, &mut overlays)?,
            _ => None,
        };
        account += piece.show((order, chunk), (sources, canvas.as_ref()), &copies, &mut ladder, output)?;
    }
    let Some(ladder) = ladder else {
        return Err(Failure::new(Code::Undecodable, "no frame of the picture could be decoded"));
    };
    ladder.finish(output.as_ref())?;
    copies.iter().try_for_each(|copy| copy.finish())?;
    Ok(account)
}

/// What of a source a chunk shows.
struct Piece<'a> {
    source: u32,
    track: TrackId,
    picture: &'a PicturePlan,
    /// Stream time of the key frame that decoding starts at, in ns.
    decode_from_ns: u64,
    /// Stream time of its first place, in ns, and what place that is on the grid.
    origin_ns: u64,
    origin: u64,
    /// The places of the chunk that it fills.
    places: Range<u64>,
    /// The clip that it is of, where the source is edited.
    clip: Option<&'a Clip>,
}

/// What a chunk shows: of its one source, or of clips.
fn pieces<'a>(order: &'a VideoOrder, chunk: &Chunk) -> Vec<Piece<'a>> {
    let plan = &order.plan;
    let Some(edit) = &order.edit else {
        return vec![Piece {
            source: 0,
            track: plan.track,
            picture: &plan.picture,
            decode_from_ns: chunk.decode_from_ns,
            origin_ns: order.origin_ns,
            origin: 0,
            places: chunk.frames(),
            clip: None,
        }];
    };
    let mut pieces = Vec::new();
    for clip in &edit.plan.clips {
        let places = clip.units(|time_ns| plan.rate.nearest_frame(time_ns));
        let origin = places.start;
        let places = places.start.max(chunk.start)..places.end.min(chunk.end);
        let Some(picture) = clip.picture.as_ref().filter(|_| !places.is_empty()) else { continue };
        pieces.push(Piece {
            source: clip.source,
            track: picture.track,
            picture: &picture.picture,
            // The first of a chunk may begin in its middle.
            decode_from_ns: if places.start > origin { chunk.decode_from_ns } else { picture.decode_from_ns },
            origin_ns: clip.origin_ns,
            origin,
            places,
            clip: Some(clip),
        });
    }
    pieces
}

impl Piece<'_> {
    /// Decodes it and shows it on every rung.
    fn show(
        &self,
        (order, chunk): (&VideoOrder, &Chunk),
        (sources, canvas): (&Sources, Option<&Canvas>),
        copies: &[Arc<PictureCopy>],
        ladder: &mut Option<Ladder>,
        output: &Arc<dyn Output>,
    ) -> Result<Account, Failure> {
        let plan = &order.plan;
        let listeners = copies.to_vec();
        let listen = Box::new(move |pad: &gst::Pad| listeners.iter().for_each(|copy| copy.listen(pad)));
        let mut elements = decode::picture_elements(self.picture, Frames::All)?;
        elements.extend(canvas.map(|canvas| canvas.scaling(self.picture.colour)));
        let source = sources.open(self.source)?;
        let mut decoded = decode_picked(&source, self.track, self.decode_from_ns, elements, &scale::input_caps(), listen)?;
        let places = self.places.start - self.origin..self.places.end - self.origin;
        let mut cadence = Cadence::new(plan.rate, self.origin_ns, places.clone());
        let (mut damaged, mut stray, frame_ns) = (0, 0, plan.rate.start_ns(1));
        // The last frame before the cut is seen until the first one after it comes.
        let mut before = None;
        while !cadence.is_full() {
            let Some(raw) = decoded.next()? else { break };
            let ladder = match ladder {
                Some(ladder) => ladder,
                None => ladder.insert(Ladder::start(order, chunk.clone(), Arc::clone(output))?),
            };
            let place = plan.rate.nearest_frame(raw.start_ns.saturating_sub(self.origin_ns));
            let is_early = raw.start_ns + if canvas.is_some() { frame_ns / 2 } else { frame_ns } < self.origin_ns;
            if canvas.is_some() && is_early {
                before = Some(raw.sample);
                continue;
            }
            // The plan begins and ends with the frames whose times are believed.
            if is_early || (canvas.is_none() && place > plan.frames) {
                stray += 1;
                continue;
            }
            let is_damaged = raw.buffer()?.flags().contains(gst::BufferFlags::CORRUPTED);
            damaged += u64::from(is_damaged && places.contains(&place));
            let mut shows = Vec::new();
            if let Some(before) = before.take().filter(|_| place > 0) {
                shows.extend(cadence.push(self.origin_ns, before));
            }
            shows.extend(cadence.push(raw.start_ns, raw.sample));
            for show in shows {
                self.hand_on(show, canvas, ladder, output.as_ref())?;
            }
        }
        if let Some(before) = before {
            cadence.push(self.origin_ns, before);
        }
        let (rest, account) = cadence.finish();
        if rest.is_empty() && account.kept + account.filled == 0 {
            return Err(Failure::new(Code::Undecodable, "no frame of the picture could be decoded"));
        }
        for show in rest {
            let ladder = ladder.as_mut().ok_or_else(|| internal("frames that nothing was made for"))?;
            self.hand_on(show, canvas, ladder, output.as_ref())?;
        }
        let missing = self.missing(account.missing, places.end, plan.rate);
        Ok(Account { decode_errors: damaged, dropped: account.dropped + stray, missing, ..account })
    }

    /// How many of the places at its end, filled by the last frame that came, should have had frames of their own: in a clip only
    /// those up to where its source's last frame stands.
    fn missing(&self, filled: u64, end: u64, rate: Rate) -> u64 {
        let Some(clip) = self.clip else { return filled };
        let last_ns = clip.picture.as_ref().and_then(|picture| picture.last_ns);
        let has_own = |last_ns: u64| rate.nearest_frame(last_ns.saturating_sub(self.origin_ns)) + 1;
        last_ns.map_or(0, |last_ns| filled.saturating_sub(end.saturating_sub(has_own(last_ns))))
    }

    fn hand_on(
        &self,
        show: Show<gst::Sample>,
        canvas: Option<&Canvas>,
        ladder: &mut Ladder,
        output: &dyn Output,
    ) -> Result<(), Failure> {
        let frame = match canvas {
            Some(canvas) => canvas.put(show.frame)?,
            None => show.frame,
        };
        ladder.show(&frame, show.places.start + self.origin..show.places.end + self.origin, output)
    }
}

/// The rungs that are encoded, with their places in the plan.
fn encoded(plan: &VideoPlan) -> impl Iterator<Item = (usize, &Rung)> {
    plan.rungs.iter().enumerate().filter(|(_, rung)| !rung.is_copied())
}

/// Who makes each rung, in the plan's order. The device makes as many of those that are pinned to its class as it has sessions
/// for, the first ones.
fn makers<'a>(plan: &VideoPlan, lent: Option<&'a OnDevice>) -> Vec<Maker<'a>> {
    let mut sessions = lent.map_or(0, |lent| lent.sessions);
    let maker = |rung: &Rung| match lent {
        _ if rung.class.is_cpu() => Maker::Software,
        Some(lent) if lent.device.class == rung.class && sessions > 0 => {
            sessions -= 1;
            Maker::Device(&lent.device)
        }
        _ => Maker::Instead,
    };
    plan.rungs.iter().map(maker).collect()
}

/// How many frames a rung of this divisor has of these frames of the grid.
fn frames_of(frames: &Range<u64>, divisor: NonZeroU32) -> u64 {
    let divisor = u64::from(divisor.get());
    frames.end.div_ceil(divisor) - frames.start.div_ceil(divisor)
}

/// The rungs that are made of the source's own packets.
fn copies(order: &VideoOrder, chunk: &Chunk, output: &Arc<dyn Output>) -> Result<Vec<Arc<PictureCopy>>, Failure> {
    let plan = &order.plan;
    let copied = plan.rungs.iter().enumerate().filter(|(_, rung)| rung.is_copied());
    copied
        .map(|(index, _)| {
            let muxer = muxer((plan, chunk), index, plan.rate, order.lead_ns, NonZeroU32::MIN)?;
            let times = (plan.rate, order.origin_ns, order.lead_ns);
            PictureCopy::start(times, (chunk.frames(), plan.gop_frames), muxer, Arc::clone(output)).map(Arc::new)
        })
        .collect()
}

fn muxer(
    (plan, chunk): (&VideoPlan, &Chunk),
    index: usize,
    rate: Rate,
    lead_ns: u64,
    divisor: NonZeroU32,
) -> Result<Muxer, Failure> {
    let timescale = rate.timescale();
    let segments = plan.segments(chunk).into_iter();
    Ok(Muxer {
        rendition: u32::try_from(index).map_err(internal)?,
        grid: Grid {
            timescale,
            sample_ticks: rate.frame_ticks(),
            phase_ticks: 0,
            lead_ticks: Grid::lead_ticks(lead_ns, timescale),
            raise_offsets: true,
        },
        // Shorter than any GOP: the muxer makes one fragment of each.
        fragment_ns: 1,
        segments: segments.map(|frames| (frames.end - frames.start).div_ceil(divisor.get().into())).collect(),
        // Two fragments a GOP: its key frame and the others.
        first_sequence: u32::try_from(2 * (chunk.start / u64::from(plan.gop_frames)) + 1).map_err(internal)?,
        key_frames_apart: true,
    })
}

/// The encoding side: fed with frames, hands out segments.
struct Ladder {
    pipeline: gst::Pipeline,
    bus: gst::Bus,
    plan: VideoPlan,
    chunk: Chunk,
    /// What the frames look like.
    caps: Option<gst::Caps>,
    /// Every how many places of the grid progress is told.
    progress_frames: u64,
    /// One source of frames for each divisor of the grid's rate.
    feeds: Vec<Feed>,
    /// One end for each rung.
    ends: Vec<End>,
}

/// Where a rung comes out.
struct End {
    /// Frames that it is to have.
    frames: u64,
    muxed: mpsc::Receiver<Result<Muxed, Failure>>,
    /// What is seen of its encoder, where that is a device.
    likeness: Option<Likeness>,
}

struct Feed {
    divisor: NonZeroU32,
    rate: Rate,
    source: gst_app::AppSrc,
}

impl Ladder {
    fn start(order: &VideoOrder, chunk: Chunk, output: Arc<dyn Output>) -> Result<Self, Failure> {
        let plan = order.plan.clone();
        let pipeline = gst::Pipeline::new();
        let bus = pipeline.bus().ok_or_else(|| internal("a pipeline without a bus"))?;
        let dearest = encoded(&plan).map(|(_, rung)| rung.codec.effort()).max().unwrap_or(1);
        let progress_frames = (PROGRESS_FRAMES / u64::from(dearest.max(1))).max(1);
        let mut ladder = Self { pipeline, bus, chunk, caps: None, progress_frames, feeds: Vec::new(), ends: Vec::new(), plan };
        let mut divisors: Vec<_> = encoded(&ladder.plan).map(|(_, rung)| rung.divisor).collect();
        divisors.sort_unstable();
        divisors.dedup();
        for divisor in divisors {
            let rate = ladder.plan.rate.divided_by(divisor.get()).ok_or_else(|| internal("a rung's rate is out of range"))?;
            let source = gst_app::AppSrc::builder().format(gst::Format::Time).max_bytes(0).build();
            ladder.pipeline.add(&source).map_err(internal)?;
            ladder.add_rungs(&source, divisor, rate, order, &output)?;
            ladder.feeds.push(Feed { divisor, rate, source });
        }
        // An encoder that does not open says why.
        ladder.pipeline.set_state(gst::State::Playing).map_err(|_| ladder.failure())?;
        Ok(ladder)
    }

    /// The rungs of one frame rate, each scaled from the one above.
    fn add_rungs(
        &mut self,
        source: &gst_app::AppSrc,
        divisor: NonZeroU32,
        rate: Rate,
        order: &VideoOrder,
        output: &Arc<dyn Output>,
    ) -> Result<(), Failure> {
        let mut above: gst::Element = source.clone().upcast();
        let plan = &order.plan;
        let makers = makers(plan, order.device.as_ref());
        let (frames, gop_frames) = (frames_of(&self.chunk.frames(), divisor), plan.gop_frames / divisor);
        let mut waiting = 1;
        for (index, rung) in encoded(plan).filter(|(_, rung)| rung.divisor == divisor) {
            let first = above.is::<gst_app::AppSrc>();
            let colour = if first { plan.picture.colour } else { farm::media::Colour::BT709 };
            let mut chain = vec![scale::element(rung.width, rung.height, colour)];
            if !first {
                chain.insert(0, queue(waiting)?);
            }
            waiting = frames_waiting(rung.width, rung.height);
            let tee = element("tee")?;
            chain.push(tee.clone());
            let maker = makers.get(index).copied().unwrap_or(Maker::Software);
            let encoder = picture_encoder(rung, gop_frames, maker)?;
            let is_watched = matches!(maker, Maker::Device(_));
            let likeness = is_watched.then(|| Likeness::watch(&encoder, frames, gop_frames, Part::Ends)).transpose()?;
            let (end, muxed) = mpsc::channel();
            self.ends.push(End { frames, muxed, likeness });
            let muxer = muxer((plan, &self.chunk), index, rate, order.lead_ns, divisor)?;
            let mut encode = vec![queue(waiting)?];
            encode.extend(encoder);
            encode.extend(muxer.elements(Arc::clone(output), end)?);
            self.pipeline.add_many(chain.iter().chain(&encode)).map_err(internal)?;
            gst::Element::link_many([&above].into_iter().chain(&chain)).map_err(internal)?;
            gst::Element::link_many([&tee].into_iter().chain(&encode)).map_err(internal)?;
            above = tee;
        }
        Ok(())
    }

    /// Says what the frames from now on look like.
    fn set_caps(&self, caps: Option<&gst::Caps>) -> Result<(), Failure> {
        let caps = caps.ok_or_else(|| internal("frames without caps"))?;
        for feed in &self.feeds {
            let mut caps = caps.copy();
            let rate = gst::Fraction::new(feed.rate.num().cast_signed(), feed.rate.den().cast_signed());
            caps.make_mut().set("framerate", rate);
            feed.source.set_property("max-buffers", u64::from(buffers_waiting(&caps)));
            feed.source.set_caps(Some(&caps));
        }
        Ok(())
    }

    fn show(&mut self, shown: &gst::Sample, places: Range<u64>, output: &dyn Output) -> Result<(), Failure> {
        if shown.caps() != self.caps.as_deref() {
            self.caps = shown.caps_owned();
            self.set_caps(self.caps.as_ref())?;
        }
        let shown = shown.buffer_owned().ok_or_else(|| internal("a frame without a buffer"))?;
        for place in places {
            for feed in &self.feeds {
                let divisor = u64::from(feed.divisor.get());
                if !place.is_multiple_of(divisor) {
                    continue;
                }
                let mut buffer = shown.clone();
                let frame = buffer.make_mut();
                let start = feed.rate.start_ns(place / divisor);
                frame.set_pts(gst::ClockTime::from_nseconds(start));
                frame.set_dts(gst::ClockTime::NONE);
                frame.set_duration(gst::ClockTime::from_nseconds(feed.rate.start_ns(place / divisor + 1) - start));
                push(&feed.source, buffer, &|| self.check().map_err(|posted| self.reported().unwrap_or(posted)))?;
            }
            if (place - self.chunk.start).is_multiple_of(self.progress_frames) {
                output.progress(self.plan.rate.start_ns(place - self.chunk.start)).map_err(handed_on)?;
                self.check()?;
            }
        }
        Ok(())
    }

    /// Ends every rung and waits until the last segment is handed out; counts the frames, and looks at what a device made.
    fn finish(&self, output: &dyn Output) -> Result<(), Failure> {
        for feed in &self.feeds {
            feed.source.end_of_stream().map_err(|_| self.failure())?;
        }
        for end in &self.ends {
            let muxed = loop {
                match end.muxed.recv_timeout(std::time::Duration::from_millis(100)) {
                    Ok(muxed) => break muxed?,
                    Err(mpsc::RecvTimeoutError::Timeout) => self.check()?,
                    Err(mpsc::RecvTimeoutError::Disconnected) => return Err(self.failure()),
                }
            };
            if muxed.samples != end.frames {
                let message = format!("an encoder made {} frames of {}", muxed.samples, end.frames);
                return Err(Failure::new(Code::EncoderFailed, message));
            }
        }
        let whole_ns = self.plan.rate.start_ns(self.chunk.end - self.chunk.start);
        for likeness in self.ends.iter().filter_map(|end| end.likeness.as_ref()) {
            likeness.check()?;
            // Each takes a while, in which nothing else is told.
            output.progress(whole_ns).map_err(handed_on)?;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Failure> {
        while let Some(message) = self.bus.pop_filtered(&[gst::MessageType::Error]) {
            if let gst::MessageView::Error(error) = message.view() {
                return Err(encoder_failure(error));
            }
        }
        Ok(())
    }

    /// What a rung reported, if one failed.
    fn reported(&self) -> Option<Failure> {
        self.ends.iter().find_map(|end| end.muxed.try_recv().ok().and_then(Result::err))
    }

    /// Why frames are not taken any more: what a rung reported, or else what the pipeline posted.
    fn failure(&self) -> Failure {
        let posted = || self.check().err();
        self.reported().or_else(posted).unwrap_or_else(|| Failure::new(Code::EncoderFailed, "an encoder stopped without a word"))
    }
}

impl Drop for Ladder {
    fn drop(&mut self) {
        // Nothing can be done about a pipeline that does not stop; the process is about to end.
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

fn encoder_failure(error: &gst::message::Error) -> Failure {
    let detail = error.debug().unwrap_or_default();
    let line = detail.lines().last().unwrap_or_default();
    Failure::new(Code::EncoderFailed, format!("the picture cannot be encoded: {} ({line})", error.error()))
}

fn queue(frames: u32) -> Result<gst::Element, Failure> {
    let queue = element("queue")?;
    queue.set_property("max-size-buffers", frames);
    queue.set_property("max-size-bytes", 0_u32);
    queue.set_property("max-size-time", 0_u64);
    Ok(queue)
}

#[cfg(test)]
mod tests {
    use farm::Class;
    use farm::encoder::Device;
    use farm::job::VideoCodec;
    use farm::media::{Colour, Interlace, Orientation, TrackId};
    use farm::plan::PicturePlan;

    use super::*;
    use crate::encoders::rung;

    #[test]
    fn the_first_rungs_that_are_pinned_are_made_on_the_device() {
        let pinned = |class| Rung { class, ..rung(VideoCodec::H264, (320, 180)) };
        let classes = [Class::Nvenc, Class::Cpu, Class::Vaapi, Class::Nvenc, Class::Nvenc];
        let plan = VideoPlan {
            track: TrackId(0),
            rate: Rate::new(25, 1).expect("a rate"),
            frames: 100,
            gop_frames: 50,
            segment_frames: 50,
            picture: PicturePlan { orientation: Orientation::default(), interlace: Interlace::default(), colour: Colour::BT709 },
            rungs: classes.map(pinned).to_vec(),
            chunks: Vec::new(),
        };
        let device = Device { class: Class::Nvenc, number: 0, node: "/dev/stand-in0".into() };
        let (made, software, instead) = (Maker::Device(&device), Maker::Software, Maker::Instead);
        let with = |sessions| OnDevice { device: device.clone(), sessions };
        assert_eq!(makers(&plan, Some(&with(2))), [made, software, instead, made, instead]);
        assert_eq!(makers(&plan, Some(&with(9))), [made, software, instead, made, made]);
        assert_eq!(makers(&plan, Some(&with(0))), [instead, software, instead, instead, instead]);
        assert_eq!(makers(&plan, None), [instead, software, instead, instead, instead]);
    }

    #[test]
    fn a_rung_has_the_frames_that_stand_on_its_own_grid() {
        let frames = |frames, divisor| frames_of(&frames, NonZeroU32::new(divisor).expect("not zero"));
        assert_eq!([frames(0..100, 1), frames(100..150, 2), frames(100..151, 2), frames(50..51, 2)], [100, 25, 26, 1]);
    }
}
