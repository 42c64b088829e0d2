//! `coact mq consume`: a member of a group, that prints records or runs a command for each.

use std::{collections::HashMap, ffi::OsString, sync::Arc, time::Duration};

use clap::Args;
use coact::{
    Error, Group, Result, Session, SessionOptions, Store, Topic,
    contract::stream::Offset,
    mq::{Committed, Consumer, ConsumerOptions, Message, Monitor, Policy, RunOptions, Start, TopicPartition},
};
use futures::future::{Either, select};

use super::{age, lines::Lines, topic_of};
use crate::{
    cmd::{
        child::default_label,
        duration,
        filter::{Ended, Filter, header_variables, text},
        serve::Signals,
    },
    exit::Exit,
    output,
};

/// Arguments of `coact mq consume`.
///
/// Without a command, records are printed, and committed when they were written. Interrupted, it commits what is done
/// and leaves the group.
#[derive(Debug, Args)]
pub(crate) struct Consume {
    /// The topics.
    #[arg(required = true, value_name = "TOPIC")]
    topics: Vec<String>,
    /// The group, whose members share the topics' partitions; it begins to exist with this.
    #[arg(long)]
    group: String,
    /// Where the group begins in a partition in which it never committed.
    #[arg(long, value_enum, default_value = "earliest")]
    start: Begin,
    /// Stop when the group has done what is there now.
    #[arg(long)]
    drain: bool,
    /// Stop after printing this many records.
    #[arg(long, value_name = "N", conflicts_with = "command")]
    max: Option<u64>,
    /// How long the group waits for a member that can no longer say that it lives.
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    ttl: Duration,
    /// Who this is, as shown by `coact mq group describe`.
    #[arg(long)]
    label: Option<String>,
    #[command(flatten)]
    lines: Lines,
    #[command(flatten)]
    each: Each,
    /// A command for each record, with its value on stdin; exit 0 is done. It finds COACT_TOPIC, COACT_PARTITION,
    /// COACT_OFFSET, COACT_ATTEMPT, COACT_GROUP, COACT_KEY if it is text, and each header as COACT_HEADER_NAME.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How commands are run, one for each record.
#[derive(Debug, Args)]
struct Each {
    /// How many commands at once; those of one key come one after the other.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "command")]
    concurrency: usize,
    /// How often a record is tried before the policy decides.
    #[arg(long, value_name = "N", default_value_t = 5, requires = "command")]
    attempts: u32,
    /// How long a record rests after its first failure; it doubles with each.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1s", requires = "command")]
    retry: Duration,
    /// What becomes of a record that failed too often. park: it and all later ones of its key wait for `coact mq redrive`;
    /// block: it is tried again and again; dead: it goes to the dead letters; retry:DELAY:ROUNDS: it comes again later, so
    /// often, and then goes to the dead letters.
    #[arg(long, value_parser = policy, default_value = "park", requires = "command")]
    policy: Policy,
    /// How long commands may go on after the second SIGINT or SIGTERM, before SIGKILL; their records come again.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s", requires = "command")]
    grace: Duration,
}

/// Where a group begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Begin {
    Earliest,
    Latest,
}

/// Reads what becomes of a record that failed too often.
fn policy(word: &str) -> Result<Policy, String> {
    let wrong = || "use park, block, dead, or retry:DELAY:ROUNDS as in retry:10m:3".to_owned();
    match word {
        "park" => Ok(Policy::ParkKey),
        "block" => Ok(Policy::BlockKey),
        "dead" => Ok(Policy::DeadLetter),
        _ => {
            let (delay, rounds) =
                word.strip_prefix("retry:").and_then(|rest| rest.split_once(':')).ok_or_else(wrong)?;
            let delay = age(delay).map_err(|_| wrong())?;
            Ok(Policy::RetryTopic { delay, rounds: rounds.parse().map_err(|_| wrong())? })
        }
    }
}

/// How long to wait for a record before looking whether everything is done.
const LOOK: Duration = Duration::from_millis(200);
/// About how many bytes are printed at once.
const MUCH: usize = 64 * 1024;

impl Consume {
    pub(crate) async fn run(self) -> Result<Exit> {
        let (group, mut topics) = (Group::new(&self.group)?, Vec::new());
        let target = self.lines.target();
        let store = target.open_store().await?;
        for name in &self.topics {
            let topic = Topic::new(name)?;
            topic_of(store.streams()?, &topic).await?;
            topics.push(topic);
        }
        let name = Some(self.label.clone().unwrap_or_else(default_label));
        let session = SessionOptions { ttl: self.ttl, name };
        let session = Session::open(store.kv(), session).await?;
        let goal = if self.drain { Some(Goal::now(&store, &target.realm()?, &group, &topics).await?) } else { None };
        let start = match self.start {
            Begin::Earliest => Start::Earliest,
            Begin::Latest => Start::Latest,
        };
        let options = ConsumerOptions { start, realm: target.realm()?, ..ConsumerOptions::default() };
        let consumer = Consumer::join(&session, store.streams()?, &group, topics, options).await?;
        let exit = if self.command.is_empty() {
            self.print(&consumer, goal).await
        } else {
            let filter = Filter::new(self.command.clone(), self.each.grace);
            self.each.run(&consumer, filter, goal).await
        };
        // Whatever happened, what is done is committed, and the others need not wait.
        let left = consumer.leave().await;
        let exit = exit?;
        left?;
        session.close().await?;
        store.close().await?;
        Ok(exit)
    }

    /// Prints records until there is no reason to go on. Only what was written counts as done.
    async fn print(&self, consumer: &Consumer, goal: Option<Goal>) -> Result<Exit> {
        let mut signals = Signals::new()?;
        let mut left = self.max.unwrap_or(u64::MAX);
        let env = coact::Env::real();
        while left > 0 {
            let next = tokio::select! {
                next = env.timeout(LOOK, consumer.next()) => next,
                () = signals.first() => return Ok(Exit::SUCCESS),
            };
            let Some(first) = next else {
                if reached(goal.as_ref(), consumer).await? {
                    break;
                }
                continue;
            };
            let (mut printed, mut text) = (vec![first?], Vec::new());
            self.lines.put(&mut text, printed[0].topic(), printed[0].partition(), printed[0].record());
            left -= 1;
            while left > 0
                && text.len() < MUCH
                && let Some(delivery) = consumer.poll()?
            {
                self.lines.put(&mut text, delivery.topic(), delivery.partition(), delivery.record());
                printed.push(delivery);
                left -= 1;
            }
            if !output::try_write(&text) {
                // Nobody reads any more: these records are for somebody else.
                break;
            }
            for delivery in printed {
                // One whose partition went elsewhere meanwhile comes again there.
                delivery.ack();
            }
        }
        Ok(Exit::SUCCESS)
    }
}

impl Each {
    /// Runs the command for each record until there is no reason to go on.
    async fn run(&self, consumer: &Consumer, filter: Arc<Filter>, goal: Option<Goal>) -> Result<Exit> {
        let options = RunOptions {
            concurrency: self.concurrency,
            max_attempts: self.attempts,
            policy: self.policy.clone(),
            first_pause: self.retry,
            ..RunOptions::default()
        };
        let group = consumer.group().clone();
        let run = consumer.run(async |message| handle(&filter, &group, message).await, options);
        let stop = async {
            let mut signals = Signals::new()?;
            tokio::select! {
                () = signals.first() => {}
                exit = filter.unusable() => return Ok(exit),
                done = until_reached(goal.as_ref(), consumer) => done?,
            }
            if filter.count() > 0 {
                output::complain(&format!("waiting for {} commands; once more ends them", filter.count()));
            }
            tokio::select! {
                // What is being done is done to the end.
                left = consumer.leave() => left?,
                () = signals.first() => {
                    filter.terminate();
                    filter.all_ended().await;
                }
            }
            Ok(Exit::SUCCESS)
        };
        match select(std::pin::pin!(run), std::pin::pin!(stop)).await {
            // Told to leave, it has ended; otherwise the place in the group is lost.
            Either::Left((ran, stop)) => {
                ran?;
                stop.await
            }
            Either::Right((exit, _)) => exit,
        }
    }
}

async fn handle(filter: &Arc<Filter>, group: &Group, message: Message) -> Result<(), Error> {
    let what = format!("record {}/{}/{}", message.topic, message.partition, message.stored.offset);
    let input = message.record().value.clone();
    // A consumer that lost its place drops this future, which kills the command.
    match filter.run(&what, input, variables(group, &message), std::future::pending()).await? {
        Ended::Done => Ok(()),
        Ended::Failed { error, .. } => Err(Error::invalid(error)),
        // The record comes again, elsewhere; this attempt never happened.
        Ended::GivenBack => std::future::pending().await,
    }
}

/// What a command finds in its environment.
fn variables(group: &Group, message: &Message) -> Vec<(String, OsString)> {
    let mut variables = vec![
        ("COACT_TOPIC".to_owned(), message.topic.as_str().into()),
        ("COACT_PARTITION".to_owned(), message.partition.to_string().into()),
        ("COACT_OFFSET".to_owned(), message.stored.offset.to_string().into()),
        ("COACT_ATTEMPT".to_owned(), message.attempt.to_string().into()),
        ("COACT_GROUP".to_owned(), group.as_str().into()),
    ];
    let key = message.record().key.as_deref().and_then(text);
    variables.extend(key.map(|key| ("COACT_KEY".to_owned(), key.into())));
    variables.extend(header_variables(&message.record().headers));
    variables
}

/// What is to be done before a draining consumer ends: by whom of the group does not matter.
struct Goal {
    monitor: Monitor,
    group: Group,
    ends: HashMap<TopicPartition, Offset>,
}

impl Goal {
    async fn now(store: &Store, realm: &coact::Realm, group: &Group, topics: &[Topic]) -> Result<Self> {
        let monitor = Monitor::new(store.kv(), store.streams()?, realm);
        let mut ends = HashMap::new();
        for topic in topics {
            let stats = monitor.topic(topic).await?;
            for (partition, bounds) in (0..).zip(&stats.partitions).filter(|(_, bounds)| bounds.start < bounds.end) {
                ends.insert(TopicPartition { topic: topic.clone(), partition }, bounds.end);
            }
        }
        Ok(Self { monitor, group: group.clone(), ends })
    }

    async fn is_reached(&self) -> Result<bool> {
        let lag = self.monitor.group(&self.group).await?;
        let is_done = |place: &TopicPartition, end: &Offset| {
            let found = lag.partitions.iter().find(|partition| partition.place == *place);
            found.is_some_and(|partition| {
                let committed = matches!(partition.committed, Committed::At(offset) if offset >= *end);
                committed || partition.messages == Some(0)
            })
        };
        Ok(self.ends.iter().all(|(place, end)| is_done(place, end)))
    }
}

async fn reached(goal: Option<&Goal>, consumer: &Consumer) -> Result<bool> {
    let Some(goal) = goal else { return Ok(false) };
    match consumer.commit().await {
        // The group goes over to another generation: later.
        Err(error) if error.kind() == coact::ErrorKind::Fenced => Ok(false),
        committed => {
            committed?;
            goal.is_reached().await
        }
    }
}

async fn until_reached(goal: Option<&Goal>, consumer: &Consumer) -> Result<()> {
    while !reached(goal, consumer).await? {
        coact::Env::real().sleep(LOOK).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read() {
        assert_eq!(policy("park"), Ok(Policy::ParkKey));
        assert_eq!(policy("retry:10m:3"), Ok(Policy::RetryTopic { delay: Duration::from_secs(600), rounds: 3 }));
        for wrong in ["", "retry", "retry:10m", "retry:x:3", "retry:10m:-1", "parked"] {
            assert!(policy(wrong).is_err(), "{wrong}");
        }
    }
}
