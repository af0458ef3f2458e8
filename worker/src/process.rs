//! Child processes: started with one socket and nothing else, killed with all their kin, and reaped with what they cost.
//!
//! This is one of two places with `unsafe` in this crate (the other takes the socket in the child): the system calls for
//! which no safe wrapper is at hand.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{ChildStderr, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::libc;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use crate::awake::within;

/// The descriptor on which a child finds its socket.
pub(crate) const SOCKET_FD: i32 = 3;

/// Variable that tells a child who its parent is: it dies when that is no longer so.
pub(crate) const PARENT_VARIABLE: &str = "SHOAL_PARENT_PID";

/// Variables that a child may see, beside those that start with `GST_`. None holds a credential.
const PASSED_VARIABLES: [&str; 6] = ["HOME", "XDG_CACHE_HOME", "LD_LIBRARY_PATH", "ORC_CODE", "G_DEBUG", "RUST_BACKTRACE"];

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It exited with this status.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
}

/// What a child used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// CPU time in ms, user and system.
    pub(crate) cpu_ms: u64,
    /// Largest resident memory in KiB.
    pub(crate) rss_kib: u64,
}

/// Starts children from a thread of its own. A child is killed by the kernel when the *thread* that started it ends, so
/// that thread lives as long as any handle or child, and no longer.
#[derive(Clone)]
pub(crate) struct Spawner {
    requests: mpsc::Sender<Request>,
}

struct Request {
    command: Command,
    answer: oneshot::Sender<io::Result<std::process::Child>>,
}

/// A child that just started.
pub(crate) struct Started {
    /// The process.
    pub(crate) process: Process,
    /// Our end of its socket, non-blocking.
    pub(crate) socket: UnixStream,
    /// What it writes to its stderr.
    pub(crate) stderr: ChildStderr,
}

impl Spawner {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there is no room for a thread.
    pub(crate) fn start() -> io::Result<Self> {
        let (requests, received) = mpsc::channel::<Request>();
        std::thread::Builder::new().name("spawner".to_owned()).spawn(move || {
            for Request { mut command, answer } in received {
                if let Err(Ok(child)) = answer.send(command.spawn()) {
                    // Nobody waits any more.
                    kill_and_reap(Pid::from_raw(child.id().cast_signed()));
                }
            }
        })?;
        Ok(Self { requests })
    }

    /// Starts a program as a child: cleared environment, own process group, a socket on [`SOCKET_FD`], a pipe for stderr,
    /// and nothing else open.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) async fn spawn(&self, program: &std::path::Path, args: &[String], urgency: Urgency) -> io::Result<Started> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let command = command(program, args, theirs.into(), urgency);
        let (answer, answered) = oneshot::channel();
        let gone = || io::Error::other("the spawning thread is gone");
        self.requests.send(Request { command, answer }).map_err(|_| gone())?;
        let mut child = answered.await.map_err(|_| gone())??;
        let process = Process::new(Pid::from_raw(child.id().cast_signed()), self.clone())?;
        let stderr = child.stderr.take().ok_or_else(|| io::Error::other("the child has no stderr"))?;
        Ok(Started { process, socket: ours, stderr })
    }
}

/// How a child's threads stand beside those of other children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// As all others.
    Usual,
    /// Where cores are wanted by others, these go first.
    CanWait,
}

impl Urgency {
    /// As a step of nice(2): ten of them are a tenth of the time of another's thread.
    fn nice(self) -> libc::c_int {
        match self {
            Self::Usual => 0,
            Self::CanWait => 10,
        }
    }
}

fn command(program: &std::path::Path, args: &[String], socket: OwnedFd, urgency: Urgency) -> Command {
    let mut command = Command::new(program);
    command.args(args).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let passed = |name: &std::ffi::OsStr| name.to_str().is_some_and(|n| n.starts_with("GST_") || PASSED_VARIABLES.contains(&n));
    command.envs(std::env::vars_os().filter(|(name, _)| passed(name)));
    let (name, value) = crate::memory::child_variable();
    command.env(name, value);
    command.env("LC_ALL", "C.UTF-8").env(PARENT_VARIABLE, std::process::id().to_string());
    #[expect(unsafe_code, reason = "what is done between fork and exec is ours to keep safe")]
    // SAFETY: they make system calls and nothing else: no allocation, no lock.
    unsafe {
        command.pre_exec(move || {
            work_in_batches(urgency.nice());
            hand_over(&socket)
        });
    }
    command
}

/// Has the kernel let the child's threads run on where they would take turns frame by frame, and anything interactive go first
/// (`SCHED_BATCH`, sched(7)). Every turn costs a thread what it has in the caches: without, a ladder takes 4 % more CPU time.
fn work_in_batches(nice: libc::c_int) {
    let parameters = libc::sched_param { sched_priority: 0 };
    #[expect(unsafe_code, reason = "system calls that no library here offers")]
    // SAFETY: the structure lives through the call, and the other takes a plain number. Where they are refused all is as it was.
    let _ = unsafe { (libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters), libc::nice(nice)) };
}

/// Puts the socket on [`SOCKET_FD`] and lets exec close everything above. The standard library's own pipe for exec errors
/// cannot stand on that number here: spawners are started inside a runtime, whose descriptors hold the low numbers.
fn hand_over(socket: &OwnedFd) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    #[expect(unsafe_code, reason = "system calls on raw descriptors of a process about to exec")]
    // SAFETY: plain system calls on descriptors of this just-forked process; no memory is passed.
    let (placed, _) = unsafe {
        let placed = if fd == SOCKET_FD { libc::fcntl(fd, libc::F_SETFD, 0) } else { libc::dup2(fd, SOCKET_FD) };
        // Refused by kernels before 5.11; then what we opened is still close-on-exec by itself.
        let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_ulong;
        (placed, libc::syscall(libc::SYS_close_range, (SOCKET_FD + 1) as libc::c_ulong, libc::c_ulong::from(u32::MAX), flags))
    };
    if placed < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A running child. Dropped, it is killed and reaped.
pub(crate) struct Process {
    pid: Pid,
    /// Becomes readable when the child has ended. `None` once it is reaped: the pid may be another's then.
    exit: Option<AsyncFd<OwnedFd>>,
    _spawner: Spawner,
}

impl Process {
    fn new(pid: Pid, spawner: Spawner) -> io::Result<Self> {
        let opened = pidfd_open(pid).and_then(watch);
        if opened.is_err() {
            reap_apart(pid);
        }
        Ok(Self { pid, exit: Some(opened?), _spawner: spawner })
    }

    /// Kills the child and its process group.
    pub(crate) fn kill(&self) {
        if self.exit.is_some() {
            kill_all(self.pid);
        }
    }

    /// Waits at most `limit` for the child to end by itself, kills it after that, and reaps it.
    ///
    /// # Errors
    /// When it does not end within 10 s of being killed, or cannot be waited for.
    pub(crate) async fn end(mut self, limit: Duration) -> io::Result<(Ended, Usage)> {
        const DEATH: Duration = Duration::from_secs(10);
        let Some(exit) = &self.exit else { return Err(io::Error::other("reaped already")) };
        if within(limit, exit.readable()).await.is_none() {
            self.kill();
            let dead = tokio::time::timeout(DEATH, exit.readable()).await;
            drop(dead.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "a killed child does not end"))??);
        }
        // What it left behind in its group goes with it. Not reaped yet, its number cannot be another's.
        self.kill();
        let reaped = wait4(self.pid, libc::WNOHANG)?;
        self.exit = None;
        reaped.ok_or_else(|| io::Error::other("an ended child cannot be reaped"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exit.take().is_some() {
            reap_apart(self.pid);
        }
    }
}

/// Kills now and reaps on a thread of its own: a dying process may take its time, and this is called where none may be lost.
fn reap_apart(pid: Pid) {
    kill_all(pid);
    if std::thread::Builder::new().name("reaper".to_owned()).spawn(move || wait4(pid, 0)).is_err() {
        tracing::warn!(%pid, "no thread to reap a killed child");
    }
}

fn kill_and_reap(pid: Pid) {
    kill_all(pid);
    if let Err(error) = wait4(pid, 0) {
        tracing::warn!(%pid, %error, "cannot reap a child");
    }
}

/// Kills a child that is not reaped yet. It may have left its group, so it is named too; that either is gone is no error.
fn kill_all(pid: Pid) {
    let _ = killpg(pid, Signal::SIGKILL);
    let _ = kill(pid, Signal::SIGKILL);
}

fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    #[expect(unsafe_code, reason = "no safe wrapper of pidfd_open at hand")]
    // SAFETY: no memory is passed; a descriptor that comes back is new and nobody else's.
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) {
            fd if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd as i32)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(unsafe_code, reason = "tokio trusts its caller that the descriptor is and stays the same")]
    // SAFETY: an `OwnedFd` is one descriptor, open until it is dropped, which the `AsyncFd` it is given to alone may do.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    Ok(watched?)
}

/// Reaps a child; `None` when `flags` say not to wait and it has not ended.
fn wait4(pid: Pid, flags: i32) -> io::Result<Option<(Ended, Usage)>> {
    loop {
        let mut status = 0;
        #[expect(unsafe_code, reason = "wait4 alone gives the cost of one child, and nix has it not")]
        // SAFETY: both pointers are to values of the right type that outlive the call; all-zero is a valid rusage.
        let (reaped, usage) = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            (libc::wait4(pid.as_raw(), &raw mut status, flags, &raw mut usage), usage)
        };
        if reaped > 0 {
            let ended = match libc::WIFSIGNALED(status) {
                true => Ended::Killed(libc::WTERMSIG(status)),
                false => Ended::Exited(libc::WEXITSTATUS(status)),
            };
            let cpu_ms = milliseconds(usage.ru_utime) + milliseconds(usage.ru_stime);
            return Ok(Some((ended, Usage { cpu_ms, rss_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0) })));
        }
        if reaped == 0 {
            return Ok(None);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn milliseconds(time: libc::timeval) -> u64 {
    u64::try_from(time.tv_sec * 1000 + time.tv_usec / 1000).unwrap_or(0)
}
