//! Real media that nobody here made, kept beside the repository at `../shared/media`; its README says what is awkward about
//! each file.

use std::path::{Path, PathBuf};

/// The folder, or `None` with a printed line where it is not there, as in a stranger's clone.
pub fn folder() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/media");
    if folder.is_dir() {
        return Some(folder);
    }
    skip("no media corpus");
    None
}

/// Says on the test's output why something is not tested here.
pub fn skip(reason: &str) {
    say(&format!("skipped: {reason}"));
}

/// Says something on the test's output, for figures that a reader may want; shown by `--nocapture`.
#[expect(clippy::print_stdout, reason = "what a test skips or measures, its reader must see")]
pub fn say(line: &str) {
    println!("{line}");
}
