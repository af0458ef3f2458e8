//! Attempts with children that misbehave in every way we know. The children are this test program, started again.

use super::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::process::Command;

use farm::Class;
use farm::job::JobSpec;
use farm::storage::{Storage, Stores};
use farm::task::Token;
use tempfile::TempDir;
use url::Url;

use crate::child::take_socket;
use crate::retry::Patience;
use crate::testing::{child_command, pattern, plan, test_child, video_order};
use crate::work::{self, Storing};
use farm::task::TaskId;

/// What a child does that does not follow the rules. The well-behaved ones are in [`crate::testing`].
fn misbehave(how: &str) {
    if how == "unfit" {
        std::process::exit(i32::from(crate::child::run_with(|_, _, _| unreachable!())));
    }
    let mut socket = take_socket().expect("started by an attempt");
    let say = |mut socket: &StdUnixStream, header: &str, payload: &[u8]| {
        let all = (4 + header.len() + payload.len()) as u32;
        let lengths = [all.to_le_bytes(), (header.len() as u32).to_le_bytes()].concat();
        // The parent may have hung up by now, which is what it should do.
        let _ = socket.write_all(&[&lengths, header.as_bytes(), payload].concat());
    };
    let read = |offset: u64, len: u64| format!(r#"{{"read":{{"offset":{offset},"len":{len}}}}}"#);
    match how {
        "exit-0" => std::process::exit(0),
        "exit-7" => {
            writeln!(std::io::stderr(), "all is well\nthe \u{1b}[31mlast words\n").expect("written");
            std::process::exit(7);
        }
        "flood-stderr" => {
            for _ in 0..200 {
                std::io::stderr().write_all(&[b'x'; 64 << 10]).expect("written");
            }
            std::process::exit(5);
        }
        "segv" => crash(),
        "abort" => std::process::abort(),
        "leave-behind" => {
            // A process of the same group that outlives this one and holds its stderr and socket.
            Command::new("/bin/sleep").arg("1000").spawn().expect("started");
            std::process::exit(0);
        }
        "beyond" => say(&socket, &read(u64::MAX - 1, 100), &[]),
        "greedy" => say(&socket, &read(0, 5 << 20), &[]),
        "other-rendition" => say(&socket, r#"{"init":{"rendition":7,"timescale":1}}"#, b"x"),
        "segment-first" => say(&socket, r#"{"segment":{"rendition":0,"segment":{"ticks":1,"samples":1,"bytes":1}}}"#, b"x"),
        "done-at-once" => {
            say(&socket, r#"{"done":{"encoded":{"kept":0,"dropped":0,"filled":0,"missing":0,"decode_errors":0}}}"#, &[]);
        }
        "claims-interruption" => say(&socket, r#"{"failed":{"code":"interrupted","message":"stop"}}"#, &[]),
        "huge" => socket.write_all(&[255; 16]).expect("written"),
        "garbage" => say(&socket, "{]", &[]),
        "deaf" => {
            for _ in 0..20 {
                say(&socket, &read(0, 1 << 20), &[]);
            }
        }
        "endless-reads" => {
            let mut sink = vec![0; 1 << 20];
            loop {
                say(&socket, &read(0, 4 << 20), &[]);
                if socket.read(&mut sink).is_err() {
                    break;
                }
            }
        }
        _ => {}
    }
    // Silent from here on, until killed.
    loop {
        std::thread::park();
    }
}

fn crash() {
    #[expect(unsafe_code, reason = "a true crash")]
    // SAFETY: none: it is to crash.
    unsafe {
        std::ptr::without_provenance_mut::<u8>(8).write_volatile(1);
    }
}

#[test]
#[ignore = "the other side of the tests here: they start it"]
fn child() {
    let how = std::env::args().next_back().unwrap_or_default();
    if std::env::var_os(crate::process::PARENT_VARIABLE).is_some() {
        test_child(&how);
        misbehave(&how);
    }
}

struct Bench {
    folder: TempDir,
    source: Source,
}

impl Bench {
    const SOURCE_BYTES: u64 = (3 << 20) + 123;

    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("source.bin");
        std::fs::write(&path, pattern(0..Self::SOURCE_BYTES)).expect("written");
        let url = |path: &Path| Url::from_file_path(path).expect("absolute");
        let source = Source::open(
            &JobSpec::new(url(&path), url(folder.path())).source,
            (&Stores::default(), &farm::outbound::Reach::Anywhere),
            Patience::Short,
        )
        .await
        .expect("readable");
        Self { folder, source }
    }

    async fn attempt(&self, how: &str, order: &Order) -> (Result<(Done, Cost), Failure>, Vec<u64>) {
        let spawner = Spawner::start().expect("a thread");
        let output = Storage::folder(&self.folder.path().join("out"));
        let encode = work::encode(&plan(), &TaskId::Video(0)).expect("a task of the plan");
        let mut uploads = Uploads::new(output, Storing::Segments, Token::random(), encode.renditions);
        let mut told = Vec::new();
        let mut progress = |media_ns| told.push(media_ns);
        let attempt = Attempt {
            spawner: &spawner,
            command: &child_command(how),
            urgency: Urgency::Usual,
            // Short where it is awaited; elsewhere longer than a busy machine takes to start a program.
            stall: Duration::from_millis(if ["hang", "deaf"].contains(&how) { 1500 } else { 30_000 }),
            order,
            source: &self.source,
            sink: Sink::Media(&mut uploads),
            progress: &mut progress,
        };
        let done = tokio::time::timeout(Duration::from_secs(60), attempt.run()).await.expect("an attempt ends");
        uploads.abandon().await;
        (done, told)
    }
}

#[tokio::test]
async fn an_honest_child_reads_every_byte_and_hands_out_everything() {
    let bench = Bench::new().await;
    let (done, told) = bench.attempt("honest", &video_order()).await;
    let (done, cost) = done.expect("done");
    assert!(matches!(done, Done::Encoded(account) if account.kept == 100), "{done:?}");
    assert!(cost.rss_kib > 1000 && cost.wall_ms > 0, "{cost:?}");
    assert_eq!(told, [4_000_000_000]);
}

#[tokio::test]
async fn a_probe_makes_no_media() {
    let bench = Bench::new().await;
    let (done, _) = bench.attempt("honest", &Order::Probe).await;
    assert!(matches!(done, Ok((Done::Probed(info), _)) if info.bytes == Bench::SOURCE_BYTES));
}

#[tokio::test]
async fn every_bad_end_is_the_right_failure() {
    let bench = Bench::new().await;
    for (how, code, words) in [
        ("failed", Code::Undecodable, "no way to decode this"),
        ("exit-0", Code::ChildCrashed, "ended without a result"),
        ("exit-7", Code::ChildCrashed, "status 7; its last words: the \\u{1b}[31mlast words"),
        ("flood-stderr", Code::ChildCrashed, "status 5; its last words: xxx"),
        ("segv", Code::ChildCrashed, "child killed by SIGSEGV"),
        ("abort", Code::ChildCrashed, "child killed by SIGABRT"),
        ("leave-behind", Code::ChildCrashed, "ended without a result"),
        ("hang", Code::ChildStalled, "said nothing for 1.5 s"),
        ("deaf", Code::ChildStalled, "took nothing for 1.5 s"),
        ("beyond", Code::ChildCrashed, "a read of 100 bytes at 18446744073709551614"),
        ("greedy", Code::ChildCrashed, "a read of 5242880 bytes"),
        ("endless-reads", Code::ChildCrashed, "a read of 4194304 bytes at 0 of a source of 3145851"),
        ("other-rendition", Code::ChildCrashed, "rendition 7, which was not ordered"),
        ("segment-first", Code::ChildCrashed, "before its init segment"),
        ("done-at-once", Code::ChildCrashed, "0 of 2 segments of rendition 0"),
        ("claims-interruption", Code::ChildCrashed, "stop"),
        ("huge", Code::ChildCrashed, "4294967295 bytes is not allowed"),
        ("garbage", Code::ChildCrashed, "cannot be understood"),
    ] {
        let (done, _) = bench.attempt(how, &video_order()).await;
        let failure = done.expect_err(how);
        assert_eq!(failure.code, code, "{how}: {failure}");
        assert!(failure.message.contains(words), "{how}: {failure}");
    }
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_said_to_be() {
    let bench = Bench::new().await;
    let spawner = Spawner::start().expect("a thread");
    let command = ChildCommand { program: "/nowhere/shoal".into(), args: Vec::new() };
    let (order, stall, progress) = (&Order::Probe, Duration::from_secs(1), &mut |_| {});
    let attempt = Attempt {
        spawner: &spawner,
        command: &command,
        urgency: Urgency::Usual,
        stall,
        order,
        source: &bench.source,
        sink: Sink::None,
        progress,
    };
    let failure = attempt.run().await.expect_err("no such program");
    assert_eq!(failure.code, Code::Internal);
    assert!(failure.message.contains("cannot be started"), "{failure}");
}

#[tokio::test]
async fn a_child_has_one_socket_and_no_environment_to_speak_of() {
    let bench = Bench::new().await;
    let (done, _) = bench.attempt("confess", &Order::Probe).await;
    let confession = done.expect_err("it only confesses").message;
    assert!(confession.contains("descriptors 0,1,2,3;"), "{confession}");
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some(), "the parent has variables that the child must not have");
    assert!(!confession.contains("CARGO") && confession.contains("SHOAL_PARENT_PID"), "{confession}");
    assert!(confession.contains("leads its group: true"), "{confession}");
}

/// What of such deeds is not refused to a child that was taken over, as root where this is root, and as an ordinary user.
async fn gets_done(deed: &str, walls: &str) -> Vec<String> {
    let bench = Bench::new().await;
    let mut confessions = Vec::new();
    for user in ["root", "nobody"] {
        let (done, _) = bench.attempt(&format!("hostile {user} {walls} {deed}"), &Order::Probe).await;
        confessions.push(done.expect_err("it only confesses").message);
    }
    confessions
}

async fn gets_nowhere(deed: &str) {
    let walls = crate::sandbox::walls();
    assert!(walls.are_enough(), "this kernel cannot show it: {walls:?}");
    for confession in gets_done(deed, "walled").await {
        assert_eq!(confession, "did [], still threads: true, still libraries: true");
    }
}

#[tokio::test]
async fn a_child_that_was_taken_over_reads_no_file() {
    gets_nowhere("read").await;
}

#[tokio::test]
async fn a_child_that_was_taken_over_learns_nothing_of_its_worker() {
    gets_nowhere("environment").await;
}

#[tokio::test]
async fn a_child_that_was_taken_over_connects_to_nobody() {
    gets_nowhere("connect").await;
}

#[tokio::test]
async fn a_child_that_was_taken_over_writes_nothing() {
    gets_nowhere("write").await;
}

#[tokio::test]
async fn a_child_that_was_taken_over_starts_no_process() {
    gets_nowhere("start").await;
}

#[tokio::test]
async fn a_child_that_was_taken_over_gets_no_more_memory_than_it_may_have() {
    gets_nowhere("memory").await;
}

#[tokio::test]
async fn a_child_that_was_taken_over_does_nothing_to_its_worker() {
    gets_nowhere("trace").await;
}

#[tokio::test]
async fn a_child_that_was_taken_over_finds_no_other_way_out() {
    gets_nowhere("escape").await;
}

/// Where drivers have to work there is more, and still nobody and nothing else.
#[tokio::test]
async fn a_child_with_a_device_that_was_taken_over_gets_no_further() {
    for deed in ["read", "environment", "connect", "write", "start", "memory", "trace", "escape"] {
        for class in [Class::Nvenc, Class::Vaapi] {
            for confession in gets_done(deed, class.word()).await {
                assert_eq!(confession, "did [], still threads: true, still libraries: true", "{deed} with {class}");
            }
        }
    }
}

/// That those deeds would be done without walls: what of them harms nothing here.
#[tokio::test]
async fn without_walls_a_child_does_what_it_likes() {
    for (deed, done) in [("read", "users"), ("connect", "TCP"), ("memory", "16 GiB")] {
        for confession in gets_done(deed, "free").await {
            assert!(confession.contains(done), "{deed}: {confession}");
        }
    }
}

/// Waits until a process is gone, reaped and all.
async fn gone(pid: u64) {
    let gone = async {
        while Path::new(&format!("/proc/{pid}")).exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the process is gone, and no zombie");
}

#[tokio::test]
async fn a_dropped_attempt_kills_and_reaps_its_child() {
    let bench = Bench::new().await;
    let spawner = Spawner::start().expect("a thread");
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let mut progress = move |pid| told.send(pid).expect("heard");
    let (command, order, stall) = (child_command("tell-pid-and-hang"), Order::Probe, Duration::from_secs(60));
    let (command, order, source, progress) = (&command, &order, &bench.source, &mut progress);
    let attempt =
        Attempt { spawner: &spawner, command, urgency: Urgency::Usual, stall, order, source, sink: Sink::None, progress };
    let pid = tokio::select! {
        done = attempt.run() => panic!("it hangs, but: {done:?}"),
        pid = heard.recv() => pid.expect("told"),
    };
    gone(pid).await;
}

/// Runs one of the tests marked to be started by others, alone in a process.
fn alone(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("known"));
    command.args(["--ignored", "--exact", &format!("attempt::tests::{test}")]);
    command
}

#[test]
#[ignore = "counts descriptors and children, so it must be alone: the next test starts it"]
fn leaks_alone() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let bench = Bench::new().await;
        let count = |path: &str| std::fs::read_dir(path).expect("listed").count();
        bench.attempt("segv", &video_order()).await.0.expect_err("a crash");
        let before = count("/proc/self/fd");
        for how in ["segv", "exit-0", "huge", "hang", "leave-behind", "honest"].repeat(3) {
            let _ = bench.attempt(how, &video_order()).await;
        }
        let fds = std::fs::read_dir("/proc/self/fd").expect("listed").flatten();
        let names: Vec<_> = fds.map(|fd| std::fs::read_link(fd.path())).collect();
        assert_eq!(names.len(), before, "descriptors are left over: {names:?}");
        let tasks = std::fs::read_dir("/proc/self/task").expect("listed").flatten();
        let children: String = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok()).collect();
        assert_eq!(children.trim(), "", "children are left over");
    });
}

#[test]
fn many_bad_ends_leave_neither_descriptors_nor_children() {
    let done = alone("leaks_alone").output().expect("started");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    assert!(String::from_utf8_lossy(&done.stdout).contains("1 passed"), "the test ran");
}

#[test]
#[ignore = "is killed by the next test, which starts it"]
fn parent_to_be_killed() {
    let Some(path) = std::env::var_os("SHOAL_TEST_PID_FILE") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let bench = Bench::new().await;
        let spawner = Spawner::start().expect("a thread");
        let mut progress = |pid: u64| {
            let path = Path::new(&path);
            std::fs::write(path.with_extension("part"), pid.to_string()).expect("written");
            std::fs::rename(path.with_extension("part"), path).expect("renamed");
        };
        let (command, order, stall) = (child_command("tell-pid-and-hang"), Order::Probe, Duration::from_secs(60));
        let (command, order, source, progress) = (&command, &order, &bench.source, &mut progress);
        let attempt =
            Attempt { spawner: &spawner, command, urgency: Urgency::Usual, stall, order, source, sink: Sink::None, progress };
        attempt.run().await.expect_err("killed before");
    });
}

#[tokio::test]
async fn a_child_dies_with_its_parent() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("pid");
    let mut parent = alone("parent_to_be_killed").env("SHOAL_TEST_PID_FILE", &path).spawn().expect("started");
    let told = async {
        loop {
            match std::fs::read_to_string(&path) {
                Ok(pid) => break pid.parse::<u64>().expect("a number"),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let pid = tokio::time::timeout(Duration::from_secs(20), told).await.expect("the child starts");
    assert!(Path::new(&format!("/proc/{pid}")).exists(), "it lives");
    parent.kill().expect("killed");
    parent.wait().expect("reaped");
    // Nobody here is its parent now: whoever is reaps it, or it stays a zombie; dead it is either way.
    let dead = async {
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        while state().rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X'])) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), dead).await.expect("it dies with its parent");
}
