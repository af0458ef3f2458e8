//! A service of the farm as a process: asked over its admin port, and stopped, frozen and killed with all that came of it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::{Group, descendants, until};

/// Longest wait for a service to start.
const START_WAIT: Duration = Duration::from_secs(60);
/// Longest wait for an answer on the admin port.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// A running scheduler or worker. Dropped, it is killed.
pub struct Service {
    group: Group,
    admin: String,
    log: PathBuf,
}

impl Service {
    /// A process that has just been started, its admin port and the file that it logs to.
    pub fn new(group: Group, admin: String, log: PathBuf) -> Self {
        Self { group, admin, log }
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// When it ends or takes too long.
    pub fn ready(mut self) -> Result<Self> {
        let ready = until("the service is ready", START_WAIT, || {
            anyhow::ensure!(!self.group.has_ended()?, "it ended");
            // Not yet listening is not yet ready.
            Ok(self.ask("/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")))
        });
        ready.with_context(|| self.log())?;
        Ok(self)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Host and port of its admin port.
    pub fn admin(&self) -> &str {
        &self.admin
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.group.pid()
    }

    /// Kills it with SIGKILL, and waits until it is gone. Its children die with it.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.group.kill()
    }

    /// Asks it to stop, and waits until it has.
    ///
    /// # Errors
    /// When it takes longer than `limit`.
    pub fn stop(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.group.signal(Signal::SIGTERM);
        self.group.wait(limit)
    }

    /// Stops it in its tracks with all that came of it, as a machine does that hangs.
    pub fn freeze(&self) {
        self.signal_all(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal_all(Signal::SIGCONT);
    }

    fn signal_all(&self, signal: Signal) {
        // The parent first: it then starts no others, and whoever has ended meanwhile need not be told.
        for pid in std::iter::once(self.pid()).chain(descendants(self.pid())) {
            let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
        }
    }

    /// The processes of the attempts that it is making.
    pub fn children(&self) -> Vec<u32> {
        descendants(self.pid())
    }

    /// Whether a connection that comes from `address` is one of its own.
    pub fn owns(&self, address: SocketAddr) -> bool {
        let sockets = sockets_at(address.port());
        let links = fs::read_dir(format!("/proc/{}/fd", self.pid())).into_iter().flatten().flatten();
        links.filter_map(|link| fs::read_link(link.path()).ok()).any(|target| {
            let inode = target.to_str().and_then(|name| name.strip_prefix("socket:[")?.strip_suffix(']'));
            inode.is_some_and(|inode| sockets.contains(inode))
        })
    }

    /// A series of its metrics, summed over its labels; only over samples that hold `label` when that is not empty. None while
    /// it does not answer.
    pub fn series(&self, name: &str, label: &str) -> Option<f64> {
        let answer = self.ask("/metrics").ok()?;
        let value = |line: &str| -> Option<f64> {
            let (series, value) = line.rsplit_once(' ')?;
            (series.split('{').next() == Some(name) && series.contains(label)).then(|| value.parse().ok())?
        };
        Some(answer.lines().filter_map(value).sum())
    }

    /// Waits until a series is such.
    ///
    /// # Errors
    /// When it is not within `limit`.
    pub fn until_series(&self, name: &str, label: &str, limit: Duration, holds: impl Fn(f64) -> bool) -> Result<()> {
        let what = format!("{name}{{{label}}}");
        until(&what, limit, || Ok(self.series(name, label).is_some_and(&holds))).with_context(|| self.log())
    }

    /// All that it shows of itself to Prometheus.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self) -> Result<String> {
        let answer = self.ask("/metrics")?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without an end of its head")?;
        anyhow::ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
        Ok(body.to_owned())
    }

    fn ask(&self, path: &str) -> Result<String> {
        let mut socket = TcpStream::connect(&self.admin)?;
        socket.set_read_timeout(Some(ANSWER_WAIT))?;
        write!(socket, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

/// Inodes of the TCP sockets whose own port is this one.
fn sockets_at(port: u16) -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let own = u16::from_str_radix(fields.get(1)?.rsplit_once(':')?.1, 16).ok()?;
        (own == port).then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
    };
    table.lines().skip(1).filter_map(inode).collect()
}

/// An address that nobody listens on.
///
/// # Errors
/// When no port can be had.
pub fn free_address() -> Result<String> {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    for _ in 0..PORTS.len() {
        let place = std::process::id().wrapping_mul(31).wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + u16::try_from(place % u32::try_from(PORTS.len())?)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(format!("127.0.0.1:{port}"));
        }
    }
    anyhow::bail!("no port is free")
}

/// Below those that the system gives to connections, one of which could take a port before the service does.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
