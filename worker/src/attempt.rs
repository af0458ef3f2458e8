//! One attempt: a child is started, served and heard until it ends, and its end is judged.
//!
//! The deadline, cancellation and drain are not here: they drop the future ([`crate::guard`]), and dropping it kills the
//! child.

use std::time::{Duration, Instant};

use bytes::Bytes;
use farm::task::Cost;
use farm::{Code, Failure};
use futures::StreamExt;
use nix::sys::signal::Signal;
use pipelines::{Done, Order};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::codec::FramedRead;
use tokio_util::task::AbortOnDropHandle;

use crate::awake::within;
use crate::child::EXIT_FAILED;
use crate::process::{Ended, Spawner, Started, Urgency};
use crate::protocol::{Frames, FromChild, ProtocolError, ToChild, head};
use crate::session::{Said, Session};
use crate::source::Source;
use crate::still_upload::StillUploads;
use crate::text_upload::TextUploads;
use crate::upload::Uploads;
use crate::worker::ChildCommand;

/// How long a child that has said its last word may take to exit.
const EXIT_WAIT: Duration = Duration::from_secs(5);
/// How long its stderr may stay open after it: a process that it left behind may hold it.
const STDERR_WAIT: Duration = Duration::from_secs(1);
/// Bytes of stderr kept, from its end.
const STDERR_BYTES_KEPT: usize = 64 << 10;

/// What is needed for an attempt.
pub(crate) struct Attempt<'a> {
    /// Starts the child.
    pub(crate) spawner: &'a Spawner,
    /// How.
    pub(crate) command: &'a ChildCommand,
    /// How it stands beside others.
    pub(crate) urgency: Urgency,
    /// Longest silence of the child.
    pub(crate) stall: Duration,
    /// What it is to do.
    pub(crate) order: &'a Order,
    /// Of what.
    pub(crate) source: &'a Source,
    /// Where what it makes goes.
    pub(crate) sink: Sink<'a>,
    /// Told how far it is, in ns of media.
    pub(crate) progress: &'a mut (dyn FnMut(u64) + Send),
}

/// Where what a child makes goes.
pub(crate) enum Sink<'a> {
    /// It is to make nothing.
    None,
    /// Media of renditions.
    Media(&'a mut Uploads),
    /// Still pictures.
    Stills(&'a mut StillUploads),
    /// Renditions of text.
    Text(&'a mut TextUploads),
}

/// Why a child is not heard any more, before it was done.
enum Lost {
    /// It closed its end: its exit status says more.
    Closed,
    /// It says itself that it failed.
    Reported(Failure),
    /// It is to be killed, for this.
    Killed(Failure),
}

impl From<Failure> for Lost {
    fn from(failure: Failure) -> Self {
        Self::Killed(failure)
    }
}

impl From<ProtocolError> for Lost {
    fn from(error: ProtocolError) -> Self {
        match error {
            ProtocolError::Io(_) => Self::Closed,
            breach => Self::Killed(Failure::new(Code::ChildCrashed, format!("the child broke the protocol: {breach}"))),
        }
    }
}

impl Attempt<'_> {
    /// Makes the attempt. Cancel-safe: dropped, it kills the child.
    ///
    /// # Errors
    /// What the child reported, or how it ended; [`Code::ChildStalled`]; of the source; of an upload.
    pub(crate) async fn run(self) -> Result<(Done, Cost), Failure> {
        let began = Instant::now();
        let session = Session::new(self.order, self.source.bytes())?;
        let broken = |what: &'static str| move |error: std::io::Error| Failure::new(Code::Internal, format!("{what}: {error}"));
        let started = self.spawner.spawn(&self.command.program, &self.command.args, self.urgency).await;
        let Started { process, socket, stderr } = started.map_err(broken("a child process cannot be started"))?;
        let socket = UnixStream::from_std(socket).map_err(broken("a child's socket does not work"))?;
        let stderr = tokio::process::ChildStderr::from_std(stderr).map_err(broken("a child's stderr does not work"))?;
        let stderr = AbortOnDropHandle::new(tokio::spawn(tail(stderr)));
        let (from_child, to_child) = socket.into_split();
        let frames = FramedRead::new(from_child, Frames::default());
        let served = Talk { frames, to_child, session, attempt: self }.serve().await;
        let wait = if matches!(served, Err(Lost::Killed(_))) { Duration::ZERO } else { EXIT_WAIT };
        let (ended, usage) = process.end(wait).await.map_err(broken("a child process cannot be ended"))?;
        let said = tokio::time::timeout(STDERR_WAIT, stderr).await.ok().and_then(Result::ok).unwrap_or_default();
        if !said.is_empty() {
            tracing::debug!(stderr = %said.escape_debug(), "the child wrote");
        }
        let done = verdict(served, ended, &said)?;
        let wall_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok((done, Cost { cpu_ms: usage.cpu_ms, wall_ms, rss_kib: usage.rss_kib }))
    }
}

/// What came of an attempt, from the talk and the end of the process. Success takes both: the last word and exit status 0.
fn verdict(served: Result<Done, Lost>, ended: Ended, stderr: &str) -> Result<Done, Failure> {
    match served {
        Ok(done) if ended == Ended::Exited(0) => Ok(done),
        Ok(_) | Err(Lost::Closed) => Err(crash(ended, stderr)),
        Err(Lost::Reported(failure) | Lost::Killed(failure)) => Err(failure),
    }
}

/// How a child ended that should not have ended so.
fn crash(ended: Ended, stderr: &str) -> Failure {
    let (code, how) = match ended {
        Ended::Exited(0) => (Code::ChildCrashed, "the child ended without a result".to_owned()),
        Ended::Exited(status) if status == i32::from(EXIT_FAILED) => {
            (Code::ChildCrashed, "the child failed without a reason".to_owned())
        }
        Ended::Exited(status) => (Code::ChildCrashed, format!("the child exited with status {status}")),
        Ended::Killed(number) => {
            let signal = Signal::try_from(number);
            let name = signal.map_or_else(|_| format!("signal {number}"), |signal| signal.as_str().to_owned());
            let code = if signal == Ok(Signal::SIGXCPU) { Code::DeadlineExceeded } else { Code::ChildCrashed };
            (code, format!("child killed by {name}{}", signal.map_or("", meaning)))
        }
    };
    let last = stderr.lines().rev().find(|line| !line.trim().is_empty());
    let last: String = last.unwrap_or_default().chars().take(300).collect();
    let said = if last.is_empty() { String::new() } else { format!("; its last words: {}", last.trim().escape_debug()) };
    Failure::new(code, format!("{how}{said}"))
}

/// What a signal usually means.
fn meaning(signal: Signal) -> &'static str {
    match signal {
        Signal::SIGSYS => ": it made a system call that it may not make",
        Signal::SIGXCPU => ": it used up its CPU time",
        Signal::SIGKILL => ": probably out of memory",
        Signal::SIGTRAP => ": a fatal error of GLib, mostly out of memory",
        Signal::SIGABRT => ": it aborted, mostly out of memory",
        Signal::SIGSEGV | Signal::SIGBUS | Signal::SIGILL => ": a crash in a decoder, demuxer or encoder",
        _ => "",
    }
}

/// The talk with a child.
struct Talk<'a> {
    frames: FramedRead<OwnedReadHalf, Frames<FromChild>>,
    to_child: OwnedWriteHalf,
    session: Session,
    attempt: Attempt<'a>,
}

impl Talk<'_> {
    /// Orders, serves and hears the child until its last word.
    async fn serve(mut self) -> Result<Done, Lost> {
        let source_bytes = self.attempt.source.bytes();
        self.send(&ToChild::Order { order: Box::new(self.attempt.order.clone()), source_bytes }, Bytes::new()).await?;
        loop {
            // The time we take ourselves, to read the source or to get rid of a segment, does not count against the child.
            let heard = within(self.attempt.stall, self.frames.next()).await;
            let frame = heard.ok_or_else(|| self.stalled("said nothing"))?.ok_or(Lost::Closed)??;
            match self.session.hear(frame).map_err(Failure::from)? {
                Said::Read { offset, len } => {
                    let data = self.attempt.source.read_at(offset, len).await?;
                    self.send(&ToChild::Data, data).await?;
                }
                Said::Init { rendition, timescale, codecs, bytes } => {
                    self.uploads()?.init(rendition, timescale, codecs, bytes).await?;
                }
                Said::Segment { rendition, segment, bytes } => self.uploads()?.segment(rendition, segment, bytes).await?,
                Said::Still { place, bytes } => match &mut self.attempt.sink {
                    Sink::Stills(stills) => stills.take(place, bytes).await?,
                    Sink::None | Sink::Media(_) | Sink::Text(_) => return Err(nothing_ordered().into()),
                },
                Said::Cues(cues) => match &mut self.attempt.sink {
                    Sink::Text(text) => text.take(&cues).await?,
                    Sink::None | Sink::Media(_) | Sink::Stills(_) => return Err(nothing_ordered().into()),
                },
                Said::Progress { media_ns } => (self.attempt.progress)(media_ns),
                Said::Done(done) => return Ok(done),
                Said::Failed(failure) => return Err(Lost::Reported(failure)),
            }
        }
    }

    async fn send(&mut self, header: &ToChild, payload: Bytes) -> Result<(), Lost> {
        let head = head(header, payload.len())?;
        let sending = async {
            self.to_child.write_all(&head).await?;
            self.to_child.write_all(&payload).await
        };
        let sent = within(self.attempt.stall, sending).await.ok_or_else(|| self.stalled("took nothing"))?;
        sent.map_err(|_| Lost::Closed)
    }

    fn stalled(&self, what: &str) -> Failure {
        Failure::new(Code::ChildStalled, format!("the child {what} for {} s", self.attempt.stall.as_secs_f64()))
    }

    fn uploads(&mut self) -> Result<&mut Uploads, Failure> {
        match &mut self.attempt.sink {
            Sink::Media(uploads) => Ok(uploads),
            Sink::None | Sink::Stills(_) | Sink::Text(_) => Err(nothing_ordered()),
        }
    }
}

fn nothing_ordered() -> Failure {
    Failure::new(Code::Internal, "media from an order that makes none")
}

/// Reads to the end, keeping the last [`STDERR_BYTES_KEPT`] bytes as text.
async fn tail(mut stderr: tokio::process::ChildStderr) -> String {
    let mut kept = Vec::new();
    let mut buffer = vec![0; 8 << 10];
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        kept.extend_from_slice(buffer.get(..read).unwrap_or_default());
        if kept.len() > 2 * STDERR_BYTES_KEPT {
            kept.drain(..kept.len() - STDERR_BYTES_KEPT);
        }
    }
    let from = kept.len().saturating_sub(STDERR_BYTES_KEPT);
    String::from_utf8_lossy(kept.get(from..).unwrap_or_default()).into_owned()
}

#[cfg(test)]
#[path = "attempt_tests.rs"]
mod tests;
