//! Leases in a random life: none ends early, each takes its key along, and none comes back.

use std::time::{Duration, Instant};

use coact_core::{
    ErrorKind,
    contract::kv::{KvHandle, LeaseId, Order},
    env::Env,
    name::{Dir, Key, Realm},
};

use super::Client;

const TTL_MAX: Duration = Duration::from_secs(4);

/// What clients know about their leases.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases(Vec<Known>);

#[derive(Clone, Debug)]
struct Known {
    id: LeaseId,
    key: Key,
    /// It lives until then at least: counted from when the last renewal that succeeded was sent.
    lives_until: Instant,
    /// Whether its key was put for certain.
    is_put: bool,
    /// Whether it may have been revoked.
    revoking: bool,
    /// Whether the engine said that it has ended.
    ended: bool,
}

fn dir() -> Dir {
    Dir::new(&Realm::default(), "leased").expect("valid")
}

/// Grants leases, renews them for a while, and lets them end.
pub(super) async fn work(client: &Client) {
    while client.is_up() {
        let asked = Duration::from_secs(1) + client.env.random_duration(TTL_MAX - Duration::from_secs(1));
        let sent = client.env.now();
        let Ok(lease) = client.kv.lease_grant(asked).await else { continue };
        let key = dir().key(&format!("{:x}", lease.id.0)).expect("valid");
        let known = Known {
            id: lease.id,
            key: key.clone(),
            lives_until: sent + lease.ttl,
            is_put: false,
            revoking: false,
            ended: false,
        };
        let number = {
            let mut leases = client.life.leases.lock();
            leases.0.push(known);
            leases.0.len() - 1
        };
        let update = |change: &dyn Fn(&mut Known)| change(&mut client.life.leases.lock().0[number]);
        let put = client.kv.put(&key, "held", Some(lease.id)).await;
        update(&|known| known.is_put = put.is_ok());
        for _ in 0..client.env.random() % 5 {
            client.env.sleep(client.env.random_duration(lease.ttl * 2 / 3)).await;
            let sent = client.env.now();
            match client.kv.lease_renew(lease.id).await {
                Ok(ttl) => update(&|known| known.lives_until = known.lives_until.max(sent + ttl)),
                Err(error) if error.kind() == ErrorKind::Fenced => {
                    let now = client.env.now();
                    update(&|known| {
                        known.ended = true;
                        assert!(now >= known.lives_until, "lease {:?} has ended early", known.id);
                    });
                }
                Err(_) => {}
            }
        }
        if client.env.random().is_multiple_of(3) {
            update(&|known| known.revoking = true);
            if client.kv.lease_revoke(lease.id).await.is_ok() {
                update(&|known| known.ended = true);
            }
        }
        let known = client.life.leases.lock().0[number].clone();
        if let Ok(found) = client.kv.get(&key).await {
            known.verify_key(found.is_some(), client.env.now());
        }
    }
}

impl Leases {
    /// Checks every lease after the engine was reopened, when no request is on its way.
    pub(super) async fn verify(&self, kv: &KvHandle, env: &Env) {
        for known in &self.0 {
            let found = kv.get(&known.key).await.expect("a read");
            known.verify_key(found.is_some(), env.now());
            let left = kv.lease_left(known.id).await.expect("a read");
            assert!(left.is_none() || !known.ended, "lease {:?} had ended and is back", known.id);
            assert!(left.is_some() || known.may_have_ended(env.now()), "lease {:?} is gone", known.id);
        }
    }

    /// When nobody renews, every lease ends and takes its key along.
    pub(super) async fn verify_that_all_have_ended(&self, kv: KvHandle, env: Env) {
        env.sleep(TTL_MAX + Duration::from_secs(1)).await;
        let page = kv.list(&dir(), Order::Name { after: String::new() }, 1_000).await.expect("a listing");
        assert!(page.entries.is_empty(), "these outlive their leases: {:?}", page.entries);
        for known in &self.0 {
            let left = kv.lease_left(known.id).await.expect("a read");
            assert_eq!(left, None, "lease {:?} outlives its time", known.id);
        }
    }
}

impl Known {
    fn may_have_ended(&self, now: Instant) -> bool {
        self.ended || self.revoking || now >= self.lives_until
    }

    fn verify_key(&self, is_there: bool, now: Instant) {
        assert!(!is_there || !self.ended, "{} is there, but its lease {:?} had ended", self.key, self.id);
        assert!(
            is_there || !self.is_put || self.may_have_ended(now),
            "{} is gone before its lease {:?} ended",
            self.key,
            self.id
        );
    }
}
