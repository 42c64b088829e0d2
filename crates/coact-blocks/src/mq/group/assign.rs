//! Which member has which partition: as even as subscriptions allow, with as few moves as that takes.

use std::collections::{BTreeMap, BTreeSet};

use coact_core::name::Topic;

use super::{Partitions, TopicPartition};

/// What a member wants.
pub(super) type Subscriptions = BTreeMap<String, BTreeSet<Topic>>;

/// What each member has.
pub(super) type Assigned = BTreeMap<String, Partitions>;

/// Gives every partition of every topic that somebody wants to exactly one member who wants it.
///
/// Members keep what they had, but for what exceeds an even share: after it, no member could take over a partition of
/// another and both were closer.
pub(super) fn assign(members: &Subscriptions, counts: &BTreeMap<Topic, u32>, before: &Assigned) -> Assigned {
    let mut assigned: Assigned = members.keys().map(|member| (member.clone(), Partitions::new())).collect();
    let mut free = Vec::new();
    for (topic, count) in counts {
        for partition in 0..*count {
            let place = TopicPartition { topic: topic.clone(), partition };
            match holder(members, before, &place) {
                Some(member) => drop(assigned.entry(member).or_default().insert(place)),
                None => free.push(place),
            }
        }
    }
    for place in free {
        let takers = members.iter().filter(|(_, topics)| topics.contains(&place.topic));
        if let Some(member) = takers.map(|(member, _)| member).min_by_key(|member| assigned[*member].len()) {
            assigned.entry(member.clone()).or_default().insert(place);
        }
    }
    while let Some((from, to, place)) = best_move(members, &assigned) {
        assigned.entry(from).or_default().remove(&place);
        assigned.entry(to).or_default().insert(place);
    }
    assigned
}

/// Who had a partition and still wants it.
fn holder(members: &Subscriptions, before: &Assigned, place: &TopicPartition) -> Option<String> {
    let mut had = before.iter().filter(|(_, has)| has.contains(place)).map(|(member, _)| member);
    had.find(|member| members.get(*member).is_some_and(|topics| topics.contains(&place.topic))).cloned()
}

/// A partition that is better elsewhere: from the fullest that can give to the emptiest that can take, as long as that
/// brings the two closer.
fn best_move(members: &Subscriptions, assigned: &Assigned) -> Option<(String, String, TopicPartition)> {
    let mut best: Option<(usize, String, String, TopicPartition)> = None;
    for (to, topics) in members {
        let has = assigned[to].len();
        for (from, theirs) in assigned {
            let gain = theirs.len().saturating_sub(has);
            if gain < 2 || best.as_ref().is_some_and(|(most, ..)| *most >= gain) {
                continue;
            }
            if let Some(place) = theirs.iter().rev().find(|place| topics.contains(&place.topic)) {
                best = Some((gain, from.clone(), to.clone(), place.clone()));
            }
        }
    }
    best.map(|(_, from, to, place)| (from, to, place))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topic(number: usize) -> Topic {
        Topic::new(&format!("t{number}")).expect("a topic")
    }

    fn everybody(members: &BTreeSet<u8>, topics: usize) -> Subscriptions {
        members.iter().map(|member| (member.to_string(), (0..topics).map(topic).collect())).collect()
    }

    fn all(counts: &BTreeMap<Topic, u32>) -> Vec<TopicPartition> {
        let of = |(topic, count): (&Topic, &u32)| {
            (0..*count).map(|partition| TopicPartition { topic: topic.clone(), partition }).collect::<Vec<_>>()
        };
        counts.iter().flat_map(of).collect()
    }

    fn sorted(assigned: &Assigned) -> Vec<TopicPartition> {
        let mut found: Vec<_> = assigned.values().flatten().cloned().collect();
        found.sort();
        found
    }

    fn moved(before: &Assigned, after: &Assigned) -> usize {
        let stayed =
            |(member, has): (&String, &Partitions)| before.get(member).map_or(0, |had| had.intersection(has).count());
        after.values().map(BTreeSet::len).sum::<usize>() - after.iter().map(stayed).sum::<usize>()
    }

    proptest! {
        #[test]
        fn every_partition_has_one_member_and_shares_are_even(
            counts in proptest::collection::vec(1u32..20, 1..4),
            first in proptest::collection::btree_set(0u8..12, 1..8),
            second in proptest::collection::btree_set(0u8..12, 1..8),
        ) {
            let topics = counts.len();
            let counts: BTreeMap<_, _> = counts.into_iter().enumerate().map(|(n, count)| (topic(n), count)).collect();
            let before = assign(&everybody(&first, topics), &counts, &Assigned::new());
            let after = assign(&everybody(&second, topics), &counts, &before);
            for assigned in [&before, &after] {
                prop_assert_eq!(sorted(assigned), all(&counts));
                let sizes: Vec<_> = assigned.values().map(BTreeSet::len).collect();
                let spread = sizes.iter().max().expect("members") - sizes.iter().min().expect("members");
                prop_assert!(spread <= 1, "{:?}", sizes);
            }
            // What must move: what nobody of the old members has any more, and what exceeds the larger share.
            let total = all(&counts).len();
            let (small, larger) = (total / second.len(), total % second.len());
            let mut kept: Vec<_> = after.keys().map(|member| before.get(member).map_or(0, BTreeSet::len)).collect();
            kept.sort_by_key(|had| std::cmp::Reverse(*had));
            let most: usize = kept.iter().enumerate().map(|(n, had)| (*had).min(small + usize::from(n < larger))).sum();
            prop_assert_eq!(moved(&before, &after), total - most);
        }

        #[test]
        fn nobody_gets_what_it_does_not_want(
            wants in proptest::collection::btree_map(0u8..9, proptest::collection::btree_set(0usize..4, 0..4), 1..6),
            counts in proptest::collection::vec(0u32..9, 4),
        ) {
            let counts: BTreeMap<_, _> = counts.into_iter().enumerate().map(|(n, count)| (topic(n), count)).collect();
            let members: Subscriptions =
                wants.iter().map(|(member, wants)| (member.to_string(), wants.iter().map(|n| topic(*n)).collect())).collect();
            let assigned = assign(&members, &counts, &Assigned::new());
            let wanted: BTreeSet<_> = members.values().flatten().collect();
            let expected: Vec<_> = all(&counts).into_iter().filter(|place| wanted.contains(&place.topic)).collect();
            prop_assert_eq!(sorted(&assigned), expected);
            for (member, has) in &assigned {
                prop_assert!(has.iter().all(|place| members[member].contains(&place.topic)));
            }
            prop_assert!(best_move(&members, &assigned).is_none());
            prop_assert_eq!(moved(&assigned, &assign(&members, &counts, &assigned)), 0, "nothing moves without need");
        }
    }
}
