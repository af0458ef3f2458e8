//! The broker port when things go wrong: connections cut and stalled, the server killed, frozen, wiped, full, and short of disk.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use farm::broker::{Broker, BrokerError, Consumer, DeadLetter, Delivery, Queue};
use farm::job::JobId;
use farm::task::{Progress, TaskId, Token, Word};
use tests::process;
use tests::proxy::{Mode, Proxy};
use tests::rabbit::{Server, Vhost, shared};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Longest wait for what must come: the longest pause between two connections, and time to find out.
const ARRIVAL_TIME_MAX: Duration = Duration::from_secs(60);
/// How long to wait for what must not come, where nothing else can show it.
const SILENCE: Duration = Duration::from_millis(500);

const JOBS: &str = "shoal.v1.jobs";
const TASKS: &str = "shoal.v1.tasks.cpu";

async fn connect(vhost: &Vhost) -> Result<Broker> {
    Ok(Broker::connect(&vhost.url().parse()?).await?)
}

/// A broker behind a proxy, which notices within 2 s that the other side is silent.
async fn connect_by(proxy: &Proxy, vhost: &Vhost) -> Result<Broker> {
    let url = format!("{}?heartbeat=1", vhost.url_by(proxy.address()));
    Ok(Broker::connect(&url.parse()?).await?)
}

async fn next(consumer: &mut Consumer) -> Result<Delivery> {
    Ok(timeout(ARRIVAL_TIME_MAX, consumer.next()).await.context("no message came")??)
}

async fn take(consumer: &mut Consumer) -> Result<u32> {
    let delivery = next(consumer).await?;
    let message = delivery.read()?;
    delivery.ack().await?;
    Ok(message)
}

/// Takes messages until each below `count` has come, once or more often.
async fn take_all(consumer: &mut Consumer, count: u32) -> Result<()> {
    let mut seen = BTreeSet::new();
    while seen.len() < count as usize {
        seen.insert(take(consumer).await?);
    }
    ensure!(seen.iter().copied().eq(0..count), "others came: {seen:?}");
    Ok(())
}

async fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    let before = Instant::now();
    while !holds() {
        ensure!(before.elapsed() < limit, "not within {limit:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

fn unavailable<T>(result: Result<T, BrokerError>) -> Result<String> {
    match result {
        Err(BrokerError::Unavailable(why)) => Ok(why),
        Err(other) => bail!("{other}"),
        Ok(_) => bail!("it worked"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_publishes_through_cut_connections_none_is_lost() -> Result<()> {
    const MESSAGES: u32 = 1000;
    let vhost = shared()?;
    let proxy = Proxy::start(vhost.address())?;
    let broker = connect_by(&proxy, &vhost).await?;
    let confirmed = Arc::new(AtomicUsize::new(0));
    let mut publishers = JoinSet::new();
    for part in 0..8 {
        let (broker, confirmed) = (broker.clone(), confirmed.clone());
        publishers.spawn(async move {
            for n in (0..MESSAGES).filter(|n| n % 8 == part) {
                broker.publish(Queue::Tasks(farm::Class::Cpu), &n).await?;
                confirmed.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    for cut in 1..=4 {
        until("confirms", ARRIVAL_TIME_MAX, || confirmed.load(Ordering::Relaxed) >= cut * 200).await?;
        proxy.cut_once();
    }
    publishers.join_all().await.into_iter().collect::<Result<()>>()?;
    ensure!(broker.stats().reconnects >= 4, "{:?}", broker.stats());
    take_all(&mut connect(&vhost).await?.consume(Queue::Tasks(farm::Class::Cpu)).await?, MESSAGES).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_of_a_cut_connection_is_no_longer_ours_and_comes_again() -> Result<()> {
    let vhost = shared()?;
    let proxy = Proxy::start(vhost.address())?;
    let broker = connect_by(&proxy, &vhost).await?;
    let mut consumer = broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    for n in 0..3_u32 {
        broker.publish(Queue::Tasks(farm::Class::Cpu), &n).await?;
    }
    let held = next(&mut consumer).await?;
    proxy.cut_once();
    until("both connections are made again", ARRIVAL_TIME_MAX, || broker.stats().reconnects == 2).await?;
    let lost = held.ack().await;
    ensure!(matches!(lost, Err(BrokerError::LostLease)), "{lost:?}");
    let again = next(&mut consumer).await?;
    ensure!(again.read::<u32>()? == 0);
    proxy.cut_once();
    until("both connections are made again", ARRIVAL_TIME_MAX, || broker.stats().reconnects == 4).await?;
    let lost = again.reject("too late").await;
    ensure!(matches!(lost, Err(BrokerError::LostLease)), "{lost:?}");
    take_all(&mut consumer, 3).await?;
    let mut dead = broker.consume(Queue::Dead).await?;
    ensure!(timeout(SILENCE, dead.next()).await.is_err(), "a lost delivery was rejected");
    Ok(())
}

/// Whoever works on takes nothing more, also not over a new connection: the others get it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_consumer_whose_connection_was_lost_holds_no_second_message() -> Result<()> {
    let vhost = shared()?;
    let proxy = Proxy::start(vhost.address())?;
    let (broker, other) = (connect_by(&proxy, &vhost).await?, connect(&vhost).await?);
    let mut busy = broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    for n in 0..3_u32 {
        other.publish(Queue::Tasks(farm::Class::Cpu), &n).await?;
    }
    let held = next(&mut busy).await?;
    ensure!(held.is_ours());
    proxy.cut_once();
    until("both connections are made again", ARRIVAL_TIME_MAX, || broker.stats().reconnects == 2).await?;
    ensure!(!held.is_ours(), "the delivery went with its connection");
    // Longer than a subscription takes.
    sleep(Duration::from_secs(2)).await;
    let ready = |info: farm::broker::BrokerInfo| info.queues.iter().find(|queue| queue.name == TASKS).map(|queue| queue.ready);
    ensure!(ready(other.check().await?) == Some(3), "one waits with the busy consumer");
    take_all(&mut other.consume(Queue::Tasks(farm::Class::Cpu)).await?, 3).await?;
    ensure!(matches!(held.ack().await, Err(BrokerError::LostLease)));
    // When it is free again, it takes as before.
    broker.publish(Queue::Tasks(farm::Class::Cpu), &9_u32).await?;
    ensure!(take(&mut busy).await? == 9);
    Ok(())
}

/// A link that is silent, with its connections open: nobody says that anything is wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_connection_is_found_out_and_replaced() -> Result<()> {
    let vhost = shared()?;
    let proxy = Proxy::start(vhost.address())?;
    let (broker, other) = (connect_by(&proxy, &vhost).await?, connect(&vhost).await?);
    let mut consumer = broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    other.publish(Queue::Tasks(farm::Class::Cpu), &0_u32).await?;
    let held = next(&mut consumer).await?;
    proxy.set(Mode::Stall);
    let publishing = {
        let broker = broker.clone();
        tokio::spawn(async move { broker.publish(Queue::Tasks(farm::Class::Cpu), &1_u32).await })
    };
    until("the stall is found out", Duration::from_secs(15), || !broker.stats().connected).await?;
    // The broker has taken the delivery back by now, or will soon; another worker has it.
    let mut elsewhere = other.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    ensure!(take(&mut elsewhere).await? == 0);
    drop(elsewhere);
    proxy.set(Mode::Pass);
    until("both connections are made again", ARRIVAL_TIME_MAX, || broker.stats().reconnects >= 2).await?;
    let late = held.ack().await;
    ensure!(matches!(late, Err(BrokerError::LostLease)), "{late:?}");
    publishing.await??;
    ensure!(take(&mut consumer).await? == 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_connection_is_no_lost_one() -> Result<()> {
    let vhost = shared()?;
    let proxy = Proxy::start(vhost.address())?;
    let broker = connect_by(&proxy, &vhost).await?;
    let mut consumer = broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    proxy.set(Mode::Throttle(20_000));
    let message = "x".repeat(60_000);
    broker.publish(Queue::Tasks(farm::Class::Cpu), &message).await?;
    let delivery = next(&mut consumer).await?;
    ensure!(delivery.read::<String>()? == message);
    delivery.ack().await?;
    ensure!(broker.stats().reconnects == 0, "{:?}", broker.stats());
    Ok(())
}

/// Connections that are taken and closed at once, as a load balancer without a server does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_waits_for_an_outage_but_not_for_ever() -> Result<()> {
    let vhost = shared()?;
    let proxy = Proxy::start(vhost.address())?;
    let broker = connect_by(&proxy, &vhost).await?;
    proxy.set(Mode::Cut);
    let before = Instant::now();
    let why = unavailable(timeout(ARRIVAL_TIME_MAX, broker.publish(Queue::Tasks(farm::Class::Cpu), &0_u32)).await?)?;
    ensure!((25..35).contains(&before.elapsed().as_secs()), "{:?}: {why}", before.elapsed());
    unavailable(timeout(ARRIVAL_TIME_MAX, broker.check()).await?)?;
    proxy.set(Mode::Pass);
    until("it comes back", ARRIVAL_TIME_MAX, || broker.stats().connected).await?;
    broker.publish(Queue::Tasks(farm::Class::Cpu), &1_u32).await?;
    // The first may or may not have been taken.
    let mut consumer = broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    while take(&mut consumer).await? != 1 {}
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_frozen_or_full_server_loses_nothing_that_it_confirmed() -> Result<()> {
    let mut server = Server::start()?;
    let vhost = server.vhost()?;
    let url = format!("{}?heartbeat=2", vhost.url());
    let broker = Broker::connect(&url.parse()?).await?;
    let mut consumer = broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    for n in 1..50_u32 {
        broker.publish(Queue::Tasks(farm::Class::Cpu), &n).await?;
    }
    broker.publish_later(Queue::Tasks(farm::Class::Cpu), &0_u32, Duration::from_secs(3)).await?;
    let held = next(&mut consumer).await?;
    server.kill()?;
    until("the loss is seen", ARRIVAL_TIME_MAX, || !broker.stats().connected).await?;
    server.restart()?;
    take_all(&mut consumer, 50).await?;
    ensure!(matches!(held.ack().await, Err(BrokerError::LostLease)));

    until("all connections are back", ARRIVAL_TIME_MAX, || broker.stats().connected).await?;
    server.freeze()?;
    let publishing = {
        let broker = broker.clone();
        tokio::spawn(async move { broker.publish(Queue::Tasks(farm::Class::Cpu), &0_u32).await })
    };
    until("the silence is noticed", ARRIVAL_TIME_MAX, || !broker.stats().connected).await?;
    server.thaw()?;
    publishing.await??;
    take_all(&mut consumer, 1).await?;

    until("all connections are back", ARRIVAL_TIME_MAX, || broker.stats().connected).await?;
    broker.publish(Queue::Jobs, &7_u32).await?;
    server.control(&["set_disk_free_limit", "9000GB"])?;
    let why = unavailable(broker.publish(Queue::Tasks(farm::Class::Cpu), &8_u32).await)?;
    ensure!(broker.stats().blocked, "{why}: {:?}", broker.stats());
    // Whoever only consumes is not stopped.
    ensure!(take(&mut broker.consume(Queue::Jobs).await?).await? == 7);
    server.control(&["set_disk_free_limit", "50MB"])?;
    broker.publish(Queue::Tasks(farm::Class::Cpu), &9_u32).await?;
    while take(&mut consumer).await? != 9 {}
    ensure!(!broker.stats().blocked);
    Ok(())
}

fn progress(media_ns: u64) -> Result<Word> {
    Ok(Word::Progress(Progress { job: JobId::try_from("j1".to_owned())?, task: TaskId::Probe, token: Token::random(), media_ns }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_broker_is_set_up_again_and_used() -> Result<()> {
    let vhost = shared()?;
    let broker = connect(&vhost).await?;
    let mut consumer = broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    let mut heard = broker.listen();
    broker.publish(Queue::Tasks(farm::Class::Cpu), &0_u32).await?;
    let held = next(&mut consumer).await?;
    vhost.delete()?;
    vhost.make()?;
    // What was there is gone; what comes after is not.
    broker.publish(Queue::Tasks(farm::Class::Cpu), &1_u32).await?;
    broker.publish_later(Queue::Tasks(farm::Class::Cpu), &2_u32, Duration::from_secs(1)).await?;
    ensure!(take(&mut consumer).await? == 1);
    ensure!(take(&mut consumer).await? == 2);
    ensure!(matches!(held.ack().await, Err(BrokerError::LostLease)));
    timeout(ARRIVAL_TIME_MAX, async {
        let told = progress(5)?;
        loop {
            broker.tell(told.clone());
            if let Ok(Ok(progress)) = timeout(Duration::from_millis(100), heard.recv()).await {
                ensure!(progress == told);
                return Ok(());
            }
        }
    })
    .await?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_queue_is_declared_again() -> Result<()> {
    let vhost = shared()?;
    let broker = connect(&vhost).await?;
    let mut consumer = broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    for n in 0..3_u32 {
        for queue in [TASKS, "shoal.v1.delay.00"] {
            vhost.delete_queue(queue)?;
        }
        broker.publish_later(Queue::Tasks(farm::Class::Cpu), &n, Duration::from_millis(1)).await?;
        ensure!(take(&mut consumer).await? == n);
        broker.publish(Queue::Tasks(farm::Class::Cpu), &(10 + n)).await?;
        ensure!(take(&mut consumer).await? == 10 + n);
    }
    Ok(())
}

/// One message in a crowd: it alone fails, whichever confirm its return comes with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_no_queue_takes_is_an_error_and_no_other_is() -> Result<()> {
    const ROUNDS: u32 = 10;
    let vhost = shared()?;
    let broker = connect(&vhost).await?;
    vhost.delete_queue(JOBS)?;
    vhost.permit("^$")?;
    for round in 0..ROUNDS {
        let mut publishing = JoinSet::new();
        for n in 0..8 {
            let broker = broker.clone();
            publishing.spawn(async move {
                let queue = if n == 3 { Queue::Jobs } else { Queue::Tasks(farm::Class::Cpu) };
                (queue, broker.publish(queue, &(round * 8 + n)).await)
            });
        }
        for (queue, result) in publishing.join_all().await {
            match queue {
                Queue::Jobs => {
                    let why = unavailable(result)?;
                    ensure!(why.contains("no queue"), "round {round}: {why}");
                }
                _ => result.with_context(|| format!("round {round}"))?,
            }
        }
    }
    ensure!(broker.stats().returned >= u64::from(ROUNDS), "{:?}", broker.stats());
    vhost.permit(".*")?;
    let (mut consumer, mut expected) = (broker.consume(Queue::Tasks(farm::Class::Cpu)).await?, Vec::new());
    let mut taken = Vec::new();
    for n in (0..ROUNDS * 8).filter(|n| n % 8 != 3) {
        expected.push(n);
        taken.push(take(&mut consumer).await?);
    }
    taken.sort_unstable();
    ensure!(taken == expected, "{taken:?}");
    broker.publish(Queue::Jobs, &"and now it is there").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_and_takes_again_when_there_is_room() -> Result<()> {
    let vhost = shared()?;
    let broker = connect(&vhost).await?;
    vhost.limit(JOBS, 3)?;
    let mut sent = 0_u32;
    let why = timeout(ARRIVAL_TIME_MAX, async {
        loop {
            match broker.publish(Queue::Jobs, &sent).await {
                Ok(()) => sent += 1,
                refused => return unavailable(refused),
            }
        }
    });
    ensure!(why.await??.contains("full"));
    ensure!(sent >= 3 && broker.stats().nacked >= 1, "{sent} {:?}", broker.stats());
    let mut consumer = broker.consume(Queue::Jobs).await?;
    for n in 0..sent {
        ensure!(take(&mut consumer).await? == n);
    }
    let before = Instant::now();
    while broker.publish(Queue::Jobs, &99_u32).await.is_err() {
        ensure!(before.elapsed() < ARRIVAL_TIME_MAX, "still full");
    }
    ensure!(take(&mut consumer).await? == 99);
    Ok(())
}

/// A message that kills whoever takes it; and bytes that no program of ours would send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_given_back_too_often_ends_on_the_dead_queue() -> Result<()> {
    let vhost = shared()?;
    let broker = connect(&vhost).await?;
    let mut dead = broker.consume(Queue::Dead).await?;
    vhost.publish(JOBS, b"poison \xff")?;
    let mut consumer = broker.consume(Queue::Jobs).await?;
    let mut deliveries = 0;
    let delivery = loop {
        tokio::select! {
            given = next(&mut consumer) => {
                ensure!(given?.body() == b"poison \xff");
                deliveries += 1;
            }
            letter = next(&mut dead) => break letter?,
        }
    };
    ensure!((20..=22).contains(&deliveries), "{deliveries} deliveries");
    let letter: DeadLetter = delivery.read()?;
    ensure!(
        letter.body == "poison \u{fffd}" && letter.reason.contains("too often") && letter.reason.contains(JOBS),
        "{letter:?}"
    );
    // Given back, it comes as it came.
    drop(delivery);
    let delivery = next(&mut dead).await?;
    ensure!(delivery.read::<DeadLetter>()? == letter);
    delivery.ack().await?;
    ensure!(timeout(SILENCE, consumer.next()).await.is_err(), "it came again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_schedulers_one_gets_events_and_the_other_takes_over() -> Result<()> {
    let vhost = shared()?;
    let (first, second) = (connect(&vhost).await?, connect(&vhost).await?);
    let mut active = first.consume(Queue::Events).await?;
    let mut standby = second.consume(Queue::Events).await?;
    for n in 0..10_u32 {
        second.publish(Queue::Events, &n).await?;
    }
    for n in 0..5 {
        ensure!(take(&mut active).await? == n);
    }
    ensure!(timeout(SILENCE, standby.next()).await.is_err(), "two get events");
    // What the active one holds and has not settled is not lost with it.
    let held = next(&mut active).await?;
    drop((active, held, first));
    let mut taken = Vec::new();
    for _ in 5..10 {
        taken.push(take(&mut standby).await?);
    }
    taken.sort_unstable();
    ensure!(taken == [5, 6, 7, 8, 9], "{taken:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_says_who_is_there_and_an_error_holds_no_secret() -> Result<()> {
    let vhost = shared()?;
    let broker = connect(&vhost).await?;
    broker.publish(Queue::Jobs, &1_u32).await?;
    let _waiting = broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    let info = broker.check().await?;
    ensure!(info.product == "RabbitMQ" && info.version.starts_with(|c: char| c.is_ascii_digit()), "{info:?}");
    let at = |name: &str| info.queues.iter().find(|queue| queue.name == name).map(|queue| (queue.ready, queue.consumers));
    ensure!(at(JOBS) == Some((1, 0)) && at(TASKS) == Some((0, 1)), "{info:?}");
    ensure!(broker.stats().acked == 1 && broker.stats().connected);

    let wrong = vhost.url().replace("guest:guest", "guest:s3cr3t");
    let why = unavailable(Broker::connect(&wrong.parse()?).await)?;
    ensure!(why.contains("ACCESS_REFUSED") && why.contains("127.0.0.1") && !why.contains("s3cr3t"), "{why}");
    let nobody = format!("amqp://guest:s3cr3t@{}", std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?);
    let why = unavailable(Broker::connect(&nobody.parse()?).await)?;
    ensure!(why.contains("refused") && !why.contains("s3cr3t"), "{why}");
    unavailable(Broker::connect(&"redis://x".parse()?).await)?;
    let missing = vhost.url().replace("/test-", "/no-test-");
    let why = unavailable(Broker::connect(&missing.parse()?).await)?;
    ensure!(why.contains("vhost"), "{why}");
    Broker::connect(&"local:".parse()?).await?.check().await?;
    Ok(())
}

/// Names the URL that the child process of the next test connects to.
const CHILD_URL: &str = "SHOAL_TEST_BROKER_URL";

/// Body of the child process: which certificates are trusted is a matter of the environment. Passes at once when it is not that
/// child.
#[tokio::test]
async fn client_with_a_broker_of_its_own() -> Result<()> {
    let Ok(url) = std::env::var(CHILD_URL) else { return Ok(()) };
    let broker = Broker::connect(&url.parse()?).await?;
    let mut consumer = broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    broker.publish(Queue::Tasks(farm::Class::Cpu), &1_u32).await?;
    ensure!(take(&mut consumer).await? == 1);
    ensure!(broker.check().await?.product == "RabbitMQ");
    Ok(())
}

#[test]
fn an_encrypted_connection_is_made_to_a_server_that_is_trusted_and_to_no_other() -> Result<()> {
    let vhost = shared()?;
    let client = |certificates: &std::path::Path| {
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.args(["--exact", "client_with_a_broker_of_its_own"]);
        command.env(CHILD_URL, vhost.encrypted_url()).env("SSL_CERT_FILE", certificates).env_remove("SSL_CERT_DIR");
        process::run(&mut command, ARRIVAL_TIME_MAX)
    };
    client(&vhost.certificate())?.success()?;
    let other = tempfile::NamedTempFile::new()?;
    std::fs::write(other.path(), rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?.cert.pem())?;
    let refused = client(other.path())?;
    let said = refused.text() + &refused.stderr;
    ensure!(!refused.status.success() && said.contains("certificate"), "{said}");
    Ok(())
}
