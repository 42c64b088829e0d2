//! The values of a group's entries, in JSON. Partitions are written as ranges, `0-3,7`, so that many fit.

use std::collections::BTreeMap;

use coact_core::name::Topic;
use serde::{Deserialize, Serialize};

use super::{Partitions, TopicPartition};

/// The value of a member's entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::mq) struct Member {
    /// Who this is, for people.
    pub(in crate::mq) name: String,
    /// What it wants to read.
    pub(in crate::mq) topics: Vec<String>,
    /// The generation for which it holds nothing that is not its own any more.
    #[serde(default)]
    pub(in crate::mq) ready: u64,
}

/// Where a group is between two generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::mq) enum Phase {
    /// Members let go what moves away from them.
    Preparing,
    /// Members have what is assigned to them.
    Stable,
}

/// The value of the assignment's entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::mq) struct Assignment {
    pub(in crate::mq) generation: u64,
    /// The stable generation before this one: whoever has another has missed something.
    #[serde(default)]
    pub(in crate::mq) before: u64,
    pub(in crate::mq) phase: Phase,
    /// How many partitions each topic had.
    pub(in crate::mq) topics: BTreeMap<String, u32>,
    /// What each member wanted, and has: ranges of partitions by topic.
    pub(in crate::mq) members: BTreeMap<String, BTreeMap<String, String>>,
}

impl Assignment {
    /// What a member has; nothing if it is not in it.
    pub(in crate::mq) fn of(&self, member: &str) -> Partitions {
        let ranges = self.members.get(member).into_iter().flatten();
        ranges.flat_map(|(topic, ranges)| partitions(topic, ranges)).collect()
    }

    /// Writes what a member wants and has.
    pub(in crate::mq) fn set(&mut self, member: &str, topics: &[String], has: &Partitions) {
        let of_topic = |topic: &String| {
            let mine = has.iter().filter(|mine| mine.topic.as_str() == topic).map(|mine| mine.partition);
            (topic.clone(), to_ranges(mine))
        };
        self.members.insert(member.to_owned(), topics.iter().map(of_topic).collect());
    }
}

fn to_ranges(partitions: impl Iterator<Item = u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for partition in partitions {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == partition => *last = partition,
            _ => runs.push((partition, partition)),
        }
    }
    let text = |(first, last): &(u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    runs.iter().map(text).collect::<Vec<_>>().join(",")
}

/// Reads ranges back; what is none is left out.
fn partitions(topic: &str, ranges: &str) -> Vec<TopicPartition> {
    let Ok(topic) = Topic::new(topic) else { return Vec::new() };
    let mut found = Vec::new();
    for range in ranges.split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            let partition = |partition| TopicPartition { topic: topic.clone(), partition };
            found.extend((first..=last).take(PARTITIONS_MAX).map(partition));
        }
    }
    found
}

/// No range has more: a foreign value does not fill the memory.
const PARTITIONS_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_read_back() {
        for (numbers, text) in [(vec![], ""), (vec![5], "5"), (vec![0, 1, 2, 3, 7], "0-3,7"), (vec![1, 3, 4], "1,3-4")]
        {
            assert_eq!(to_ranges(numbers.iter().copied()), text);
            let read = partitions("orders", text).into_iter().map(|found| found.partition);
            assert_eq!(read.collect::<Vec<_>>(), numbers);
        }
        assert!(partitions("orders", "x,1-,-").is_empty());
    }
}
