//! The progress bar: how much of the source has been gone through, how fast, and how long it will take.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use scheduler::scheduler::JobView;

/// How often it is drawn anew.
pub const REDRAW: Duration = Duration::from_millis(200);

/// A bar on standard error; nothing is drawn where that is no terminal.
pub struct Progress {
    bar: ProgressBar,
    /// Duration of the result: the bar's length, so that its speed is told against real time.
    duration_ns: u64,
}

impl Progress {
    /// A bar at its start.
    pub fn start() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(5));
        bar.set_style(style("{spinner} {msg}"));
        bar.set_message("looking at the source");
        bar.enable_steady_tick(REDRAW);
        Self { bar, duration_ns: 0 }
    }

    /// Shows where a job is.
    pub fn show(&mut self, view: &JobView) {
        if view.media_total_ns == 0 {
            return;
        }
        if self.duration_ns == 0 {
            self.duration_ns = view.duration_ns;
            self.bar.set_style(style("{bar:30} {percent:>3} %  {speed}  {eta} left  {msg}"));
            self.bar.reset();
        }
        self.bar.set_length(self.duration_ns);
        let done = u128::from(view.media_done_ns) * u128::from(self.duration_ns) / u128::from(view.media_total_ns);
        self.bar.set_position(u64::try_from(done).unwrap_or(u64::MAX).min(self.duration_ns));
        self.bar.set_message(format!("{} of {} tasks", view.tasks_done, view.tasks_total));
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// A bar's looks. `speed`: how many seconds of the result are made in a second.
fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.with_key("speed", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        // A bar that cannot be written is not shown.
        let _ = write!(out, "{:.1}x", state.per_sec() / 1e9);
    })
}
