//! The smallest client of HTTP: one request on a connection of its own, for servers on this machine that answer with text.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Longest wait for a piece of an answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);
/// Largest answer.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Asks for something: status and body. `what` is the method and the path; every line of `headers` ends as lines of HTTP do.
///
/// # Errors
/// When no answer comes, or none of HTTP.
pub fn ask(address: SocketAddr, what: &str, headers: &str, body: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_TIME_MAX)?;
    stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
    // Servers end the connection after an answer to this version, and send it in one piece.
    write!(stream, "{what} HTTP/1.0\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).context("not HTTP")?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}
