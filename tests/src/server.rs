//! A small HTTP server on 127.0.0.1 for sources: files with byte ranges, and the ways in which servers go wrong.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;

/// Longest request head in bytes; more is refused by closing the connection.
const HEAD_BYTES_MAX: u64 = 16 << 10;
const IO_LIMIT: Duration = Duration::from_secs(30);

/// How a server answers.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The file, with byte ranges and an ETag.
    File(PathBuf),
    /// The file, with `Accept-Ranges: none`: always whole.
    WholeFile(PathBuf),
    /// The file, but every n-th request is answered with 503.
    Flaky(PathBuf, usize),
    /// Only a status line.
    Status(u16),
    /// A redirect to itself, without end.
    RedirectLoop,
}

/// A running server. Dropped, it stops taking connections.
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicUsize>,
}

impl Server {
    /// Starts a server on a free port that answers every path alike.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start(answer: Answer) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let (stop, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counter) = (Arc::clone(&stop), Arc::clone(&requests));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let (answer, counter) = (answer.clone(), Arc::clone(&counter));
                // A client that goes away in the middle is not the server's business.
                thread::spawn(move || drop(serve(&stream, &answer, &counter)));
            }
        });
        Ok(Self { address, stop, requests })
    }

    /// Its URL with this path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// Requests answered so far.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The thread waits in `accept`: a last connection wakes it.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
    }
}

/// A URL on 127.0.0.1 where nobody listens.
///
/// # Errors
/// When no port can be had.
pub fn closed_url() -> Result<String> {
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    Ok(format!("http://{address}/video.mp4"))
}

fn serve(stream: &TcpStream, answer: &Answer, counter: &AtomicUsize) -> io::Result<()> {
    stream.set_read_timeout(Some(IO_LIMIT))?;
    stream.set_write_timeout(Some(IO_LIMIT))?;
    let mut reader = BufReader::new(stream);
    // One connection may carry many requests.
    while let Some(wanted) = read_head(&mut reader)? {
        let number = counter.fetch_add(1, Ordering::Relaxed) + 1;
        match answer {
            Answer::File(path) => send_file(stream, path, wanted, true)?,
            Answer::WholeFile(path) => send_file(stream, path, Wanted::Whole, false)?,
            Answer::Flaky(_, n) if number.is_multiple_of(*n) => send_status(stream, 503, "")?,
            Answer::Flaky(path, _) => send_file(stream, path, wanted, true)?,
            Answer::Status(status) => send_status(stream, *status, "")?,
            Answer::RedirectLoop => send_status(stream, 302, "Location: /again\r\n")?,
        }
    }
    Ok(())
}

/// What a request asks for.
#[derive(Clone, Copy)]
enum Wanted {
    Whole,
    /// From the first byte to the last, or to the end.
    Bytes(u64, Option<u64>),
}

/// Reads a request head; `None` when the client has closed.
fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Wanted>> {
    let mut wanted = Wanted::Whole;
    let mut left = HEAD_BYTES_MAX;
    for count in 0.. {
        let mut line = String::new();
        let length = reader.by_ref().take(left).read_line(&mut line)?;
        left -= u64::try_from(length).unwrap_or(left);
        if length == 0 {
            return Ok(None);
        }
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() && count > 0 {
            break;
        }
        if let Some((first, last)) = line.strip_prefix("range: bytes=").and_then(|range| range.split_once('-')) {
            wanted = first.parse().map_or(Wanted::Whole, |first| Wanted::Bytes(first, last.parse().ok()));
        }
    }
    Ok(Some(wanted))
}

fn send_status(mut stream: &TcpStream, status: u16, headers: &str) -> io::Result<()> {
    write!(stream, "HTTP/1.1 {status} Answer\r\n{headers}Content-Length: 0\r\n\r\n")
}

fn send_file(mut stream: &TcpStream, path: &Path, wanted: Wanted, ranges: bool) -> io::Result<()> {
    let content = std::fs::read(path)?;
    let size = u64::try_from(content.len()).unwrap_or(u64::MAX);
    let (first, last) = match wanted {
        Wanted::Whole => (0, size.saturating_sub(1)),
        Wanted::Bytes(first, last) => (first, last.unwrap_or(u64::MAX).min(size.saturating_sub(1))),
    };
    if first >= size {
        return send_status(stream, 416, &format!("Content-Range: bytes */{size}\r\n"));
    }
    let head = match (wanted, ranges) {
        (Wanted::Bytes(..), _) => {
            format!("206 Partial Content\r\nContent-Range: bytes {first}-{last}/{size}\r\nETag: \"one\"\r\n")
        }
        (Wanted::Whole, true) => "200 OK\r\nAccept-Ranges: bytes\r\nETag: \"one\"\r\n".to_owned(),
        (Wanted::Whole, false) => "200 OK\r\nAccept-Ranges: none\r\n".to_owned(),
    };
    write!(stream, "HTTP/1.1 {head}Content-Type: video/mp4\r\nContent-Length: {}\r\n\r\n", last - first + 1)?;
    let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    stream.write_all(&content[place(first)..=place(last)])
}
