//! The first word of a broker: who it is, before anybody logs in.

use std::io;
use std::time::Duration;

use futures::io::{AsyncReadExt, AsyncWriteExt};
use lapin::protocol::AMQPClass;
use lapin::protocol::connection::AMQPMethod;
use lapin::tcp::AMQPUriTcpExt;
use lapin::types::{AMQPValue, FieldTable};
use tokio::time::timeout;

use super::address::Address;
use crate::broker::BrokerError;

/// Longest wait for the first word.
const GREETING_TIME_MAX: Duration = Duration::from_secs(10);
/// Largest first frame in bytes. Those of real brokers have 500.
const GREETING_BYTES_MAX: usize = 64 << 10;
/// What a client of this version of the protocol begins with.
const HEADER: &[u8] = b"AMQP\0\0\x09\x01";
/// A frame begins with its type, its channel and the size of what follows.
const FRAME_HEAD_BYTES: usize = 7;

/// What a broker calls itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) product: String,
    pub(super) version: String,
}

/// Connects, hears the greeting, and leaves.
pub(super) async fn greet(address: &Address) -> Result<Greeting, BrokerError> {
    let failed = |why: String| BrokerError::Unavailable(format!("{address}: {why}"));
    match timeout(GREETING_TIME_MAX, hear(address)).await {
        Ok(Ok(frame)) => read(&frame).ok_or_else(|| failed("what answers there is no RabbitMQ broker".to_owned())),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("no sign of life within {} s", GREETING_TIME_MAX.as_secs()))),
    }
}

/// The payload of the first frame.
async fn hear(address: &Address) -> io::Result<Vec<u8>> {
    let runtime = lapin::runtime::default_runtime().map_err(io::Error::other)?;
    let mut stream = address.uri().connect_async(&runtime).await?;
    stream.write_all(HEADER).await?;
    stream.flush().await?;
    let mut head = [0; FRAME_HEAD_BYTES];
    stream.read_exact(&mut head).await?;
    let [.., a, b, c, d] = head;
    let bytes = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if bytes > GREETING_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "what answers there is no RabbitMQ broker"));
    }
    let mut payload = vec![0; bytes];
    stream.read_exact(&mut payload).await?;
    Ok(payload)
}

fn read(payload: &[u8]) -> Option<Greeting> {
    let (_, class) = lapin::protocol::parse_class(payload).ok()?;
    let AMQPClass::Connection(AMQPMethod::Start(start)) = class else { return None };
    let says = |name| said(&start.server_properties, name);
    Some(Greeting { product: says("product"), version: says("version") })
}

/// A text from the server's properties, or `unknown`.
fn said(properties: &FieldTable, name: &str) -> String {
    match properties.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_greeting_is_read_as_one() {
        // Class 10, method 10, version 0-9, properties of 35 bytes, mechanisms, locales.
        let mut payload = vec![0, 10, 0, 10, 0, 9, 0, 0, 0, 35];
        payload.extend(b"\x07productS\0\0\0\x08RabbitMQ\x07versionS\0\0\0\x013");
        payload.extend(b"\0\0\0\x05PLAIN\0\0\0\x05en_US");
        assert_eq!(read(&payload), Some(Greeting { product: "RabbitMQ".to_owned(), version: "3".to_owned() }));
        for broken in [&payload[..20], b"SSH-2.0-x", b"\0\x0a\0\x1f", b""] {
            assert_eq!(read(broken), None);
        }
    }
}
