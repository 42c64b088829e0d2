//! One member of a group: keeps its entry, follows the assignment, and coordinates if it is the oldest.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bytes::Bytes;
use coact_core::{
    Error, ErrorKind, Result,
    contract::{
        kv::{Check, Entry, Feed, Order, Revision, Scope, Txn, TxnOutcome, Write},
        stream::StreamHandle,
    },
    env::Env,
    name::{Dir, Group, Key, Realm, Topic},
};
use futures::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};

use super::{
    Assignment, Member, Partitions, Phase,
    assign::{Assigned, Subscriptions, assign},
    assignment_key, members_dir,
};
use crate::{
    Session,
    backoff::{Backoff, is_retryable},
    json::{read, to_bytes},
};

/// How a member joins.
#[derive(Clone, Debug)]
pub(in crate::mq) struct Join {
    pub(in crate::mq) realm: Realm,
    pub(in crate::mq) group: Group,
    pub(in crate::mq) topics: BTreeSet<Topic>,
    pub(in crate::mq) rebalance_timeout: Duration,
}

/// What a member knows about its group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::mq) struct View {
    /// The stable generation; zero before the first.
    pub(in crate::mq) generation: u64,
    /// The stable generation before it.
    pub(in crate::mq) before: u64,
    /// What this member has in it.
    pub(in crate::mq) assigned: Partitions,
    /// The generation that is being prepared, and what this member will have in it.
    pub(in crate::mq) next: Option<(u64, Partitions)>,
}

/// A place in a group, given up when it is dropped.
#[derive(Debug)]
pub(in crate::mq) struct Membership {
    incarnation: String,
    views: watch::Receiver<View>,
    says: mpsc::UnboundedSender<Says>,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<Option<Error>>,
}

impl Membership {
    /// Joins a group; what it gets comes with the views.
    pub(in crate::mq) async fn join(session: &Session, streams: &StreamHandle, join: Join) -> Result<Self> {
        let env = session.core().env().clone();
        let incarnation = format!("{:016x}{:016x}", env.random(), env.random());
        let members = members_dir(&join.realm, &join.group)?;
        let mut task = Task {
            key: members.key(&incarnation)?,
            assignment: assignment_key(&join.realm, &join.group)?,
            members,
            created: Revision(0),
            me: Member {
                name: session.name().to_owned(),
                topics: join.topics.iter().map(Topic::to_string).collect(),
                ready: 0,
            },
            incarnation: incarnation.clone(),
            session: session.clone(),
            streams: streams.clone(),
            views: watch::Sender::new(View::default()),
            preparing: None,
            join,
        };
        task.enter().await?;
        let views = task.views.subscribe();
        let (says, said) = mpsc::unbounded_channel();
        let stop = watch::Sender::new(false);
        let (end, ended) = watch::channel(None);
        env.spawn(task.run(said, stop.subscribe(), end));
        Ok(Self { incarnation, views, says, stop, ended })
    }

    pub(in crate::mq) fn incarnation(&self) -> &str {
        &self.incarnation
    }

    pub(in crate::mq) fn views(&self) -> watch::Receiver<View> {
        self.views.clone()
    }

    /// Says that this member holds nothing that is not its own in the generation that is being prepared.
    pub(in crate::mq) fn ready(&self, generation: u64) {
        // The task ends before us only with its session.
        let _ = self.says.send(Says::Ready(generation));
    }

    /// Wants to read these topics too.
    pub(in crate::mq) fn also(&self, topics: &BTreeSet<Topic>) {
        // The task ends before us only with its session.
        let _ = self.says.send(Says::Also(topics.iter().map(Topic::to_string).collect()));
    }

    /// Why the membership is over, once it is.
    pub(in crate::mq) async fn ended(&self) -> Error {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_else(left),
            Err(_) => left(),
        }
    }

    /// Gives up the place, and returns when the group can see it.
    pub(in crate::mq) async fn leave(&self) -> Result<()> {
        self.stop.send_replace(true);
        match self.ended().await {
            why if why.kind() == ErrorKind::Closed => Ok(()),
            why => Err(why),
        }
    }
}

/// What a member says about itself.
#[derive(Debug)]
enum Says {
    Ready(u64),
    Also(Vec<String>),
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

fn left() -> Error {
    Error::new(ErrorKind::Closed, "the consumer has left its group")
}

/// How often a member looks though nobody told it to: for partitions that topics got, and for changes that were lost.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

struct Task {
    session: Session,
    streams: StreamHandle,
    join: Join,
    members: Dir,
    key: Key,
    assignment: Key,
    incarnation: String,
    created: Revision,
    me: Member,
    views: watch::Sender<View>,
    /// The generation that is being prepared, and since when this member knows.
    preparing: Option<(u64, Instant)>,
}

impl Task {
    async fn run(
        mut self,
        mut said: mpsc::UnboundedReceiver<Says>,
        mut stop: watch::Receiver<bool>,
        end: watch::Sender<Option<Error>>,
    ) {
        let lost = self.session.lost();
        let why = tokio::select! {
            biased;
            why = lost => why,
            _ = stop.wait_for(|stop| *stop) => left(),
            why = self.follow_always(&mut said) => why,
        };
        if why.kind() == ErrorKind::Closed && self.session.is_alive() {
            self.go().await;
        }
        end.send_replace(Some(why));
    }

    /// Follows the group until that makes no sense any more, and says why.
    async fn follow_always(&mut self, said: &mut mpsc::UnboundedReceiver<Says>) -> Error {
        let mut backoff = Backoff::new(self.env(), FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let Err(error) = self.follow(said, &mut backoff).await;
            if !is_retryable(&error) {
                return error;
            }
            tracing::debug!(group = %self.join.group, %error, "a group is followed anew");
            backoff.pause().await;
        }
    }

    async fn follow(
        &mut self,
        said: &mut mpsc::UnboundedReceiver<Says>,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible> {
        let kv = self.session.kv().clone();
        // First the feeds, then the look: nothing in between is missed.
        let mut members = kv.watch(Scope::Dir(self.members.clone()), None).await?;
        let mut assignment = kv.watch(Scope::Key(self.assignment.clone()), None).await?;
        loop {
            let look_at = self.look().await?;
            backoff.reset();
            let env = self.env().clone();
            tokio::select! {
                biased;
                Some(says) = said.recv() => self.say(says).await?,
                changed = next_change(&mut members) => changed?,
                changed = next_change(&mut assignment) => changed?,
                () = env.sleep_until(look_at) => {}
            }
            // Whatever else came meanwhile is seen by the same look.
            while let Some(Some(change)) = members.next().now_or_never() {
                change?;
            }
            while let Some(Some(change)) = assignment.next().now_or_never() {
                change?;
            }
        }
    }

    /// Looks at the group, tells what it sees, and coordinates if that is this member's to do. Returns when to look again
    /// at the latest.
    async fn look(&mut self) -> Result<Instant> {
        let members = self.list().await?;
        if !members.iter().any(|(entry, _)| entry.key == self.key && entry.created == self.created) {
            return Err(Error::new(
                ErrorKind::Fenced,
                format!("the entry of a member of group {} is gone", self.join.group),
            ));
        }
        let entry = self.session.kv().get(&self.assignment).await?;
        let current: Option<Assignment> = entry.as_ref().and_then(read);
        self.show(current.as_ref());
        let now = self.env().now();
        self.preparing = match &current {
            Some(found) if found.phase == Phase::Preparing => {
                let since = self.preparing.filter(|(generation, _)| *generation == found.generation);
                Some(since.unwrap_or((found.generation, now)))
            }
            _ => None,
        };
        let mut look_at = now + LOOK_EVERY;
        if members.first().is_some_and(|(entry, _)| entry.key == self.key) {
            let modified = entry.map(|entry| entry.modified);
            self.coordinate(&members, current, modified).await?;
            if let Some((_, since)) = self.preparing {
                look_at = look_at.min(since + self.join.rebalance_timeout);
            }
        }
        Ok(look_at.max(now + FIRST_PAUSE))
    }

    fn show(&self, current: Option<&Assignment>) {
        let mine = |found: &Assignment| found.of(&self.incarnation);
        self.views.send_if_modified(|view| {
            let next = match current {
                None => View { next: None, ..view.clone() },
                Some(found) if found.phase == Phase::Preparing => {
                    View { next: Some((found.generation, mine(found))), ..view.clone() }
                }
                Some(found) => {
                    View { generation: found.generation, before: found.before, assigned: mine(found), next: None }
                }
            };
            let differs = *view != next;
            *view = next;
            differs
        });
    }

    /// Brings the assignment one step closer to who is there.
    async fn coordinate(
        &mut self,
        members: &[(Entry, Member)],
        current: Option<Assignment>,
        modified: Option<Revision>,
    ) -> Result<()> {
        let subscriptions: Subscriptions =
            members.iter().map(|(entry, member)| (name_of(entry), topics_of(member))).collect();
        let counts = self.counts(&subscriptions).await?;
        let wanted = |found: &Assignment| {
            let topics = |topics: &BTreeMap<String, String>| topics.keys().cloned().collect::<BTreeSet<_>>();
            let same_members = found.members.len() == members.len()
                && members.iter().all(|(entry, member)| {
                    let wants = member.topics.iter().cloned().collect();
                    found.members.get(entry.key.name()).is_some_and(|found| topics(found) == wants)
                });
            same_members && found.topics.iter().map(|(topic, count)| (topic.as_str(), *count)).eq(names(&counts))
        };
        match current {
            Some(found) if !wanted(&found) => {
                self.prepare(members, &subscriptions, &counts, Some(found), modified).await
            }
            None => self.prepare(members, &subscriptions, &counts, None, modified).await,
            Some(found) if found.phase == Phase::Stable => Ok(()),
            Some(found) => {
                let waited = self.preparing.map_or(Duration::ZERO, |(_, since)| self.env().now() - since);
                let all_ready = members.iter().all(|(_, member)| member.ready == found.generation);
                if all_ready || waited >= self.join.rebalance_timeout {
                    self.settle(found, modified).await?;
                }
                Ok(())
            }
        }
    }

    /// Publishes what comes next, for members to let go.
    async fn prepare(
        &self,
        members: &[(Entry, Member)],
        subscriptions: &Subscriptions,
        counts: &BTreeMap<Topic, u32>,
        current: Option<Assignment>,
        modified: Option<Revision>,
    ) -> Result<()> {
        let had: Assigned = match &current {
            Some(found) => found.members.keys().map(|member| (member.clone(), found.of(member))).collect(),
            None => Assigned::new(),
        };
        // The assignment may have been forgotten, but not by the streams.
        let fenced = self.streams.group(&self.join.group).await?.map_or(0, |group| group.generation);
        let (known, before) = match &current {
            Some(found) if found.phase == Phase::Preparing => (found.generation, found.before),
            Some(found) => (found.generation, found.generation),
            None => (0, 0),
        };
        let mut next = Assignment {
            generation: known.max(fenced) + 1,
            before,
            phase: Phase::Preparing,
            topics: names(counts).map(|(topic, count)| (topic.to_owned(), count)).collect(),
            members: BTreeMap::new(),
        };
        let assigned = assign(subscriptions, counts, &had);
        for (entry, member) in members {
            let name = name_of(entry);
            next.set(&name, &member.topics, &assigned[&name]);
        }
        tracing::debug!(group = %self.join.group, generation = next.generation, "a group is rebalanced");
        self.publish(&next, modified).await
    }

    /// Fences whoever did not answer, and lets everybody have what is assigned.
    async fn settle(&self, found: Assignment, modified: Option<Revision>) -> Result<()> {
        match self.streams.fence_group(&self.join.group, found.generation).await {
            // Somebody coordinates a later generation: the next look shows it, or it is prepared once more.
            Err(error) if error.kind() == ErrorKind::Fenced => {
                let fenced = self.streams.group(&self.join.group).await?.map_or(0, |group| group.generation);
                let again = Assignment { generation: fenced + 1, ..found };
                self.publish(&again, modified).await
            }
            Err(error) => Err(error),
            Ok(()) => self.publish(&Assignment { phase: Phase::Stable, ..found }, modified).await,
        }
    }

    /// Writes the assignment, unless somebody else has since.
    async fn publish(&self, assignment: &Assignment, modified: Option<Revision>) -> Result<()> {
        let value = to_bytes(assignment)?;
        let most = self.session.kv().guarantees().limits.value_bytes;
        if value.len() > most {
            let message =
                format!("the assignment of group {} has {} bytes: at most {most} fit", self.join.group, value.len());
            return Err(Error::new(ErrorKind::Exhausted, message));
        }
        let check = match modified {
            Some(modified) => Check::ModifiedAt(self.assignment.clone(), modified),
            None => Check::Absent(self.assignment.clone()),
        };
        let write = Write::Put { key: self.assignment.clone(), value, lease: None };
        let checks = vec![check, Check::CreatedAt(self.key.clone(), self.created)];
        let txn = Txn { checks, writes: vec![write], ..Txn::default() };
        // Refused or not, the feed shows what is there now.
        self.session.kv().txn(&self.join.realm, txn).await.map(drop)
    }

    /// How many partitions each topic has that somebody wants.
    async fn counts(&self, subscriptions: &Subscriptions) -> Result<BTreeMap<Topic, u32>> {
        let mut counts = BTreeMap::new();
        for topic in subscriptions.values().flatten().collect::<BTreeSet<_>>() {
            let count = self.streams.topic(topic).await?.map_or(0, |info| info.spec.partitions);
            counts.insert(topic.clone(), count);
        }
        Ok(counts)
    }

    /// The members, oldest first. Foreign entries are left out.
    async fn list(&self) -> Result<Vec<(Entry, Member)>> {
        const PAGE: usize = 1_000;
        let (mut found, mut after) = (Vec::new(), Revision(0));
        loop {
            let page = self.session.kv().list(&self.members, Order::Created { after }, PAGE).await?;
            after = page.entries.last().map_or(after, |entry| entry.created);
            found.extend(page.entries.into_iter().filter_map(|entry| read(&entry).map(|member| (entry, member))));
            if !page.more {
                return Ok(found);
            }
        }
    }

    async fn enter(&mut self) -> Result<()> {
        let put = self.put(Check::Absent(self.key.clone()))?;
        self.created = match self.session.kv().txn(&self.join.realm, put).await? {
            TxnOutcome::Committed { revision, .. } => revision,
            TxnOutcome::Refused { .. } => {
                return Err(Error::new(ErrorKind::Conflict, "a member of the same random name is in the group"));
            }
        };
        Ok(())
    }

    async fn say(&mut self, says: Says) -> Result<()> {
        match says {
            Says::Ready(generation) => self.me.ready = generation,
            Says::Also(topics) => {
                self.me.topics.extend(topics);
                self.me.topics.sort();
                self.me.topics.dedup();
            }
        }
        let put = self.put(Check::CreatedAt(self.key.clone(), self.created))?;
        let mut backoff = Backoff::new(self.env(), FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            match self.session.kv().txn(&self.join.realm, put.clone()).await {
                // Refused: the next look says why.
                Ok(_) => return Ok(()),
                Err(error) if is_retryable(&error) => backoff.pause().await,
                Err(error) => return Err(error),
            }
        }
    }

    fn put(&self, check: Check) -> Result<Txn> {
        let lease = self.session.lease();
        let value: Bytes = to_bytes(&self.me)?;
        let write = Write::Put { key: self.key.clone(), value, lease: Some(lease) };
        Ok(Txn { checks: vec![check, Check::LeaseAlive(lease)], writes: vec![write], ..Txn::default() })
    }

    /// Deletes this member's entry; if that fails, it goes with the lease.
    async fn go(&self) {
        let gone = Txn {
            checks: vec![Check::CreatedAt(self.key.clone(), self.created)],
            writes: vec![Write::Delete(self.key.clone())],
            ..Txn::default()
        };
        let core = self.session.core().clone();
        let mut backoff = Backoff::new(self.env(), FIRST_PAUSE, LONGEST_PAUSE);
        while core.is_alive() {
            match self.session.kv().txn(&self.join.realm, gone.clone()).await {
                Err(error) if is_retryable(&error) => backoff.pause().await,
                _ => return,
            }
        }
    }

    fn env(&self) -> &Env {
        self.streams.env()
    }
}

async fn next_change(feed: &mut Feed) -> Result<()> {
    match feed.next().await {
        Some(change) => change.map(drop),
        None => Err(Error::new(ErrorKind::Unavailable, "the watch of a group has ended")),
    }
}

fn name_of(entry: &Entry) -> String {
    entry.key.name().to_owned()
}

fn topics_of(member: &Member) -> BTreeSet<Topic> {
    member.topics.iter().filter_map(|topic| Topic::new(topic).ok()).collect()
}

fn names(counts: &BTreeMap<Topic, u32>) -> impl Iterator<Item = (&str, u32)> {
    counts.iter().map(|(topic, count)| (topic.as_str(), *count))
}
