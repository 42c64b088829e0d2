//! DNS, as dig sees it.

use std::{collections::BTreeSet, net::SocketAddr, process::Command};

use coact_blocks::directory::{Directory, DirectoryOptions, Health, Instance};
use coact_core::{
    ErrorKind,
    env::Env,
    guarantees::Weakness,
    name::{Namespace, Realm},
};
use coact_engine_embedded::Config;
use coact_server::{DnsConfig, Server, ServerConfig};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};

use crate::bed::{eventually, get, off_runtime, within};

const DIG: &str = "/usr/bin/dig";

fn config() -> ServerConfig {
    let mut config = ServerConfig::new(Config::default());
    config.listen = ([127, 0, 0, 1], 0).into();
    config.accepted = [Weakness::Volatile].into_iter().collect();
    config.dns = Some(DnsConfig { listen: ([127, 0, 0, 1], 0).into(), ..DnsConfig::default() });
    config
}

/// A node that answers DNS, and its directory.
async fn node() -> (Server, SocketAddr, Directory) {
    let server = Server::start(config(), Env::real()).await.expect("a node starts");
    let at = server.dns_address().expect("it answers DNS");
    let kv = server.engine().kv(Namespace::default(), [Weakness::Volatile].into_iter().collect());
    let directory = Directory::open(&kv, DirectoryOptions::default()).expect("opens");
    (server, at, directory)
}

fn instance(service: &str, id: &str, address: &str) -> Instance {
    let mut instance = Instance::new(service, address, 8_080);
    instance.id = id.to_owned();
    instance
}

async fn put(directory: &Directory, service: &str, id: &str, address: &str) {
    directory.put_instance(None, &instance(service, id, address)).await.expect("put");
}

/// What dig shows.
#[derive(Debug)]
struct Dug {
    text: String,
}

/// Runs dig, without asking again over TCP by itself.
async fn dig(at: SocketAddr, arguments: &str) -> Dug {
    assert!(std::path::Path::new(DIG).exists(), "{DIG} is missing; `cargo xtask test` installs it");
    let mut command = Command::new(DIG);
    command.arg(format!("@{}", at.ip())).args(["-p", &at.port().to_string(), "+ignore", "+tries=3", "+time=10"]);
    command.args(arguments.split(' '));
    let output = off_runtime(move || command.output().expect("dig runs")).await;
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{arguments}: {text}");
    assert!(!text.contains("WARNING: Message") && !text.contains("Warning: query response"), "{arguments}: {text}");
    Dug { text }
}

impl Dug {
    fn status(&self) -> &str {
        self.text.split("status: ").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or("none")
    }

    fn flags(&self) -> &str {
        self.text.split(";; flags: ").nth(1).and_then(|rest| rest.split(';').next()).unwrap_or("none")
    }

    /// The records of a section: name, ttl, class, type and data, as dig writes them.
    fn section(&self, name: &str) -> Vec<Vec<&str>> {
        let section = self.text.split(&format!(";; {name} SECTION:\n")).nth(1).unwrap_or("");
        let lines = section.lines().take_while(|line| !line.is_empty());
        lines.filter(|line| !line.starts_with(';')).map(|line| line.split_whitespace().collect()).collect()
    }

    /// The data of the answers, in order of the alphabet.
    fn answers(&self) -> Vec<String> {
        let mut data: Vec<String> = self.section("ANSWER").iter().map(|record| record[3..].join(" ")).collect();
        data.sort();
        data
    }
}

#[tokio::test]
async fn tells_where_the_instances_are() {
    let (_node, at, directory) = node().await;
    put(&directory, "web", "a", "10.0.0.1").await;
    put(&directory, "web", "b", "10.0.0.2").await;
    let mut third = instance("web", "10.0.0.3:80", "fd00::3");
    (third.weight, third.tags) = (7, vec!["blue".to_owned()]);
    directory.put_instance(None, &third).await.expect("put");
    put(&directory, "eu/web", "a", "10.1.0.1").await;

    let a = dig(at, "web.service.coact. A").await;
    assert_eq!(a.answers(), ["A 10.0.0.1", "A 10.0.0.2"], "{}", a.text);
    assert_eq!((a.status(), a.flags()), ("NOERROR", "qr aa rd"), "no recursion: {}", a.text);
    assert!(a.section("ANSWER").iter().all(|record| record[1] == "5"), "{}", a.text);
    assert_eq!(dig(at, "WEB.Service.COACT. A").await.answers().len(), 2, "in any case of letters");
    assert_eq!(dig(at, "web.service.coact. AAAA").await.answers(), ["AAAA fd00::3"]);
    assert_eq!(dig(at, "web.eu.service.coact. A").await.answers(), ["A 10.1.0.1"], "segments the other way round");
    assert_eq!(dig(at, "b.instance.web.service.coact. A").await.answers(), ["A 10.0.0.2"]);
    assert_eq!(dig(at, "blue._tag.web.service.coact. AAAA").await.answers(), ["AAAA fd00::3"]);
    assert_eq!(dig(at, "blue._tag.web.service.coact. A").await.status(), "NOERROR");
    assert_eq!(dig(at, "red._tag.web.service.coact. A").await.status(), "NXDOMAIN");
    assert_eq!(dig(at, "web.service.coact. ANY +notcp").await.answers(), ["HINFO \"RFC8482\" \"\""]);

    for name in ["_web._tcp.service.coact.", "web.service.coact."] {
        let srv = dig(at, &format!("{name} SRV")).await;
        let answers = srv.answers();
        assert!(answers.contains(&"SRV 0 100 8080 a.instance.web.service.coact.".to_owned()), "{}", srv.text);
        assert!(answers.contains(&"SRV 0 100 8080 b.instance.web.service.coact.".to_owned()), "{}", srv.text);
        // An id that is no label has another, under which the instance is found.
        let odd = answers.iter().find(|answer| answer.starts_with("SRV 0 7 ")).expect("the third");
        let target = odd.split(' ').nth(4).expect("a target");
        assert_eq!(dig(at, &format!("{target} AAAA")).await.answers(), ["AAAA fd00::3"]);
        let beside: BTreeSet<_> = srv.section("ADDITIONAL").iter().map(|record| record[3..].join(" ")).collect();
        assert_eq!(beside, ["A 10.0.0.1", "A 10.0.0.2", "AAAA fd00::3"].map(str::to_owned).into(), "{}", srv.text);
    }
}

#[tokio::test]
async fn a_host_name_is_the_target_of_srv_or_the_only_cname() {
    let (_node, at, directory) = node().await;
    put(&directory, "db", "a", "one.example").await;
    assert_eq!(dig(at, "db.service.coact. A").await.answers(), ["CNAME one.example."]);
    assert_eq!(dig(at, "_db._tcp.service.coact. SRV").await.answers(), ["SRV 0 100 8080 one.example."]);
    put(&directory, "db", "b", "two.example").await;
    eventually("the second is seen", async || dig(at, "db.service.coact. SRV").await.answers().len() == 2).await;
    let two = dig(at, "db.service.coact. A").await;
    assert_eq!((two.status(), two.answers().len()), ("NOERROR", 0), "a name has one CNAME at most: {}", two.text);
    assert_eq!(dig(at, "b.instance.db.service.coact. AAAA").await.answers(), ["CNAME two.example."]);
}

#[tokio::test]
async fn says_no_in_the_right_words() {
    let (node, at, directory) = node().await;
    put(&directory, "web", "a", "10.0.0.1").await;
    put(&directory, "eu/db", "a", "10.0.0.2").await;
    for (question, status) in [
        ("nobody.service.coact. A", "NXDOMAIN"),
        ("b.instance.web.service.coact. A", "NXDOMAIN"),
        ("other.coact. A", "NXDOMAIN"),
        ("web.service.coact. TXT", "NOERROR"),
        ("web.service.coact. AAAA", "NOERROR"),
        ("eu.service.coact. A", "NOERROR"),
        ("instance.web.service.coact. A", "NOERROR"),
        ("service.coact. A", "NOERROR"),
        ("coact. NS", "NOERROR"),
    ] {
        let no = dig(at, question).await;
        assert_eq!((no.status(), no.answers().len()), (status, 0), "{question}: {}", no.text);
        let authority = no.section("AUTHORITY");
        assert_eq!((authority[0][0], authority[0][3]), ("coact.", "SOA"), "{question}: {}", no.text);
    }
    assert!(dig(at, "coact. SOA").await.answers()[0].starts_with("SOA ns.coact. hostmaster.coact."));
    for (question, status) in [
        ("example.com. A", "REFUSED"),
        (". NS", "REFUSED"),
        ("web.service.coact. A -c CH", "REFUSED"),
        ("web.service.coact. A +opcode=update", "NOTIMP"),
        ("web.service.coact. A +edns=1 +noednsnegotiation", "BADVERS"),
    ] {
        let no = dig(at, question).await;
        assert_eq!((no.status(), no.answers().len()), (status, 0), "{question}: {}", no.text);
    }
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let transfer = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05coact\x00\x00\xfc\x00\x01";
    socket.send_to(transfer, at).await.expect("sent");
    let mut answer = [0; 600];
    within("an answer", socket.recv(&mut answer)).await.expect("received");
    assert_eq!(answer[3] & 0x0f, 5, "no transfer of all names: REFUSED");

    let (_, metrics) = get(node.address(), "/metrics").await;
    assert!(metrics.contains("coact_dns_requests_total{type=\"A\",code=\"NXDOMAIN\"} 3"), "{metrics}");
    assert!(metrics.contains("coact_dns_requests_total{type=\"other\",code=\"NOERROR\"} 1"), "{metrics}");
}

#[tokio::test]
async fn what_does_not_fit_into_a_packet_comes_over_tcp() {
    let (_node, at, directory) = node().await;
    for number in 0..500 {
        put(&directory, "web", &format!("i{number}"), &format!("10.0.{}.{}", number / 250, number % 250)).await;
    }
    for (question, least) in [("web.service.coact. A +noedns", 20), ("web.service.coact. A +bufsize=1232", 60)] {
        let cut = dig(at, question).await;
        assert!(cut.flags().contains("tc"), "{}", cut.text);
        assert!((least..100).contains(&cut.answers().len()), "{}", cut.text);
    }
    for kind in ["A", "SRV"] {
        let all = dig(at, &format!("web.service.coact. {kind} +tcp")).await;
        assert!(!all.flags().contains("tc"), "{}", all.flags());
        assert_eq!(all.answers().iter().collect::<BTreeSet<_>>().len(), 500);
    }
    let first = async || dig(at, "web.service.coact. A +tcp").await.section("ANSWER")[0][4].to_owned();
    let before = first().await;
    eventually("another order", async || first().await != before).await;
}

#[tokio::test]
async fn drained_failing_and_dead_instances_vanish() {
    let (_node, at, directory) = node().await;
    let lease = directory.kv().lease_grant(std::time::Duration::from_secs(1)).await.expect("a lease");
    for id in 1..=5 {
        put(&directory, "web", &id.to_string(), &format!("10.0.0.{id}")).await;
    }
    directory.put_instance(Some(lease.id), &instance("web", "6", "10.0.0.6")).await.expect("put");
    let shows = async |expected: &[&str]| {
        let expected: Vec<_> = expected.iter().map(|last| format!("A 10.0.0.{last}")).collect();
        eventually("the answer follows", async || dig(at, "web.service.coact. A").await.answers() == expected).await;
    };
    // Nobody renews the lease of the sixth.
    shows(&["1", "2", "3", "4", "5"]).await;
    directory.set_drain("web", "1", true).await.expect("drained");
    shows(&["2", "3", "4", "5"]).await;
    directory.set_drain("web", "1", false).await.expect("undrained");
    shows(&["1", "2", "3", "4", "5"]).await;
    let failing = Health::Failing { why: "refused".to_owned() };
    directory.report_health("web", "2", failing, None).await.expect("reported");
    shows(&["1", "3", "4", "5"]).await;
    let weightless = Instance { weight: 0, ..instance("web", "3", "10.0.0.3") };
    directory.put_instance(None, &weightless).await.expect("put");
    shows(&["1", "4", "5"]).await;
    put(&directory, "api", "a", "10.1.0.1").await;
    assert_eq!(dig(at, "api.service.coact. A").await.answers(), ["A 10.1.0.1"]);
    directory.remove_instance("api", "a").await.expect("removed");
    eventually("the service is gone", async || dig(at, "api.service.coact. A").await.status() == "NXDOMAIN").await;
    put(&directory, "api", "b", "10.1.0.2").await;
    eventually("it is back", async || dig(at, "api.service.coact. A").await.answers() == ["A 10.1.0.2"]).await;
}

#[tokio::test]
async fn when_all_vanish_at_once_the_last_good_list_is_answered() {
    let (_node, at, directory) = node().await;
    let lease = directory.kv().lease_grant(std::time::Duration::from_secs(5)).await.expect("a lease");
    for id in ["1", "2"] {
        let doomed = instance("web", id, &format!("10.0.0.{id}"));
        directory.put_instance(Some(lease.id), &doomed).await.expect("put");
    }
    assert_eq!(dig(at, "web.service.coact. A").await.answers().len(), 2);
    let mut watch = directory.watch("web").await.expect("watched");
    // Nobody renews it.
    let gone = watch.wait_for(|snapshot| snapshot.healthy().next().is_none());
    within("the store has none", gone).await.expect("watched");
    eventually("the answer stays", async || {
        let held = dig(at, "web.service.coact. A").await;
        assert_eq!(held.answers(), ["A 10.0.0.1", "A 10.0.0.2"], "{}", held.text);
        directory.list("web").await.expect("listed").instances.is_empty()
    })
    .await;
}

#[tokio::test]
async fn garbage_is_answered_with_an_error_or_not_at_all() {
    let (node, at, directory) = node().await;
    put(&directory, "web", "a", "10.0.0.1").await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    socket.connect(at).await.expect("connects");
    let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x07service\x05coact\x00\x00\x01\x00\x01";
    let mut packets: Vec<Vec<u8>> = (0..question.len()).map(|length| question[..length].to_vec()).collect();
    // A name that points at itself, counts that promise too much, an answer, and bytes of any kind.
    packets.push([&question[..12], b"\xc0\x0c\x00\x01\x00\x01"].concat());
    packets.push([b"\x12\x34\x01\x00\xff\xff\xff\xff\xff\xff\xff\xff".as_slice(), &question[12..]].concat());
    packets.push([b"\x12\x34\x81\x00".as_slice(), &question[4..]].concat());
    packets.extend((0..200_u32).map(|seed| {
        let byte = |index: u32| (seed.wrapping_mul(2_654_435_761).wrapping_add(index).wrapping_mul(40_503) >> 7) as u8;
        (0..seed * 7 % 900).map(byte).collect()
    }));
    for packet in &packets {
        socket.send(packet).await.expect("sent");
    }
    for packet in &packets {
        let mut stream = TcpStream::connect(at).await.expect("connects");
        let framed = [&(packet.len() as u16).to_be_bytes(), packet.as_slice()].concat();
        stream.write_all(&framed).await.expect("sent");
        stream.shutdown().await.expect("shut");
        let mut answer = Vec::new();
        // The connection ends, with or without an answer.
        let _ = within("the end", stream.read_to_end(&mut answer)).await;
    }
    assert_eq!(dig(at, "web.service.coact. A").await.answers(), ["A 10.0.0.1"], "it goes on");
    let (_, metrics) = get(node.address(), "/metrics").await;
    assert!(metrics.contains("code=\"FORMERR\"") && !metrics.contains("coact_dns_dropped_total 0"), "{metrics}");
    let mut answer = [0; 600];
    let length = within("an answer", socket.recv(&mut answer)).await.expect("received");
    assert_eq!((answer[2] & 0x80, answer[3] & 0x0f), (0x80, 1), "FORMERR: {:?}", &answer[..length]);
}

#[tokio::test]
async fn connections_are_limited_and_end_with_the_node() {
    let (node, at, directory) = node().await;
    put(&directory, "web", "a", "10.0.0.1").await;
    let mut open = Vec::new();
    for _ in 0..256 {
        open.push(TcpStream::connect(at).await.expect("connects"));
    }
    let closed = async |stream: &mut TcpStream| stream.read_u8().await.is_err();
    let mut refused = TcpStream::connect(at).await.expect("the system takes it");
    assert!(within("it is closed", closed(&mut refused)).await);
    assert_eq!(dig(at, "web.service.coact. A").await.answers().len(), 1, "UDP goes on");
    drop(open.pop());
    eventually("there is a place again", async || {
        let arguments =
            ["-p", &at.port().to_string(), "+tcp", "+tries=1", "+short", "web.service.coact."].map(str::to_owned);
        let output = off_runtime(move || Command::new(DIG).arg("@127.0.0.1").args(arguments).output()).await;
        output.expect("dig runs").stdout == b"10.0.0.1\n"
    })
    .await;
    let mut last = open.pop().expect("one of them");
    node.shutdown().await.expect("it ends");
    assert!(within("it is closed", closed(&mut last)).await);
    eventually("the port is free", async || UdpSocket::bind(at).await.is_ok()).await;
}

#[tokio::test]
async fn what_it_may_not_do_is_refused_at_the_start() {
    let refusal = async |change: fn(&mut DnsConfig)| {
        let mut config = config();
        config.dns.as_mut().map(change).expect("configured");
        let error = Server::start(config, Env::real()).await.expect_err("refused");
        (error.kind(), error.to_string())
    };
    let (kind, why) = refusal(|dns| dns.listen = ([0, 0, 0, 0], 0).into()).await;
    assert!(kind == ErrorKind::Denied && why.contains("dns.open = true"), "{why}");
    let (kind, why) = refusal(|dns| dns.domain = ".".to_owned()).await;
    assert!(kind == ErrorKind::Invalid && why.contains("dns.domain"), "{why}");
    let (kind, why) = refusal(|dns| dns.ttl = std::time::Duration::from_secs(6)).await;
    assert!(kind == ErrorKind::Invalid && why.contains("dns.ttl"), "{why}");

    // The control: asked for explicitly, in another domain and realm.
    let mut config = config();
    let realm = Realm::new("blue").expect("a realm");
    let dns = config.dns.as_mut().expect("configured");
    (dns.listen, dns.open) = (([0, 0, 0, 0], 0).into(), true);
    (dns.domain, dns.realm) = ("svc.example".to_owned(), realm.clone());
    let server = Server::start(config, Env::real()).await.expect("starts");
    let at = SocketAddr::from(([127, 0, 0, 1], server.dns_address().expect("it answers DNS").port()));
    let kv = server.engine().kv(Namespace::default(), [Weakness::Volatile].into_iter().collect());
    let directory = Directory::open(&kv, DirectoryOptions { realm, ..DirectoryOptions::default() }).expect("opens");
    put(&directory, "web", "a", "10.0.0.1").await;
    assert_eq!(dig(at, "web.service.svc.example. A").await.answers(), ["A 10.0.0.1"]);
    assert_eq!(dig(at, "web.service.coact. A").await.status(), "REFUSED");
}
