//! The progress bars: how much of the source has been gone through, how fast, and how long it will take.

use std::collections::BTreeMap;
use std::time::Duration;

use farm::job::JobId;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use scheduler::scheduler::{JobView, Phase};
use scheduler::status::JobStatus;

use crate::jobs::word;

/// How often they are drawn anew.
pub const REDRAW: Duration = Duration::from_millis(200);
/// Most jobs on a board.
pub const ROWS_MAX: usize = 16;

/// How a bar looks that stands alone, while nothing is known, and then.
const ALONE: Looks = Looks { unknown: "{spinner} {msg}", known: "{bar:30} {percent:>3} %  {speed}  {eta} left  {msg}" };
/// How one of many looks: its line is as wide as an ordinary terminal.
const ROW: Looks =
    Looks { unknown: "{prefix:36!} {msg}", known: "{prefix:36!} {bar:14} {percent:>3} % {speed:>6} {eta:>4} left" };

struct Looks {
    unknown: &'static str,
    known: &'static str,
}

/// A bar on standard error; nothing is drawn where that is no terminal.
pub struct Progress {
    bar: ProgressBar,
    looks: Looks,
    /// Duration of the result: the bar's length, so that its speed is told against real time.
    duration_ns: u64,
}

impl Progress {
    /// A bar at its start.
    pub fn start() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), target());
        bar.set_style(style(ALONE.unknown));
        bar.set_message("looking at the source");
        bar.enable_steady_tick(REDRAW);
        Self { bar, looks: ALONE, duration_ns: 0 }
    }

    /// A row of a board.
    fn row(bar: ProgressBar, job: &JobId) -> Self {
        bar.set_style(style(ROW.unknown));
        bar.set_prefix(job.to_string());
        Self { bar, looks: ROW, duration_ns: 0 }
    }

    /// Shows where a job is.
    pub fn show(&mut self, view: &JobView) {
        if view.media_total_ns == 0 {
            return;
        }
        let is_first = self.duration_ns == 0;
        if is_first {
            self.duration_ns = view.duration_ns;
            self.bar.set_style(style(self.looks.known));
            self.bar.reset();
        }
        self.bar.set_length(self.duration_ns);
        let done = u128::from(view.media_done_ns) * u128::from(self.duration_ns) / u128::from(view.media_total_ns);
        self.bar.set_position(u64::try_from(done).unwrap_or(u64::MAX).min(self.duration_ns));
        if is_first {
            // What was done before somebody looked tells nothing of the speed.
            self.bar.reset_eta();
        }
        self.bar.set_message(format!("{} of {} tasks", view.tasks_done, view.tasks_total));
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// The bars of many jobs, and a line below them; on standard error, and nothing where that is no terminal.
pub struct Board {
    all: MultiProgress,
    line: ProgressBar,
    rows: BTreeMap<JobId, Progress>,
}

impl Board {
    /// A board without jobs.
    pub fn start() -> Self {
        let all = MultiProgress::with_draw_target(target());
        let line = all.add(ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden()));
        line.set_style(style(ALONE.unknown));
        line.enable_steady_tick(REDRAW);
        Self { all, line, rows: BTreeMap::new() }
    }

    /// Shows these jobs and no others, as far as there is room: first those of which it is known how far they are.
    pub fn show<'a>(&mut self, jobs: impl IntoIterator<Item = &'a JobStatus>, line: String) {
        let mut jobs: Vec<&JobStatus> = jobs.into_iter().collect();
        jobs.sort_by_key(|job| job.progress.media_total_ns == 0);
        jobs.truncate(ROWS_MAX);
        let (all, last) = (&self.all, &self.line);
        self.rows.retain(|id, row| {
            let stays = jobs.iter().any(|job| job.id == *id);
            if !stays {
                row.clear();
                all.remove(&row.bar);
            }
            stays
        });
        for job in jobs {
            let row = self.rows.entry(job.id.clone()).or_insert_with(|| {
                let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
                Progress::row(all.insert_before(last, bar), &job.id)
            });
            row.bar.set_message(word(job.state));
            row.show(&view(job));
        }
        last.set_message(line);
    }

    /// Has something written above the bars.
    pub fn above(&self, write: impl FnOnce()) {
        self.all.suspend(write);
    }

    /// Takes all of it away.
    pub fn clear(&self) {
        self.rows.values().for_each(Progress::clear);
        self.line.finish_and_clear();
    }
}

/// What a bar shows of a job. The duration of the result is not told: media to go through stands for it.
pub fn view(status: &JobStatus) -> JobView {
    let progress = status.progress;
    JobView {
        tenant: status.tenant.clone(),
        phase: Phase::Encoding,
        tasks_done: progress.tasks_done,
        tasks_total: progress.tasks_total,
        media_done_ns: progress.media_done_ns,
        media_total_ns: progress.media_total_ns,
        duration_ns: progress.media_total_ns,
        opened: false,
    }
}

fn target() -> ProgressDrawTarget {
    ProgressDrawTarget::stderr_with_hz(5)
}

/// A bar's looks. `speed`: how many seconds of the result are made in a second.
fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.with_key("speed", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        // A bar that cannot be written is not shown.
        let _ = write!(out, "{:.1}x", state.per_sec() / 1e9);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_look_of_a_bar_is_understood() {
        for template in [ALONE, ROW].iter().flat_map(|looks| [looks.unknown, looks.known]) {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn a_board_has_rows_for_those_that_go_on_before_those_that_wait() {
        let job = |number: usize, media_total_ns: u64| -> JobStatus {
            serde_json::from_value(serde_json::json!({
                "id": format!("job-{number:02}"), "tenant": "me", "state": "waiting", "source": "s3://b/s", "output": "s3://b/o/",
                "progress": {"tasks_done": 0, "tasks_total": 1, "media_done_ns": 0, "media_total_ns": media_total_ns}
            }))
            .expect("a status")
        };
        let jobs: Vec<JobStatus> = (0..ROWS_MAX + 4).map(|number| job(number, if number < 4 { 0 } else { 9 })).collect();
        let mut board = Board::start();
        board.show(&jobs, String::new());
        let ids = |board: &Board| board.rows.keys().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(ids(&board), (4..ROWS_MAX + 4).map(|number| format!("job-{number:02}")).collect::<Vec<_>>());
        board.show(jobs.iter().take(5), String::new());
        assert_eq!(ids(&board), ["job-00", "job-01", "job-02", "job-03", "job-04"]);
        board.clear();
    }
}
