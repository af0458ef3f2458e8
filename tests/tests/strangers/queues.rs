//! Queues and exchanges of the broker, tried by a user who may only submit.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use farm::broker::DeadLetter;
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeBindOptions, ExchangeDeclareOptions,
    ExchangeDeleteOptions, ExchangeUnbindOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use lapin::uri::{AMQPAuthority, AMQPUri, AMQPUserInfo};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ErrorKind, ExchangeKind};
use tests::farm::{Farm, JOBS, TASKS};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::{ask, message, root, two_tenants};

/// Longest wait for the broker to say something.
const BROKER_WAIT: Duration = Duration::from_secs(30);

/// A user of the broker as `deploy/README.md` makes it, and the exchange that it may write to.
const SUBMITTER: &str = "submitter";
const SUBMIT: &str = "submit";
const PASSWORD: &str = "a password of the submitter";
/// The file that it is read from.
const PASSWORD_FILE: &str = "submitter-password";
/// The broker's words for what is not allowed: of a queue or exchange, of a virtual host.
const ACCESS_REFUSED: u16 = 403;
const NOT_ALLOWED: u16 = 530;

/// What a client can ask of a queue or of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Get,
    Consume,
    Purge,
    DeleteQueue,
    DeclareQueue,
    BindQueue,
    UnbindQueue,
    /// A message for the queue, by the default exchange.
    Send,
    DeclareExchange,
    DeleteExchange,
    /// What comes to the submitter's exchange goes to this one too.
    Feed,
    /// What comes to this exchange goes to the submitter's too.
    Tap,
    Unbind,
    Publish,
}

const OF_QUEUES: [Deed; 8] = [
    Deed::Get,
    Deed::Consume,
    Deed::Purge,
    Deed::DeleteQueue,
    Deed::DeclareQueue,
    Deed::BindQueue,
    Deed::UnbindQueue,
    Deed::Send,
];
const OF_EXCHANGES: [Deed; 6] = [Deed::DeclareExchange, Deed::DeleteExchange, Deed::Feed, Deed::Tap, Deed::Unbind, Deed::Publish];

/// Asks for it on a queue or exchange of this name.
async fn act(channel: &Channel, deed: Deed, name: &str) -> lapin::Result<()> {
    let none = FieldTable::default();
    match deed {
        Deed::Get => channel.basic_get(name.into(), BasicGetOptions::default()).await.map(drop),
        Deed::Consume => channel.basic_consume(name.into(), "".into(), BasicConsumeOptions::default(), none).await.map(drop),
        Deed::Purge => channel.queue_purge(name.into(), QueuePurgeOptions::default()).await.map(drop),
        Deed::DeleteQueue => channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.map(drop),
        Deed::DeclareQueue => channel.queue_declare(name.into(), QueueDeclareOptions::durable(), none).await.map(drop),
        Deed::BindQueue => channel.queue_bind(name.into(), SUBMIT.into(), "".into(), QueueBindOptions::default(), none).await,
        Deed::UnbindQueue => channel.queue_unbind(name.into(), SUBMIT.into(), "".into(), none).await,
        Deed::Send => publish(channel, ("", name), b"{}", none).await.map(drop),
        Deed::DeclareExchange => {
            channel.exchange_declare(name.into(), ExchangeKind::Fanout, ExchangeDeclareOptions::default(), none).await
        }
        Deed::DeleteExchange => channel.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await,
        Deed::Feed => channel.exchange_bind(name.into(), SUBMIT.into(), "".into(), ExchangeBindOptions::default(), none).await,
        Deed::Tap => channel.exchange_bind(SUBMIT.into(), name.into(), "".into(), ExchangeBindOptions::default(), none).await,
        Deed::Unbind => {
            channel.exchange_unbind(name.into(), SUBMIT.into(), "".into(), ExchangeUnbindOptions::default(), none).await
        }
        Deed::Publish => publish(channel, (name, TASKS), b"{}", none).await.map(drop),
    }
}

/// Publishes a message, and waits until the broker has taken it.
async fn publish(channel: &Channel, way: (&str, &str), body: &[u8], headers: FieldTable) -> lapin::Result<Confirmation> {
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let properties = BasicProperties::default().with_headers(headers).with_delivery_mode(2);
    channel.basic_publish(way.0.into(), way.1.into(), options, body, properties).await?.await
}

/// The broker's number for the refusal that an error is.
fn refusal(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// Whether something is refused. A channel on which something was refused is closed: each has one of its own.
async fn is_refused(connection: &Connection, deed: Deed, name: &str) -> Result<()> {
    let channel = connection.create_channel().await?;
    match timeout(BROKER_WAIT, act(&channel, deed, name)).await.with_context(|| format!("{deed:?} {name}"))? {
        Ok(()) => bail!("{deed:?} '{name}': it was done"),
        Err(error) => ensure!(refusal(&error) == Some(ACCESS_REFUSED), "{deed:?} '{name}': {error}"),
    }
    Ok(())
}

/// A connection to a virtual host as this user.
async fn login(farm: &Farm, (user, password): (&str, &str), vhost: &str) -> Result<lapin::Result<Connection>> {
    let (address, userinfo) = (farm.broker.address(), AMQPUserInfo { username: user.to_owned(), password: password.to_owned() });
    let authority = AMQPAuthority { userinfo, host: address.ip().to_string(), port: address.port() };
    let uri = AMQPUri { authority, vhost: vhost.to_owned(), ..AMQPUri::default() };
    let connecting = Connection::connect_uri(uri, ConnectionProperties::default());
    timeout(BROKER_WAIT, connecting).await.with_context(|| format!("no answer to {user}"))
}

/// Tries everything that a submitter has no business with, and who has no business at all.
async fn everything_else_is_refused(farm: &Farm, submitter: &Connection, vhost: &str) -> Result<()> {
    let (queues, exchanges) = (farm.broker.queues()?, farm.broker.exchanges()?);
    for queue in [JOBS, TASKS, "shoal.v1.sched.0", "shoal.v1.dead", "shoal.v1.results", "shoal.v1.delay.00"] {
        ensure!(queues.iter().any(|name| name == queue), "no {queue} among {queues:?}");
    }
    for (queue, deed) in queues.iter().flat_map(|queue| OF_QUEUES.map(|deed| (queue, deed))) {
        is_refused(submitter, deed, queue).await?;
    }
    for exchange in ["", SUBMIT, "amq.topic", "shoal.v1.progress", "shoal.v1.delay.end"] {
        ensure!(exchanges.iter().any(|name| name == exchange), "no {exchange} among {exchanges:?}");
    }
    for (exchange, deed) in exchanges.iter().flat_map(|exchange| OF_EXCHANGES.map(|deed| (exchange, deed))) {
        if (exchange.as_str(), deed) != (SUBMIT, Deed::Publish) {
            is_refused(submitter, deed, exchange).await?;
        }
    }
    // Nor may it have queues and exchanges of its own; the broker would make up the empty name.
    for (deed, name) in [(Deed::DeclareQueue, ""), (Deed::DeclareQueue, "mine"), (Deed::DeclareExchange, "mine")] {
        is_refused(submitter, deed, name).await?;
    }
    for who in [(SUBMITTER, "a wrong password"), (SUBMITTER, ""), ("nobody", PASSWORD), ("", ""), (SUBMITTER, SUBMITTER)] {
        let Err(error) = login(farm, who, vhost).await? else { bail!("{who:?} got in") };
        ensure!(refusal(&error) == Some(ACCESS_REFUSED), "{who:?}: {error}");
    }
    let Err(error) = login(farm, (SUBMITTER, PASSWORD), "/").await? else { bail!("another virtual host let it in") };
    ensure!(refusal(&error) == Some(NOT_ALLOWED), "{error}");
    Ok(())
}

/// The commands of a section of `deploy/README.md`.
fn commands(section: &str) -> Result<String> {
    let readme = fs::read_to_string(root().join("deploy/README.md"))?;
    let (_, rest) = readme.split_once(&format!("\n## {section}\n")).with_context(|| format!("no section: {section}"))?;
    let text = rest.split("\n## ").next().unwrap_or_default();
    Ok(text.lines().filter_map(|line| line.strip_prefix("    ")).map(|line| format!("{line}\n")).collect())
}

#[test]
fn who_may_only_submit_can_do_nothing_else_on_the_broker() -> Result<()> {
    let mut farm = two_tenants()?;
    let _scheduler = farm.scheduler()?;
    fs::write(farm.folder.path().join(PASSWORD_FILE), format!("{PASSWORD}\n"))?;
    let commands = commands("A user who may only submit")?;
    ensure!(commands.lines().count() == 4 && commands.contains(PASSWORD_FILE), "{commands}");
    farm.broker.shell(&commands, farm.folder.path())?;
    let url = farm.broker.url();
    let vhost = url.rsplit('/').next().context("a virtual host")?;
    let runtime = Runtime::new()?;
    let submitter = runtime.block_on(login(&farm, (SUBMITTER, PASSWORD), vhost))??;
    runtime.block_on(everything_else_is_refused(&farm, &submitter, vhost))?;

    // What it may: a job of a tenant whose place it is, and one that is refused. Copies for other queues are not made.
    let copies = [TASKS, "shoal.v1.sched.0", "shoal.v1.dead"].map(|queue| AMQPValue::LongString(queue.into()));
    let mut headers = FieldTable::default();
    for name in ["CC", "BCC"] {
        headers.insert(name.into(), AMQPValue::FieldArray(FieldArray::from(copies.to_vec())));
    }
    let mut good = message("sent", &farm.url("b/film.mp4")?, &farm.url("b/output-by-queue/")?);
    let mut bad = message("sent-too", &farm.url("b/film.mp4")?, &farm.url("a/output-by-queue/")?);
    for message in [&mut good, &mut bad] {
        message["tenant"] = "b".into();
        let (body, headers) = (message.to_string(), headers.clone());
        let sent = runtime.block_on(async {
            let channel = submitter.create_channel().await?;
            publish(&channel, (SUBMIT, TASKS), body.as_bytes(), headers).await
        })?;
        ensure!(sent == Confirmation::Ack(None), "{sent:?}");
    }
    farm.until("the job is taken in", || Ok(farm.object("state/jobs/sent/spec.json")?.is_some()))?;
    farm.until("the other is refused", || Ok(!farm.broker.peek("shoal.v1.dead")?.is_empty()))?;
    let dead = farm.broker.peek("shoal.v1.dead")?;
    let letters: Vec<DeadLetter> = dead.iter().map(|body| serde_json::from_slice(body)).collect::<Result<_, _>>()?;
    ensure!(letters.len() == 1 && letters.iter().all(|letter| letter.reason.contains("output.url")), "{letters:?}");
    ensure!(farm.object("state/jobs/sent-too/spec.json")?.is_none());
    let is_copy = |body: &Vec<u8>| String::from_utf8_lossy(body).contains("output-by-queue");
    ensure!(!farm.broker.peek(TASKS)?.iter().any(is_copy), "a job message is among the tasks");

    // The pages of the server are not for it either.
    let basic = format!("Authorization: Basic {}", STANDARD.encode(format!("{SUBMITTER}:{PASSWORD}")));
    for path in ["/api/overview", "/api/definitions", "/api/queues", "/api/connections", &format!("/api/queues/{vhost}/{JOBS}")] {
        let said = ask(&farm.broker.management().to_string(), ("GET", path), std::slice::from_ref(&basic), "")?;
        ensure!(said.status == 401, "{path}: {}", said.whole);
    }
    Ok(())
}
