//! The law, step by step; [`day`] is what comes of it.

use farm::job::{JobSpec, Make, PosterSpec};
use proptest::prelude::{prop, prop_assert, proptest};

use super::*;
use crate::plan::plan;
use crate::testing::{marker, picture, sound, source, spec};

mod day;

/// Ten minutes, two slots.
const AIM: Aim = Aim { target_ns: 600 * SECOND_NS, slots: 2 };

/// A load of so many thousandths of slots, of which so many tasks run.
fn load(slots_milli: u64, running: u64) -> Load {
    let mut load = Load::default();
    load.add(Need { work_ns: slots_milli * (AIM.target_ns / 1000), tasks: 1 << 20, running }, 0, AIM);
    load
}

/// A film of so many seconds at 25 frames per second, with sound, and what its plan costs.
fn film(width: u32, height: u32, seconds: u64) -> (Plan, MediaInfo, Costs) {
    let info = source(vec![picture(width, height, "25", seconds)], vec![sound(1, 48_000, seconds)]);
    let plan = plan(&spec(), &info).expect("a plan");
    let costs = Costs::of(&plan, &info);
    (plan, info, costs)
}

/// The pieces of a film's picture, and the media that each goes through, in ns.
fn pieces(plan: &Plan) -> Vec<(TaskId, u64)> {
    let of_pass = |pass: farm::plan::Pass<'_>| -> Vec<(TaskId, u64)> {
        pass.pieces().map(|(task, chunk)| (task, pass.video.rate.start_ns(chunk.end - chunk.start))).collect()
    };
    plan.passes().flat_map(of_pass).collect()
}

#[test]
fn a_job_needs_slots_for_what_is_left_in_the_time_that_is_left() {
    let need = Need { work_ns: 6000 * SECOND_NS, tasks: 100, running: 0 };
    let after = |age_s: u64| {
        let mut load = Load::default();
        load.add(need, age_s * SECOND_NS, AIM);
        load.needed(AIM)
    };
    assert_eq!((after(0), after(200), after(300)), (5, 8, 10));
    assert_eq!(after(100_000), 10, "what is late does not ask for the world");
    let mut few = Load::default();
    few.add(Need { tasks: 3, ..need }, 0, AIM);
    assert_eq!(few.needed(AIM), 2, "no more slots than tasks");
    few.add(Need { work_ns: 1, tasks: 1, running: 0 }, 0, AIM);
    assert_eq!(few.needed(AIM), 2, "what is next to nothing has room beside it");
    assert_eq!(few.needed(Aim { slots: 0, ..AIM }), few.needed(Aim { slots: 1, ..AIM }), "and nothing is divided by none");
    let mut endless = Load::default();
    endless.add(Need { work_ns: u64::MAX, tasks: u64::MAX, running: u64::MAX }, u64::MAX, Aim { target_ns: 0, slots: 1 });
    assert_eq!((endless.needed(AIM), endless.holding(AIM)), (WORKERS_MAX, WORKERS_MAX));
}

#[test]
fn up_at_once_and_down_to_the_most_of_five_minutes() {
    let mut wanted = Wanted::default();
    let mut at = |second: u64, slots: u64| wanted.follow(&load(1000 * slots, 0), AIM, second * SECOND_NS);
    assert_eq!((at(0, 10), at(5, 60), at(10, 20)), (5, 30, 30));
    assert_eq!((at(100, 40), at(200, 30)), (30, 30));
    assert_eq!((at(305, 2), at(310, 2)), (30, 20), "60 are five minutes ago");
    assert_eq!((at(400, 2), at(401, 2)), (20, 15));
    assert_eq!((at(500, 2), at(501, 2)), (15, 1));
    assert_eq!((at(502, 60), at(503, 2)), (30, 30));
}

#[test]
fn a_load_that_wavers_around_a_bound_turns_nothing() {
    let mut wanted = Wanted::default();
    let mut seen: Vec<u32> = Vec::new();
    for second in (0..7200).step_by(5) {
        // Six minutes below eight slots, six above: slower than the five minutes would smooth.
        let slots_milli = if second / 360 % 2 == 0 { 7_700 } else { 8_300 };
        seen.push(wanted.follow(&load(slots_milli, 0), AIM, second * SECOND_NS));
    }
    seen.dedup();
    assert_eq!(seen, [4]);
    assert_eq!(wanted.follow(&load(8_800, 0), AIM, 7200 * SECOND_NS), 4);
    assert_eq!(wanted.follow(&load(8_801, 0), AIM, 7205 * SECOND_NS), 5, "more than a tenth is no wavering");
}

#[test]
fn none_are_wanted_when_nothing_is_open_and_one_while_anything_is() {
    let mut wanted = Wanted::default();
    assert_eq!(wanted.follow(&Load::default(), AIM, 0), 0);
    assert_eq!(wanted.follow(&load(0, 0), AIM, SECOND_NS), 1, "next to nothing is something");
    let quiet_ns = SECOND_NS + QUIET_NS;
    assert_eq!(wanted.follow(&Load::default(), AIM, quiet_ns), 1);
    assert_eq!(wanted.follow(&Load::default(), AIM, quiet_ns + 1), 0);
    assert_eq!(wanted.follow(&load(3000, 0), AIM, quiet_ns + 2), 2, "and back");
}

#[test]
fn what_runs_keeps_its_slots_and_calls_for_no_more() {
    let mut wanted = Wanted::default();
    assert_eq!(wanted.follow(&load(20_000, 20), AIM, 0), 10);
    let later_ns = QUIET_NS + SECOND_NS;
    assert_eq!(wanted.follow(&load(1000, 13), AIM, later_ns), 7, "thirteen tasks have room with seven");
    assert_eq!(wanted.follow(&load(1000, 20), AIM, later_ns + SECOND_NS), 7, "workers that drain have some besides");
    assert_eq!(wanted.follow(&load(1000, 3), AIM, later_ns + 2 * SECOND_NS), 2);
    assert_eq!(wanted.follow(&Load::default(), AIM, 3 * later_ns), 0);
}

#[test]
fn a_job_of_which_nothing_is_known_counts_as_those_before_it() {
    assert_eq!(Expected::USUAL.need(1), Need { work_ns: PIECE_NS, tasks: 1, running: 1 });
    let mut expected = Expected::USUAL;
    for _ in 0..30 {
        expected = expected.planned(1300 * SECOND_NS);
    }
    let Need { work_ns, tasks, running } = expected.need(0);
    assert!((1299 * SECOND_NS..=1300 * SECOND_NS).contains(&work_ns), "{work_ns}");
    assert_eq!((tasks, running), (29, 0), "it will be cut into so many pieces");
    assert_eq!(expected.planned(u64::MAX).planned(u64::MAX).need(0).running, 0, "no sum is too large");
}

#[test]
fn costs_are_what_the_planner_cuts_by() {
    for (width, height) in [(1280, 720), (1920, 1080)] {
        let (plan, _, costs) = film(width, height, 3600);
        let price = Price::usual(Class::Cpu);
        let all: Vec<u64> = pieces(&plan).iter().map(|(task, media_ns)| costs.slot_ns(price, task, *media_ns)).collect();
        let (first, last) = (all[0], all[all.len() - 1]);
        assert!((PIECE_NS / 10 * 8..=PIECE_NS).contains(&first), "{height}: {first}");
        assert!((PIECE_NS / 10 * 3..=PIECE_NS / 2).contains(&last), "{height}: {last}");
        let sound_ns = costs.slot_ns(price, &TaskId::Audio(0), plan.duration_ns);
        assert_eq!(sound_ns, 48 * SECOND_NS);
        let (sum, whole_ns) = (all.iter().sum::<u64>() + sound_ns, costs.whole_ns(price));
        assert!(sum.abs_diff(whole_ns) < SECOND_NS, "{height}: {sum} {whole_ns}");
        assert!(costs.slot_ns(price, &TaskId::Stills, plan.duration_ns / 20) < PIECE_NS * 8);
        for small in [TaskId::Probe, TaskId::Pack(plan.audio[0].id.clone()), TaskId::Mp4(plan.audio[0].id.clone())] {
            assert_eq!(costs.slot_ns(price, &small, SECOND_NS), TASK_NS);
        }
        assert_eq!(costs.slot_ns(price, &TaskId::Video(0), 0), TASK_NS, "what is nearly done");
    }
}

#[test]
fn still_pictures_alone_cost_no_more_than_decoding_all_of_the_picture() {
    let spec = JobSpec { make: Make::Stills, poster: Some(PosterSpec::default()), ..spec() };
    let info = source(vec![picture(1280, 720, "25", 3600)], vec![sound(1, 48_000, 3600)]);
    let plan = plan(&spec, &info).expect("a plan");
    let (costs, price) = (Costs::of(&plan, &info), Price::usual(Class::Cpu));
    // A third of each pixel's 10 ns.
    let decoding_ns = 1280 * 720 / 3 * 25 * 3600 * 10;
    assert_eq!(costs.slot_ns(price, &TaskId::Stills, plan.duration_ns), decoding_ns);
    assert_eq!(costs.whole_ns(price), decoding_ns);
}

#[test]
fn what_a_device_makes_is_left_out_of_what_others_do_and_has_a_price_of_its_own() {
    let (mut plan, info, costs) = film(1280, 720, 600);
    let (mut markers, token) = (BTreeMap::new(), farm::task::Token::random());
    plan.video.iter_mut().flat_map(|video| video.rungs.iter_mut()).for_each(|rung| rung.class = Class::Nvenc);
    let pinned = Costs::of(&plan, &info);
    let price = Price::usual(Class::Cpu);
    assert_eq!(pinned.whole_ns(price), 8 * SECOND_NS, "the sound");
    assert!(costs.whole_ns(price) > 200 * SECOND_NS);
    let mut take = |task: TaskId, device: Option<&str>, wall_ms: u64| {
        let mut made = marker(&plan, &info, &task, &token, &markers);
        (made.device, made.cost.wall_ms) = (device.map(str::to_owned), wall_ms);
        markers.insert(task, made);
    };
    take(TaskId::Video(0), Some("nvenc on /dev/nvidia0"), 5_000);
    take(TaskId::Video(1), Some("nvenc on /dev/nvidia0"), 6_000);
    take(TaskId::Video(2), None, 80_000);
    take(TaskId::Audio(0), None, 9_000);
    let spent = spent(&plan, &pinned, &markers);
    let of = |class: Class| spent.get(&class).copied().unwrap_or_default();
    assert_eq!((of(Class::Nvenc).0, of(Class::Cpu).0), (11_000, 80_000), "the sound is no picture");
    assert_eq!(of(Class::Nvenc).1, 2 * of(Class::Cpu).1, "pieces of the same size");
    let piece = of(Class::Cpu).1;
    let learned = |class: Class| (0..30).fold(Price::usual(class), |price, _| price.measured(of(class).0, of(class).1)).of(piece);
    assert!(learned(Class::Nvenc).abs_diff(5_500_000_000) < SECOND_NS / 10, "{}", learned(Class::Nvenc));
    assert!(learned(Class::Cpu).abs_diff(80 * SECOND_NS) < SECOND_NS, "{}", learned(Class::Cpu));
    assert_eq!(price.measured(1, 0), price, "nothing was done");
    assert!(price.measured(u64::MAX, 1).of(1_000_000) <= 14 * price.of(1_000_000), "no measure is believed without limit");
}

proptest! {
    #[test]
    fn whatever_comes_it_falls_five_minutes_after_a_rise_and_never_below_what_is_needed(
        loads in prop::collection::vec((0_u64..60_000, 0_u64..60), 1..400)
    ) {
        let (mut wanted, mut before, mut rise_ns) = (Wanted::default(), 0, None);
        for (turn, (slots_milli, running)) in (0_u64..).zip(loads) {
            let now_ns = turn * 5 * SECOND_NS;
            let now = wanted.follow(&load(slots_milli, running), AIM, now_ns);
            prop_assert!(u64::from(now) * 2 * 1100 >= slots_milli, "{now} for {slots_milli}");
            if now > before {
                rise_ns = Some(now_ns);
            }
            if now < before {
                prop_assert!(rise_ns.is_none_or(|rise_ns| now_ns > rise_ns + QUIET_NS), "it turned at {now_ns}");
                prop_assert!(u64::from(now) * 2 >= running, "{now} for {running} that run");
            }
            before = now;
        }
    }
}
