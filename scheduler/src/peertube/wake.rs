//! Hears that there are jobs: the event `available-jobs` in the namespace `/runners` (Socket.IO protocol 5 over Engine.IO 4, on
//! a WebSocket). It is only a hint, and without it jobs are asked for at intervals.

use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::connect_async_with_config;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::settings::Instance;
use crate::scheduler::Watch;

/// Largest message, in bytes.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Longest silence: the server sends a ping every 25 s.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Longest time to be connected.
const CONNECT_MAX: Duration = Duration::from_secs(15);
/// Pauses before it is connected again.
const AGAIN_FIRST: Duration = Duration::from_secs(2);
const AGAIN_LONGEST: Duration = Duration::from_secs(30);

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packet {
    /// The connection is open: the namespace can be asked for.
    Open,
    /// An answer is due.
    Ping,
    /// There are jobs.
    Jobs,
    /// The namespace is not open to this runner.
    Refused,
    /// Nothing of interest.
    Other,
}

fn packet(text: &str) -> Packet {
    match text {
        _ if text.starts_with('0') => Packet::Open,
        _ if text.starts_with('2') => Packet::Ping,
        // Coming into the namespace is as good as a call: what became available before was not heard.
        _ if text.starts_with("40/runners") => Packet::Jobs,
        _ if text.starts_with("42/runners,") && text.contains("\"available-jobs\"") => Packet::Jobs,
        _ if text.starts_with("44/runners") || text.starts_with("41") => Packet::Refused,
        _ => Packet::Other,
    }
}

/// Listens while this scheduler acts, until the future is dropped.
pub(super) async fn listen(instance: Instance, woken: Arc<Notify>, watch: Watch) {
    let mut pause = AGAIN_FIRST;
    loop {
        if watch.is_acting() {
            let heard = hear(&instance, &woken, &watch).await;
            if let Err(why) = &heard {
                tracing::debug!(instance = instance.slug(), why, "not called: jobs are asked for at intervals");
            }
            pause = if heard.is_ok() { AGAIN_FIRST } else { (pause * 2).min(AGAIN_LONGEST) };
        }
        sleep(pause).await;
    }
}

/// Listens on one connection until it ends; an error when it never came to anything.
async fn hear(instance: &Instance, woken: &Notify, watch: &Watch) -> Result<(), String> {
    let mut url = instance.url.clone();
    let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
    url.set_scheme(scheme).map_err(|()| "no address".to_owned())?;
    url.set_path("/socket.io/");
    url.set_query(Some("EIO=4&transport=websocket"));
    let config = WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
    let connecting = timeout(CONNECT_MAX, connect_async_with_config(url.as_str(), Some(config), false)).await;
    let (mut socket, _) = connecting.map_err(|_| "too slow".to_owned())?.map_err(|error| error.to_string())?;
    let mut is_in = false;
    while watch.is_acting() {
        let Ok(Some(Ok(message))) = timeout(SILENCE_MAX, socket.next()).await else { break };
        let Message::Text(text) = message else { continue };
        let answer = match packet(&text) {
            Packet::Open => format!("40/runners,{}", json!({ "runnerToken": instance.token.reveal() })),
            Packet::Ping => "3".to_owned(),
            Packet::Jobs => {
                is_in = true;
                woken.notify_one();
                continue;
            }
            Packet::Refused => break,
            Packet::Other => continue,
        };
        if socket.send(Message::text(answer)).await.is_err() {
            break;
        }
    }
    if is_in { Ok(()) } else { Err("not let in".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_told_apart() {
        assert_eq!(packet(r#"0{"sid":"x","pingInterval":25000}"#), Packet::Open);
        assert_eq!(packet("2"), Packet::Ping);
        assert_eq!(packet(r#"40/runners,{"sid":"y"}"#), Packet::Jobs);
        assert_eq!(packet(r#"42/runners,["available-jobs"]"#), Packet::Jobs);
        assert_eq!(packet(r#"42/runners,["something-else"]"#), Packet::Other);
        assert_eq!(packet(r#"44/runners,{"message":"Invalid runner token."}"#), Packet::Refused);
        assert_eq!(packet(r#"42["available-jobs"]"#), Packet::Other);
        assert_eq!(packet(""), Packet::Other);
    }
}
