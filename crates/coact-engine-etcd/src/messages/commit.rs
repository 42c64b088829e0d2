//! A commit with all its parts.

use coact_core::{
    Error, Result,
    contract::{
        commit::{Commit, CommitOutcome, Committed},
        kv::Revision,
        queue::Settled,
    },
    name::{Namespace, Queue, Realm},
};

use super::{all, kv, part, try_all};
use crate::wire::coact_v1::{
    self as wire, CommitRequest, CommitResponse,
    commit_request::{JobOf, SettleOf},
    commit_response::{self, Outcome, Refused},
};

/// The request for a commit in a namespace.
impl From<(&Namespace, Commit)> for CommitRequest {
    fn from((namespace, commit): (&Namespace, Commit)) -> Self {
        let jobs = commit.jobs.into_iter();
        let settle = commit.settle.into_iter();
        Self {
            namespace: namespace.to_string(),
            kv: commit.kv.map(Into::into),
            appends: all(commit.appends),
            delayed: all(commit.delayed),
            offsets: commit.offsets.map(Into::into),
            jobs: jobs.map(|(queue, job)| JobOf { queue: queue.to_string(), job: Some(job.into()) }).collect(),
            settle: settle
                .map(|(queue, settle)| SettleOf { queue: queue.to_string(), settle: Some(settle.into()) })
                .collect(),
        }
    }
}

/// The commit alone; the namespace is the request's.
impl TryFrom<CommitRequest> for Commit {
    type Error = Error;

    fn try_from(message: CommitRequest) -> Result<Self> {
        let job = |JobOf { queue, job }| Ok((Queue::new(&queue)?, part(job, "job")?.try_into()?));
        let settle = |SettleOf { queue, settle }| Ok((Queue::new(&queue)?, part(settle, "settlement")?.try_into()?));
        Ok(Self {
            kv: message.kv.map(TryInto::try_into).transpose()?,
            appends: try_all(message.appends)?,
            delayed: try_all(message.delayed)?,
            offsets: message.offsets.map(TryInto::try_into).transpose()?,
            jobs: message.jobs.into_iter().map(job).collect::<Result<_>>()?,
            settle: message.settle.into_iter().map(settle).collect::<Result<_>>()?,
        })
    }
}

impl From<CommitOutcome> for CommitResponse {
    fn from(outcome: CommitOutcome) -> Self {
        let outcome = match outcome {
            CommitOutcome::Committed(committed) => Outcome::Committed(committed.into()),
            CommitOutcome::Refused { check, found } => {
                Outcome::Refused(Refused { check: super::to_limit(check), found: found.map(Into::into) })
            }
        };
        Self { outcome: Some(outcome) }
    }
}

impl From<Committed> for commit_response::Committed {
    fn from(committed: Committed) -> Self {
        Self {
            kv: committed.kv.map(|(Revision(revision), reads)| wire::KvCommitted { revision, reads: all(reads) }),
            appended: all(committed.appended),
            delayed: all(committed.delayed),
            jobs: all(committed.jobs),
            settled: committed.settled.into_iter().map(|settled| wire::Settled::from(settled).into()).collect(),
        }
    }
}

/// How a commit ended whose Kv transaction was in this realm.
pub(crate) fn outcome(realm: &Realm, message: CommitResponse) -> Result<CommitOutcome> {
    Ok(match part(message.outcome, "outcome")? {
        Outcome::Committed(message) => {
            let kv = match message.kv {
                None => None,
                Some(wire::KvCommitted { revision, reads }) => {
                    let reads = reads.into_iter().map(|message| kv::found(realm, message)).collect::<Result<_>>()?;
                    Some((Revision(revision), reads))
                }
            };
            CommitOutcome::Committed(Committed {
                kv,
                appended: all(message.appended),
                delayed: all(message.delayed),
                jobs: all(message.jobs),
                settled: settled(message.settled)?,
            })
        }
        Outcome::Refused(Refused { check, found }) => CommitOutcome::Refused {
            check: usize::try_from(check).unwrap_or(usize::MAX),
            found: found.map(|message| kv::entry(realm, message)).transpose()?,
        },
    })
}

/// What became of claims, in their order.
pub(crate) fn settled(numbers: Vec<i32>) -> Result<Vec<Settled>> {
    numbers.into_iter().map(|number| wire::Settled::try_from(number).unwrap_or_default().try_into()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use coact_core::{
        contract::{
            kv::{Check, Entry, Found, LeaseId, Txn, Write},
            queue::{Enqueued, JobId, NewJob, Receipt, Settle, Token, Verdict},
            stream::{Append, Appended, Batch, DelayId, Delayed, GroupOffset, Offset, OffsetCommit, Record, Stamp},
        },
        name::{Group, Key, Topic},
    };

    use super::*;

    fn key() -> Key {
        Key::parse(&Realm::default(), "config/colour").expect("a key")
    }

    #[test]
    fn a_commit_reads_back() {
        let topic = Topic::new("orders").expect("a topic");
        let queue = Queue::new("mail").expect("a queue");
        let record = Record::new("v").with_key("k").with_header("h", "w");
        let append = Append {
            topic: topic.clone(),
            partition: 3,
            batch: Batch::new([&record, &Record::new("")]),
            stamp: Some(Stamp { producer: 1, epoch: 2, sequence: 3 }),
            expect: Some(Offset(0)),
        };
        let verdict = Verdict::Extend { lease: Duration::from_secs(1) };
        let commit = Commit {
            kv: Some((
                Realm::default(),
                Txn {
                    checks: vec![Check::Absent(key())],
                    reads: Vec::new(),
                    writes: vec![Write::Incr { key: key(), by: -1 }],
                },
            )),
            appends: vec![Append { stamp: None, expect: None, ..append.clone() }, append],
            delayed: vec![Delayed { topic: topic.clone(), partition: 0, record, due_ms: 9 }],
            offsets: Some(OffsetCommit {
                group: Group::new("billing").expect("a group"),
                generation: 4,
                offsets: vec![GroupOffset {
                    topic,
                    partition: 1,
                    offset: Offset(5),
                    metadata: Bytes::from_static(b"note"),
                }],
            }),
            jobs: vec![(queue.clone(), NewJob::new("body"))],
            settle: vec![(queue, Settle { receipt: Receipt { id: JobId(1), token: Token(2) }, verdict })],
        };
        let namespace = Namespace::default();
        for commit in [commit, Commit::default()] {
            let request = CommitRequest::from((&namespace, commit.clone()));
            assert_eq!(request.namespace, "main");
            assert_eq!(Commit::try_from(request).expect("the same"), commit);
        }
    }

    #[test]
    fn an_outcome_reads_back() {
        let entry = Entry {
            key: key(),
            value: Bytes::from_static(b"red"),
            created: Revision(1),
            modified: Revision(2),
            lease: Some(LeaseId(3)),
        };
        let committed = Committed {
            kv: Some((Revision(9), vec![Found::Entry(Some(entry.clone())), Found::Entry(None), Found::Count(4)])),
            appended: vec![Appended { first: Offset(1), time_ms: 2, duplicate: true }],
            delayed: vec![DelayId { due_ms: 1, number: 2 }],
            jobs: vec![Enqueued::Created(JobId(1)), Enqueued::Exists(JobId(2))],
            settled: vec![Settled::Done, Settled::Dead, Settled::Fenced],
        };
        for sent in [
            CommitOutcome::Committed(committed),
            CommitOutcome::Committed(Committed::default()),
            CommitOutcome::Refused { check: 1, found: Some(entry) },
            CommitOutcome::Refused { check: 0, found: None },
        ] {
            assert_eq!(outcome(&Realm::default(), sent.clone().into()).expect("the same"), sent);
        }
        assert!(outcome(&Realm::default(), CommitResponse::default()).is_err());
    }

    #[test]
    fn a_malformed_batch_is_refused() {
        let append = wire::Append {
            topic: "orders".to_owned(),
            records: Bytes::from_static(b"\xff\xff"),
            ..wire::Append::default()
        };
        let request = CommitRequest { appends: vec![append], ..CommitRequest::default() };
        assert!(Commit::try_from(request).is_err());
    }
}
