//! A real RabbitMQ for tests: a server of our own from the installed package, and a virtual host per test.
//!
//! The server shares nothing with one that the system may run: its ports, its folder and its cookie are its own. A shell stands
//! between it and the test process; when that process ends, however it ends, the shell's input does too, and the shell kills the
//! server and removes its folder.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties};
use serde_json::{Value, json};

use crate::process::{self, target_folder};
use crate::{deploy, http};

/// Longest start of a server.
const START_TIME_MAX: Duration = Duration::from_secs(90);
/// Longest run of `rabbitmqctl`.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);
/// Longest run of lines of a shell that change the server.
const SHELL_TIME_MAX: Duration = Duration::from_secs(120);
/// Longest that filling a queue may take.
const FILL_TIME_MAX: Duration = Duration::from_secs(120);
/// Where Debian and Ubuntu put the program. The one on the path insists on root, and then runs as the system's user.
const PROGRAM: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
/// The program that controls it, from the same place for the same reason.
const CONTROL: &str = "/usr/lib/rabbitmq/bin/rabbitmqctl";
/// User and password that a fresh server has, for connections from the same machine.
const USER: &str = "guest";

/// Runs the server, and does to it what it is told on standard input.
const KEEPER: &str = r#"
# A name service of its own: one that the server started would outlive it.
epmd -address 127.0.0.1 & names=$!
until epmd -names >/dev/null 2>&1; do kill -0 "$names" || exit 1; sleep 0.05; done
end() { kill -s KILL -- "-$pid" || kill -s KILL "$pid"; wait "$pid"; }
start() { setsid "$1" >>"$2/start.log" 2>&1 & pid=$!; }
start "$1" "$2"
while read -r order; do
  case $order in
    kill) end ;;
    start) start "$1" "$2" ;;
    freeze) kill -s STOP -- "-$pid" ;;
    thaw) kill -s CONT -- "-$pid" ;;
  esac
  echo done
done
end
kill -s KILL "$names"
rm -rf "$2"
"#;

/// A running server. Dropped, it is killed.
pub struct Server {
    keeper: Child,
    /// Closed when there are no more.
    orders: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
    at: Place,
}

/// Where a server is found.
#[derive(Clone, Debug)]
struct Place {
    amqp: u16,
    amqps: u16,
    management: u16,
    metrics: u16,
    distribution: u16,
    names: u16,
    folder: PathBuf,
}

/// The server that all tests of this process share. It ends with the process.
///
/// # Errors
/// When it does not start; every caller hears of it.
pub fn shared() -> Result<Vhost> {
    static SHARED: OnceLock<Result<Server, String>> = OnceLock::new();
    let server = SHARED.get_or_init(|| Server::start().map_err(|error| format!("{error:#}")));
    server.as_ref().map_err(|error| anyhow!("no RabbitMQ: {error}"))?.vhost()
}

impl Server {
    /// Starts a server and waits until it can be used.
    ///
    /// # Errors
    /// When RabbitMQ is not installed, or does not start.
    pub fn start() -> Result<Self> {
        ensure!(Path::new(PROGRAM).exists(), "{PROGRAM} is missing: install the Debian package rabbitmq-server");
        let folder = target_folder()?.join("tmp");
        fs::create_dir_all(&folder)?;
        let folder = tempfile::Builder::new().prefix("rabbitmq-").tempdir_in(folder)?.keep();
        let [amqp, amqps, management, metrics, distribution, names] = free_ports()?;
        let at = Place { amqp, amqps, management, metrics, distribution, names, folder };
        write_settings(&at)?;
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "sh", PROGRAM]).arg(&at.folder).envs(environment(&at));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut keeper = command.spawn().context("cannot start a shell")?;
        let (orders, replies) = (keeper.stdin.take(), keeper.stdout.take());
        let replies = BufReader::new(replies.context("no output")?);
        let server = Self { keeper, orders, replies, at };
        server.wait_until_ready()?;
        Ok(server)
    }

    /// A fresh virtual host.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn vhost(&self) -> Result<Vhost> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let vhost = Vhost { at: self.at.clone(), name };
        vhost.make()?;
        Ok(vhost)
    }

    /// Kills the server with SIGKILL. What it has confirmed stays in its folder.
    ///
    /// # Errors
    /// When its keeper is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.order("kill")
    }

    /// Starts it again, and waits until it can be used.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.order("start")?;
        self.wait_until_ready()
    }

    /// Stops it in its tracks, with every connection open.
    ///
    /// # Errors
    /// When its keeper is gone.
    pub fn freeze(&mut self) -> Result<()> {
        self.order("freeze")
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When its keeper is gone.
    pub fn thaw(&mut self) -> Result<()> {
        self.order("thaw")
    }

    /// Runs `rabbitmqctl` on it.
    ///
    /// # Errors
    /// When it fails, or takes longer than half a minute.
    pub fn control(&self, args: &[&str]) -> Result<()> {
        let mut command = Command::new(CONTROL);
        command.args(args).envs(environment(&self.at));
        process::run(&mut command, ANSWER_TIME_MAX)?.success().map(drop)
    }

    fn order(&mut self, order: &str) -> Result<()> {
        writeln!(self.orders.as_mut().context("no input")?, "{order}")?;
        let mut reply = String::new();
        self.replies.read_line(&mut reply)?;
        ensure!(reply.trim() == "done", "the keeper of the server is gone");
        Ok(())
    }

    fn wait_until_ready(&self) -> Result<()> {
        let before = Instant::now();
        while before.elapsed() < START_TIME_MAX {
            if matches!(self.at.ask("GET", "/api/overview", None), Ok((200, _)))
                && TcpStream::connect((Ipv4Addr::LOCALHOST, self.at.amqp)).is_ok()
            {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let log = fs::read_to_string(self.at.folder.join("start.log")).unwrap_or_default();
        let tail: Vec<_> = log.lines().rev().take(5).collect();
        bail!("RabbitMQ did not start within {START_TIME_MAX:?}; last line first: {tail:?}")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its input closed, the keeper ends, and the server with it.
        drop(self.orders.take());
        let _ = self.keeper.wait();
    }
}

/// Ports that nobody listens on, below those that the system gives to outgoing connections: one of these could be taken before
/// the server is there.
fn free_ports<const COUNT: usize>() -> Result<[u16; COUNT]> {
    const FIRST: u32 = 10_000;
    const CANDIDATES: u32 = 10_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut ports = [0; COUNT];
    for port in &mut ports {
        *port = (0..CANDIDATES)
            // Processes that start servers at the same time begin far from each other.
            .map(|_| std::process::id().wrapping_mul(7919).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)))
            .filter_map(|number| u16::try_from(FIRST + number % CANDIDATES).ok())
            .find(|candidate| TcpListener::bind((Ipv4Addr::LOCALHOST, *candidate)).is_ok())
            .context("no port is free")?;
    }
    Ok(ports)
}

fn write_settings(at: &Place) -> Result<()> {
    let (certificate, key) = (at.certificate(), at.folder.join("key.pem"));
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    fs::write(&certificate, made.cert.pem())?;
    fs::write(&key, made.signing_key.serialize_pem())?;
    let Place { amqp, amqps, management, metrics, .. } = at;
    let (certificate, key) = (certificate.display(), key.display());
    let settings = format!(
        "listeners.tcp.1 = 127.0.0.1:{amqp}\nlisteners.ssl.1 = 127.0.0.1:{amqps}\nssl_options.certfile = {certificate}\n\
         ssl_options.keyfile = {key}\nmanagement.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management}\n\
         prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {metrics}\n\
         log.file.level = warning\ndisk_free_limit.absolute = 50MB\nraft.wal_max_size_bytes = 67108864\n"
    );
    fs::write(at.folder.join("rabbitmq.conf"), settings)?;
    // Management and metrics, as compose's has.
    fs::write(at.folder.join("enabled_plugins"), deploy::text("rabbitmq-plugins")?)?;
    File::create(at.folder.join("empty"))?;
    Ok(())
}

/// Every place that the server would otherwise share with the system's.
fn environment(at: &Place) -> Vec<(&'static str, String)> {
    let below = |name: &str| at.folder.join(name).display().to_string();
    vec![
        ("HOME", at.folder.display().to_string()),
        ("RABBITMQ_HOME", at.folder.display().to_string()),
        ("RABBITMQ_NODENAME", format!("shoal-{}@localhost", at.amqp)),
        ("RABBITMQ_NODE_PORT", at.amqp.to_string()),
        ("RABBITMQ_DIST_PORT", at.distribution.to_string()),
        ("RABBITMQ_MNESIA_BASE", below("data")),
        ("RABBITMQ_LOG_BASE", below("log")),
        ("RABBITMQ_PID_FILE", below("pid")),
        ("RABBITMQ_CONFIG_FILE", below("rabbitmq.conf")),
        ("RABBITMQ_ADVANCED_CONFIG_FILE", below("none.config")),
        ("RABBITMQ_CONF_ENV_FILE", below("empty")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", below("enabled_plugins")),
        ("RABBITMQ_FEATURE_FLAGS_FILE", below("feature_flags")),
        ("ERL_EPMD_PORT", at.names.to_string()),
        // No busy waiting beside the tests.
        ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+sbwt none +sbwtdcpu none +sbwtdio none".to_owned()),
    ]
}

impl Place {
    fn certificate(&self) -> PathBuf {
        self.folder.join("certificate.pem")
    }

    /// Asks the management interface: status and body.
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, String)> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.management));
        let login = STANDARD.encode(format!("{USER}:{USER}"));
        let headers = format!("Authorization: Basic {login}\r\nContent-Type: application/json\r\n");
        http::ask(address, &format!("{method} {path}"), &headers, &body.map(Value::to_string).unwrap_or_default())
    }

    /// Asks for something that must work.
    fn must(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let (status, answer) = self.ask(method, path, body)?;
        ensure!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        Ok(if answer.is_empty() { Value::Null } else { serde_json::from_str(&answer)? })
    }
}

/// A virtual host. Dropped, it is deleted with all that is in it.
#[derive(Debug)]
pub struct Vhost {
    at: Place,
    name: String,
}

impl Vhost {
    /// The URL that leads here.
    pub fn url(&self) -> String {
        self.url_by(SocketAddr::from((Ipv4Addr::LOCALHOST, self.at.amqp)))
    }

    /// The URL that leads here by way of a proxy.
    pub fn url_by(&self, proxy: SocketAddr) -> String {
        format!("amqp://{USER}:{USER}@{proxy}/{}", self.name)
    }

    /// The URL that leads here over TLS.
    pub fn encrypted_url(&self) -> String {
        format!("amqps://{USER}:{USER}@localhost:{}/{}", self.at.amqps, self.name)
    }

    /// File with the server's certificate, which nobody else has signed.
    pub fn certificate(&self) -> PathBuf {
        self.at.certificate()
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.at.amqp))
    }

    /// Where the management interface of the server listens.
    pub fn management(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.at.management))
    }

    /// Where the server shows its metrics.
    pub fn metrics(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.at.metrics))
    }

    /// Runs lines of a shell in a folder, as whoever runs the server would: `rabbitmqctl` and `rabbitmqadmin` are about the
    /// server, and `--vhost /` is this virtual host.
    ///
    /// # Errors
    /// When one of them fails, or all together take longer than two minutes.
    pub fn shell(&self, lines: &str, folder: &Path) -> Result<()> {
        let admin = format!("--host=127.0.0.1 --port={} --username={USER} --password={USER}", self.at.management);
        let tools = format!(
            "set -e\nrabbitmqctl() {{ {CONTROL} \"$@\"; }}\nrabbitmqadmin() {{ command rabbitmqadmin {admin} \"$@\"; }}\n"
        );
        let lines = lines.replace("--vhost / ", &format!("--vhost {} ", self.name));
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{tools}{lines}")]).current_dir(folder).envs(environment(&self.at));
        process::run(&mut command, SHELL_TIME_MAX)?.success().map(drop)
    }

    /// Deletes it with all that is in it: connections too.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn delete(&self) -> Result<()> {
        self.at.must("DELETE", &format!("/api/vhosts/{}", self.name), None).map(drop)
    }

    /// Makes it, empty.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn make(&self) -> Result<()> {
        self.at.must("PUT", &format!("/api/vhosts/{}", self.name), Some(&json!({})))?;
        self.permit(".*")
    }

    /// Says which names may be declared and deleted; all may be used.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn permit(&self, configure: &str) -> Result<()> {
        let permissions = json!({"configure": configure, "write": ".*", "read": ".*"});
        self.at.must("PUT", &format!("/api/permissions/{}/{USER}", self.name), Some(&permissions)).map(drop)
    }

    /// Deletes a queue.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn delete_queue(&self, queue: &str) -> Result<()> {
        self.at.must("DELETE", &format!("/api/queues/{}/{queue}", self.name), None).map(drop)
    }

    /// What the server says about a queue.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn queue(&self, queue: &str) -> Result<Value> {
        self.at.must("GET", &format!("/api/queues/{}/{queue}", self.name), None)
    }

    /// Names of the queues.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn queues(&self) -> Result<Vec<String>> {
        let queues = self.at.must("GET", &format!("/api/queues/{}?columns=name", self.name), None)?;
        Ok(queues.as_array().into_iter().flatten().filter_map(|queue| Some(queue["name"].as_str()?.to_owned())).collect())
    }

    /// Names of the exchanges; the default one has an empty name.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn exchanges(&self) -> Result<Vec<String>> {
        let found = self.at.must("GET", &format!("/api/exchanges/{}?columns=name", self.name), None)?;
        Ok(found.as_array().into_iter().flatten().filter_map(|exchange| Some(exchange["name"].as_str()?.to_owned())).collect())
    }

    /// Lets a queue hold so many messages at most.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn limit(&self, queue: &str, messages_max: u32) -> Result<()> {
        let policy = json!({"pattern": format!("^{queue}$"), "apply-to": "queues", "definition": {"max-length": messages_max}});
        self.at.must("PUT", &format!("/api/policies/{}/limit", self.name), Some(&policy)).map(drop)
    }

    /// The messages that are ready in a queue, at most a hundred. They stay there.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn peek(&self, queue: &str) -> Result<Vec<Vec<u8>>> {
        let how = json!({"count": 100, "ackmode": "ack_requeue_true", "encoding": "base64"});
        let messages = self.at.must("POST", &format!("/api/queues/{}/{queue}/get", self.name), Some(&how))?;
        let bodies = messages.as_array().into_iter().flatten().filter_map(|message| message["payload"].as_str());
        bodies.map(|body| Ok(STANDARD.decode(body)?)).collect()
    }

    /// Puts bytes on a queue as another program would.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn publish(&self, queue: &str, body: &[u8]) -> Result<()> {
        let payload = STANDARD.encode(body);
        let message = json!({
            "properties": {"delivery_mode": 2}, "routing_key": queue, "payload": payload, "payload_encoding": "base64"
        });
        let answer = self.at.must("POST", &format!("/api/exchanges/{}/amq.default/publish", self.name), Some(&message))?;
        ensure!(answer["routed"] == true, "no queue {queue}");
        Ok(())
    }

    /// Puts so many small messages on a queue, and waits until the server has all of them.
    ///
    /// # Errors
    /// When the server refuses one.
    pub fn fill(&self, queue: &str, messages: usize) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let filled = async {
            let connection = Connection::connect(&self.url(), ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let mut confirms = Vec::with_capacity(messages);
            for _ in 0..messages {
                let properties = BasicProperties::default().with_delivery_mode(2);
                confirms.push(channel.basic_publish("".into(), queue.into(), options, b"{}", properties).await?);
            }
            for confirm in confirms {
                let confirmed = confirm.await?;
                ensure!(matches!(confirmed, Confirmation::Ack(None)), "{queue}: {confirmed:?}");
            }
            Ok(())
        };
        runtime.block_on(async { tokio::time::timeout(FILL_TIME_MAX, filled).await? })
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        // A server that is gone has taken it along.
        let _ = self.delete();
    }
}
