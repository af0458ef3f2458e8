//! What clouds say, in the words of their documentation and in others, and what is made of it.

use proptest::prelude::{any, prop, prop_assert, proptest};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const TERMINATE: &[u8] = br#"{"action": "terminate", "time": "2017-09-18T08:22:00Z"}"#;

/// From <https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events>, but for the type of the event.
const PREEMPT: &str = r#"{
    "DocumentIncarnation":  1,
    "Events":  [
                   {
                       "EventId":  "C7061BAC-AFDC-4513-B24B-AA5F13A16123",
                       "EventStatus":  "Scheduled",
                       "EventType":  "Preempt",
                       "ResourceType":  "VirtualMachine",
                       "Resources":  [
                                         "WestNO_0",
                                         "WestNO_1"
                                     ],
                       "NotBefore":  "Mon, 11 Apr 2022 22:26:58 GMT",
                       "Description":  "Virtual machine is being deallocated.",
                       "EventSource":  "Platform",
                       "DurationInSeconds":  -1
                   }
               ]
}"#;

fn at(time: &str) -> SystemTime {
    httpdate::parse_http_date(time).expect("a time")
}

/// Half a minute before the event of [`PREEMPT`].
fn before_event() -> SystemTime {
    at("Mon, 11 Apr 2022 22:26:28 GMT")
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn ec2_tells_when_a_spot_machine_goes() {
    let now = at("Mon, 18 Sep 2017 08:20:30 GMT");
    for action in ["stop", "terminate", "hibernate"] {
        let body = json!({"action": action, "time": "2017-09-18T08:22:00Z"}).to_string();
        assert_eq!(ec2(body.as_bytes(), now), Ok(seconds(90)), "{action}");
    }
    let more = json!({"action": "terminate", "time": "2017-09-18T10:22:00+02:00", "reason": {"code": 1}}).to_string();
    assert_eq!(ec2(more.as_bytes(), now), Ok(seconds(90)));
    assert_eq!(ec2(TERMINATE, at("Mon, 18 Sep 2017 07:00:00 GMT")), Ok(EC2_NOTICE), "a slow clock gains nothing");
    assert_eq!(ec2(TERMINATE, at("Mon, 18 Sep 2017 09:00:00 GMT")), Ok(Duration::ZERO), "it is late");
}

#[test]
fn what_ec2_does_not_say_is_no_notice() {
    let now = at("Mon, 18 Sep 2017 08:20:30 GMT");
    for body in [
        "",
        "null",
        "[]",
        "{}",
        "terminate",
        "<html><head><title>404 - Not Found</title></head><body>terminate 2017-09-18T08:22:00Z</body></html>",
        // A recommendation to rebalance.
        r#"{"noticeTime": "2020-11-05T08:22:00Z"}"#,
        r#"{"action": "terminate"}"#,
        r#"{"time": "2017-09-18T08:22:00Z"}"#,
        r#"{"action": null, "time": "2017-09-18T08:22:00Z"}"#,
        r#"{"action": "none", "time": "2017-09-18T08:22:00Z"}"#,
        r#"{"action": "TERMINATE", "time": "2017-09-18T08:22:00Z"}"#,
        r#"{"action": "terminate", "time": 1505722920}"#,
        r#"{"action": "terminate", "time": ""}"#,
        r#"{"action": "terminate", "time": "soon"}"#,
        r#"{"action": "terminate", "time": "2017-09-31T08:22:00Z"}"#,
        r#"{"action": "terminate", "time": "2017-09-18T08:22:00"}"#,
        r#"[{"action": "terminate", "time": "2017-09-18T08:22:00Z"}]"#,
    ] {
        assert_eq!(ec2(body.as_bytes(), now), Err(Unheard::Senseless), "{body}");
    }
}

#[test]
fn google_cloud_tells_that_a_machine_goes() {
    for (body, told) in [
        ("TRUE", Ok(Some(GCP_NOTICE))),
        ("TRUE\n", Ok(Some(GCP_NOTICE))),
        ("FALSE", Ok(None)),
        ("FALSE\r\n", Ok(None)),
        ("", Err(Unheard::Senseless)),
        ("true", Err(Unheard::Senseless)),
        ("\"TRUE\"", Err(Unheard::Senseless)),
        ("TRUE FALSE", Err(Unheard::Senseless)),
        ("<html>TRUE</html>", Err(Unheard::Senseless)),
        // As `maintenance-event` answers, which is another question.
        ("NONE", Err(Unheard::Senseless)),
        ("MIGRATE_ON_HOST_MAINTENANCE", Err(Unheard::Senseless)),
        ("TERMINATE_ON_HOST_MAINTENANCE", Err(Unheard::Senseless)),
    ] {
        assert_eq!(gcp(body.as_bytes()), told, "{body}");
    }
}

#[test]
fn azure_tells_what_is_to_become_of_which_machine() {
    let none = r#"{"DocumentIncarnation": 2, "Events": []}"#;
    assert_eq!(azure(none.as_bytes(), None, before_event()), Ok(None));
    let names =
        [(Some("WestNO_1"), true), (Some("westno_0"), true), (None, true), (Some("WestNO_2"), false), (Some("West"), false)];
    for (name, goes) in names {
        let told = azure(PREEMPT.as_bytes(), name, before_event());
        assert_eq!(told, Ok(goes.then_some(seconds(30))), "{name:?}");
    }
    let late = at("Mon, 11 Apr 2022 23:00:00 GMT");
    assert_eq!(azure(PREEMPT.as_bytes(), None, late), Ok(Some(Duration::ZERO)));
    for (kind, scheduled, started) in [
        ("Preempt", true, true),
        ("Terminate", true, true),
        ("Reboot", true, false),
        ("Redeploy", true, false),
        ("Freeze", false, false),
        ("Party", false, false),
        ("preempt", false, false),
    ] {
        let of_kind = PREEMPT.replace("\"Preempt\"", &format!("\"{kind}\""));
        let told = azure(of_kind.as_bytes(), Some("WestNO_0"), before_event());
        assert_eq!(told, Ok(scheduled.then_some(seconds(30))), "{kind}");
        let under_way = of_kind.replace("\"Scheduled\"", "\"Started\"").replace("Mon, 11 Apr 2022 22:26:58 GMT", "");
        let told = azure(under_way.as_bytes(), Some("WestNO_0"), before_event());
        assert_eq!(told, Ok(started.then_some(Duration::ZERO)), "{kind}, under way");
    }
}

fn event(kind: &str, resource: &str, not_before: &str) -> serde_json::Value {
    json!({"EventType": kind, "EventStatus": "Scheduled", "Resources": [resource], "NotBefore": not_before})
}

#[test]
fn of_several_events_of_azure_the_first_counts() {
    let events = json!({"Events": [
        event("Freeze", "me", "Mon, 11 Apr 2022 22:26:29 GMT"),
        event("Reboot", "me", "Mon, 11 Apr 2022 22:41:28 GMT"),
        event("Preempt", "other", "Mon, 11 Apr 2022 22:26:30 GMT"),
        event("Terminate", "me", "Mon, 11 Apr 2022 22:31:28 GMT"),
        event("Freeze", "me", "what nobody reads"),
    ]});
    assert_eq!(azure(events.to_string().as_bytes(), Some("me"), before_event()), Ok(Some(seconds(300))));
}

#[test]
fn what_azure_does_not_say_is_no_notice() {
    for body in [
        "",
        "null",
        "[]",
        "{}",
        r#"{"Events": null}"#,
        r#"{"Events": {}}"#,
        r#"{"Events": [null]}"#,
        r#"{"Events": [{}]}"#,
        r#"{"Events": ["Preempt"]}"#,
        r#"{"Events": [{"EventType": "Preempt"}]}"#,
        r#"{"Events": [{"EventType": "Preempt", "EventStatus": "Scheduled"}]}"#,
        r#"{"Events": [{"EventType": "Preempt", "EventStatus": "Scheduled", "NotBefore": null}]}"#,
        r#"{"Events": [{"EventType": "Preempt", "EventStatus": "Scheduled", "NotBefore": "soon"}]}"#,
        r#"{"Events": [{"EventType": "Preempt", "EventStatus": "Scheduled", "NotBefore": 1649716018}]}"#,
        r#"{"Events": [{"EventType": "Preempt", "EventStatus": "Scheduled", "Resources": "all"}]}"#,
        r#"{"error": "Bad request: api-version"}"#,
    ] {
        assert_eq!(azure(body.as_bytes(), None, before_event()), Err(Unheard::Senseless), "{body}");
    }
    let done = PREEMPT.replace("\"Scheduled\"", "\"Completed\"");
    assert_eq!(azure(done.as_bytes(), None, before_event()), Ok(None));
}

#[test]
fn what_is_cut_off_is_no_notice() {
    for length in 0..TERMINATE.len() {
        let cut = TERMINATE.get(..length).expect("a part");
        assert_eq!(ec2(cut, SystemTime::UNIX_EPOCH), Err(Unheard::Senseless), "{length}");
    }
    for length in 0..PREEMPT.len() {
        let cut = PREEMPT.as_bytes().get(..length).expect("a part");
        assert_eq!(azure(cut, None, SystemTime::UNIX_EPOCH), Err(Unheard::Senseless), "{length}");
    }
    for length in 0..4 {
        assert_eq!(gcp(b"TRUE".get(..length).expect("a part")), Err(Unheard::Senseless), "{length}");
    }
}

#[test]
fn a_name_is_one_or_none() {
    assert_eq!(azure_name(b"WestNO_0\n"), Some("WestNO_0".to_owned()));
    assert_eq!([azure_name(b""), azure_name(b" \n"), azure_name(b"\xff")], [None, None, None]);
}

proptest! {
    #[test]
    fn garbage_is_never_a_notice(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let now = SystemTime::UNIX_EPOCH;
        prop_assert!(ec2(&body, now).is_err());
        prop_assert!(gcp(&body).is_err());
        prop_assert!(azure(&body, None, now).is_err());
    }

    #[test]
    fn any_time_and_any_clock_are_borne(time in "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", clock in any::<u32>()) {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(clock.into());
        let body = json!({"action": "stop", "time": time}).to_string();
        prop_assert!(ec2(body.as_bytes(), now).is_ok_and(|left| left <= EC2_NOTICE) || ec2(body.as_bytes(), now).is_err());
    }
}

/// A server that answers every request alike, as long as what comes with it is kept.
async fn server(answer: String) -> (Url, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let url = format!("http://{}/", listener.local_addr().expect("known"));
    let serving = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            connections.spawn(serve(socket, answer.clone()));
        }
    });
    (Url::parse(&url).expect("a URL"), AbortOnDropHandle::new(serving))
}

/// Answers one request, and waits until the client goes.
async fn serve(mut socket: TcpStream, answer: String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if !matches!(socket.read_buf(&mut head).await, Ok(1..)) {
            return;
        }
    }
    // Who has had enough goes in the middle.
    let _ = socket.write_all(answer.as_bytes()).await;
    while matches!(socket.read_buf(&mut head).await, Ok(1..)) {}
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// What is understood of a server that answers so, as Google Cloud's.
async fn understood(answer: String) -> Result<Option<Duration>, Unheard> {
    let (url, _serving) = server(answer).await;
    let mut asker = Asker::new(Provider::Gcp, Some(&url)).expect("a client");
    let told = asker.answer().await;
    let given = asker.ask().await;
    assert_eq!(given.is_some(), matches!(told, Ok(Some(_))), "{told:?}");
    told
}

#[tokio::test]
async fn an_answer_is_read_to_a_limit_in_time_and_nobody_is_followed() {
    assert_eq!(understood(ok("TRUE")).await, Ok(Some(GCP_NOTICE)));
    assert_eq!(understood(ok("FALSE")).await, Ok(None));
    let padded = |bytes: usize| ok(&format!("TRUE{}", " ".repeat(bytes - 4)));
    assert_eq!(understood(padded(BODY_BYTES_MAX)).await, Ok(Some(GCP_NOTICE)));
    assert_eq!(understood(padded(BODY_BYTES_MAX + 1)).await, Err(Unheard::Senseless));
    let endless = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nTRUE{}", " ".repeat(2 * BODY_BYTES_MAX));
    assert_eq!(understood(endless).await, Err(Unheard::Senseless));
    let (there, _serving) = server(ok("TRUE")).await;
    let elsewhere = format!("HTTP/1.1 302 Found\r\nLocation: {there}\r\nContent-Length: 4\r\nConnection: close\r\n\r\nTRUE");
    assert_eq!(understood(elsewhere).await, Err(Unheard::Status(StatusCode::FOUND)));
    for status in ["404 Not Found", "403 Forbidden", "503 Service Unavailable", "204 No Content"] {
        let answer = ok("TRUE").replace("200 OK", status);
        assert!(matches!(understood(answer).await, Err(Unheard::Status(_))), "{status}");
    }
    assert!(matches!(understood("what".to_owned()).await, Err(Unheard::Unreached(_))));
    let began = std::time::Instant::now();
    let never = ok("TRUE").replace("Length: 4", "Length: 5");
    assert_eq!(understood(never).await, Err(Unheard::Unreached("it does not answer in time".to_owned())));
    assert!(began.elapsed() < 5 * ANSWER_WAIT, "{:?}", began.elapsed());
}

#[tokio::test]
async fn without_a_provider_no_notice_is_given_and_with_one_at_once_or_later() {
    let short = Duration::from_millis(50);
    let none = Notices::listen(None, None).await.expect("nobody is asked");
    assert!(!none.is_given() && tokio::time::timeout(short, none.given()).await.is_err());
    let (going, _serving) = server(ok("TRUE")).await;
    let notices = Notices::listen(Some(Provider::Gcp), Some(&going)).await.expect("asked");
    assert!(notices.is_given());
    let (once, again) = (notices.given().await, notices.given().await);
    assert!(once == again && once <= Instant::now() + GCP_NOTICE - MARGIN);
    let (staying, _serving) = server(ok("FALSE")).await;
    let notices = Notices::listen(Some(Provider::Gcp), Some(&staying)).await.expect("asked");
    assert!(!notices.is_given() && tokio::time::timeout(short, notices.given()).await.is_err());
}
