//! Text tracks become cues.
//!
//! ```text
//! every packet of text → cue text → by presentation time, in order → output
//! ```

use farm::rate::SECOND_NS;
use farm::text::{Cue, StreamName, TextAccount, TextPlan};
use farm::{Code, Failure};

use crate::Output;
use crate::cue_text::Form;
use crate::edits::presented;
use crate::fragment::handed_on;
use crate::mend::Source;
use crate::scan::{Watch, scan};
use crate::source;

/// How long a text is shown that does not say so, unless another one follows sooner.
const SHOWN_NS: u64 = 5 * SECOND_NS;
/// What is shown shorter than the unit of WebVTT's times is not shown.
const SHORTEST_NS: u64 = 1_000_000;

/// Reads the text tracks of a plan.
///
/// # Errors
/// When the source cannot be read, or is not the one that was planned for.
pub fn make(plan: &TextPlan, source: &Source, output: &dyn Output) -> Result<Vec<TextAccount>, Failure> {
    let wanted: Vec<StreamName> = plan.tracks.iter().map(|track| track.stream.clone()).collect();
    let edits = source.edits.clone();
    let watch = move |pad: &gst::Pad| {
        let stream = source::stream_name(pad).filter(|stream| wanted.contains(stream));
        let limit_ns = edits.of(pad).and_then(|edit| edit.end_ns);
        Track { stream, caps: Some(source::stream_caps(pad)), limit_ns, ..Track::default() }
    };
    let streams = scan(source, watch)?.streams;
    let mut accounts = Vec::with_capacity(plan.tracks.len());
    for (rendition, planned) in (0..).zip(&plan.tracks) {
        let track = streams.iter().find(|track| track.stream.as_ref() == Some(&planned.stream));
        let track = track.ok_or_else(|| {
            Failure::new(Code::SourceChanged, format!("the source has no text stream {} any more", planned.stream.0))
        })?;
        let (cues, account) = cues(plan, track);
        output.cues(rendition, cues).map_err(handed_on)?;
        accounts.push(account);
    }
    output.progress(plan.duration_ns).map_err(handed_on)?;
    Ok(accounts)
}

/// What is kept of a stream: nothing unless its text is wanted.
#[derive(Default)]
struct Track {
    stream: Option<StreamName>,
    caps: Option<gst::Caps>,
    segment: Option<gst::FormattedSegment<gst::ClockTime>>,
    limit_ns: Option<u64>,
    packets: Vec<Packet>,
    text_bytes: usize,
    cut: u64,
    has_data: bool,
    has_ended: bool,
}

/// A packet of text.
struct Packet {
    start_ns: u64,
    /// None where it does not say how long it lasts.
    end_ns: Option<u64>,
    text: String,
}

impl Track {
    fn form(&self) -> Option<Form> {
        let structure = self.caps.as_ref()?.structure(0)?;
        Form::of(structure.name(), structure.get::<String>("format").ok().as_deref())
    }
}

impl Watch for Track {
    fn event(&mut self, event: &gst::EventRef) {
        match event.view() {
            gst::EventView::FlushStop(_) => {
                let kept = std::mem::take(self);
                *self = Self { stream: kept.stream, caps: kept.caps, limit_ns: kept.limit_ns, ..Self::default() };
            }
            gst::EventView::Caps(caps) => self.caps = Some(caps.caps_owned()),
            gst::EventView::Segment(segment) => self.segment = segment.segment().downcast_ref().cloned(),
            gst::EventView::Eos(_) => self.has_ended = true,
            _ => {}
        }
    }

    fn packet(&mut self, packet: &gst::BufferRef) {
        self.has_data = true;
        if self.stream.is_none() {
            return;
        }
        let Some((segment, pts)) = self.segment.as_ref().zip(packet.pts().or(packet.dts())) else { return };
        let Some(shown) = presented(segment, pts, packet.duration()) else { return };
        if self.limit_ns.is_some_and(|limit_ns| shown.start >= limit_ns) {
            return;
        }
        let Ok(bytes) = packet.map_readable() else { return };
        if self.packets.len() >= Cue::COUNT_MAX || self.text_bytes + bytes.len() > Cue::TEXT_BYTES_MAX {
            self.cut += 1;
            return;
        }
        self.text_bytes += bytes.len();
        let end_ns = packet.duration().map(|_| self.limit_ns.map_or(shown.end, |limit_ns| shown.end.min(limit_ns)));
        // A text ends where C would end it: some muxers put a zero byte behind.
        let text = String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
        self.packets.push(Packet { start_ns: shown.start, end_ns, text });
    }

    fn has_data(&self) -> bool {
        self.has_data
    }

    fn has_ended(&self) -> bool {
        self.has_ended
    }
}

/// The cues of a track in order of time, each once.
fn cues(plan: &TextPlan, track: &Track) -> (Vec<Cue>, TextAccount) {
    let mut account = TextAccount { cut: track.cut, ..TextAccount::default() };
    let Some(form) = track.form() else { return (Vec::new(), account) };
    let mut packets: Vec<&Packet> = track.packets.iter().collect();
    packets.sort_by_key(|packet| packet.start_ns);
    let mut cues: Vec<Cue> = Vec::with_capacity(packets.len());
    let (mut text_bytes, mut written_bytes) = (0, 0);
    for (place, packet) in packets.iter().enumerate() {
        let next_ns = packets.iter().skip(place + 1).map(|next| next.start_ns).find(|next_ns| *next_ns > packet.start_ns);
        let open_end_ns = packet.start_ns.saturating_add(SHOWN_NS).min(next_ns.unwrap_or(u64::MAX));
        let end_ns = packet.end_ns.unwrap_or(open_end_ns).saturating_sub(plan.origin_ns).min(plan.duration_ns);
        let start_ns = packet.start_ns.saturating_sub(plan.origin_ns);
        if end_ns < start_ns.saturating_add(SHORTEST_NS) {
            continue;
        }
        let read = form.read(&packet.text);
        let cue = Cue { start_ns, end_ns, text: read.text };
        // Layers of one text on the other say the same.
        let is_there = cues.iter().rev().take_while(|other| other.start_ns == cue.start_ns).any(|other| *other == cue);
        if cue.text.is_empty() || is_there {
            account.plainer += u64::from(read.is_plainer && cue.text.is_empty());
            continue;
        }
        text_bytes += cue.text.len();
        written_bytes += plan.written_bytes(&cue);
        if text_bytes > Cue::TEXT_BYTES_MAX || written_bytes > TextPlan::WRITTEN_BYTES_MAX {
            account.cut += 1;
            continue;
        }
        account.plainer += u64::from(read.is_plainer);
        account.cues += 1;
        cues.push(cue);
    }
    (cues, account)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn packet(start_ms: u64, end_ms: Option<u64>, text: &str) -> Packet {
        Packet { start_ns: start_ms * MS, end_ns: end_ms.map(|ms| ms * MS), text: text.to_owned() }
    }

    fn read(packets: Vec<Packet>) -> Vec<(u64, u64, String)> {
        gst::init().expect("GStreamer");
        let plan = TextPlan { tracks: Vec::new(), origin_ns: 1000 * MS, duration_ns: 20_000 * MS, segment_ns: 60_000 * MS };
        let caps = gst::Caps::builder("text/x-raw").field("format", "utf8").build();
        let (cues, account) = cues(&plan, &Track { caps: Some(caps), packets, ..Track::default() });
        assert_eq!(account.cues, cues.len() as u64);
        cues.into_iter().map(|cue| (cue.start_ns / MS, cue.end_ns / MS, cue.text)).collect()
    }

    #[test]
    fn cues_come_in_order_by_the_results_time() {
        let made = read(vec![packet(5000, Some(6000), "b"), packet(500, Some(2000), "a"), packet(100, Some(900), "before")]);
        assert_eq!(made, [(0, 1000, "a".to_owned()), (4000, 5000, "b".to_owned())]);
        assert_eq!(
            read(vec![packet(20_000, Some(30_000), "a"), packet(21_000, None, "after")]),
            [(19_000, 20_000, "a".to_owned())]
        );
    }

    #[test]
    fn a_text_without_an_end_is_shown_until_the_next_one_but_not_for_long() {
        let made = read(vec![packet(1000, None, "a"), packet(3000, None, "b"), packet(3000, None, "c")]);
        assert_eq!(made, [(0, 2000, "a".to_owned()), (2000, 7000, "b".to_owned()), (2000, 7000, "c".to_owned())]);
    }

    #[test]
    fn what_is_empty_or_said_twice_is_no_cue() {
        let made = read(vec![packet(1000, Some(2000), "a"), packet(1000, Some(2000), "a"), packet(2000, Some(3000), " \n")]);
        assert_eq!(made, [(0, 1000, "a".to_owned())]);
    }
}
