//! The port for those who run the farm, the same on every service: `/metrics`, `/healthz`, `/readyz`.
//!
//! It has no access control: it is to listen where only monitoring reaches.

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus::{IntCounterVec, IntGauge, Registry};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::broker::Broker;
use crate::metrics::{self, Process};
use crate::serve::{self, Limits};

/// Connections at a time: there are few who look.
const CONNECTIONS_MAX: usize = 64;

/// Whether a service can do its work now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It can.
    Ready,
    /// It cannot, and why.
    NotReady(String),
}

/// Serves the port until the future is dropped.
///
/// # Errors
/// As [`serve::serve`].
pub async fn serve(
    listener: TcpListener,
    process: Process,
    broker: Broker,
    ready: watch::Receiver<Readiness>,
) -> std::io::Result<()> {
    serve::serve(listener, router(process, broker, ready), Limits::new(CONNECTIONS_MAX)).await
}

/// What `/metrics` shows of a process of this kind that has done nothing yet, every series with at least one value: for its
/// documentation.
pub fn scrape_sample(process: Process, broker: &Broker) -> String {
    let about = About::new();
    about.note(broker);
    metrics::storage().requests.with_label_values(&["get", "ok"]);
    metrics::storage().duration.with_label_values(&["get"]);
    if process == Process::Scheduler {
        metrics::scheduler().http_requests.with_label_values(&["/v1/jobs", "200"]);
        metrics::scheduler().task_failures.with_label_values(&["video", "child_crashed"]);
    }
    let [own, storage] = metrics::registries(process);
    metrics::text(&[own, storage, &about.registry])
}

fn router(process: Process, broker: Broker, ready: watch::Receiver<Readiness>) -> Router {
    let about = std::sync::Arc::new(About::new());
    let scrape = move || async move {
        about.note(&broker);
        let [own, storage] = metrics::registries(process);
        let text = metrics::text(&[own, storage, &about.registry]);
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
    };
    let readyz = move || async move {
        // Cloned, so that no lock is held while the answer is on its way.
        match ready.borrow().clone() {
            Readiness::Ready => (StatusCode::OK, "ready\n".to_owned()).into_response(),
            Readiness::NotReady(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
        }
    };
    Router::new().route("/metrics", get(scrape)).route("/healthz", get(|| async { "alive\n" })).route("/readyz", get(readyz))
}

/// What every process shows: what it is, its connection to the broker, and the operating system's view of it.
struct About {
    registry: Registry,
    connected: IntGauge,
    blocked: IntGauge,
    reconnects: prometheus::IntCounter,
    published: IntCounterVec,
}

impl About {
    fn new() -> Self {
        let r = Registry::new();
        let build = metrics::registered(
            &r,
            prometheus::IntGaugeVec::new(prometheus::Opts::new("shoal_build_info", "1, with the version."), &["version"]),
        );
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        // Registered once per registry, so it cannot be there already.
        let _ = r.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()));
        Self {
            connected: metrics::gauge(&r, "shoal_broker_connected", "1 while the broker is reached."),
            blocked: metrics::gauge(&r, "shoal_broker_blocked", "1 while the broker takes no messages, short of memory or disk."),
            reconnects: metrics::counter(&r, "shoal_broker_reconnects_total", "Connections to the broker made again."),
            published: metrics::counters(&r, "shoal_publish_total", "Messages published, by the broker's answer.", &["result"]),
            registry: r,
        }
    }

    /// Takes over what the broker's handle has counted.
    fn note(&self, broker: &Broker) {
        let stats = broker.stats();
        self.connected.set(i64::from(stats.connected));
        self.blocked.set(i64::from(stats.blocked));
        raise(&self.reconnects, stats.reconnects);
        for (result, count) in
            [("ack", stats.acked), ("nack", stats.nacked), ("returned", stats.returned), ("timeout", stats.timed_out)]
        {
            raise(&self.published.with_label_values(&[result]), count);
        }
    }
}

/// Brings a counter up to a count that is kept elsewhere. Two scrapes at once may count a difference twice; the next sees
/// to nothing, so it is left: counts of the ports are for rates, not for accounts.
fn raise(counter: &prometheus::IntCounter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_tells_metrics_life_and_readiness() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (ready, seen) = watch::channel(Readiness::NotReady("draining".to_owned()));
        let served = tokio::spawn(serve(listener, Process::Worker, Broker::local(), seen));
        assert!(get_path(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let refused = get_path(address, "/readyz").await;
        assert!(refused.starts_with("HTTP/1.1 503") && refused.ends_with("draining\n"), "{refused}");
        ready.send_replace(Readiness::Ready);
        assert!(get_path(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let shown = get_path(address, "/metrics").await;
        for line in ["shoal_slots 0", "shoal_broker_connected 1", "shoal_build_info{version=", "process_cpu_seconds_total"] {
            assert!(shown.contains(line), "no {line} in {shown}");
        }
        assert!(!shown.contains("shoal_leader"), "a worker shows nothing of a scheduler");
        served.abort();
    }

    async fn get_path(address: std::net::SocketAddr, path: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut socket = tokio::net::TcpStream::connect(address).await.expect("connected");
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.expect("an answer");
        answer
    }
}
