//! `coact mq`: topics, their records, the groups that read them, and records that wait for their time.

mod consume;
mod delay;
mod group;
mod lines;
mod parked;
mod produce;
mod tail;
mod top;
mod topic;

use std::{ops::RangeInclusive, time::Duration};

use clap::Subcommand;
use coact::{Error, ErrorKind, Result, StreamHandle, Topic, contract::stream::TopicInfo};

use crate::exit::Exit;

/// Commands of `coact mq`.
#[derive(Debug, Subcommand)]
pub(crate) enum Mq {
    /// Create a topic; exit 4 if there is one of this name.
    Create(topic::Create),
    /// Change what a topic keeps, or add partitions, which moves keys to other partitions.
    Alter(topic::Alter),
    /// Delete a topic with its records, its delayed records and what groups committed for it; exit 3 if there is none.
    Rm(topic::Rm),
    /// List topics.
    Ls(topic::Ls),
    /// Show a topic: its layout, its partitions, and how far its groups came.
    Describe(topic::Describe),
    /// Append lines of files, or of stdin, each as a record.
    Produce(produce::Produce),
    /// Print the records of a topic, without a group.
    Tail(tail::Tail),
    /// Take part in a group: print its records, or run a command for each.
    Consume(consume::Consume),
    /// List the keys whose records a group has put aside.
    Parked(parked::Parked),
    /// Have records that were put aside come back.
    Redrive(parked::Redrive),
    /// Set where a group goes on in a topic.
    Seek(group::Seek),
    /// How many records groups have not read, and how old the first of them is.
    Lag(group::Lag),
    /// Groups: list, describe, remove.
    #[command(subcommand)]
    Group(group::Group),
    /// Records that wait for their time: list, cancel, reschedule, numbers.
    #[command(subcommand)]
    Delay(delay::Delay),
    /// Show topics and groups with their rates and lags, again and again.
    Top(top::Top),
}

impl Mq {
    pub(crate) async fn run(self) -> Result<Exit> {
        match self {
            Self::Create(create) => create.run().await,
            Self::Alter(alter) => alter.run().await,
            Self::Rm(rm) => rm.run().await,
            Self::Ls(ls) => ls.run().await,
            Self::Describe(describe) => describe.run().await,
            Self::Produce(produce) => produce.run().await,
            Self::Tail(tail) => tail.run().await,
            Self::Consume(consume) => consume.run().await,
            Self::Parked(parked) => parked.run().await,
            Self::Redrive(redrive) => redrive.run().await,
            Self::Seek(seek) => seek.run().await,
            Self::Lag(lag) => lag.run().await,
            Self::Group(group) => group.run().await,
            Self::Delay(delay) => delay.run().await,
            Self::Top(top) => top.run().await,
        }
    }
}

/// How many topics one request lists.
const PAGE: usize = 1000;

/// A topic that must be there.
async fn topic_of(streams: &StreamHandle, name: &Topic) -> Result<TopicInfo> {
    streams.topic(name).await?.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no topic {name}")))
}

/// The partitions to look at: one, whether it is there or not, or all.
fn chosen(partition: Option<u32>, info: &TopicInfo) -> RangeInclusive<u32> {
    partition.map_or(0..=info.spec.partitions - 1, |one| one..=one)
}

async fn topics(streams: &StreamHandle) -> Result<Vec<TopicInfo>> {
    let mut found: Vec<TopicInfo> = Vec::new();
    loop {
        let after = found.last().map_or("", |info| info.name.as_str()).to_owned();
        let page = streams.topics(&after, PAGE).await?;
        let last = page.len() < PAGE;
        found.extend(page);
        if last {
            return Ok(found);
        }
    }
}

/// Reads a time argument: RFC 3339, or milliseconds since 1970.
fn moment(text: &str) -> Result<u64, String> {
    instant(text)
        .or_else(|| text.parse().ok())
        .ok_or_else(|| "use RFC 3339, as in 2026-05-01T12:00:00Z, or milliseconds since 1970".to_owned())
}

fn instant(text: &str) -> Option<u64> {
    let time: jiff::Timestamp = text.parse().ok()?;
    time.as_millisecond().try_into().ok()
}

/// Whole milliseconds; what is longer than any time is refused where it matters.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The time that is so far from now, in milliseconds since 1970.
fn due_in(streams: &StreamHandle, delay: Duration) -> u64 {
    streams.env().wall_ms().saturating_add(millis(delay))
}

/// Reads a duration argument, which may be in days.
fn age(text: &str) -> Result<Duration, String> {
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u64>().ok());
    match days {
        Some(days) => days.checked_mul(24 * 3600).map(Duration::from_secs),
        None => coact::url::parse_duration(text),
    }
    .ok_or_else(|| "use a number with a unit: 250ms, 10s, 5m, 1h, 7d".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(moment("1970-01-01T00:00:01.5Z"), Ok(1500));
        assert_eq!(moment("1970-01-01T01:00:00+01:00"), Ok(0));
        assert_eq!(moment("1500"), Ok(1500));
        for wrong in ["", "-1", "1969-12-31T23:59:59Z", "tomorrow", "99999999999999999999"] {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ages_may_be_in_days() {
        assert_eq!(age("7d"), Ok(Duration::from_secs(7 * 24 * 3600)));
        assert_eq!(age("5m"), Ok(Duration::from_secs(300)));
        for wrong in ["", "d", "7", "-1d", "99999999999999999999d", "1w"] {
            assert!(age(wrong).is_err(), "{wrong}");
        }
    }
}
