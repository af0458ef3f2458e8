//! Who is served when.

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
        shares.set_present(jobs.iter().filter(|job| !job.tasks.is_empty()).map(|job| job.tenant.to_owned()).collect());
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
    assert_eq!(names(&served), ["a", "b", "a", "a", "b", "a", "a", "b", "a"]);
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

#[test]
fn a_newcomer_and_one_who_comes_back_start_where_the_others_are() {
    let present = |tenants: &[&str]| tenants.iter().map(|tenant| (*tenant).to_owned()).collect::<BTreeSet<_>>();
    let mut shares = Shares::default();
    shares.set_present(present(&["one"]));
    shares.charge("one", 1000);
    shares.set_present(present(&["one", "two"]));
    assert_eq!(shares.given("two"), 1000, "not a thousand tasks in a row");
    shares.charge("two", 500);
    shares.set_present(present(&["one"]));
    shares.charge("one", 100);
    shares.set_present(present(&["one", "two"]));
    assert_eq!(shares.given("two"), 1500, "leaving and coming back does not wipe out what it was given");
    shares.set_present(present(&["two"]));
    shares.charge("two", 5000);
    shares.set_present(present(&["one", "two"]));
    assert_eq!(shares.given("one"), 6500, "being away saves nothing up");
    shares.set_present(present(&[]));
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
