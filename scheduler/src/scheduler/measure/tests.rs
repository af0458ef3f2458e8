//! How many workers an engine says are wanted, by the jobs that it knows.

use std::sync::Arc;
use std::time::Duration;

use farm::broker::Broker;
use farm::encoder::{Extent, Offer, Offered};
use farm::job::VideoCodec;
use farm::storage::Storage;
use farm::task::Token;
use farm::{Code, Failure, Life};
use tempfile::TempDir;
use tokio::time::advance;

use super::super::Settings;
use super::super::job::Job;
use super::super::view::{Board, Tally};
use super::*;
use crate::offers::Offers;
use crate::step::{JobState, Next, step};
use crate::testing::{marker, picture, sound, source, spec};

/// An engine that acts, or stands by, and its storage.
fn engine(acts: bool) -> (Engine, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let (state, board) = (Storage::folder(folder.path()), Arc::new(Board::default()));
    let mut engine = Engine::new(Settings::for_farm(), state, Broker::local(), board);
    if acts {
        engine.lead.on_tick(Instant::now());
        engine.lead.on_term(1, Instant::now());
        engine.scale.is_listed = true;
    }
    (engine, folder)
}

/// A job of ten minutes of 720p, five minutes of work, as it is when it has just been planned.
fn planned(id: &JobId) -> Entry {
    let info = source(vec![picture(1280, 720, "25", 600)], vec![sound(1, 48_000, 600)]);
    let plan = crate::plan::plan(&spec(), &info).expect("a plan");
    let mut state = JobState::new(id.clone(), Life::FIRST, spec());
    let probed = marker(&plan, &info, &TaskId::Probe, &Token::random(), &state.markers);
    state.markers.insert(TaskId::Probe, probed);
    state.plan = Some(plan);
    let Next::Run(due) = step(&state) else { panic!("nothing to run") };
    let mut entry = Entry { tally: Tally::of(&state), ..Entry::default() };
    entry.set_due(due);
    entry.job = Some(Job { state, epoch: 1 });
    entry
}

fn id(number: usize) -> JobId {
    JobId::try_from(format!("job-{number}")).expect("an id")
}

fn of(engine: &mut Engine, class: Class) -> u32 {
    engine.wanted().expect("known").get(&class).copied().unwrap_or(0)
}

#[tokio::test(start_paused = true)]
async fn whoever_acts_wants_workers_for_what_is_open_and_whoever_stands_by_wants_none() {
    let (mut engine, _folder) = engine(true);
    assert_eq!(of(&mut engine, Class::Cpu), 0);
    engine.jobs.insert(id(0), Entry::default());
    assert_eq!(of(&mut engine, Class::Cpu), 1, "at once, though nothing is known of it");
    for number in 0..40 {
        engine.jobs.insert(id(number), planned(&id(number)));
    }
    // Half a slot each.
    let wanted = of(&mut engine, Class::Cpu);
    assert!((9..=12).contains(&wanted), "{wanted}");
    assert_eq!(of(&mut engine, Class::Nvenc), 0);
    let (mut standby, _folder) = self::engine(false);
    standby.jobs = std::mem::take(&mut engine.jobs);
    assert_eq!(standby.wanted(), Some(BTreeMap::new()));
}

#[tokio::test(start_paused = true)]
async fn what_is_done_or_halted_wants_nobody_after_it_was_quiet() {
    let (mut engine, _folder) = engine(true);
    engine.jobs.insert(id(0), planned(&id(0)));
    assert_eq!(of(&mut engine, Class::Cpu), 1);
    engine.jobs.get_mut(&id(0)).expect("a job").halt(Failure::new(Code::StorageUnavailable, "away"));
    advance(Duration::from_secs(300)).await;
    assert_eq!(of(&mut engine, Class::Cpu), 1, "not yet");
    advance(Duration::from_secs(5)).await;
    assert_eq!(of(&mut engine, Class::Cpu), 0);
    engine.jobs.insert(id(1), planned(&id(1)));
    assert_eq!(of(&mut engine, Class::Cpu), 1, "and back");
    engine.jobs.clear();
    advance(Duration::from_secs(305)).await;
    assert_eq!(of(&mut engine, Class::Cpu), 0);
    assert!(engine.scale.jobs.is_empty(), "what has ended is forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_task_counts_where_it_goes_and_only_what_is_left_of_it() {
    let (mut engine, _folder) = engine(true);
    let mut entry = planned(&id(0));
    let pieces: Vec<TaskId> = entry.due.iter().map(|due| due.task.clone()).filter(|task| *task != TaskId::Audio(0)).collect();
    entry.due.iter_mut().filter(|due| due.task != TaskId::Audio(0)).for_each(|due| due.class = Class::Nvenc);
    let costs = engine.scale.hear(&id(0), &entry, 0).costs;
    assert!(costs.is_some(), "it is planned");
    let needs = |entry: &Entry, served: &Served| engine.scale.needs(entry, costs, served);
    let alone = needs(&entry, &Served::NONE);
    let all = entry.due.len() as u64;
    assert_eq!(alone.keys().copied().collect::<Vec<_>>(), [Class::Cpu], "nobody has the device");
    assert_eq!(alone[&Class::Cpu].tasks, all);
    let mut offers = Offers::new(Instant::now(), true);
    let (class, codec, largest) = (Class::Nvenc, VideoCodec::H264, Extent::of(1920, 1080));
    let encoders = vec![Offered { class, codec, largest, sessions_max: None }];
    offers.note(Offer { worker: Token::random(), encoders }, Instant::now());
    let served = offers.served(Instant::now());
    let beside = needs(&entry, &served);
    assert_eq!((beside[&Class::Cpu].tasks, beside[&Class::Nvenc].tasks), (1, all - 1));
    assert!(beside[&Class::Nvenc].work_ns < alone[&Class::Cpu].work_ns / 2, "{beside:?}");
    // A piece that a worker is at, nearly done.
    let lease = Duration::from_secs(60);
    entry.outstanding.insert(pieces[0].clone(), Outstanding::issued(1, Class::Nvenc, Instant::now() + lease));
    assert_eq!(needs(&entry, &served)[&Class::Nvenc].running, 0, "it may be on the queue");
    let whole_ns = entry.tally.cost_ns(&pieces[0]);
    assert!(entry.note_progress(&pieces[0], whole_ns / 10 * 9, Instant::now(), lease));
    let later = needs(&entry, &served);
    assert_eq!((later[&Class::Nvenc].running, later[&Class::Nvenc].tasks), (1, all - 1));
    assert!(later[&Class::Nvenc].work_ns < beside[&Class::Nvenc].work_ns, "{later:?}");
    // Handed out to the processor before there was a device.
    entry.outstanding.insert(pieces[1].clone(), Outstanding::issued(1, Class::Cpu, Instant::now() + lease));
    assert_eq!(needs(&entry, &served)[&Class::Cpu].tasks, 2);
}

#[tokio::test(start_paused = true)]
async fn pieces_that_take_longer_than_thought_call_for_more() {
    let (mut engine, _folder) = engine(true);
    let of_all = |engine: &Engine, entry: &Entry, costs| engine.scale.needs(entry, costs, &Served::NONE)[&Class::Cpu].work_ns;
    let mut entry = planned(&id(0));
    let costs = engine.scale.hear(&id(0), &entry, 0).costs;
    let before_ns = of_all(&engine, &entry, costs);
    let info = source(vec![picture(1280, 720, "25", 600)], vec![sound(1, 48_000, 600)]);
    let state = &mut entry.job.as_mut().expect("a job").state;
    let plan = state.plan.clone().expect("a plan");
    let mut made = marker(&plan, &info, &TaskId::Video(0), &Token::random(), &state.markers);
    // Nearly three minutes, and not three quarters of one.
    made.cost.wall_ms = 170_000;
    state.markers.insert(TaskId::Video(0), made);
    engine.scale.hear(&id(0), &entry, 0);
    let after_ns = of_all(&engine, &entry, costs);
    assert!(after_ns > before_ns / 10 * 15, "{before_ns} {after_ns}");
    engine.scale.hear(&id(0), &entry, 0);
    assert_eq!(of_all(&engine, &entry, costs), after_ns, "a piece counts once");
}

#[tokio::test(start_paused = true)]
async fn whoever_begins_to_act_wants_nothing_in_particular_until_all_jobs_were_looked_at() {
    let (mut engine, _folder) = engine(true);
    engine.scale.is_listed = false;
    assert_eq!(engine.wanted(), None);
    engine.scale.is_listed = true;
    engine.jobs.insert(id(0), Entry::default());
    engine.jobs.insert(id(1), planned(&id(1)));
    assert_eq!(engine.wanted(), None, "one was not looked at");
    engine.jobs.insert(id(0), planned(&id(0)));
    assert_eq!(of(&mut engine, Class::Cpu), 1);
    engine.jobs.insert(id(2), Entry::default());
    assert_eq!(of(&mut engine, Class::Cpu), 1, "new ones come all the time");
}
