//! For the tests of this crate: a small plan, media bytes that are well formed, and children that keep to the rules.

use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use farm::encoder::Device;
use farm::job::{Layout, Loudness, Mp4, VideoCodec};
use farm::media::{Colour, Interlace, MediaInfo, Orientation, SourceVersion, TrackId};
use farm::plan::{AudioPlan, Chunk, PicturePlan, Plan, RateControl, RenditionId, Rung, VideoPlan};
use farm::task::{Account, Segment};
use farm::{Class, Code, Failure, Rate};
use pipelines::boxes::{self, Fragment, Sample};
use pipelines::{AudioOrder, Done, Init, Order, Output, Pictured, Reader, VideoOrder};

use crate::child::run_with;
use crate::sandbox::tests::{Deed, become_nobody, confess};
use crate::worker::ChildCommand;

/// Two chunks of 100 frames at 25/s in segments of 50, in two rungs, the second at half the rate; and a track of sound.
pub(crate) fn plan() -> Plan {
    let rung = |id: &str, height: u32, divisor| Rung {
        id: RenditionId(id.to_owned()),
        width: height * 16 / 9,
        height,
        divisor: NonZeroU32::new(divisor).expect("not zero"),
        codec: VideoCodec::H264,
        rate_control: RateControl::CappedQuality { quality: farm::Quality::USUAL, max_bitrate: 1_000_000 },
        class: Class::Cpu,
        threads: NonZeroU32::MIN,
    };
    let video = VideoPlan {
        track: TrackId(0),
        rate: Rate::new(25, 1).expect("a rate"),
        frames: 200,
        gop_frames: 50,
        segment_frames: 50,
        picture: PicturePlan { orientation: Orientation::default(), interlace: Interlace::default(), colour: Colour::BT709 },
        rungs: vec![rung("v720", 720, 1), rung("v360", 360, 2)],
        chunks: vec![Chunk { start: 0, end: 100, decode_from_ns: 0 }, Chunk { start: 100, end: 200, decode_from_ns: 0 }],
    };
    let audio = AudioPlan {
        id: RenditionId("a0".to_owned()),
        track: TrackId(1),
        rate: 48_000,
        channels: 2,
        bitrate: 128_000,
        copy: None,
        samples: 8 * 48_000,
        loudness: Loudness::Off,
        segment_ns: 4_000_000_000,
        language: None,
        name: "sound".to_owned(),
        default: true,
    };
    Plan {
        source: None,
        origin_ns: 0,
        duration_ns: 8_000_000_000,
        lead_ns: 80_000_000,
        layout: Layout::Segments,
        mp4: Mp4::None,
        first: None,
        video: Some(video),
        audio: vec![audio],
        stills: None,
        text: None,
        edit: None,
        notes: Vec::new(),
    }
}

/// As [`plan`], with both rungs pinned to a class.
pub(crate) fn plan_on(class: Class) -> Plan {
    let mut plan = plan();
    plan.video.iter_mut().flat_map(|video| &mut video.rungs).for_each(|rung| rung.class = class);
    plan
}

/// A device at this node, which nothing needs to be there for.
pub(crate) fn device(node: &std::path::Path) -> Device {
    Device { class: Class::Nvenc, number: 0, node: node.to_owned() }
}

/// The first chunk of [`plan`].
pub(crate) fn video_order() -> Order {
    let plan = plan();
    let video = plan.video.expect("a picture");
    Order::Video(VideoOrder { plan: video, chunk: 0, origin_ns: plan.origin_ns, lead_ns: plan.lead_ns, device: None, edit: None })
}

/// The sound of [`plan`].
pub(crate) fn audio_order() -> Order {
    let mut plan = plan();
    Order::Audio(AudioOrder { plan: plan.audio.remove(0), origin_ns: plan.origin_ns, lead_ns: plan.lead_ns, edit: None })
}

/// A source of which nothing is known but its size.
pub(crate) fn media_info(bytes: u64) -> MediaInfo {
    let version = SourceVersion { bytes, etag: None, modified: None };
    MediaInfo { version: None, container: "video/quicktime".to_owned(), ..MediaInfo::unknown(version) }
}

/// A media segment of so many samples, and what is to be said of it.
pub(crate) fn media_segment(samples: u32) -> (Segment, Bytes) {
    let sample = |n| Sample { duration: 512, bytes: 10, composition_offset: 0, sync: n == 0 };
    let data = Bytes::from(vec![7; 10 * samples as usize]);
    let fragment = Fragment { sequence: 1, base_time: 0, samples: (0..samples).map(sample).collect(), data };
    let bytes = boxes::write_segment(&[fragment]);
    (boxes::segment(&bytes).expect("a segment"), bytes)
}

/// An init segment with a track of `avc1.64001F` in this time scale.
pub(crate) fn init_segment(timescale: u32) -> Bytes {
    let mut avc1 = vec![0; 78];
    avc1.extend(boxed(b"avcC", &[1, 0x64, 0, 0x1F, 0xFF, 0xE0, 0]));
    let mut stsd = vec![0, 0, 0, 0, 0, 0, 0, 1];
    stsd.extend(boxed(b"avc1", &avc1));
    let mut mdhd = vec![0; 24];
    if let Some(field) = mdhd.get_mut(12..16) {
        field.copy_from_slice(&timescale.to_be_bytes());
    }
    let stbl = boxed(b"stbl", &boxed(b"stsd", &stsd));
    let mdia = [boxed(b"mdhd", &mdhd), boxed(b"minf", &stbl)].concat();
    boxed(b"moov", &boxed(b"trak", &boxed(b"mdia", &mdia))).into()
}

fn boxed(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.put_u32(8 + body.len() as u32);
    out.put_slice(kind);
    out.put_slice(body);
    out.to_vec()
}

/// Bytes `range` of a source that can be told apart at every place.
pub(crate) fn pattern(range: std::ops::Range<u64>) -> Vec<u8> {
    range.map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

/// Starts this test program again as a child that behaves in this way.
pub(crate) fn child_command(how: &str) -> ChildCommand {
    let args = ["--ignored", "--exact", "--nocapture", "attempt::tests::child", how];
    ChildCommand::this_program(args.map(str::to_owned).to_vec())
}

/// A way to do an order.
type Work = fn(&Order, Arc<dyn Reader>, Arc<dyn Output>) -> Result<Done, Failure>;

/// A child that was taken over: `root` or `nobody`, `walled`, a class of devices or `free`, and what it tries.
fn be_hostile(how: &str) -> Result<Done, Failure> {
    let [user, walls, deed] = how.split(' ').collect::<Vec<_>>()[..] else { panic!("not as told: {how}") };
    if user == "nobody" {
        become_nobody();
    }
    let (_, deed) = Deed::ALL.into_iter().find(|(name, _)| *name == deed).expect("a deed");
    confess(deed, walls)
}

/// The children that keep to the protocol. Does not return when it knows the behaviour.
pub(crate) fn test_child(how: &str) {
    if let Some(hostile) = how.strip_prefix("hostile ") {
        std::process::exit(i32::from(run_with(|_, _, _| be_hostile(hostile))));
    }
    let work: Work = match how {
        "real" => |order, reader, output| pipelines::run(order, reader, &output),
        "honest" => be_honest,
        "by-node" => |order, reader, output| match order.device() {
            Some(device) if !device.node.exists() => Err(Failure::new(Code::EncoderFailed, "the card is gone")),
            _ => be_honest(order, reader, output),
        },
        "one-session" => |order, reader, output| match order {
            Order::Video(VideoOrder { device: Some(on), .. }) if on.sessions > 1 => {
                Err(Failure::new(Code::EncoderFailed, "it has no session left"))
            }
            _ => be_honest(order, reader, output),
        },
        "half" => |order, _, output| {
            make(order, &*output, 1)?;
            hang()
        },
        "failed" => |_, _, _| Err(Failure::new(Code::Undecodable, "no way to decode this")),
        "confess" => |_, _, _| Err(Failure::new(Code::Internal, confession())),
        "hang" => |_, _, _| hang(),
        "tell-pid-and-hang" => |_, _, output| {
            output.progress(u64::from(std::process::id())).map_err(broken)?;
            hang()
        },
        _ => return,
    };
    std::process::exit(i32::from(run_with(work)));
}

/// A child that does what it is told.
fn be_honest(order: &Order, reader: Arc<dyn Reader>, output: Arc<dyn Output>) -> Result<Done, Failure> {
    if !matches!(order, Order::Prove(_)) {
        check_source(&*reader)?;
    }
    make(order, &*output, usize::MAX)
}

#[expect(clippy::needless_pass_by_value, reason = "stands where an error is mapped")]
fn broken(error: std::io::Error) -> Failure {
    Failure::new(Code::Internal, error.to_string())
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// What a child finds around itself.
fn confession() -> String {
    let list = std::fs::read_dir("/proc/self/fd").expect("listed").flatten();
    let mut fds: Vec<u32> = list.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    fds.sort_unstable();
    // The listing itself is open while it is listed.
    fds.pop();
    let fds: Vec<_> = fds.iter().map(u32::to_string).collect();
    let mut names: Vec<_> = std::env::vars().map(|(name, _)| name).filter(|name| !name.starts_with("GST_")).collect();
    names.sort();
    let leads = nix::unistd::getpgrp() == nix::unistd::getpid();
    format!("descriptors {}; variables {}; leads its group: {leads}", fds.join(","), names.join(","))
}

/// Reads all of the source, in steps that cross blocks, then here and there.
fn check_source(reader: &dyn Reader) -> Result<(), Failure> {
    let bytes = reader.bytes();
    let mut at = 0;
    let places = std::iter::from_fn(|| {
        at += 700_001;
        (at - 700_001 < bytes).then_some((at - 700_001, 700_001))
    });
    for (offset, len) in
        places.chain([(0, 10), (1 << 20, 1), ((1 << 20) - 1, 2), (bytes - 1, 100), (bytes, 5), (u64::MAX, 1), (5, 3 << 20)])
    {
        let end = offset.saturating_add(len).min(bytes);
        let read = reader.read_at(offset, len as usize).map_err(broken)?;
        if read != pattern(offset.min(end)..end) {
            return Err(Failure::new(Code::Internal, format!("wrong bytes at {offset}")));
        }
    }
    Ok(())
}

/// Makes what is ordered, up to so many segments of each rendition.
fn make(order: &Order, output: &dyn Output, segments_max: usize) -> Result<Done, Failure> {
    let renditions: Vec<Vec<u32>> = match order {
        Order::Stills(_) => return Ok(Done::Pictured(Pictured::default())),
        Order::Text(_) => return Ok(Done::Texted(Vec::new())),
        Order::Probe => return Ok(Done::Probed(Box::new(media_info((3 << 20) + 123)))),
        Order::Prove(_) => return Ok(Done::Proven),
        Order::Video(order) => order.plan.rungs.iter().map(|rung| vec![50 / rung.divisor.get(); 2]).collect(),
        Order::Audio(order) => {
            vec![order.plan.segment_packets().into_iter().map(|packets| packets.try_into().expect("few packets")).collect()]
        }
    };
    for (rendition, segments) in (0..).zip(renditions) {
        output.init(Init { rendition, timescale: 12_800, bytes: init_segment(12_800) }).map_err(broken)?;
        for samples in segments.into_iter().take(segments_max) {
            let (segment, bytes) = media_segment(samples);
            output.segment(rendition, segment, bytes).map_err(broken)?;
        }
    }
    output.progress(4_000_000_000).map_err(broken)?;
    Ok(Done::Encoded(Account { kept: 100, ..Account::default() }))
}
