//! What is borne of a damaged source.

use farm::job::{JobSpec, Make, PosterSpec, Publishing};

use super::*;
use crate::plan::plan;
use crate::seal::seal;
use crate::testing::{markers, picture, sound, source, spec};

fn film() -> (MediaInfo, Plan) {
    let info = source(vec![picture(640, 360, "25", 40)], vec![sound(1, 48_000, 40)]);
    let plan = plan(&spec(), &info).expect("a plan");
    (info, plan)
}

fn accounts(kept: u64, damaged: u64) -> Accounts {
    let frames = Account { kept, missing: 1000 - kept, decode_errors: damaged, ..Account::default() };
    Accounts { frames: Some(frames), samples: vec![Account { kept: 1_920_000, ..Account::default() }] }
}

fn code(damage: Damage, info: &MediaInfo, plan: &Plan, accounts: &Accounts) -> Option<Code> {
    judge(damage, info, plan, accounts).err().map(|failure| failure.code)
}

#[test]
fn best_effort_bears_it_while_half_of_the_frames_decode() {
    let (info, plan) = film();
    for (kept, refused) in [(1000, None), (999, None), (500, None), (499, Some(Code::Undecodable)), (0, Some(Code::Undecodable))]
    {
        assert_eq!(code(Damage::BestEffort, &info, &plan, &accounts(kept, 3)), refused, "{kept} frames");
    }
    // What was left out for its time was decoded.
    let mut thinned = accounts(400, 0);
    if let Some(frames) = &mut thinned.frames {
        frames.dropped = 200;
    }
    assert_eq!(code(Damage::BestEffort, &info, &plan, &thinned), None);
}

#[test]
fn sound_alone_is_judged_by_its_samples() {
    let info = source(Vec::new(), vec![sound(0, 48_000, 40)]);
    let plan = plan(&spec(), &info).expect("a plan");
    for (kept, refused) in [(1_920_000, None), (960_000, None), (959_999, Some(Code::Undecodable))] {
        let heard = Accounts { frames: None, samples: vec![Account { kept, ..Account::default() }] };
        assert_eq!(code(Damage::BestEffort, &info, &plan, &heard), refused, "{kept} samples");
    }
}

#[test]
fn strict_bears_nothing_that_would_be_a_warning() {
    let (mut info, plan) = film();
    assert_eq!(code(Damage::Strict, &info, &plan, &accounts(1000, 0)), None);
    assert_eq!(code(Damage::Strict, &info, &plan, &accounts(1000, 1)), Some(Code::Undecodable));
    assert_eq!(code(Damage::Strict, &info, &plan, &accounts(999, 0)), Some(Code::Undecodable));
    info.warnings.push("the source holds 1.0 s of the 3.0 s that its header promises".to_owned());
    assert_eq!(code(Damage::Strict, &info, &plan, &accounts(1000, 0)), Some(Code::Undecodable));
    assert!(judge_probe(Damage::Strict, &info).is_err() && judge_probe(Damage::BestEffort, &info).is_ok());
}

#[test]
fn what_was_lost_is_told() {
    let (mut info, mut plan) = film();
    let told = |info: &MediaInfo, plan: &Plan, filled, missing| {
        let frames = Account { kept: 1000 - filled, filled, missing, ..Account::default() };
        warnings(info, plan, &Accounts { frames: Some(frames), samples: Vec::new() })
    };
    assert_eq!(told(&info, &plan, 0, 0), [""; 0]);
    assert_eq!(told(&info, &plan, 7, 0), ["7 frames of the picture do not decode: those before them are shown longer"]);
    assert_eq!(told(&info, &plan, 7, 7), ["the picture ends early: its last frame is shown for 7 frames more"]);
    // The sound starts ten frames before the picture: its first frame is shown from there.
    info.video[0].timing.start_ns += 400_000_000;
    assert_eq!(told(&info, &plan, 10, 0), [""; 0]);
    // A variable rate is filled as it should be.
    info.video[0].timing.constant = false;
    assert_eq!(told(&info, &plan, 90, 0), [""; 0]);
    plan.video = None;
    let why = Failure::new(Code::Undecodable, "not one buffer of it decodes");
    info.dropped = vec![farm::media::DroppedTrack { track: farm::media::TrackId(2), kind: "H.264".to_owned(), why }];
    assert_eq!(told(&info, &plan, 0, 0), ["track 2 (H.264) is left out: not one buffer of it decodes"]);
}

#[test]
fn of_still_pictures_alone_there_has_to_be_one() {
    let info = source(vec![picture(640, 360, "25", 40)], vec![sound(1, 48_000, 40)]);
    let hls = JobSpec { poster: Some(PosterSpec::default()), ..spec() };
    for (spec, refused) in [(JobSpec { make: Make::Stills, ..hls.clone() }, Some(Code::Undecodable)), (hls, None)] {
        let plan = plan(&spec, &info).expect("a plan");
        let mut seal = seal(&plan, &markers(&plan, &info)).expect("a seal");
        assert_eq!(judge_stills(&plan, &seal), Ok(()));
        seal.stills = Some(Stills::default());
        assert_eq!(judge_stills(&plan, &seal).map_err(|failure| failure.code).err(), refused, "{:?}", spec.make);
    }
}

#[test]
fn of_an_edited_video_half_of_the_places_may_be_missing_in_each_stage() {
    let info = source(vec![picture(640, 360, "25", 40)], vec![sound(1, 48_000, 40)]);
    let edit = serde_json::from_str(r#"[{"keep": {"from": 1, "to": 21}}]"#).expect("steps");
    let spec = JobSpec { edit, publish: Publishing::InStages, ..spec() };
    let plan = plan(&spec, &info).expect("a plan");
    let stage = plan.first_stage().expect("a stage");
    let missing = |missing| Accounts {
        frames: Some(Account { missing, filled: missing, kept: 500 - missing, ..Account::default() }),
        samples: vec![Account { kept: 960_000, ..Account::default() }],
    };
    for plan in [&plan, &stage] {
        for (count, refused) in [(0, None), (250, None), (251, Some(Code::Undecodable))] {
            assert_eq!(code(Damage::BestEffort, &info, plan, &missing(count)), refused, "{count} places");
        }
    }
}

#[test]
fn what_is_published_first_is_judged_by_its_picture_as_all_is() {
    let info = source(vec![picture(640, 360, "25", 40)], vec![sound(1, 48_000, 40)]);
    let plan = plan(&JobSpec { publish: Publishing::LargestFirst, ..spec() }, &info).expect("a plan");
    let stage = plan.first_stage().expect("a stage");
    // The sound may begin late.
    let of = |kept| Accounts {
        frames: Some(Account { kept, filled: 1000 - kept, ..Account::default() }),
        samples: vec![Account { kept: 48_000, ..Account::default() }],
    };
    for plan in [&plan, &stage] {
        for (kept, refused) in [(1000, None), (500, None), (499, Some(Code::Undecodable))] {
            assert_eq!(code(Damage::BestEffort, &info, plan, &of(kept)), refused, "{kept} frames");
        }
    }
}

#[test]
fn edited_sound_alone_is_judged_by_what_its_sources_lack() {
    let info = source(Vec::new(), vec![sound(0, 48_000, 40)]);
    let edit = serde_json::from_str(r#"[{"keep": {"from": 1, "to": 21}}]"#).expect("steps");
    let plan = plan(&JobSpec { edit, ..spec() }, &info).expect("a plan");
    for (missing, refused) in [(0, None), (480_000, None), (480_001, Some(Code::Undecodable))] {
        let heard = Accounts { frames: None, samples: vec![Account { missing, filled: missing, ..Account::default() }] };
        assert_eq!(code(Damage::BestEffort, &info, &plan, &heard), refused, "{missing} samples");
    }
}
