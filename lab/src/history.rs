//! What happened: one JSON line for each call and each answer, and the operations that they make.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use coact::{Effect, Env, Result};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How long a workload waits for one answer.
pub(crate) const PATIENCE: Duration = Duration::from_millis(1_500);

/// Whether a line is a call or how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// A call.
    Invoke,
    /// It was answered.
    Ok,
    /// It certainly did nothing.
    Fail,
    /// It may have happened, or may yet; also for what is no operation.
    Info,
}

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// Nanoseconds of the machine's monotonic clock, which all hosts share.
    pub(crate) t: u64,
    /// The logical process: one call at a time. After an `info` it goes on under another name.
    pub(crate) p: String,
    #[serde(rename = "type")]
    pub(crate) kind: Kind,
    pub(crate) f: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub(crate) value: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rev: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<u64>,
    /// The host.
    pub(crate) node: String,
}

/// Now, on the clock that every process of this machine shares.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Writes down what one host does. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Recorder {
    node: Arc<str>,
    sink: Arc<dyn Fn(Event) + Send + Sync>,
}

impl Recorder {
    pub(crate) fn new(node: &str, sink: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self { node: node.into(), sink: Arc::new(sink) }
    }

    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// A logical process of this host.
    pub(crate) fn process(&self, name: &str) -> Process {
        Process { recorder: self.clone(), name: name.to_owned(), life: 0 }
    }

    /// Something that is no operation.
    pub(crate) fn note(&self, f: &str, value: Value) {
        self.process("note").emit(Kind::Info, f, None, Answer { value, ..Answer::default() });
    }
}

/// A logical process: it makes one call after another.
pub(crate) struct Process {
    recorder: Recorder,
    name: String,
    life: u32,
}

/// What is written down of an answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) value: Value,
    pub(crate) rev: Option<u64>,
    pub(crate) token: Option<u64>,
}

impl Process {
    /// Makes a call, waits for its answer with patience, and writes both down. `None` if there was no answer.
    pub(crate) async fn call<T>(
        &mut self,
        what: (&str, Option<&str>, Value),
        call: impl Future<Output = Result<T>>,
        answer: impl FnOnce(&T) -> Answer,
    ) -> Option<T> {
        let (f, key, value) = what;
        self.emit(Kind::Invoke, f, key, Answer { value, ..Answer::default() });
        match Env::real().timeout(PATIENCE, call).await {
            Some(Ok(outcome)) => {
                self.emit(Kind::Ok, f, key, answer(&outcome));
                Some(outcome)
            }
            Some(Err(error)) if error.effect() == Effect::NotApplied => {
                let value = json!(error.to_string());
                self.emit(Kind::Fail, f, key, Answer { value, ..Answer::default() });
                None
            }
            Some(Err(error)) => self.unanswered(f, key, &error.to_string()),
            None => self.unanswered(f, key, "no answer"),
        }
    }

    /// Something that is no operation.
    pub(crate) fn note(&self, f: &str, answer: Answer) {
        self.emit(Kind::Info, f, None, answer);
    }

    fn unanswered<T>(&mut self, f: &str, key: Option<&str>, why: &str) -> Option<T> {
        self.emit(Kind::Info, f, key, Answer { value: json!(why), ..Answer::default() });
        self.life += 1;
        None
    }

    fn emit(&self, kind: Kind, f: &str, key: Option<&str>, answer: Answer) {
        let Recorder { node, sink } = &self.recorder;
        let Answer { value, rev, token } = answer;
        let p = format!("{node}.{}.{}", self.name, self.life);
        let (f, key) = (f.to_owned(), key.map(str::to_owned));
        sink(Event { t: now(), p, kind, f, key, value, rev, token, node: node.to_string() });
    }
}

/// A call and how it ended.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) node: String,
    pub(crate) f: String,
    pub(crate) key: String,
    /// What was asked.
    pub(crate) asked: Value,
    pub(crate) called: u64,
    /// When and how it ended; a process that died left it open.
    pub(crate) ended: Option<(u64, Kind)>,
    /// What was answered.
    pub(crate) answer: Value,
    pub(crate) rev: Option<u64>,
    pub(crate) token: Option<u64>,
}

impl Operation {
    /// When it was acknowledged.
    pub(crate) fn acknowledged(&self) -> Option<u64> {
        self.ended.filter(|(_, kind)| *kind == Kind::Ok).map(|(at, _)| at)
    }

    /// Whether it certainly did nothing.
    pub(crate) fn failed(&self) -> bool {
        matches!(self.ended, Some((_, Kind::Fail)))
    }
}

/// The operations of a history, in the order of their calls.
pub(crate) fn operations(events: &[Event]) -> Vec<Operation> {
    let mut operations: Vec<Operation> = Vec::new();
    let mut open: BTreeMap<&str, usize> = BTreeMap::new();
    for event in events {
        if event.kind == Kind::Invoke {
            open.insert(&event.p, operations.len());
            operations.push(Operation {
                node: event.node.clone(),
                f: event.f.clone(),
                key: event.key.clone().unwrap_or_default(),
                asked: event.value.clone(),
                called: event.t,
                ended: None,
                answer: Value::Null,
                rev: None,
                token: None,
            });
        } else if let Some(index) = open.remove(event.p.as_str()) {
            let operation = &mut operations[index];
            operation.ended = Some((event.t, event.kind));
            operation.answer = event.value.clone();
            (operation.rev, operation.token) = (event.rev, event.token);
        }
    }
    operations.sort_by_key(|operation| operation.called);
    operations
}

/// An entry, as a watch or a listing told it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) created: u64,
    pub(crate) modified: u64,
}

/// What a follower of a watch learnt, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Told {
    /// A listing that it read, at first and after a resync.
    List { revision: u64, rows: Vec<Row> },
    /// An entry came or changed.
    Put(Row),
    /// An entry went.
    Gone { name: String, at: u64 },
    /// Everything up to this was told.
    Progress(u64),
    /// Changes up to this may be missing.
    Resync { at: u64 },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_as_documented() {
        let event = Event {
            t: 5,
            p: "h1.register-0.0".to_owned(),
            kind: Kind::Ok,
            f: "put".to_owned(),
            key: Some("r1".to_owned()),
            value: json!(7),
            rev: Some(9),
            token: None,
            node: "h1".to_owned(),
        };
        let line = serde_json::to_string(&event).expect("written");
        assert_eq!(
            line,
            r#"{"t":5,"p":"h1.register-0.0","type":"ok","f":"put","key":"r1","value":7,"rev":9,"node":"h1"}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&line).expect("read"), event);
    }

    #[test]
    fn calls_meet_their_answers_process_by_process() {
        let event = |t, p: &str, kind| Event {
            t,
            p: p.to_owned(),
            kind,
            f: "put".to_owned(),
            key: None,
            value: Value::Null,
            rev: None,
            token: None,
            node: "h1".to_owned(),
        };
        let found = operations(&[
            event(1, "a", Kind::Invoke),
            event(2, "b", Kind::Invoke),
            event(3, "a", Kind::Ok),
            event(4, "a", Kind::Invoke),
        ]);
        let ended: Vec<_> = found.iter().map(|operation| (operation.called, operation.ended)).collect();
        assert_eq!(ended, [(1, Some((3, Kind::Ok))), (2, None), (4, None)]);
    }
}
