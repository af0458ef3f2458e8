//! Which rungs go to which devices.

use farm::encoder::{Offer, Offered};
use farm::job::Layout;
use farm::plan::RateControl;
use farm::task::Token;
use tokio::time::Instant;

use super::*;
use crate::offers::Offers;
use crate::testing::{picture, source, spec};

fn served(offers: &[(Class, VideoCodec, Option<u32>)]) -> Served {
    let now = Instant::now();
    let mut all = Offers::new(now, true);
    for (class, codec, sessions_max) in offers {
        let offered = Offered { class: *class, codec: *codec, largest: Extent::of(1920, 1080), sessions_max: *sessions_max };
        all.note(Offer { worker: Token::random(), encoders: vec![offered] }, now);
    }
    all.served(now)
}

fn plan() -> Plan {
    crate::plan::plan(&spec(), &source(vec![picture(1280, 720, "25", 30)], Vec::new())).expect("a plan")
}

fn classes(plan: &Plan) -> Vec<Class> {
    plan.video.iter().flat_map(|video| &video.rungs).map(|rung| rung.class).collect()
}

fn pinned(plan: Plan, policy: Hardware, offers: &[(Class, VideoCodec, Option<u32>)]) -> Vec<Class> {
    classes(&pin(plan, policy, &served(offers)).expect("pinned"))
}

const H264: VideoCodec = VideoCodec::H264;

#[test]
fn the_class_that_is_preferred_makes_what_it_can() {
    let rungs = plan().rungs().len();
    assert!(rungs >= 3, "there is something to choose from");
    assert_eq!(pinned(plan(), Hardware::Prefer, &[]), vec![Class::Cpu; rungs]);
    let both = [(Class::Vaapi, H264, None), (Class::Nvenc, H264, None)];
    assert_eq!(pinned(plan(), Hardware::Prefer, &both), vec![Class::Nvenc; rungs]);
    assert_eq!(pinned(plan(), Hardware::Avoid, &both), vec![Class::Cpu; rungs]);
    let other = [(Class::Nvenc, VideoCodec::Hevc, None), (Class::Vaapi, H264, None)];
    assert_eq!(pinned(plan(), Hardware::Prefer, &other), vec![Class::Vaapi; rungs], "nobody asks for that codec");
    let few = pinned(plan(), Hardware::Prefer, &[(Class::Nvenc, H264, Some(2))]);
    assert_eq!(few[..3], [Class::Nvenc, Class::Nvenc, Class::Cpu], "the largest first");
}

#[test]
fn what_does_not_fit_is_made_by_the_processor() {
    let mut odd = plan();
    let rungs = &mut odd.video.as_mut().expect("a picture").rungs;
    (rungs[0].width, rungs[0].height) = (3840, 2160);
    rungs[1].width = 190;
    rungs[2].rate_control = RateControl::Copied { max_bitrate: 1 };
    let offers = [(Class::Nvenc, H264, None)];
    assert_eq!(pinned(odd, Hardware::Prefer, &offers)[..3], [Class::Cpu; 3]);
    let mut mixed = plan();
    mixed.video.as_mut().expect("a picture").rungs[0].codec = VideoCodec::Hevc;
    let offers = [(Class::Nvenc, H264, None), (Class::Nvenc, VideoCodec::Hevc, None)];
    let one_worker = |mut all: Vec<Offered>| {
        let now = Instant::now();
        let mut offers = Offers::new(now, true);
        all.iter_mut().for_each(|offered| offered.largest = Extent::of(1 << 15, 1 << 15));
        offers.note(Offer { worker: Token::random(), encoders: all }, now);
        offers.served(now)
    };
    let all = offers.map(|(class, codec, sessions_max)| Offered { class, codec, largest: Extent::default(), sessions_max });
    let segments = pin(mixed.clone(), Hardware::Prefer, &one_worker(all.to_vec())).expect("pinned");
    assert_eq!(classes(&segments)[..2], [Class::Nvenc, Class::Nvenc]);
    mixed.layout = Layout::SingleFile;
    let file = pin(mixed, Hardware::Prefer, &one_worker(all.to_vec())).expect("pinned");
    assert_eq!(classes(&file)[..2], [Class::Cpu, Class::Nvenc], "in files H.264 alone");
}

#[test]
fn where_it_is_required_and_not_there_the_job_is_refused() {
    let offers = [(Class::Nvenc, H264, None)];
    assert!(pin(plan(), Hardware::Require, &served(&offers)).is_ok());
    let refused = pin(plan(), Hardware::Require, &served(&[])).expect_err("nobody offers any");
    assert_eq!(refused.code, Code::InvalidRequest);
    assert!(refused.message.starts_with("hardware: "), "{refused}");
}

#[test]
fn a_class_with_much_to_do_is_left_to_what_waits_for_it() {
    let mut crowded = served(&[(Class::Nvenc, H264, None), (Class::Vaapi, H264, None)]);
    crowded.crowded.insert(Class::Nvenc);
    let class = |plan: Plan| classes(&plan).first().copied();
    assert_eq!(pin(plan(), Hardware::Prefer, &crowded).map(class), Ok(Some(Class::Vaapi)));
    assert_eq!(pin(plan(), Hardware::Require, &crowded).map(class), Ok(Some(Class::Nvenc)));
    crowded.crowded.insert(Class::Vaapi);
    assert_eq!(pin(plan(), Hardware::Prefer, &crowded).map(class), Ok(Some(Class::Cpu)));
}

#[test]
fn who_requires_hardware_waits_while_it_is_not_known_and_gets_all_rungs_on_it() {
    let now = Instant::now();
    let unknown = Offers::new(now, false).served(now);
    assert_eq!(pin(plan(), Hardware::Require, &unknown).map_err(|refused| refused.code), Err(Code::SchedulerUnavailable));
    assert!(pin(plan(), Hardware::Prefer, &unknown).is_ok());
    let few = pinned(plan(), Hardware::Require, &[(Class::Nvenc, H264, Some(2))]);
    assert_eq!(few, vec![Class::Nvenc; few.len()], "tasks make as many on it as they get sessions for");
}
