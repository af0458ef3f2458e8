//! A stand-in for a collector of traces: takes every request, and keeps it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Result;

/// Longest request in bytes; of a longer one the rest is not read.
const BYTES_MAX: u64 = 32 << 20;
const IO_LIMIT: Duration = Duration::from_secs(30);

/// A request that came.
#[derive(Clone, Debug)]
pub struct Received {
    /// Its first line and headers.
    pub head: String,
    /// Its body.
    pub body: Vec<u8>,
}

/// A running collector. Dropped, it takes nothing more.
pub struct Collector {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Collector {
    /// Starts one on a free port.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Vec<Received>>>::default());
        let (stopped, kept) = (Arc::clone(&stop), Arc::clone(&received));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                // A client that goes away in the middle is not the collector's business.
                if let Ok(request) = take(&stream) {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push(request);
                }
            }
        });
        Ok(Self { address, stop, received })
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What came so far.
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The thread waits in `accept`: a last connection wakes it.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
    }
}

/// Reads a request and answers it: one for each connection.
fn take(mut stream: &TcpStream) -> io::Result<Received> {
    stream.set_read_timeout(Some(IO_LIMIT))?;
    stream.set_write_timeout(Some(IO_LIMIT))?;
    let mut reader = BufReader::new(stream).take(BYTES_MAX);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = Vec::new();
    reader.take(length.unwrap_or(0)).read_to_end(&mut body)?;
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}")?;
    Ok(Received { head, body })
}
