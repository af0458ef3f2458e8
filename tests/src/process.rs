//! Runs programs the way every test must: in a process group of their own, with a time limit, and with a bound on what
//! they may print.

use std::fs;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Most bytes kept of what a program writes to one stream. More is an error: nothing here has reason to write so much.
pub const OUTPUT_BYTES_MAX: u64 = 512 << 20;

/// A program that has ended by itself.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to stdout.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr, as text.
    pub stderr: String,
    /// How long it ran.
    pub elapsed: Duration,
}

impl Finished {
    /// Itself, if it ended with status 0.
    ///
    /// # Errors
    /// The status and the end of stderr.
    pub fn success(self) -> Result<Self> {
        let tail: Vec<_> = self.stderr.lines().rev().take(5).collect();
        ensure!(self.status.success(), "{}; stderr, last line first: {tail:?}", self.status);
        Ok(self)
    }

    /// What it wrote to stdout, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// A running program, leader of its own process group. Dropped, the whole group is killed.
pub struct Group {
    child: Child,
    /// Whether the leader was waited for: from then on its number may belong to another process.
    reaped: bool,
}

impl Group {
    /// Starts a program.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let child = command.process_group(0).spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        Ok(Self { child, reaped: false })
    }

    /// Process number of the leader, which is also the number of the group.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills every process of the group with SIGKILL; returns when the leader is gone.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL);
        self.child.wait()?;
        self.reaped = true;
        Ok(())
    }

    /// Sends a signal to every process of the group.
    pub fn signal(&self, signal: Signal) {
        if !self.reaped {
            // Fails only when the group has ended, and then there is nothing to signal.
            let _ = killpg(self.group(), signal);
        }
    }

    /// Whether the leader has ended.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn has_ended(&mut self) -> Result<bool> {
        self.reaped |= self.child.try_wait()?.is_some();
        Ok(self.reaped)
    }

    /// Waits for the leader to end.
    ///
    /// # Errors
    /// When it does not end within `limit`; the group is killed then.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let group = self.group();
        let (ended, watch) = mpsc::channel::<()>();
        let watchdog = thread::spawn(move || {
            let late = watch.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
            if late {
                let _ = killpg(group, Signal::SIGKILL);
            }
            late
        });
        let status = self.child.wait();
        self.reaped = true;
        drop(ended);
        let late = watchdog.join().unwrap_or(true);
        ensure!(!late, "did not end within {limit:?}");
        Ok(status?)
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.reaped {
            // Whoever drops a running group does not care how it ends, only that it does.
            let _ = self.kill();
        }
    }
}

/// Runs a program to its end without input.
///
/// # Errors
/// When it cannot be started, takes longer than `limit`, or writes more than [`OUTPUT_BYTES_MAX`]. A status other than 0
/// is no error here.
pub fn run(command: &mut Command, limit: Duration) -> Result<Finished> {
    command.stdin(Stdio::null());
    finish(command, limit, |_| Ok(()))
}

/// Runs a program to its end, with `feed` writing its input.
///
/// # Errors
/// As [`run`], and when `feed` fails although the program ended with status 0.
pub fn run_fed(
    command: &mut Command,
    limit: Duration,
    feed: impl FnOnce(&mut ChildStdin) -> io::Result<()> + Send,
) -> Result<Finished> {
    command.stdin(Stdio::piped());
    finish(command, limit, feed)
}

fn finish(
    command: &mut Command,
    limit: Duration,
    feed: impl FnOnce(&mut ChildStdin) -> io::Result<()> + Send,
) -> Result<Finished> {
    let program = format!("{:?}", command.get_program());
    let started = Instant::now();
    let mut group = Group::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let (stdin, stdout, stderr) = (group.child.stdin.take(), group.child.stdout.take(), group.child.stderr.take());
    let (status, fed, stdout, stderr) = thread::scope(|scope| {
        let stdout = scope.spawn(|| drain(stdout));
        let stderr = scope.spawn(|| drain(stderr));
        let fed = scope.spawn(|| stdin.map_or(Ok(()), |mut stdin| feed(&mut stdin)));
        let status = group.wait(limit);
        let broken = || io::Error::other("a thread of the harness panicked");
        let join = |reader: thread::ScopedJoinHandle<'_, io::Result<Vec<u8>>>| reader.join().unwrap_or_else(|_| Err(broken()));
        (status, fed.join().unwrap_or_else(|_| Err(broken())), join(stdout), join(stderr))
    });
    let status = status.with_context(|| program.clone())?;
    if status.success() {
        fed.with_context(|| format!("{program}: cannot write its input"))?;
    }
    let finished =
        Finished { status, stdout: stdout?, stderr: String::from_utf8_lossy(&stderr?).into_owned(), elapsed: started.elapsed() };
    if u64::try_from(finished.stdout.len())? >= OUTPUT_BYTES_MAX {
        bail!("{program} wrote more than {OUTPUT_BYTES_MAX} bytes");
    }
    Ok(finished)
}

fn drain(stream: Option<impl Read>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        stream.by_ref().take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes)?;
        // The rest is read and thrown away, so that a program that writes too much ends all the same.
        io::copy(&mut stream, &mut io::sink())?;
    }
    Ok(bytes)
}

/// Every process that came of this one.
pub fn descendants(root: u32) -> Vec<u32> {
    let parent_of = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in brackets and may hold anything; the parent comes second after it.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids: Vec<u32> = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let comes_of = |mut pid: u32| {
        while let Some(parent) = parent_of(pid) {
            if parent == root {
                return true;
            }
            pid = parent;
        }
        false
    };
    pids.into_iter().filter(|&pid| comes_of(pid)).collect()
}

/// Waits until something holds.
///
/// # Errors
/// When it does not within `limit`, or cannot be told.
pub fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    const LOOK: Duration = Duration::from_millis(50);
    let began = Instant::now();
    while !holds()? {
        ensure!(began.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(LOOK);
    }
    Ok(())
}

/// The folder that cargo builds into: a test executable is `<target>/<profile>/deps/<name>`.
pub fn target_folder() -> Result<std::path::PathBuf> {
    let test = std::env::current_exe()?;
    let deps = test.ancestors().find(|folder| folder.ends_with("deps"));
    let found = deps.and_then(|deps| deps.ancestors().nth(2));
    Ok(found.with_context(|| format!("{} is not in a cargo target folder", test.display()))?.to_owned())
}
