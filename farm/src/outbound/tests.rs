//! URLs and names that lead elsewhere than they seem to: as a tenant might spell them, and as its name server might answer.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn only_the_public_internet_is_public() {
    for public in [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.0.0.1",
        "128.0.0.1",
        "168.63.129.15",
        "169.253.0.1",
        "172.15.0.1",
        "172.32.0.1",
        "192.0.1.1",
        "192.167.1.1",
        "198.17.0.1",
        "198.20.0.1",
        "223.255.255.255",
        "2606:4700::1111",
        "2a00::1",
        "64:ff9b::1.1.1.1",
        "2002:101:101::1",
        "::ffff:1.1.1.1",
        "2001:200::1",
        "3fff:1000::1",
    ] {
        assert!(is_public(address(public).to_canonical()), "{public}");
    }
    for special in [
        "0.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "127.255.255.255",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.0.2.1",
        "192.168.1.1",
        "192.88.99.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "3fff::1",
        "5f00::1",
        "fec0::1",
    ] {
        assert!(!is_public(address(special).to_canonical()), "{special}");
        assert!(Reach::Anywhere.admits(address(special)));
    }
}

#[test]
fn networks_that_are_allowed_can_be_reached_in_any_guise() {
    let reach = Reach::PublicAnd(["10.1.0.0/16", "fd00:1::/32"].map(|net| net.parse().expect("a network")).into());
    for (to, may) in
        [("10.1.2.3", true), ("::ffff:10.1.2.3", true), ("10.2.0.1", false), ("fd00:1::5", true), ("fd00:2::5", false)]
    {
        assert_eq!(reach.admits(address(to)), may, "{to}");
    }
}

/// URLs that lead inside, or where no web server is, in every spelling that is known.
const TRICKS: &[&str] = &[
    // As one number, in parts, in other bases, with a dot at the end.
    "http://127.0.0.1/",
    "http://127.0.0.1:8080/",
    "https://127.0.0.1/",
    "http://127.255.255.254/",
    "http://127.1/",
    "http://127.0.1/",
    "http://127.65535/",
    "http://2130706433/",
    "http://017700000001/",
    "http://00000017700000001/",
    "http://0x7f000001/",
    "http://0X7F000001/",
    "http://0x7f.1/",
    "http://0x7f.0x0.0x0.0x1/",
    "http://0177.0.0.1/",
    "http://0177.0x0.01/",
    "http://000000177.0.0.1/",
    "http://127.0.0.1./",
    "http://127.1./",
    "http://2130706433./",
    "http://0x7f000001./",
    "http://0/",
    "http://00/",
    "http://0x/",
    "http://0.0.0.0/",
    "http://0.0.0.0:8080/",
    "http://0.1/",
    "http://10.0.0.1/",
    "http://012.1/",
    "http://167772161/",
    "http://0xa000001/",
    "http://100.64.0.1/",
    "http://172.16.0.1/",
    "http://172.31.255.254/",
    "http://2886729729/",
    "http://192.168.1.1/",
    "http://192.168.257/",
    "http://3232235777/",
    "http://0300.0250.1.1/",
    "http://192.0.2.1/",
    "http://198.18.0.1/",
    "http://198.51.100.7/",
    "http://203.0.113.7/",
    "http://224.0.0.1/",
    "http://239.255.255.250:1900/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://4294967295/",
    // No addresses at all, to some parsers.
    "http://4294967296/",
    "http://4294967297/",
    "http://127.0.0.256/",
    "http://383.0.0.1/",
    "http://127.0.0.1.1/",
    "http://127..1/",
    "http://0x7g.0.0.1/",
    "http://127.0.0.08/",
    // Where clouds tell secrets.
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "http://169.254.169.254:80/metadata/instance",
    "http://2852039166/latest/meta-data/",
    "http://0xa9fea9fe/",
    "http://0xa9.0xfe.0xa9.0xfe/",
    "http://0251.0376.0251.0376/",
    "http://169.254.43518/",
    "http://169.16689662/",
    "http://169.254.169.254./",
    "http://169.254.170.2/v2/credentials/",
    "http://169.254.170.23/v1/credentials",
    "http://169.254.0.23/",
    "http://100.100.100.200/latest/meta-data/",
    "http://192.0.0.192/",
    "http://168.63.129.16/machine?comp=goalstate",
    "http://168.63.129.16:32526/vmSettings",
    "http://2822734096/",
    "http://[::ffff:168.63.129.16]/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[fd20:ce::254]/computeMetadata/v1/",
    "http://[fd00:c1::a9fe:a9fe]/opc/v2/instance/",
    "http://[fd00:42::42]/",
    // As IPv6, short, long, and around an IPv4 address.
    "http://[::1]/",
    "http://[::1]:8080/",
    "http://[::]/",
    "http://[::0001]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[0000:0000:0000:0000:0000:0000:0000:0001]/",
    "http://[::127.0.0.1]/",
    "http://[::7f00:1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::FFFF:7F00:1]/",
    "http://[0:0:0:0:0:ffff:7f00:0001]/",
    "http://[::ffff:a9fe:a9fe]/",
    "http://[::ffff:10.0.0.1]/",
    "http://[::ffff:0:127.0.0.1]/",
    "http://[64:ff9b::127.0.0.1]/",
    "http://[64:FF9B::7F00:1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[64:ff9b:1::7f00:1]/",
    "http://[2002:7f00:1::]/",
    "http://[2002:a9fe:a9fe::1]/",
    "http://[2002:c0a8:101::1]/",
    "http://[2001::1]/",
    "http://[2001:0:4136:e378:8000:63bf:80ff:fffe]/",
    "http://[2001:db8::1]/",
    "http://[3fff::1]/",
    "http://[5f00::1]/",
    "http://[100::1]/",
    "http://[fc00::1]/",
    "http://[fd12:3456:789a::1]/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fe80::1%eth0]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[::1/",
    "http://[[::1]]/",
    "http://[::1]./",
    "http://::1/",
    "http://[::ffff:0x7f.1]/",
    "http://%5b::1%5d/",
    // Behind a name, before one, and in other places of a URL.
    "http://example.org@127.0.0.1/",
    "http://example.org:80@127.0.0.1/",
    "http://a:b@c@127.0.0.1/",
    "http://example.org%40127.0.0.1/",
    "http://127.0.0.1#@example.org/",
    "http://127.0.0.1?@example.org/",
    "http://127.0.0.1\\@example.org/",
    "http:\\\\127.0.0.1\\",
    "http:/\\127.0.0.1/",
    "http:127.0.0.1/",
    "http:/127.0.0.1/",
    "http:///127.0.0.1/",
    // With what parsers drop, decode, or take for something else.
    " \thttp://127.0.0.1/\n",
    "\u{0}http://127.0.0.1/",
    "ht\ntp://127.0.0.1/",
    "http://127.\r\n0\t.0.1/",
    "http://127.0.0.1%00.example.org/",
    "http://127.0.0.1 .example.org/",
    "http://127.0.0.1%09/",
    "http://%31%32%37.0.0.1/",
    "http://127%2e0%2e0%2e1/",
    "http://%30x7f000001/",
    "http://127.0.0.1\u{ad}/",
    "http://127\u{200b}.0.0.1/",
    "http://127\u{2060}.1/",
    "http://１２７.０.０.１/",
    "http://127．0．0．1/",
    "http://127。0。0。1/",
    "http://127｡1/",
    "http://①②⑦.⓪.⓪.①/",
    "http://𝟏𝟐𝟕.𝟎.𝟎.𝟏/",
    "http://0ⅹ7f000001/",
    "http://１６９。２５４。１６９。２５４/",
    "http://127%ef%bc%8e0.0.1/",
    // Ports of other servers.
    "http://example.org:0/",
    "http://example.org:22/",
    "http://example.org:0025/",
    "http://example.org:53/",
    "https://example.org:111/",
    "http://example.org:389/",
    "http://example.org:445/",
    "http://example.org:873/",
    "https://example.org:1023/",
    "http://1.1.1.1:22/",
    "http://[2606:4700:4700::1111]:25/",
    "http://example.org:65536/",
    "http://example.org:0x16/",
    "http://example.org:-1/",
    "http://example.org:80:22/",
    // Other kinds.
    "ftp://127.0.0.1/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_INFO",
    "dict://127.0.0.1:11211/stats",
    "ldap://127.0.0.1/",
    "blob:http://127.0.0.1/",
    "view-source:http://127.0.0.1/",
    "jar:http://127.0.0.1!/",
    "http+unix://%2fvar%2frun%2fdocker.sock/",
    "localhost:8080/",
    "data:video/mp4,x",
    "//127.0.0.1/",
    "http://",
];

#[test]
fn urls_are_refused_for_what_they_say() {
    let reach = Reach::PublicAnd(Arc::new([]));
    let mut addresses = 0;
    for trick in TRICKS {
        let Ok(url) = trick.parse::<Url>() else { continue };
        let said = reach.check(&url);
        assert!(said.is_err() || !["http", "https"].contains(&url.scheme()), "{trick} is asked for: {url}");
        addresses += usize::from(said == Err(Forbidden::Address));
    }
    assert!(addresses > 100, "only {addresses} are understood as what they are");
    let check = |url: &str| reach.check(&url.parse().expect("a URL"));
    assert_eq!(check("http://example.org:25/"), Err(Forbidden::Port(25)));
    assert_eq!(check("http://0x7f.1:25/"), Err(Forbidden::Address));
}

#[test]
fn what_only_looks_as_if_it_led_inside_is_taken() {
    let reach = Reach::PublicAnd(Arc::new([]));
    for (text, host) in [
        ("http://example.org/film.mp4", "example.org"),
        ("https://example.org:8443/", "example.org"),
        ("https://example.org:80/", "example.org"),
        ("http://user:word@example.org:8080/a", "example.org"),
        ("https://bücher.example/", "xn--bcher-kva.example"),
        ("http://1.1.1.1:443/", "1.1.1.1"),
        ("http://16843009/", "1.1.1.1"),
        ("http://128.0.0.1/", "128.0.0.1"),
        ("http://[2606:4700:4700::1111]/", "[2606:4700:4700::1111]"),
        ("http://[::ffff:1.1.1.1]/", "[::ffff:101:101]"),
        ("http://[64:ff9b::1.1.1.1]/", "[64:ff9b::101:101]"),
        ("http://127.0.0.1@example.org/", "example.org"),
        ("http://127.0.0.1:80@example.org/", "example.org"),
        ("http://127.0.0.1%2f@example.org/", "example.org"),
        ("http://example.org\\@127.0.0.1/", "example.org"),
        ("http://example.org/@127.0.0.1/", "example.org"),
        ("http://example.org/#@127.0.0.1/", "example.org"),
        ("http://example.org/?at=http://127.0.0.1/", "example.org"),
        ("http://127.0.0.1.example.org/", "127.0.0.1.example.org"),
        ("http://2130706433.example.org/", "2130706433.example.org"),
    ] {
        let url: Url = text.parse().expect(text);
        assert_eq!((reach.check(&url), url.host_str()), (Ok(()), Some(host)), "{text}");
    }
}

#[tokio::test]
async fn a_name_that_leads_inside_is_not_followed() {
    let reach = Reach::PublicAnd(Arc::new([]));
    let client = reach.client().build().expect("a client");
    let error = client.get("http://localhost:9/").send().await.expect_err("refused");
    assert_eq!(forbidden(&error), Some(Forbidden::Address), "{error:?}");
    let open = Reach::Anywhere.client().build().expect("a client");
    let error = open.get("http://localhost:9/").send().await.expect_err("nobody is there");
    assert_eq!(forbidden(&error), None, "{error:?}");
}

/// Answers one lookup after the other, whatever the name, and admits of what it finds what a farm would.
struct Stub {
    reach: Reach,
    answers: Mutex<VecDeque<Vec<IpAddr>>>,
}

impl Stub {
    /// A client that has its names resolved so, and a connection of its own for each request.
    fn client<'a>(reach: &Reach, answers: impl IntoIterator<Item = &'a [IpAddr]>) -> reqwest::Client {
        let answers = Mutex::new(answers.into_iter().map(<[IpAddr]>::to_vec).collect());
        let stub = Arc::new(Self { reach: reach.clone(), answers });
        let builder = reach.client().no_proxy().pool_max_idle_per_host(0);
        builder.dns_resolver(stub).build().expect("a client")
    }
}

impl Resolve for Stub {
    fn resolve(&self, _: Name) -> Resolving {
        let found = self.answers.lock().expect("not poisoned").pop_front().expect("no more lookups than answers");
        let found: Vec<SocketAddr> = found.into_iter().map(|address| SocketAddr::new(address, 0)).collect();
        let admitted = self.reach.admitted(&found);
        Box::pin(async move { Ok(admitted?) })
    }
}

#[tokio::test]
async fn a_name_is_refused_for_where_it_leads() {
    let names = [
        "http://localhost/",
        "http://LOCALHOST/",
        "http://localhost./",
        "http://loc%61lhost/",
        "http://ｌｏｃａｌｈｏｓｔ/",
        "http://local\u{ad}host/",
        "http://foo.localhost/",
        "http://ip6-localhost:8080/",
        "http://example.org@localhost/",
        "http://localtest.me/",
        "http://127.0.0.1.nip.io/",
        "http://169-254-169-254.sslip.io/",
        "http://127.0.0.1../",
        "http://metadata/computeMetadata/v1/",
        "http://metadata.google.internal/computeMetadata/v1/",
        "http://instance-data/latest/meta-data/",
        "http://kubernetes.default.svc:8443/",
        "http://rabbitmq:15672/",
        "http://films.example/",
    ];
    let inner = [
        "127.0.0.1",
        "::1",
        "0.0.0.0",
        "10.0.0.7",
        "169.254.169.254",
        "168.63.129.16",
        "100.100.100.200",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::a00:7",
        "2002:7f00:1::",
        "fd00:ec2::254",
        "fe80::1",
    ]
    .map(|inner| [address(inner)]);
    let reach = Reach::PublicAnd(Arc::new([]));
    let client = Stub::client(&reach, inner.iter().cycle().take(names.len()).map(<[IpAddr; 1]>::as_slice));
    for name in names {
        let url: Url = name.parse().expect(name);
        assert_eq!(reach.check(&url), Ok(()), "{name} says nothing by itself");
        let error = client.get(url).send().await.expect_err(name);
        assert_eq!(forbidden(&error), Some(Forbidden::Address), "{name}: {error:?}");
    }
}

/// Addresses of this machine that stand for servers of the Internet, one that answers and one that is away, and for one inside.
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const AWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
const INSIDE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Asks a name that leads to these addresses, each time to the next of them: the status of each answer, or whether the address
/// was forbidden. The server inside must not be knocked at.
async fn ask(answers: &[&[IpAddr]]) -> Vec<Result<u16, Option<Forbidden>>> {
    let inside = std::net::TcpListener::bind((INSIDE, 0)).expect("a port");
    inside.set_nonblocking(true).expect("set");
    let at = inside.local_addr().expect("an address");
    let outside = TcpListener::bind((OUTSIDE, at.port())).await.expect("the same port");
    let answering = tokio::spawn(async move {
        while let Ok((mut socket, _)) = outside.accept().await {
            let mut head = [0; 2048];
            assert!(socket.read(&mut head).await.expect("a request") > 0);
            socket.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await.expect("sent");
        }
    });
    let reach = Reach::PublicAnd(["127.0.0.2/31".parse().expect("a network")].into());
    let client = Stub::client(&reach, answers.iter().copied());
    let mut came = Vec::new();
    for _ in answers {
        let answer = client.get(format!("http://films.example:{}/", at.port())).send().await;
        came.push(answer.map(|answer| answer.status().as_u16()).map_err(|error| forbidden(&error)));
    }
    assert!(inside.accept().is_err(), "the server inside was connected to: {came:?}");
    let _knock = std::net::TcpStream::connect(at).expect("it is there");
    assert!(inside.accept().is_ok(), "it would have been seen");
    answering.abort();
    came
}

#[tokio::test]
async fn a_name_that_leads_inside_at_the_second_look_is_not_followed() {
    let refused = Err(Some(Forbidden::Address));
    assert_eq!(ask(&[&[OUTSIDE], &[INSIDE], &[OUTSIDE]]).await, [Ok(204), refused, Ok(204)]);
}

#[tokio::test]
async fn of_a_name_that_leads_to_both_only_the_public_address_is_tried() {
    assert_eq!(ask(&[&[INSIDE, OUTSIDE], &[OUTSIDE, INSIDE]]).await, [Ok(204), Ok(204)]);
    // Nor is what is inside a way out when the other does not answer.
    assert_eq!(ask(&[&[AWAY, INSIDE], &[INSIDE, AWAY]]).await, [Err(None), Err(None)]);
}
