//! The members that a node keeps for clients, and what of each is with its client.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use coact_blocks::{
    Session,
    mq::{Consumer, Delivery, TopicPartition},
};
use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{KvHandle, LeaseId},
    env::Env,
    name::{Group, Topic},
};
use parking_lot::Mutex;

use super::{ACK_WAIT_MAX_MS, DeliveryView, SettleOne, Word};
use crate::api::record::{PAGE_BYTES, RecordView};

/// How many members one node keeps.
const MEMBERS_MAX: usize = 1_000;
/// How long a shutdown waits for members to leave.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

/// A record with about how many bytes it has.
pub(super) type Weighed = (DeliveryView, u64);

/// The members that this node keeps for clients, by id.
#[derive(Default)]
pub(in crate::api) struct Members(Mutex<HashMap<String, Arc<Member>>>);

/// One member.
pub(super) struct Member {
    pub(super) namespace: String,
    pub(super) group: Group,
    pub(super) topics: Vec<Topic>,
    pub(super) ack_wait: Duration,
    place: Mutex<Place>,
    handed: Mutex<Handed>,
}

enum Place {
    Held(Arc<Held>),
    Over(Error),
}

/// What a member holds as long as its session lives.
pub(super) struct Held {
    pub(super) consumer: Consumer,
    kv: KvHandle,
    lease: LeaseId,
    ttl: Duration,
}

/// The records that are with the client, and those that are to be handed out again.
#[derive(Default)]
struct Handed {
    last: u64,
    out: BTreeMap<u64, Out>,
    back: Vec<Out>,
}

struct Out {
    delivery: Delivery,
    attempt: u32,
    /// From when on it is handed out again.
    again_at: Instant,
}

impl Members {
    pub(super) fn get(&self, id: &str) -> Option<Arc<Member>> {
        self.0.lock().get(id).cloned()
    }

    pub(super) fn insert(&self, id: String, member: Arc<Member>) {
        self.0.lock().insert(id, member);
    }

    pub(super) fn remove(&self, id: &str) {
        self.0.lock().remove(id);
    }

    /// Forgets members that are over when there are many.
    pub(super) fn make_room(&self) -> Result<()> {
        let mut members = self.0.lock();
        if members.len() < MEMBERS_MAX {
            return Ok(());
        }
        members.retain(|_, member| member.held().is_ok());
        if members.len() < MEMBERS_MAX {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Exhausted, format!("this node keeps {MEMBERS_MAX} members of groups already")))
    }

    /// Lets every member leave.
    pub(in crate::api) async fn close(&self, env: &Env) {
        let members: Vec<_> = self.0.lock().drain().map(|(_, member)| member).collect();
        let left = members.into_iter().filter_map(|member| {
            let held = member.end(Error::new(ErrorKind::Unavailable, "the node shuts down; join anew"))?;
            Some(async move {
                let _ = held.consumer.leave().await;
            })
        });
        if env.timeout(LEAVE_LIMIT, futures::future::join_all(left)).await.is_none() {
            tracing::warn!(limit = ?LEAVE_LIMIT, "some members of groups did not leave in time");
        }
    }
}

impl Member {
    /// Keeps a consumer until its session is lost.
    pub(super) fn start(
        session: &Session,
        consumer: Consumer,
        namespace: String,
        topics: Vec<Topic>,
        ack_wait: Duration,
    ) -> Arc<Self> {
        let group = consumer.group().clone();
        let held = Held { consumer, kv: session.kv().clone(), lease: session.lease(), ttl: session.ttl() };
        let member = Arc::new(Self {
            namespace,
            group,
            topics,
            ack_wait,
            place: Mutex::new(Place::Held(Arc::new(held))),
            handed: Mutex::default(),
        });
        let (lost, of_session) = (session.lost(), Arc::downgrade(&member));
        session.kv().env().spawn(async move {
            let why = lost.await;
            if let Some(member) = of_session.upgrade() {
                member.end(why);
            }
        });
        member
    }

    pub(super) fn held(&self) -> Result<Arc<Held>> {
        match &*self.place.lock() {
            Place::Held(held) => Ok(held.clone()),
            Place::Over(why) => Err(why.clone()),
        }
    }

    /// Gives up everything, once.
    pub(super) fn end(&self, why: Error) -> Option<Arc<Held>> {
        let held = {
            let mut place = self.place.lock();
            let Place::Held(held) = &*place else { return None };
            let held = held.clone();
            *place = Place::Over(why);
            held
        };
        *self.handed.lock() = Handed::default();
        Some(held)
    }

    /// Records with about how many bytes each has; waits for the first. The session is kept alive meanwhile.
    pub(super) async fn fetch(&self, held: &Held, env: &Env, limit: usize, wait: Duration) -> Result<Vec<Weighed>> {
        let give_up = env.now() + wait;
        let mut renew_at = env.now();
        loop {
            if env.now() >= renew_at {
                held.renew().await?;
                renew_at = env.now() + held.ttl / 3;
            }
            let (records, next) = self.hand_out(held, env.now(), limit)?;
            if !records.is_empty() || env.now() >= give_up {
                return Ok(records);
            }
            let look_at = next.map_or(give_up, |next| next.min(give_up)).min(renew_at);
            tokio::select! {
                biased;
                // Kept at once: whoever asked may be gone before it is handed out.
                delivery = held.consumer.next() => self.keep(delivery?, env.now()),
                () = env.sleep_until(look_at) => {}
            }
        }
    }

    /// Hands out what is there, oldest first; also answers when a record comes back next.
    fn hand_out(&self, held: &Held, now: Instant, limit: usize) -> Result<(Vec<Weighed>, Option<Instant>)> {
        let mut handed = self.handed.lock();
        // A member that ended meanwhile has given everything up.
        self.held()?;
        let mut again = handed.come_back(held, now).into_iter();
        let (mut records, mut size) = (Vec::new(), 0);
        while records.len() < limit && size < PAGE_BYTES as u64 {
            let (delivery, attempt) = match again.next() {
                Some(out) => (out.delivery, out.attempt + 1),
                None => match held.consumer.poll()? {
                    Some(delivery) => (delivery, 1),
                    None => break,
                },
            };
            handed.last += 1;
            let view = DeliveryView {
                delivery: handed.last,
                attempt,
                topic: delivery.topic().to_string(),
                record: RecordView::new(delivery.partition(), delivery.record().clone()),
            };
            let bytes = delivery.message().size() as u64;
            size += bytes;
            records.push((view, bytes));
            let number = handed.last;
            handed.out.insert(number, Out { delivery, attempt, again_at: now + self.ack_wait });
        }
        // What did not fit comes with the next answer.
        handed.back.extend(again);
        let waiting = handed.out.values().chain(&handed.back).map(|out| out.again_at).min();
        Ok((records, waiting))
    }

    fn keep(&self, delivery: Delivery, now: Instant) {
        let mut handed = self.handed.lock();
        if self.held().is_ok() {
            handed.back.push(Out { delivery, attempt: 0, again_at: now });
        }
    }

    /// What became of each; those that are to be buried are still to be.
    pub(super) fn settle(&self, settle: &[SettleOne], env: &Env) -> (Vec<&'static str>, Vec<Killed>) {
        let mut handed = self.handed.lock();
        let mut killed = Vec::new();
        let mut one = |(index, one): (usize, &SettleOne)| match handed.out.remove(&one.delivery) {
            None => "fenced",
            Some(out) if out.again_at <= env.now() => {
                // Too late: it is handed out again.
                handed.back.push(out);
                "fenced"
            }
            Some(out) => match one.verdict {
                Word::Ack => {
                    if out.delivery.ack() {
                        "done"
                    } else {
                        "fenced"
                    }
                }
                Word::Nack if out.delivery.is_current() => {
                    let again_at = env.now() + Duration::from_millis(one.delay_ms.unwrap_or(0).min(ACK_WAIT_MAX_MS));
                    handed.back.push(Out { again_at, ..out });
                    "back"
                }
                Word::Kill if out.delivery.is_current() => {
                    killed.push(Killed { index, out, why: one.error.clone().unwrap_or_default() });
                    "fenced"
                }
                Word::Nack | Word::Kill => "fenced",
            },
        };
        let settled = settle.iter().enumerate().map(&mut one).collect();
        (settled, killed)
    }

    /// Brings records to the dead letters. If that fails, or nobody waits for it any more, what is left is handed out again.
    pub(super) async fn bury_all(
        &self,
        held: &Held,
        killed: Vec<Killed>,
        env: &Env,
    ) -> Result<Vec<(usize, &'static str)>> {
        let mut kept = Kept { member: self, env, killed: killed.into() };
        let mut answers = Vec::new();
        while let Some(Killed { index, out, why }) = kept.killed.front() {
            let answer = match held.consumer.bury(&out.delivery, why, out.attempt).await {
                Ok(()) => "dead",
                Err(error) if error.kind() == ErrorKind::Fenced => "fenced",
                Err(error) => return Err(error.effect_unknown()),
            };
            answers.push((*index, answer));
            kept.killed.pop_front();
        }
        Ok(answers)
    }
}

/// A record that is to be buried.
pub(super) struct Killed {
    /// Where it is in the request.
    index: usize,
    out: Out,
    why: String,
}

/// Records that are handed out again unless they are taken out of here.
struct Kept<'a> {
    member: &'a Member,
    env: &'a Env,
    killed: VecDeque<Killed>,
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        let mut handed = self.member.handed.lock();
        if self.member.held().is_ok() {
            let again_at = self.env.now();
            handed.back.extend(self.killed.drain(..).map(|killed| Out { again_at, ..killed.out }));
        }
    }
}

impl Handed {
    /// What is to be handed out again now. What is not this member's any more is let go, so that nobody waits for it.
    fn come_back(&mut self, held: &Held, now: Instant) -> Vec<Out> {
        let late: Vec<u64> = self.out.iter().filter(|(_, out)| out.again_at <= now).map(|(id, _)| *id).collect();
        let late = late.iter().filter_map(|id| self.out.remove(id)).collect::<Vec<_>>();
        self.back.extend(late);
        let assigned = held.consumer.assigned();
        let is_ours = |delivery: &Delivery| {
            let is_place =
                |place: &TopicPartition| place.topic == *delivery.topic() && place.partition == delivery.partition();
            delivery.is_current() && assigned.iter().any(is_place)
        };
        self.back.retain(|out| is_ours(&out.delivery));
        let (mut again, later): (Vec<_>, Vec<_>) = self.back.drain(..).partition(|out| out.again_at <= now);
        self.back = later;
        again.sort_by_key(|out| (out.delivery.topic().clone(), out.delivery.partition(), out.delivery.record().offset));
        again
    }
}

impl Held {
    /// The client is there: its session lives on.
    pub(super) async fn renew(&self) -> Result<()> {
        match self.kv.lease_renew(self.lease).await {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Fenced) => {
                Err(Error::new(ErrorKind::Fenced, "the session of this member has ended: open a new one and join anew"))
            }
            Err(error) => Err(error),
        }
    }
}
