//! What a history shows: counts for the table, and whatever the checkers find.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use coact::{
    Key, Realm,
    kv::{Change, Entry, GoneCause, Page, Revision},
};
use coact_testkit::check::{
    ghosts::{Bounds, Lives},
    linearizable::{self, Action, OPERATIONS_MAX, Returned},
    tokens::Report,
    unique::Ids,
    watch::Follower,
};
use serde_json::Value;

use crate::{
    history::{Event, Operation, Row, Told, operations},
    phase::{Fault, Seen},
    worker::{Declared, TTL},
};

const SECOND: u64 = 1_000_000_000;
/// How long a store may take to notice that a lease has ended, and its watchers to hear of it; etcd also gives every lease
/// an election's time more when the leader changes.
const SWEEP: u64 = 2 * SECOND;
/// How long everything may take to be as before once a fault is over.
const SETTLE: u64 = 4 * SECOND;
/// A call that began this soon after the cut may have got through.
const CUT: u64 = SECOND / 5;

/// How many kinds of failed calls people are told of.
const COMPLAINTS: usize = 12;

/// What one phase showed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown {
    pub(crate) declared: Declared,
    pub(crate) counts: Counts,
    /// Writes that began on the cut side while it was cut off, and were acknowledged, or not.
    pub(crate) cut_acknowledged: usize,
    pub(crate) cut_refused: usize,
    /// Linearizable reads on the cut side, the same.
    pub(crate) cut_reads: usize,
    pub(crate) cut_reads_refused: usize,
    /// Reads that missed a write acknowledged before they began.
    pub(crate) stale: usize,
    /// The same, on a host while it was cut off.
    pub(crate) stale_cut: usize,
    /// The same, of reads that any server may answer.
    pub(crate) stale_any: usize,
    /// Acknowledged writes that are not there in the end.
    pub(crate) lost: usize,
    /// Both sides acknowledged writes at the same time.
    pub(crate) diverged: bool,
    /// How long after the strike the others first had a write acknowledged that began after it, in milliseconds; `None` if
    /// never.
    pub(crate) recovered_ms: Option<u64>,
    /// How long after the fault the struck host had one again.
    pub(crate) rejoined_ms: Option<u64>,
    pub(crate) fenced: Report,
    pub(crate) control: Report,
    /// Each checker's findings.
    pub(crate) not_linearizable: Vec<String>,
    pub(crate) grants: Vec<String>,
    pub(crate) ids: Vec<String>,
    pub(crate) watch: Vec<String>,
    pub(crate) ghosts: Vec<String>,
}

/// How much there was to check.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) acknowledged: usize,
    pub(crate) operations: usize,
    pub(crate) grants: usize,
    pub(crate) ids: usize,
    pub(crate) changes: usize,
    pub(crate) views: usize,
}

/// Runs every checker.
pub(crate) fn check(seen: &Seen) -> Shown {
    let operations = operations(&seen.events);
    let declared = noted(&seen.events, "declared").next().and_then(|value| serde_json::from_value(value).ok());
    let declared: Declared = declared.unwrap_or_default();
    let cut_off = |operation: &Operation| while_cut_off(&seen.fault, operation);
    let (on_cut_side, elsewhere): (Vec<_>, Vec<_>) = operations.iter().partition(|operation| cut_off(operation));
    // Where reads of the cut side may be stale, they need no explanation.
    let excused = |operation: &&Operation| declared.serves_stale && operation.f == "get" && cut_off(operation);
    let explained: Vec<_> = operations.iter().filter(|operation| !excused(operation)).collect();
    let missed = missed_by(&operations);
    let stale = |of: &[&Operation], f: &str| of.iter().filter(|read| read.f == f && missed(read)).count();
    let mut shown = Shown {
        not_linearizable: not_linearizable(&explained),
        stale: stale(&elsewhere, "get"),
        stale_cut: stale(&on_cut_side, "get"),
        stale_any: stale(&elsewhere, "get-any") + stale(&on_cut_side, "get-any"),
        fenced: seen.fenced.clone(),
        control: seen.control.clone(),
        lost: lost(&seen.events, &operations),
        grants: grants(&operations),
        declared,
        ..Shown::default()
    };
    sides(&mut shown, seen, &operations);
    (shown.counts.ids, shown.ids) = ids(&operations);
    (shown.counts.changes, shown.watch) = watch(&seen.events, &operations, shown.declared.tells_all);
    (shown.counts.views, shown.ghosts) = ghosts(seen, shown.recovered_ms);
    shown.counts.operations = operations.len();
    shown.counts.acknowledged = operations.iter().filter(|operation| operation.acknowledged().is_some()).count();
    shown.counts.grants = acknowledged(&operations, "acquire").count();
    shown
}

/// The values of a note, in order.
fn noted<'a>(events: &'a [Event], what: &'a str) -> impl Iterator<Item = Value> + 'a {
    events.iter().filter(move |event| event.f == what).map(|event| event.value.clone())
}

fn acknowledged<'a>(operations: &'a [Operation], f: &'a str) -> impl Iterator<Item = (&'a Operation, u64)> {
    let of = operations.iter().filter(move |operation| operation.f == f);
    of.filter_map(|operation| Some((operation, operation.acknowledged()?)))
}

/// A compare-and-set that was refused wrote nothing: it counts as neither.
fn is_write(operation: &Operation) -> bool {
    let refused = operation.f == "cas" && operation.answer == false;
    matches!(operation.f.as_str(), "put" | "cas" | "add") && !refused
}

/// Writes that took effect for sure, with their revision and when they were acknowledged.
fn register_writes(operations: &[Operation]) -> impl Iterator<Item = (&Operation, u64, u64)> {
    let writes = operations.iter().filter(|operation| matches!(operation.f.as_str(), "put" | "cas"));
    writes.filter_map(|operation| Some((operation, operation.rev?, operation.acknowledged()?)))
}

/// Whether it was asked on a host while that was cut off.
fn while_cut_off(fault: &Fault, operation: &Operation) -> bool {
    let there = fault.cut && is_struck(fault, operation);
    there && operation.called > fault.from && operation.called < fault.to
}

/// Each register by itself.
fn not_linearizable(operations: &[&Operation]) -> Vec<String> {
    let mut by_key: BTreeMap<&str, Vec<linearizable::Operation>> = BTreeMap::new();
    for operation in operations {
        if let Some(action) = action(operation) {
            let returned = operation.acknowledged().map_or(Returned::Unknown, Returned::At);
            let key = operation.key.clone();
            let operation_checked = linearizable::Operation { key, action, called: operation.called, returned };
            by_key.entry(&operation.key).or_default().push(operation_checked);
        }
    }
    let check = |(key, history): (&str, Vec<linearizable::Operation>)| {
        if history.len() > OPERATIONS_MAX {
            return Some(format!("{key} has {} operations: too many to check", history.len()));
        }
        let error = linearizable::check(&history).err()?;
        Some(error.lines().next().unwrap_or_default().to_owned())
    };
    by_key.into_iter().filter_map(check).collect()
}

/// What the checker is to explain; nothing for what certainly did nothing.
fn action(operation: &Operation) -> Option<Action> {
    let answered = operation.acknowledged().is_some();
    match operation.f.as_str() {
        "get" if answered => Some(Action::Get(operation.answer.as_u64())),
        "put" if !operation.failed() => Some(Action::Put(operation.asked.as_u64())),
        "cas" if !operation.failed() => Some(Action::Cas {
            expected: operation.asked[0].as_u64(),
            new: operation.asked[1].as_u64(),
            succeeded: operation.answer.as_bool().unwrap_or_default(),
        }),
        _ => None,
    }
}

/// Whether a read missed a write that was acknowledged before it began.
fn missed_by(operations: &[Operation]) -> impl Fn(&Operation) -> bool {
    let mut writes: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
    for (operation, revision, at) in register_writes(operations) {
        writes.entry(operation.key.clone()).or_default().push((at, revision));
    }
    move |read| {
        let before = writes.get(&read.key).into_iter().flatten().filter(|(at, _)| *at < read.called);
        let newest = before.map(|(_, revision)| *revision).max();
        read.acknowledged().is_some() && newest > Some(read.rev.unwrap_or_default())
    }
}

/// How many acknowledged entries are not there in the end.
fn lost(events: &[Event], operations: &[Operation]) -> usize {
    let last: Option<BTreeSet<String>> =
        noted(events, "final-set").last().and_then(|value| serde_json::from_value(value).ok());
    let last = last.unwrap_or_default();
    acknowledged(operations, "add").filter(|(add, _)| !last.contains(&add.key)).count()
}

/// Tokens grow with each grant that begins after another one was told.
fn grants(operations: &[Operation]) -> Vec<String> {
    let told: Vec<_> = acknowledged(operations, "acquire").collect();
    let violation = |(later, _): &(&Operation, u64)| {
        let before = told.iter().filter(|(_, at)| *at < later.called).map(|(earlier, _)| *earlier);
        let highest = before.max_by_key(|earlier| earlier.token).filter(|earlier| earlier.token >= later.token)?;
        let (token, other) = (later.token.unwrap_or_default(), highest.token.unwrap_or_default());
        Some(format!("{} got token {token} after {} had got {other}", later.node, highest.node))
    };
    told.iter().filter_map(violation).collect()
}

fn ids(operations: &[Operation]) -> (usize, Vec<String>) {
    let ids = Ids::default();
    for (operation, _) in acknowledged(operations, "ids") {
        for id in operation.answer.as_array().into_iter().flatten().filter_map(Value::as_u64) {
            ids.issued(&operation.node, id);
        }
    }
    (ids.count(), ids.violations())
}

/// What each side got while it was cut off, and how soon writes went on.
fn sides(shown: &mut Shown, seen: &Seen, operations: &[Operation]) {
    let fault = &seen.fault;
    let on_cut_side = |operation: &&Operation| fault.cut && is_struck(fault, operation);
    let while_cut = |operation: &&Operation| operation.called > fault.from + CUT && operation.called < fault.to;
    let answered = |operation: &&Operation| operation.acknowledged().is_some_and(|at| at < fault.to);
    let cut: Vec<_> = operations.iter().filter(on_cut_side).filter(while_cut).collect();
    let (yes, no): (Vec<_>, Vec<_>) = cut.iter().copied().filter(|operation| is_write(operation)).partition(answered);
    (shown.cut_acknowledged, shown.cut_refused) = (yes.len(), no.len());
    let (yes, no): (Vec<_>, Vec<_>) = cut.iter().copied().filter(|operation| operation.f == "get").partition(answered);
    (shown.cut_reads, shown.cut_reads_refused) = (yes.len(), no.len());

    shown.recovered_ms = recovered_ms(operations, fault);
    shown.rejoined_ms = first_write_after(fault.to, operations, |operation| is_struck(fault, operation));
    let elsewhere = operations.iter().filter(|operation| is_write(operation) && !is_struck(fault, operation));
    let elsewhere = elsewhere.filter(while_cut).filter(answered).count();
    shown.diverged = shown.cut_acknowledged > 0 && elsewhere > 0;
}

/// How long after the strike the others first had a write acknowledged that began after it.
pub(crate) fn recovered_ms(operations: &[Operation], fault: &Fault) -> Option<u64> {
    first_write_after(fault.from, operations, |operation| !is_struck(fault, operation))
}

fn first_write_after(time: u64, operations: &[Operation], who: impl Fn(&Operation) -> bool) -> Option<u64> {
    let after = operations.iter().filter(|operation| is_write(operation) && operation.called > time && who(operation));
    after.filter_map(Operation::acknowledged).min().map(|at| (at - time) / 1_000_000)
}

fn is_struck(fault: &Fault, operation: &Operation) -> bool {
    fault.struck.as_deref() == Some(operation.node.as_str())
}

/// What went wrong most often, for people: how many calls, of what, and why.
pub(crate) fn complaints(operations: &[Operation]) -> Vec<String> {
    let mut counts: BTreeMap<(&str, &str, &str), usize> = BTreeMap::new();
    for operation in operations.iter().filter(|operation| operation.acknowledged().is_none()) {
        let why = operation.answer.as_str().unwrap_or("it never ended");
        *counts.entry((&operation.node, &operation.f, why)).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| Reverse(*count));
    let line = |((node, f, why), count): &(_, usize)| format!("{count} × {f} of {node}: {why}");
    counts.iter().take(COMPLAINTS).map(line).collect()
}

/// Each host's watch of the registers.
fn watch(events: &[Event], operations: &[Operation], tells_all: bool) -> (usize, Vec<String>) {
    let last = noted(events, "final-registers").last();
    let page = last.as_ref().and_then(|last| page(last["revision"].as_u64()?, &rows(&last["rows"])?));
    let killed = |node: &str| !events.iter().any(|event| event.node == node && event.f == "closed");
    let (mut changes, mut violations) = (0, Vec::new());
    for node in events.iter().filter(|event| event.f == "ready").map(|event| event.node.as_str()) {
        let mut follower = None;
        for event in events.iter().filter(|event| event.node == node && event.f == "watch") {
            changes += 1;
            if !follow(&mut follower, event) {
                violations.push(format!("{node}: the watch told what cannot be read: {}", event.value));
            }
        }
        let Some(mut follower) = follower.filter(|_| !killed(node)) else { continue };
        if events.iter().any(|event| event.node == node && event.f == "watch-unfinished") {
            violations.push(format!("{node}: the watch never told the last change, only up to {}", follower.at()));
            continue;
        }
        // A client that was cut off may send what timed out long ago, after the key that ends the watch was written: of
        // that nobody was told.
        let end = follower.at();
        match &page {
            Some(page) if page.entries.iter().any(|entry| entry.modified > end) => {}
            Some(page) => follower.compare(page),
            None => violations.push("there is no final listing to compare with".to_owned()),
        }
        if tells_all {
            for (write, revision, _) in register_writes(operations) {
                if let Some(key) = key(&write.key)
                    && Revision(revision) <= end
                {
                    follower.expect(&key, Revision(revision));
                }
            }
        }
        violations.extend(follower.violations().iter().map(|violation| format!("{node}: {violation}")));
    }
    (changes, violations)
}

/// Takes one line of a watch; whether it could be read.
fn follow(follower: &mut Option<Follower>, event: &Event) -> bool {
    let Ok(told) = serde_json::from_value::<Told>(event.value.clone()) else { return false };
    match (follower.as_mut(), told) {
        (None, Told::List { revision, rows }) => *follower = page(revision, &rows).as_ref().map(Follower::after),
        (Some(follower), Told::List { revision, rows }) => {
            let Some(page) = page(revision, &rows) else { return false };
            follower.reread(&page);
        }
        (Some(follower), told) => match change(told) {
            Some(change) => follower.take(&change),
            None => return false,
        },
        (None, _) => return false,
    }
    true
}

fn change(told: Told) -> Option<Change> {
    Some(match told {
        Told::Put(row) => Change::Put(entry(&row)?),
        Told::Gone { name, at } => Change::Gone { key: key(&name)?, at: Revision(at), cause: GoneCause::Unknown },
        Told::Progress(at) => Change::Progress(Revision(at)),
        Told::Resync { at } => Change::Resync { why: String::new(), at: Revision(at) },
        Told::List { .. } => return None,
    })
}

fn rows(value: &Value) -> Option<Vec<Row>> {
    serde_json::from_value(value.clone()).ok()
}

fn page(revision: u64, rows: &[Row]) -> Option<Page> {
    let entries = rows.iter().map(entry).collect::<Option<_>>()?;
    Some(Page { entries, more: false, revision: Revision(revision) })
}

fn entry(row: &Row) -> Option<Entry> {
    Some(Entry {
        key: key(&row.name)?,
        value: row.value.clone().into(),
        created: Revision(row.created),
        modified: Revision(row.modified),
        lease: None,
    })
}

fn key(name: &str) -> Option<Key> {
    Key::new(&Realm::default(), "registers", name).ok()
}

/// Each host's view of the directory.
fn ghosts(seen: &Seen, recovered_ms: Option<u64>) -> (usize, Vec<String>) {
    let (mut lives, fault) = (Lives::default(), &seen.fault);
    for event in seen.events.iter().filter(|event| event.t <= fault.stopped) {
        let instance = event.value.as_str().unwrap_or_default();
        match event.f.as_str() {
            "up" => lives.up(instance, event.t),
            "down" => lives.down(instance, event.t),
            "seen" => lives.shown(&event.node, event.t, shown(&event.value)),
            _ => {}
        }
    }
    if let Some(killed) = &fault.killed {
        lives.down(killed, fault.from);
        // Dead eyes see nothing.
        lives.excuse(Some(killed), fault.from, u64::MAX);
    }
    for away in fault.struck.iter().filter(|_| fault.cut).chain(&fault.paused) {
        lives.excuse(Some(away), fault.from, fault.to + SETTLE);
    }
    // While nobody leads, no lease is kept or ended; an election may outlast a lease of its length.
    let without_leader = recovered_ms.unwrap_or_default() * 1_000_000;
    let linger = TTL.as_nanos() as u64 + SWEEP + without_leader + seen.lease_delay;
    let end = fault.stopped;
    let mut violations = lives.check(Bounds { linger, settle: u64::MAX / 2, end });
    if fault.struck.is_some() {
        // A request to a server that is gone takes as long to fail as half a lease lives. A store that counts leases by its
        // wall clock ends them all when that goes forward, and everybody registers anew.
        let from = if fault.clock { fault.to } else { fault.from };
        lives.excuse(None, from, fault.to + SETTLE);
    }
    violations.extend(lives.check(Bounds { linger: u64::MAX / 2, settle: SETTLE, end }));
    (lives.views(), violations)
}

/// Whom an observer is shown; `None` if it knows itself that its list is old.
fn shown(value: &Value) -> Option<BTreeSet<String>> {
    let ids = value["ids"].as_array().filter(|_| value["fresh"] == true)?;
    Some(ids.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}
