//! A large directory: 10,000 instances of 100 services, 1,000 watches, one node. It is killed, its history is forgotten;
//! nobody ever sees an empty list, and everybody sees what is true in the end.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use coact::{
    Dir, Env, KvHandle, Realm,
    kv::{Change, Revision, Scope},
};
use coact_blocks::directory::{Directory, DirectoryOptions, Instance, Mode, Registration, Watch};
use coact_testkit::{bed::PATIENCE, fault::Proxy};
use futures::{StreamExt as _, future::join_all, stream};

use crate::node::Node;

const SERVICES: usize = 100;
const INSTANCES_EACH: usize = 100;
/// Each is a client of its own, with a session and a connection.
const OWNERS: usize = 10;
const WATCHERS: usize = 50;
const WATCHES_EACH: usize = 20;
/// Longer than the node is ever away.
const TTL: Duration = Duration::from_secs(60);
const ETCDCTL: &str = "/usr/bin/etcdctl";

fn service(number: usize) -> String {
    format!("service-{number:03}")
}

fn instance(service_number: usize, number: usize, port: u16) -> Instance {
    Instance { id: format!("i{number:03}"), ..Instance::new(service(service_number), "10.0.0.1", port) }
}

async fn open(url: &str) -> KvHandle {
    coact::open(url).await.expect("the node answers")
}

/// Everybody who registers and everybody who watches.
struct Fleet {
    /// By service.
    registrations: Vec<Vec<Registration>>,
    watches: Vec<Watch>,
    /// Pictures that lacked an instance.
    wrong: Arc<AtomicUsize>,
}

impl Fleet {
    async fn start(near: &str, far: &str) -> Self {
        let options = DirectoryOptions { ttl: TTL, ..DirectoryOptions::default() };
        let directory = async |url| Directory::open(&open(url).await, options.clone()).expect("valid");
        let owners = join_all((0..OWNERS).map(|_| directory(near))).await;
        let mut registrations: Vec<_> = (0..SERVICES).map(|_| Vec::new()).collect();
        let all = (0..SERVICES * INSTANCES_EACH).map(|index| {
            let owner = &owners[index % OWNERS];
            let instance = instance(index % SERVICES, index / SERVICES, 1);
            async move { (index % SERVICES, owner.register(instance, Mode::Ephemeral).await.expect("a new id")) }
        });
        let mut all = stream::iter(all).buffer_unordered(256);
        while let Some((service, registration)) = all.next().await {
            registrations[service].push(registration);
        }
        let watchers = join_all((0..WATCHERS).map(|_| directory(far))).await;
        let watches = watchers.iter().enumerate().flat_map(|(watcher, directory)| {
            (0..WATCHES_EACH).map(move |index| {
                let service = service((watcher + index * SERVICES / WATCHES_EACH) % SERVICES);
                async move { directory.watch(&service).await.expect("it loads") }
            })
        });
        let watches = stream::iter(watches).buffered(100).collect().await;
        let fleet = Self { registrations, watches, wrong: Arc::default() };
        fleet.watches.iter().for_each(|watch| fleet.look_at(watch.clone()));
        fleet
    }

    /// Counts pictures that lack an instance, from now on.
    fn look_at(&self, mut watch: Watch) {
        let wrong = self.wrong.clone();
        Env::real().spawn(async move {
            while let Ok(snapshot) = watch.changed().await {
                if snapshot.instances.len() != INSTANCES_EACH {
                    wrong.fetch_add(1, Relaxed);
                }
            }
        });
    }

    /// Lets one instance of each of these services say a new port.
    async fn say(&self, services: impl IntoIterator<Item = usize>, port: u16) {
        join_all(services.into_iter().map(async |number| {
            let registration = &self.registrations[number][usize::from(port) % INSTANCES_EACH];
            let instance = Instance { port, ..registration.instance() };
            registration.update(instance).await.expect("the node answers");
        }))
        .await;
    }

    /// Waits until every watch of these services shows an instance with this port.
    async fn all_show(&mut self, port: u16, concerns: impl Fn(&str) -> bool) {
        let shown = join_all(self.watches.iter_mut().filter(|watch| concerns(watch.service())).map(async |watch| {
            let shows = watch.wait_for(|snapshot| snapshot.instances.iter().any(|seen| seen.instance.port == port));
            shows.await.expect("the environment lives");
        }));
        let shown = Env::real().timeout(PATIENCE, shown).await;
        assert!(shown.is_some_and(|shown| !shown.is_empty()), "in vain until all show port {port}");
    }

    fn wakeups(&self, concerns: impl Fn(&str) -> bool) -> u64 {
        self.watches.iter().filter(|watch| concerns(watch.service())).map(Watch::wakeups).sum()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_instances_and_a_thousand_watches() {
    let mut node = Node::start().await;
    let proxy = Proxy::start(node.address()).await.expect("a proxy");
    let near = node.url("main");
    let mut fleet = Fleet::start(&near, &format!("coact://{}/main", proxy.address())).await;
    assert_eq!(fleet.watches.len(), WATCHERS * WATCHES_EACH);
    assert!(fleet.watches.iter().all(|watch| watch.snapshot().instances.len() == INSTANCES_EACH));
    fleet.say(0..SERVICES, 2).await;
    fleet.all_show(2, |_| true).await;

    // A write wakes who watches that service, and nobody else.
    let one = service(7);
    let before = (fleet.wakeups(|service| service == one), fleet.wakeups(|service| service != one));
    fleet.say([7], 3).await;
    fleet.all_show(3, |service| service == one).await;
    let after = (fleet.wakeups(|service| service == one), fleet.wakeups(|service| service != one));
    assert!(after.0 > before.0, "{before:?} {after:?}");
    assert_eq!(after.1, before.1, "nobody else");

    // The node is killed and comes back.
    node.crash_and_restart().await;
    fleet.say(0..SERVICES, 4).await;
    fleet.all_show(4, |_| true).await;

    // Watchers are away while history passes and is forgotten: they must read again.
    let kv = open(&near).await;
    let dir = Dir::new(&Realm::default(), &format!("directory/{one}")).expect("valid");
    let old = kv.list(&dir, coact::kv::Order::Name { after: String::new() }, 1).await.expect("it answers").revision;
    proxy.cut();
    fleet.say(0..SERVICES, 5).await;
    let head = kv.list(&dir, coact::kv::Order::Name { after: String::new() }, 1).await.expect("it answers").revision;
    compact(&node, head);
    assert!(is_forgotten(&kv, dir, old).await, "a feed from before is told to read again");
    proxy.mend();
    fleet.all_show(5, |_| true).await;
    assert_eq!(fleet.wrong.load(Relaxed), 0, "no picture ever lacked an instance");
}

/// Makes the node forget the history before a revision.
fn compact(node: &Node, revision: Revision) {
    let mut etcdctl = Command::new(ETCDCTL);
    etcdctl.env("ETCDCTL_API", "3").args(["--endpoints", &node.address().to_string(), "compact"]);
    let output = etcdctl.arg(revision.to_string()).output().expect("etcdctl runs: `cargo xtask test` installs it");
    assert!(output.status.success(), "{output:?}");
}

async fn is_forgotten(kv: &KvHandle, dir: Dir, after: Revision) -> bool {
    let mut feed = kv.watch(Scope::Dir(dir), Some(after)).await.expect("it opens");
    let first = Env::real().timeout(PATIENCE, feed.next()).await.expect("in time");
    matches!(first, Some(Ok(Change::Resync { .. })))
}
