//! A day of a farm in virtual time: jobs come as they do, in trickles, waves and floods; the planner cuts them, [`pick_next`] and
//! [`room`] hand their tasks out, and workers come and go as the law says.

use std::collections::{BTreeMap, VecDeque};

use farm::Class;
use farm::job::JobId;
use farm::rate::SECOND_NS;
use farm::task::TaskId;

use super::{AIM, film, pieces};
use crate::dispatch::{Candidate, Shares, pick_next, room};
use crate::scheduler::Settings;
use crate::wanted::{Costs, Expected, Load, Need, Price, Wanted};

const HOUR_S: u64 = 3600;
const DAY_S: u64 = 24 * HOUR_S;
/// When two of the bursts come: to a farm that is at work, and to one that has no worker.
const FLOOD_S: u64 = 9 * HOUR_S;
const COLD_BURST_S: u64 = 14 * HOUR_S + 1200;
/// How often the scheduler measures.
const MEASURE_S: u64 = 5;
/// How often it is looked whether there are as many workers as are wanted.
const LOOK_S: u64 = 15;
/// How long a worker takes to start.
const START_UP_S: u64 = 60;
/// What a probe takes.
const PROBE_S: u64 = 2;
/// Longer than any piece takes.
const PIECE_S: u64 = 60;

/// What jobs are about: what the tasks of it are, and what they are thought to cost.
struct Film {
    costs: Costs,
    tasks: Vec<(TaskId, u64)>,
}

impl Film {
    fn new(width: u32, height: u32, seconds: u64) -> Self {
        let (plan, _, costs) = film(width, height, seconds);
        let sound = [(TaskId::Audio(0), seconds * SECOND_NS)];
        Self { costs, tasks: sound.into_iter().chain(pieces(&plan)).collect() }
    }
}

/// A job on its way.
struct Job<'a> {
    id: JobId,
    tenant: &'static str,
    submitted_s: u64,
    film: &'a Film,
    /// How long its tasks take, in percent of what they are thought to at first.
    percent: u64,
    is_planned: bool,
    /// Tasks that were not handed out, and their media.
    due: VecDeque<(TaskId, u64)>,
    /// Those that were.
    out: BTreeMap<TaskId, Out>,
    spent_s: u64,
    ended_s: Option<u64>,
}

/// A task that was handed out.
struct Out {
    media_ns: u64,
    /// Since when a worker is at it, and until when.
    run_s: Option<(u64, u64)>,
}

impl<'a> Job<'a> {
    fn new(number: usize, submitted_s: u64, film: &'a Film) -> Self {
        Self {
            id: JobId::try_from(format!("job-{number}")).expect("an id"),
            tenant: ["one", "two", "three"][number % 3],
            submitted_s,
            film,
            percent: [80, 100, 120, 90, 110][number % 5],
            is_planned: false,
            due: VecDeque::from([(TaskId::Probe, SECOND_NS)]),
            out: BTreeMap::new(),
            spent_s: 0,
            ended_s: None,
        }
    }

    /// How long a task of it takes, in s.
    fn takes_s(&self, task: &TaskId, media_ns: u64) -> u64 {
        let slot_ns = self.film.costs.slot_ns(Price::usual(Class::Cpu), task, media_ns);
        if *task == TaskId::Probe { PROBE_S } else { (slot_ns * self.percent / 100).div_ceil(SECOND_NS) }
    }

    /// What it needs as the scheduler knows it.
    fn need(&self, now_s: u64, price: Price, expected: Expected) -> Need {
        let mut need = Need::default();
        for (task, media_ns) in &self.due {
            need.add(self.film.costs.slot_ns(price, task, *media_ns), false);
        }
        for (task, out) in &self.out {
            // A worker says every second how far it is.
            let left_ns = out.run_s.map_or(out.media_ns, |(since_s, until_s)| {
                out.media_ns * until_s.saturating_sub(now_s) / (until_s - since_s).max(1)
            });
            need.add(self.film.costs.slot_ns(price, task, left_ns), out.run_s.is_some());
        }
        if self.is_planned { need } else { expected.need(need.running) }
    }

    /// What it would need if all were known of it.
    fn true_need(&self, now_s: u64, price: Price) -> Need {
        if self.is_planned {
            return self.need(now_s, price, Expected::USUAL);
        }
        let mut need = Need::default();
        for (task, media_ns) in &self.film.tasks {
            need.add(self.film.costs.slot_ns(price, task, *media_ns), false);
        }
        need
    }
}

/// Which workers go when fewer are wanted, and how.
enum Leave {
    /// Those that have least to do, and they have a minute to end it.
    IdlestDrain,
    /// Those that have most to do, and what they have is lost.
    BusiestDie,
}

/// A worker: what it is at, as jobs and their tasks, and when it is gone at the latest if it takes no more.
#[derive(Default)]
struct Worker {
    tasks: Vec<(usize, TaskId)>,
    leaves_s: Option<u64>,
}

/// What is seen at a measure.
struct Seen {
    at_s: u64,
    wanted: u32,
    /// Workers that would do if all were known of every job.
    needed: u32,
    present: usize,
    running: u64,
}

struct Farm<'a> {
    now_s: u64,
    coming: VecDeque<Job<'a>>,
    jobs: Vec<Job<'a>>,
    /// Jobs that have not ended.
    open: Vec<usize>,
    queue: VecDeque<(usize, TaskId)>,
    workers: Vec<Worker>,
    /// When workers that were started are there.
    starting_s: Vec<u64>,
    /// When tasks were done, those of the last second.
    finished_s: VecDeque<u64>,
    shares: Shares,
    price: Price,
    expected: Expected,
    law: Wanted,
    wanted: usize,
    leave: Leave,
    /// Tasks that went with each worker that was taken away.
    lost: Vec<usize>,
    /// Seconds of slots: those that there were, and those with a task.
    slots_s: u64,
    busy_s: u64,
    seen: Vec<Seen>,
}

impl<'a> Farm<'a> {
    fn new(coming: VecDeque<Job<'a>>, leave: Leave) -> Self {
        Self {
            now_s: 0,
            coming,
            jobs: Vec::new(),
            open: Vec::new(),
            queue: VecDeque::new(),
            workers: Vec::new(),
            starting_s: Vec::new(),
            finished_s: VecDeque::new(),
            shares: Shares::default(),
            price: Price::usual(Class::Cpu),
            expected: Expected::USUAL,
            law: Wanted::default(),
            wanted: 0,
            leave,
            lost: Vec::new(),
            slots_s: 0,
            busy_s: 0,
            seen: Vec::new(),
        }
    }

    /// The day, second by second.
    fn live(mut self) -> Self {
        while self.now_s < DAY_S {
            while self.coming.front().is_some_and(|job| job.submitted_s <= self.now_s) {
                self.open.push(self.jobs.len());
                self.jobs.extend(self.coming.pop_front());
            }
            self.end_tasks();
            self.end_workers();
            self.hand_out();
            self.take();
            if self.now_s.is_multiple_of(MEASURE_S) {
                self.measure();
            }
            if self.now_s.is_multiple_of(LOOK_S) {
                self.scale();
            }
            self.slots_s += u64::from(AIM.slots) * self.workers.len() as u64;
            self.busy_s += self.running();
            self.now_s += 1;
        }
        self
    }

    fn running(&self) -> u64 {
        self.workers.iter().map(|worker| worker.tasks.len() as u64).sum()
    }

    fn end_tasks(&mut self) {
        let (jobs, now_s) = (&self.jobs, self.now_s);
        let is_done = |job: &usize, task: &TaskId| jobs[*job].out[task].run_s.is_some_and(|(_, until_s)| until_s <= now_s);
        let mut done = Vec::new();
        for worker in &mut self.workers {
            done.extend(worker.tasks.extract_if(.., |(job, task)| is_done(job, task)));
        }
        for (number, task) in done {
            self.finished_s.push_back(now_s);
            let job = &mut self.jobs[number];
            let out = job.out.remove(&task).expect("a task that was handed out");
            match task {
                TaskId::Probe => {
                    job.is_planned = true;
                    job.due.extend(job.film.tasks.iter().cloned());
                    self.expected = self.expected.planned(job.film.costs.whole_ns(self.price));
                }
                TaskId::Video(_) => job.spent_s += job.takes_s(&task, out.media_ns),
                _ => {}
            }
            if job.due.is_empty() && job.out.is_empty() {
                job.ended_s = Some(now_s);
                self.open.retain(|open| *open != number);
                let costs = &job.film.costs;
                let pixels: u128 = job.film.tasks.iter().map(|(task, media_ns)| costs.pixels(task, *media_ns)).sum();
                self.price = self.price.measured(1000 * job.spent_s, pixels);
            }
        }
    }

    /// Those that were started are there, and those that were to go are gone.
    fn end_workers(&mut self) {
        let now_s = self.now_s;
        let started = self.starting_s.extract_if(.., |ready_s| *ready_s <= now_s).count();
        self.workers.resize_with(self.workers.len() + started, Worker::default);
        let is_gone = |worker: &mut Worker| worker.leaves_s.is_some_and(|at_s| worker.tasks.is_empty() || at_s <= now_s);
        let gone: Vec<Worker> = self.workers.extract_if(.., is_gone).collect();
        for worker in gone {
            self.lost.push(worker.tasks.len());
            for (number, task) in worker.tasks {
                let job = &mut self.jobs[number];
                let out = job.out.remove(&task).expect("a task that was handed out");
                job.due.push_front((task, out.media_ns));
            }
        }
    }

    /// What the scheduler does: as many tasks as there is room for, by whose turn it is.
    fn hand_out(&mut self) {
        while self.finished_s.front().is_some_and(|at_s| at_s + 1 < self.now_s) {
            self.finished_s.pop_front();
        }
        let running: usize = self.workers.iter().map(|worker| worker.tasks.len()).sum();
        let left = room(Settings::for_farm().window, self.queue.len() + running, running, self.finished_s.len());
        for _ in 0..left {
            let (mut candidates, mut places) = (Vec::new(), Vec::new());
            for number in &self.open {
                let Job { id, tenant, submitted_s, due, .. } = &self.jobs[*number];
                // Whatever goes first in a job is the first here.
                let Some((task, cost_ns)) = due.front() else { continue };
                let (priority, submitted) = (0, *submitted_s);
                candidates.push(Candidate { tenant, priority, submitted, job: id, task, cost_ns: *cost_ns });
                places.push(*number);
            }
            let Some(place) = pick_next(&candidates, &self.shares) else { return };
            let Candidate { tenant, cost_ns, .. } = candidates[place];
            self.shares.charge(tenant, cost_ns);
            let job = &mut self.jobs[places[place]];
            let (task, media_ns) = job.due.pop_front().expect("a candidate");
            job.out.insert(task.clone(), Out { media_ns, run_s: None });
            self.queue.push_back((places[place], task));
        }
    }

    /// What the broker does: each task goes to the worker that has waited longest of those with a free slot, for it stands first.
    fn take(&mut self) {
        let slots = AIM.slots as usize;
        while !self.queue.is_empty()
            && let Some(at) = self.workers.iter().position(|worker| worker.leaves_s.is_none() && worker.tasks.len() < slots)
            && let Some((number, task)) = self.queue.pop_front()
        {
            let job = &mut self.jobs[number];
            let takes_s = job.takes_s(&task, job.out[&task].media_ns);
            job.out.get_mut(&task).expect("a task that was handed out").run_s = Some((self.now_s, self.now_s + takes_s));
            let mut worker = self.workers.remove(at);
            worker.tasks.push((number, task));
            self.workers.push(worker);
        }
    }

    fn measure(&mut self) {
        let (mut load, mut true_load) = (Load::default(), Load::default());
        for number in &self.open {
            let job = &self.jobs[*number];
            load.add(job.need(self.now_s, self.price, self.expected), (self.now_s - job.submitted_s) * SECOND_NS, AIM);
            true_load.add(job.true_need(self.now_s, self.price), 0, AIM);
        }
        let wanted = self.law.follow(&load, AIM, self.now_s * SECOND_NS);
        self.wanted = wanted as usize;
        let (needed, present, running) = (true_load.needed(AIM), self.workers.len(), self.running());
        self.seen.push(Seen { at_s: self.now_s, wanted, needed, present, running });
    }

    /// What an autoscaler does.
    fn scale(&mut self) {
        let staying = self.workers.iter().filter(|worker| worker.leaves_s.is_none()).count();
        let starting = self.wanted.saturating_sub(staying);
        self.starting_s.resize(starting, self.now_s + START_UP_S);
        let mut some: Vec<&mut Worker> = self.workers.iter_mut().filter(|worker| worker.leaves_s.is_none()).collect();
        some.sort_by_key(|worker| worker.tasks.len());
        let given_s = match self.leave {
            Leave::IdlestDrain => 60,
            Leave::BusiestDie => {
                some.reverse();
                0
            }
        };
        for worker in some.into_iter().take(staying.saturating_sub(self.wanted)) {
            worker.leaves_s = Some(self.now_s + given_s);
        }
    }

    /// What was seen at this second.
    fn at(&self, at_s: u64) -> &Seen {
        self.seen.iter().find(|seen| seen.at_s == at_s).expect("a measure")
    }

    /// How often it turned from rising to falling or back, by hour.
    fn turns(&self) -> BTreeMap<u64, u32> {
        let (mut turns, mut was_up) = (BTreeMap::new(), None);
        for pair in self.seen.windows(2) {
            let is_up = pair[1].wanted > pair[0].wanted;
            if pair[1].wanted == pair[0].wanted || was_up.replace(is_up).is_none_or(|was_up| was_up == is_up) {
                continue;
            }
            *turns.entry(pair[1].at_s / HOUR_S).or_default() += 1;
        }
        turns
    }
}

/// The films of the day: a clip, a clip of low resolution, ten minutes, and twenty minutes that are dearer.
fn films() -> [Film; 4] {
    [Film::new(1280, 720, 60), Film::new(854, 480, 60), Film::new(1280, 720, 600), Film::new(1920, 1080, 1200)]
}

fn day([clip, small, usual, large]: &[Film; 4]) -> VecDeque<Job<'_>> {
    let hours = |from_h: u64, to_h: u64, step_s: usize| (from_h * HOUR_S..to_h * HOUR_S).step_by(step_s);
    let mut coming: Vec<(u64, &Film)> = Vec::new();
    coming.extend(hours(0, 6, 2400).map(|at_s| (at_s, clip)));
    coming.extend(hours(6, 9, 360).map(|at_s| (at_s, usual)));
    coming.extend([(FLOOD_S, usual); 60]);
    coming.extend(hours(10, 12, 120).map(|at_s| (at_s, usual)));
    coming.extend(hours(13, 16, 1800).flat_map(|at_s| [(at_s, usual); 12]));
    coming.extend([(COLD_BURST_S, large); 20]);
    // Five minutes of many, five of few, and so on.
    coming.extend(hours(16, 18, 20).filter(|at_s| at_s / 300 % 2 == 0 || at_s % 60 == 0).map(|at_s| (at_s, usual)));
    coming.extend(hours(18, 20, 60).map(|at_s| (at_s, usual)));
    coming.extend(hours(20, 22, 240).map(|at_s| (at_s, usual)));
    coming.extend(hours(22, 23, 2400).map(|at_s| (at_s, small)));
    coming.sort_by_key(|(at_s, _)| *at_s);
    coming.into_iter().enumerate().map(|(number, (at_s, film))| Job::new(number, at_s, film)).collect()
}

#[test]
fn workers_follow_the_day_and_nothing_that_runs_is_lost() {
    let films = films();
    let farm = Farm::new(day(&films), Leave::IdlestDrain).live();
    // Every job is done in its time, but for workers that had to be started, and its last piece.
    for job in &farm.jobs {
        let took_s = job.ended_s.expect("the day ends with nothing left") - job.submitted_s;
        assert!(took_s <= AIM.target_ns / SECOND_NS + START_UP_S + PIECE_S, "{} took {took_s} s", job.id);
    }
    // Within a minute as many are wanted as are needed; where there are none to say what the jobs are, within a minute of the
    // first.
    for by_s in [FLOOD_S + 60, COLD_BURST_S + START_UP_S + 60] {
        let seen = farm.at(by_s);
        assert!(seen.needed > 10 && seen.wanted * 10 >= seen.needed * 9, "{} of {} at {by_s}", seen.wanted, seen.needed);
    }
    assert!(farm.at(FLOOD_S - MEASURE_S).present > 0 && farm.at(COLD_BURST_S - MEASURE_S).present == 0);
    assert!(farm.at(COLD_BURST_S + MEASURE_S).wanted > 1, "by what jobs were before");
    // Each burst is a rise and a fall, and three of them fit into an hour.
    assert!(farm.turns().values().all(|turns| *turns <= 8), "{:?}", farm.turns());
    // Whoever is idle goes first, and has time to end what came at the last moment.
    assert!(farm.lost.len() > 50, "{} came and went", farm.lost.len());
    assert_eq!(farm.lost.iter().sum::<usize>(), 0);
    for pair in farm.seen.windows(2).filter(|pair| pair[1].wanted < pair[0].wanted) {
        let Seen { at_s, wanted, running, .. } = pair[1];
        assert!(u64::from(wanted * AIM.slots) >= running, "{running} tasks run at {at_s}, and {wanted} are wanted");
    }
    // Nobody is there for nothing.
    let night: Vec<&Seen> = farm.seen.iter().filter(|seen| seen.at_s < 6 * HOUR_S).collect();
    let idle = night.iter().filter(|seen| seen.present == 0).count();
    assert!(idle * 10 >= night.len() * 7, "{idle} of {}", night.len());
    assert!(farm.seen.last().is_some_and(|seen| seen.wanted == 0 && seen.present == 0));
    assert!(farm.busy_s * 10 >= farm.slots_s * 6, "{} of {} slot seconds", farm.busy_s, farm.slots_s);
}

#[test]
fn a_worker_that_is_taken_at_its_busiest_costs_no_more_than_it_ran() {
    let films = films();
    let farm = Farm::new(day(&films), Leave::BusiestDie).live();
    assert!(farm.lost.len() > 50 && farm.lost.iter().all(|lost| *lost <= AIM.slots as usize), "{:?}", farm.lost);
    for job in &farm.jobs {
        let took_s = job.ended_s.expect("what was lost is done again") - job.submitted_s;
        assert!(took_s <= AIM.target_ns / SECOND_NS + START_UP_S + 3 * PIECE_S, "{} took {took_s} s", job.id);
    }
    let tasks: usize = farm.jobs.iter().map(|job| job.film.tasks.len()).sum();
    assert!(farm.lost.iter().sum::<usize>() * 50 < tasks, "{:?} of {tasks}", farm.lost);
}
