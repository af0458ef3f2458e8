//! Workers by a clock that is turned.

use super::*;

fn presence(worker: &Token, running: u32, duty: Duty) -> Presence {
    let version = "0.1.0".to_owned();
    Presence { worker: worker.clone(), version, slots: 4, running, duty, devices: Vec::new(), speed: None }
}

fn running(workers: &Workers, now_ms: u64) -> Vec<u32> {
    workers.now(now_ms).map(|presence| presence.running).collect()
}

#[test]
fn a_worker_is_there_as_long_as_it_says_so_and_is_what_it_said_last() {
    let (mut workers, one, other) = (Workers::default(), Token::random(), Token::random());
    workers.note(presence(&one, 1, Duty::Taking), 0);
    workers.note(presence(&other, 7, Duty::Draining), 20_000);
    assert_eq!((workers.count(Duty::Taking, 29_999), workers.count(Duty::Draining, 29_999)), (1, 1));
    assert_eq!(running(&workers, 30_000), [7], "the other was heard later");
    workers.note(presence(&other, 6, Duty::Draining), 40_000);
    assert_eq!(running(&workers, 69_999), [6]);
    workers.expire(69_999);
    assert_eq!(workers.heard.len(), 1);
    workers.expire(70_000);
    assert!(workers.heard.is_empty());
}

#[test]
fn there_is_a_limit_to_them_and_those_that_are_there_are_heard_all_the_same() {
    let (mut workers, first) = (Workers::default(), Token::random());
    workers.note(presence(&first, 1, Duty::Taking), 0);
    for _ in 0..2 * WORKERS_MAX {
        workers.note(presence(&Token::random(), 2, Duty::Taking), 10_000);
    }
    assert_eq!(workers.heard.len(), WORKERS_MAX);
    workers.note(presence(&first, 3, Duty::Taking), 10_000);
    assert_eq!(workers.heard.get(&first).map(|heard| heard.presence.running), Some(3));
    workers.expire(40_000);
    workers.note(presence(&Token::random(), 4, Duty::Taking), 40_000);
    assert_eq!(running(&workers, 40_000), [4], "there is room again");
}

#[test]
fn what_no_worker_says_is_not_heard() {
    let mut workers = Workers::default();
    let unsound = Presence { version: "x".repeat(1 << 20), ..presence(&Token::random(), 1, Duty::Taking) };
    workers.note(unsound, 0);
    assert_eq!(running(&workers, 0), [0_u32; 0]);
}
