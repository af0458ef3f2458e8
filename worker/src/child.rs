//! The other side: what runs in the child process of an attempt.
//!
//! Blocking throughout and without a runtime. Reads and writes go over one socket but lock apart, so that a muxer thread
//! may hand out a segment while a demuxer thread waits for source bytes.

use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use farm::Failure;
use farm::task::Segment;
use farm::text::Cue;
use lru::LruCache;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;
use pipelines::{Done, Init, Order, Output, Reader, StillPlace};

use crate::process::{PARENT_VARIABLE, SOCKET_FD};
use crate::protocol::{BlockingFrames, FromChild, ProtocolError, ToChild, head};
use crate::sandbox::{self, Sandboxing};

/// Exit status of a child that said what failed.
pub(crate) const EXIT_FAILED: u8 = 3;
/// Exit status of a child that could not even begin.
const EXIT_UNFIT: u8 = 4;

/// Unit of reading: demuxers ask for a few KiB at a time.
const BLOCK_BYTES: u64 = 1 << 20;
/// Blocks kept: room for the places between which a demuxer of a badly interleaved file jumps.
const BLOCKS_KEPT: NonZeroUsize = NonZeroUsize::new(16).expect("not zero");

/// Body of the hidden subcommand: does the order that comes over descriptor 3, with GStreamer, walled in before the first byte
/// of the source is read.
///
/// Exit status: 0 when the order is done, 3 when it failed and the parent was told why, 4 when it was not started by a
/// worker.
pub fn main(sandboxing: Sandboxing) -> ExitCode {
    ExitCode::from(run_with(|order, reader, output| {
        sandbox::close(sandboxing, order.device())?;
        pipelines::run(order, reader, &output)
    }))
}

/// As [`main`], with another way to do an order; the exit status.
pub(crate) fn run_with(work: impl FnOnce(&Order, Arc<dyn Reader>, Arc<dyn Output>) -> Result<Done, Failure>) -> u8 {
    let (order, reader, output) = match connect() {
        Ok(connected) => connected,
        Err(error) => {
            // Nobody else can be told; a closed stderr is no reason to fail otherwise.
            let _ = writeln!(io::stderr(), "this is not for people to call: {error}");
            return EXIT_UNFIT;
        }
    };
    let done = work(&order, reader, output.clone());
    let (last, status) = match done {
        Ok(done) => (FromChild::Done(done), 0),
        Err(failure) => (FromChild::Failed(failure), EXIT_FAILED),
    };
    match output.send(&last, &[]) {
        Ok(()) => status,
        Err(_) => EXIT_UNFIT,
    }
}

fn connect() -> Result<(Order, Arc<SocketReader>, Arc<SocketOutput>), ProtocolError> {
    die_with_parent()?;
    let socket = take_socket()?;
    let socket = Arc::new(socket);
    let output = Arc::new(SocketOutput { socket: Mutex::new(socket.clone()) });
    let mut answers = BlockingFrames::new(Incoming(socket));
    let ToChild::Order { order, source_bytes } = answers.next()?.header else {
        return Err(io::Error::other("the first frame is no order").into());
    };
    let source = Mutex::new(Cached { answers, blocks: LruCache::new(BLOCKS_KEPT) });
    Ok((*order, Arc::new(SocketReader { bytes: source_bytes, source, output: output.clone() }), output))
}

/// Has the kernel kill this process when its parent ends, and makes sure that it has not ended already.
fn die_with_parent() -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    let parent = std::env::var(PARENT_VARIABLE).ok().and_then(|pid| pid.parse().ok());
    if parent != Some(nix::unistd::getppid().as_raw()) {
        return Err(io::Error::other("not started by a worker, or the worker is gone"));
    }
    Ok(())
}

/// The socket that the parent put on [`SOCKET_FD`].
pub(crate) fn take_socket() -> io::Result<UnixStream> {
    #[expect(unsafe_code, reason = "an inherited descriptor has no owner yet")]
    // SAFETY: it is looked at before it is owned, and no code of this process opened or owns it: the parent has put it
    // there, which `die_with_parent` has made sure of.
    let socket = unsafe {
        fcntl(BorrowedFd::borrow_raw(SOCKET_FD), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        OwnedFd::from_raw_fd(SOCKET_FD)
    };
    Ok(UnixStream::from(socket))
}

/// Reads the source by asking the parent, a block at a time. One question is open at a time.
pub(crate) struct SocketReader {
    bytes: u64,
    source: Mutex<Cached>,
    output: Arc<SocketOutput>,
}

/// The reading end of a socket whose writing end is in use elsewhere. One descriptor serves both.
struct Incoming(Arc<UnixStream>);

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(buffer)
    }
}

struct Cached {
    answers: BlockingFrames<Incoming, ToChild>,
    blocks: LruCache<u64, Bytes>,
}

impl SocketReader {
    fn block(&self, source: &mut Cached, index: u64) -> io::Result<Bytes> {
        if let Some(block) = source.blocks.get(&index) {
            return Ok(block.clone());
        }
        let offset = index * BLOCK_BYTES;
        let len = BLOCK_BYTES.min(self.bytes.saturating_sub(offset));
        self.output.send(&FromChild::Read { offset, len: len as u32 }, &[])?;
        let answer = source.answers.next().map_err(io::Error::other)?;
        if answer.header != ToChild::Data || answer.payload.len() as u64 != len {
            return Err(io::Error::other("the answer does not fit the question"));
        }
        source.blocks.put(index, answer.payload.clone());
        Ok(answer.payload)
    }
}

impl Reader for SocketReader {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let end = offset.saturating_add(len as u64).min(self.bytes);
        let mut source = lock(&self.source);
        let mut gathered = BytesMut::new();
        let mut at = offset;
        while at < end {
            let index = at / BLOCK_BYTES;
            let block = self.block(&mut source, index)?;
            let from = (at - index * BLOCK_BYTES) as usize;
            let to = (from as u64 + (end - at)).min(block.len() as u64) as usize;
            if at == offset && at + (to - from) as u64 == end {
                return Ok(block.slice(from..to));
            }
            gathered.extend_from_slice(block.get(from..to).unwrap_or_default());
            at += (to - from) as u64;
        }
        Ok(gathered.freeze())
    }
}

/// Hands frames to the parent, each whole.
pub(crate) struct SocketOutput {
    socket: Mutex<Arc<UnixStream>>,
}

impl SocketOutput {
    fn send(&self, header: &FromChild, payload: &[u8]) -> io::Result<()> {
        let head = head(header, payload.len()).map_err(io::Error::other)?;
        let socket = lock(&self.socket);
        let mut socket: &UnixStream = &socket;
        socket.write_all(&head)?;
        socket.write_all(payload)
    }
}

impl Output for SocketOutput {
    fn init(&self, init: Init) -> io::Result<()> {
        self.send(&FromChild::Init { rendition: init.rendition, timescale: init.timescale }, &init.bytes)
    }

    fn segment(&self, rendition: u32, segment: Segment, bytes: Bytes) -> io::Result<()> {
        self.send(&FromChild::Segment { rendition, segment }, &bytes)
    }

    fn still(&self, place: StillPlace, bytes: Bytes) -> io::Result<()> {
        self.send(&FromChild::Still { place }, &bytes)
    }

    fn cues(&self, rendition: u32, cues: Vec<Cue>) -> io::Result<()> {
        self.send(&FromChild::Cues { rendition }, &serde_json::to_vec(&cues)?)
    }

    fn progress(&self, media_ns: u64) -> io::Result<()> {
        self.send(&FromChild::Progress { media_ns }, &[])
    }
}

/// A thread that died with the lock held left a whole frame or a broken socket: both are found out by using it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
