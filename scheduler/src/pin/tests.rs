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
    let mut all = Offers::default();
    for (class, codec, sessions_max) in offers {
        let offered = Offered { class: *class, codec: *codec, pixels_max: 1920 * 1080, sessions_max: *sessions_max };
        all.note(Offer { worker: Token::random(), encoders: vec![offered] }, Instant::now());
    }
    all.served()
}

fn plan() -> Plan {
    crate::plan::plan(&spec(), &source(vec![picture(1280, 720, "25", 30)], Vec::new())).expect("a plan")
}

fn classes(plan: &Plan) -> Vec<Class> {
    plan.rungs().into_iter().map(|(rung, _)| rung.class).collect()
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
    rungs[1].width = 254;
    rungs[2].rate_control = RateControl::Copied { max_bitrate: 1 };
    let offers = [(Class::Nvenc, H264, None)];
    assert_eq!(pinned(odd, Hardware::Prefer, &offers)[..3], [Class::Cpu; 3]);
    let mut mixed = plan();
    mixed.video.as_mut().expect("a picture").rungs[0].codec = VideoCodec::Hevc;
    let offers = [(Class::Nvenc, H264, None), (Class::Nvenc, VideoCodec::Hevc, None)];
    let one_worker = |mut all: Vec<Offered>| {
        let mut offers = Offers::default();
        all.iter_mut().for_each(|offered| offered.pixels_max = 1 << 30);
        offers.note(Offer { worker: Token::random(), encoders: all }, Instant::now());
        offers.served()
    };
    let all = offers.map(|(class, codec, sessions_max)| Offered { class, codec, pixels_max: 0, sessions_max });
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
