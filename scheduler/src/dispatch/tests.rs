//! Who is served when.
#![expect(clippy::print_stdout, reason = "figures are shown where they are wanted")]

use std::collections::VecDeque;

use proptest::prelude::{Strategy, prop, prop_assert, prop_assert_eq, proptest};

use super::*;

/// A job in a made-up farm: all of its tasks cost the same.
#[derive(Clone, Debug)]
struct Job {
    tenant: &'static str,
    priority: i32,
    submitted: u64,
    id: JobId,
    tasks: Vec<TaskId>,
    cost_ns: u64,
}

fn job(id: &str, tenant: &'static str, priority: i32, submitted: u64, tasks: u32, cost_ns: u64) -> Job {
    let id = JobId::try_from(id.to_owned()).expect("an id");
    Job { tenant, priority, submitted, id, tasks: (0..tasks).map(TaskId::Video).collect(), cost_ns }
}

fn candidates(jobs: &[Job]) -> Vec<Candidate<'_>> {
    jobs.iter()
        .flat_map(|job| {
            job.tasks.iter().map(|task| Candidate {
                tenant: job.tenant,
                priority: job.priority,
                submitted: job.submitted,
                job: &job.id,
                task,
                cost_ns: job.cost_ns,
            })
        })
        .collect()
}

/// Serves everything; who got what, in order.
fn serve(jobs: &mut [Job], shares: &mut Shares) -> Vec<(String, TaskId)> {
    let mut served = Vec::new();
    loop {
        shares.tidy(false);
        let candidates = candidates(jobs);
        let Some(place) = pick_next(&candidates, shares) else { return served };
        let chosen = candidates[place];
        shares.charge(chosen.tenant, chosen.cost_ns);
        let (id, task) = (chosen.job.clone(), chosen.task.clone());
        served.push((id.to_string(), task.clone()));
        let owner = jobs.iter_mut().find(|job| job.id == id).expect("its job");
        owner.tasks.retain(|other| *other != task);
    }
}

fn names(served: &[(String, TaskId)]) -> Vec<&str> {
    served.iter().map(|(job, _)| job.as_str()).collect()
}

#[test]
fn tenants_get_the_same_work_not_the_same_number_of_tasks() {
    let mut jobs = [job("a", "one", 0, 1, 6, 10), job("b", "two", 0, 2, 3, 20)];
    let served = serve(&mut jobs, &mut Shares::default());
    assert_eq!(names(&served), ["a", "b", "a", "b", "a", "a", "b", "a", "a"]);
}

#[test]
fn priority_and_then_age_count_within_a_tenant_only() {
    let mut jobs = [
        job("old", "one", 0, 1, 2, 10),
        job("urgent", "one", 5, 3, 2, 10),
        job("young", "one", 0, 2, 1, 10),
        job("other", "two", -9, 9, 5, 10),
    ];
    let served = serve(&mut jobs, &mut Shares::default());
    let expected = ["urgent", "other", "urgent", "other", "old", "other", "old", "other", "young", "other"];
    assert_eq!(names(&served), expected);
}

#[test]
fn within_a_job_what_others_wait_for_goes_first() {
    let mut one = job("a", "one", 0, 1, 2, 10);
    let pack = TaskId::Pack(farm::plan::RenditionId("v240".to_owned()));
    one.tasks.extend([TaskId::Audio(1), pack.clone(), TaskId::Audio(0), TaskId::Probe]);
    let order: Vec<TaskId> = serve(&mut [one], &mut Shares::default()).into_iter().map(|(_, task)| task).collect();
    let expected = [TaskId::Probe, pack, TaskId::Audio(0), TaskId::Audio(1), TaskId::Video(0), TaskId::Video(1)];
    assert_eq!(order, expected);
}

/// Gives so many tasks of 10 ns to whom it is the turn of, among those who want something; how many each was given.
fn give(shares: &mut Shares, wanting: &[&'static str], tasks: usize) -> BTreeMap<&'static str, usize> {
    let jobs: Vec<Job> = wanting.iter().map(|tenant| job(tenant, tenant, 0, 1, 1, 10)).collect();
    let all = candidates(&jobs);
    let mut given: BTreeMap<&str, usize> = wanting.iter().map(|tenant| (*tenant, 0)).collect();
    for _ in 0..tasks {
        let place = pick_next(&all, shares).expect("something");
        shares.charge(all[place].tenant, all[place].cost_ns);
        *given.entry(wanting[place]).or_default() += 1;
        shares.tidy(false);
    }
    given
}

#[test]
fn being_away_saves_nothing_up_and_costs_nothing() {
    let mut shares = Shares::default();
    give(&mut shares, &["one"], 1000);
    let both = BTreeMap::from([("one", 50), ("two", 50)]);
    assert_eq!(give(&mut shares, &["one", "two"], 100), both, "a newcomer does not get a thousand tasks in a row");
    give(&mut shares, &["one"], 1000);
    assert_eq!(give(&mut shares, &["one", "two"], 100), both, "nor does one who had a job all the while and nothing to do in it");
    give(&mut shares, &["two"], 1000);
    give(&mut shares, &["three"], 1000);
    assert_eq!(
        give(&mut shares, &["one", "two"], 100),
        both,
        "what was given on a farm that was idle is not held against anyone"
    );
    shares.charge("one", 2000);
    assert_eq!(give(&mut shares, &["one", "two"], 100)["two"], 100, "but what was given in a contest is");
    shares.tidy(true);
    assert_eq!(shares, Shares::default(), "an idle farm remembers nothing");
}

fn any_jobs() -> impl Strategy<Value = Vec<Job>> {
    let one = (prop::sample::select(vec!["one", "two", "three"]), -3..3_i32, 0..5_u64, 0..40_u32, 1..50_u64);
    prop::collection::vec(one, 1..8).prop_map(|jobs| {
        let numbered = (0..).zip(jobs);
        numbered
            .map(|(n, (tenant, priority, age, tasks, cost))| job(&format!("j{n}"), tenant, priority, age, tasks, cost))
            .collect()
    })
}

proptest! {
    #[test]
    fn no_tenant_falls_behind_by_more_than_a_task(mut jobs in any_jobs()) {
        let total: usize = jobs.iter().map(|job| job.tasks.len()).sum();
        let costs: BTreeMap<String, (&str, u64)> = jobs.iter().map(|job| (job.id.to_string(), (job.tenant, job.cost_ns))).collect();
        let mut left: BTreeMap<&str, usize> = BTreeMap::new();
        jobs.iter().for_each(|job| *left.entry(job.tenant).or_default() += job.tasks.len());
        let dearest = jobs.iter().map(|job| job.cost_ns).max().unwrap_or(0);
        let again = serve(&mut jobs.clone(), &mut Shares::default());
        let served = serve(&mut jobs, &mut Shares::default());
        prop_assert_eq!(&served, &again, "the same state gives the same answer");
        prop_assert_eq!(served.len(), total);
        let mut given: BTreeMap<&str, u64> = left.iter().filter(|(_, tasks)| **tasks > 0).map(|(tenant, _)| (*tenant, 0)).collect();
        for (job, _) in &served {
            let (tenant, cost) = costs[job];
            *given.entry(tenant).or_default() += cost;
            *left.entry(tenant).or_default() -= 1;
            // Between those who still want something.
            let wanting: Vec<u64> = given.iter().filter(|(tenant, _)| left[*tenant] > 0).map(|(_, given)| *given).collect();
            let (least, most) = (wanting.iter().min().copied().unwrap_or(0), wanting.iter().max().copied().unwrap_or(0));
            prop_assert!(most - least <= dearest, "{given:?}");
        }
    }
}

proptest! {
    /// Tenants want something or not, as it comes: they have no job, all their tasks are with workers, their jobs are halted.
    /// Over any time in which two of them want something all the while, they are given the same work, but for a task of each:
    /// so nobody has saved anything up, and nobody is punished for having had few tasks for a moment.
    #[test]
    fn who_wants_something_all_the_while_is_given_as_much_as_any_other(
        costs in prop::collection::vec(1_u64..50, 2..5),
        wants in prop::collection::vec(prop::collection::vec(prop::bool::weighted(0.8), 4), 1..120),
    ) {
        const TENANTS: [&str; 4] = ["t0", "t1", "t2", "t3"];
        let all: Vec<Job> = costs.iter().enumerate().map(|(n, cost)| job(TENANTS[n], TENANTS[n], 0, 1, 1, *cost)).collect();
        let mut shares = Shares::default();
        // By pair: the work of one against the other since both want something, and its extremes so far.
        let mut races: BTreeMap<(usize, usize), (i64, i64, i64)> = BTreeMap::new();
        for wanting in &wants {
            let here: Vec<usize> = (0..costs.len()).filter(|n| wanting[*n]).collect();
            let jobs: Vec<Job> = here.iter().map(|n| all[*n].clone()).collect();
            let here_candidates = candidates(&jobs);
            races.retain(|(one, other), _| wanting[*one] && wanting[*other]);
            let Some(place) = pick_next(&here_candidates, &shares) else { continue };
            let served = here[place];
            shares.charge(TENANTS[served], costs[served]);
            shares.tidy(false);
            for one in &here {
                for other in here.iter().filter(|other| *other > one) {
                    let cost = i64::try_from(costs[served]).expect("small");
                    let (lead, least, most) = races.entry((*one, *other)).or_default();
                    *lead += if served == *one { cost } else if served == *other { -cost } else { 0 };
                    (*least, *most) = (*lead.min(least), *lead.max(most));
                    // The lead between any two moments of the race is a difference of two of these.
                    let bound = i64::try_from(costs[*one] + costs[*other]).expect("small");
                    prop_assert!(*most - *least <= bound, "{one} and {other}: {least}..{most}, {costs:?}");
                }
            }
        }
    }
}

/// A made-up farm: slots, a queue in the broker that is first in, first out, and the scheduler's window.
struct Sim {
    slots: usize,
    jobs: Vec<Job>,
    shares: Shares,
    queue: VecDeque<(usize, TaskId)>,
    /// Which job, and when it will be done.
    running: Vec<(usize, u64)>,
    finished: VecDeque<u64>,
    now_s: u64,
    /// When the first task of each job started.
    started_s: BTreeMap<String, u64>,
    /// Slot seconds by tenant.
    used_s: BTreeMap<&'static str, u64>,
}

impl Sim {
    fn new(slots: usize, shares: Shares, jobs: Vec<Job>) -> Self {
        let (queue, running, finished) = (VecDeque::new(), Vec::new(), VecDeque::new());
        Self { slots, jobs, shares, queue, running, finished, now_s: 0, started_s: BTreeMap::new(), used_s: BTreeMap::new() }
    }

    /// A second: what is done ends, tasks are handed out, free slots take them.
    fn step(&mut self) {
        let now_s = self.now_s;
        self.finished.extend(self.running.iter().filter(|(_, end_s)| *end_s <= now_s).map(|_| now_s));
        self.running.retain(|(_, end_s)| *end_s > now_s);
        self.finished.retain(|at| *at + 1 >= now_s);
        loop {
            // Workers are heard of at once when they take something, so handing out goes on until nothing moves.
            let before = (self.queue.len(), self.running.len());
            self.hand_out();
            self.take();
            if before == (self.queue.len(), self.running.len()) {
                break;
            }
        }
        for (job, _) in &self.running {
            *self.used_s.entry(self.jobs[*job].tenant).or_default() += 1;
        }
        self.now_s += 1;
    }

    fn hand_out(&mut self) {
        self.shares.tidy(self.jobs.iter().all(|job| job.submitted > self.now_s));
        let outstanding = self.queue.len() + self.running.len();
        for _ in 0..room(crate::scheduler::Settings::for_farm().window, outstanding, self.running.len(), self.finished.len()) {
            let here: Vec<Job> = self.jobs.iter().filter(|job| job.submitted <= self.now_s).cloned().collect();
            let candidates = candidates(&here);
            let Some(place) = pick_next(&candidates, &self.shares) else { return };
            let chosen = candidates[place];
            self.shares.charge(chosen.tenant, chosen.cost_ns);
            let owner = self.jobs.iter().position(|job| job.id == *chosen.job).expect("its job");
            let task = chosen.task.clone();
            self.jobs[owner].tasks.retain(|other| *other != task);
            self.queue.push_back((owner, task));
        }
    }

    fn take(&mut self) {
        while self.running.len() < self.slots
            && let Some((job, _)) = self.queue.pop_front()
        {
            self.started_s.entry(self.jobs[job].id.to_string()).or_insert(self.now_s);
            self.running.push((job, self.now_s + self.jobs[job].cost_ns));
        }
    }
}

/// Jain's index of shares: 1 when all are equal, 1/n when one has all.
fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    sum * sum / (shares.len() as f64 * squares)
}

#[test]
fn four_equal_tenants_get_equal_shares_of_the_slots() {
    // Jobs of very different number, length and chunk time; each tenant has more than can be done meanwhile.
    let tenants = [("one", 40, 8, 25), ("two", 4, 90, 20), ("three", 100, 4, 10), ("four", 1, 400, 40)];
    let mut jobs = Vec::new();
    for (tenant, count, tasks, cost) in tenants {
        jobs.extend((0..count).map(|n| job(&format!("{tenant}-{n}"), tenant, n % 3, 0, tasks, cost)));
    }
    for slots in [1, 3, 8, 32] {
        let mut sim = Sim::new(slots, Shares::default(), jobs.clone());
        let until_s = 3600 * 4 / slots.max(4) as u64;
        while sim.now_s < until_s {
            sim.step();
        }
        let shares: Vec<f64> = sim.used_s.values().map(|used| *used as f64).collect();
        let index = jain(&shares);
        println!("{slots} slots, {until_s} s: Jain's index {index:.4}, slot seconds {:?}", sim.used_s);
        assert!(shares.len() == 4 && index >= 0.95, "{slots} slots: {index}");
    }
}

#[test]
fn weights_divide_the_slots() {
    let weights = Arc::new(BTreeMap::from([("two".to_owned(), 3)]));
    let jobs = vec![job("a", "one", 0, 0, 400, 20), job("b", "two", 0, 0, 400, 20)];
    let mut sim = Sim::new(4, Shares::weighted(weights), jobs);
    (0..1200).for_each(|_| sim.step());
    let ratio = sim.used_s["two"] as f64 / sim.used_s["one"] as f64;
    assert!((2.7..3.3).contains(&ratio), "{ratio}: {:?}", sim.used_s);
}

#[test]
fn a_short_job_does_not_wait_behind_a_hundred_of_another_tenant() {
    const CHUNK_S: u64 = 20;
    let wait_s = |slots, submitted_s, others: Vec<Job>| {
        let mut jobs = others;
        jobs.push(job("b", "b", 0, submitted_s, 1, CHUNK_S));
        let mut sim = Sim::new(slots, Shares::default(), jobs);
        while !sim.started_s.contains_key("b") {
            sim.step();
            assert!(sim.now_s < 10_000, "it never starts");
        }
        sim.started_s["b"] - submitted_s
    };
    let hundred: Vec<Job> = (0..100).map(|n| job(&format!("a-{n}"), "a", 0, 0, 30, CHUNK_S)).collect();
    for slots in [1, 2, 4, 16] {
        let idle_s = wait_s(slots, 600, vec![]);
        // At different points of a chunk.
        let waits: Vec<u64> =
            [600, 607, 619].into_iter().map(|submitted_s| wait_s(slots, submitted_s, hundred.clone())).collect();
        let longest_s = *waits.iter().max().expect("some");
        println!("{slots} slots: B waits up to {longest_s} s behind A's 100 jobs, {idle_s} s alone; a chunk takes {CHUNK_S} s");
        assert!(longest_s <= idle_s + 2 * CHUNK_S, "{slots} slots: {waits:?}");
    }
}

proptest! {
    /// Whatever jobs of whatever priority keep coming, every tenant's oldest task is handed out before the others were
    /// given more than it by one task each.
    #[test]
    fn nobody_starves(costs in prop::collection::vec(1_u64..50, 2..6), priorities in prop::collection::vec(-5..5, 6)) {
        const TENANTS: [&str; 6] = ["t0", "t1", "t2", "t3", "t4", "t5"];
        let mut shares = Shares::default();
        let mut last = vec![0_u64; costs.len()];
        let dearest = *costs.iter().max().expect("some");
        for round in 1..=500_u64 {
            let jobs: Vec<Job> = (0..).zip(costs.iter().zip(&priorities))
                .map(|(n, (cost, priority))| job(&format!("j{n}"), TENANTS[n], *priority, round, 1, *cost))
                .collect();
            let all = candidates(&jobs);
            let place = pick_next(&all, &shares).expect("something");
            shares.charge(all[place].tenant, all[place].cost_ns);
            last[place] = round;
            for (n, at) in last.iter().enumerate() {
                // While a tenant waits, each other is given at most a task beyond what makes it even.
                let bound = costs.len() as u64 * (2 + dearest / costs.iter().min().expect("some"));
                prop_assert!(round - at <= bound, "{n} was not served for {} rounds", round - at);
            }
        }
    }
}
