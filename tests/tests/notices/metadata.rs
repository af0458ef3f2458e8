//! A stand-in for the address at which clouds tell their machines what becomes of them, as particular as they are.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use tests::process::until;

/// Longest request head in bytes.
const HEAD_BYTES_MAX: u64 = 16 << 10;
/// Longest wait for a request that has begun, or for its answer to be taken.
const IO_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait for questions that come every 5 s.
const ASKED_LIMIT: Duration = Duration::from_secs(60);
/// What EC2 wants to see again.
const TOKEN: &str = "a-token-of-this-machine";

/// Whose machine it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloud {
    Ec2,
    Gcp,
    Azure,
}

struct Shared {
    cloud: Cloud,
    /// The body of the next answers; empty where there is no such page.
    said: Mutex<String>,
    /// How often it was asked for that.
    asked: AtomicUsize,
    stop: AtomicBool,
}

/// A running server. Dropped, it takes no more connections.
pub struct Metadata {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Metadata {
    /// Starts one that has nothing to tell yet, on a free port.
    pub fn start(cloud: Cloud) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let said = match cloud {
            Cloud::Ec2 => "",
            Cloud::Gcp => "FALSE",
            Cloud::Azure => r#"{"DocumentIncarnation": 1, "Events": []}"#,
        };
        let said = Mutex::new(said.to_owned());
        let shared = Arc::new(Shared { cloud, said, asked: AtomicUsize::new(0), stop: AtomicBool::new(false) });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.stop.load(Ordering::Relaxed) {
                    break;
                }
                // A worker that ends in the middle is not the server's business.
                drop(serving.serve(&stream));
            }
        });
        Ok(Self { address, shared })
    }

    /// What a worker is to have in its environment.
    pub fn variable(&self) -> (&'static str, String) {
        ("SHOAL_SPOT_ENDPOINT", format!("http://{}", self.address))
    }

    /// Says this from now on.
    pub fn say(&self, body: &str) {
        body.clone_into(&mut self.shared.said.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until it was asked so many times more: the last answer but one has then been read.
    pub fn until_asked(&self, more: usize) -> Result<()> {
        let before = self.shared.asked.load(Ordering::SeqCst);
        until("questions", ASKED_LIMIT, || Ok(self.shared.asked.load(Ordering::SeqCst) >= before + more))
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // The thread waits in `accept`: a last connection wakes it.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
    }
}

impl Shared {
    /// Answers the one request of a connection.
    fn serve(&self, mut stream: &TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(IO_LIMIT))?;
        stream.set_write_timeout(Some(IO_LIMIT))?;
        let mut lines = BufReader::new(stream.take(HEAD_BYTES_MAX)).lines();
        let request = lines.next().transpose()?.unwrap_or_default();
        let mut headers = Vec::new();
        for line in lines {
            let line = line?;
            if line.is_empty() {
                break;
            }
            headers.push(line.to_ascii_lowercase());
        }
        let (status, body) = self.answer(request.trim_end_matches(" HTTP/1.1"), &headers);
        let length = body.len();
        write!(stream, "HTTP/1.1 {status} Answer\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
    }

    fn answer(&self, request: &str, headers: &[String]) -> (u16, String) {
        let has = |header: &str| headers.iter().any(|line| line.starts_with(header));
        match (self.cloud, request) {
            (Cloud::Ec2, "PUT /latest/api/token") if has("x-aws-ec2-metadata-token-ttl-seconds: ") => (200, TOKEN.to_owned()),
            (Cloud::Ec2, "GET /latest/meta-data/spot/instance-action") if has(&format!("x-aws-ec2-metadata-token: {TOKEN}")) => {
                self.say()
            }
            (Cloud::Gcp, "GET /computeMetadata/v1/instance/preempted") if has("metadata-flavor: google") => self.say(),
            (Cloud::Azure, "GET /metadata/scheduledevents?api-version=2020-07-01") if has("metadata: true") => self.say(),
            (Cloud::Azure, "GET /metadata/instance/compute/name?api-version=2021-02-01&format=text") if has("metadata: true") => {
                (200, "worker_0".to_owned())
            }
            _ => (403, "TRUE".to_owned()),
        }
    }

    fn say(&self) -> (u16, String) {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.asked.fetch_add(1, Ordering::SeqCst);
        if said.is_empty() { (404, "no such page".to_owned()) } else { (200, said) }
    }
}
