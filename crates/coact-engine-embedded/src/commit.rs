//! Commits over several contracts: everything is looked at first, then applied, as one frame.

use coact_core::{
    Error, ErrorKind, Result,
    contract::{
        commit::{Commit, CommitOutcome, Committed},
        kv::{Txn, TxnOutcome},
        queue::Settled,
        stream::Append,
    },
    name::Namespace,
};

use crate::{
    engine::Engine,
    kv::{EmbeddedKv, error},
    queue::{apply_enqueue, apply_settle, is_current, queue_of},
    state::Transaction,
    stream::{apply_append, apply_delayed, apply_offsets, plan_append, plan_delayed, plan_offsets},
    work::Work,
};

pub(crate) async fn commit(engine: &Engine, namespace: &Namespace, commit: Commit) -> Result<CommitOutcome> {
    check_once(&commit)?;
    let kv = EmbeddedKv::new(engine.clone(), namespace.clone());
    let namespace = namespace.clone();
    engine.ask(commit.bytes(), move |work| run(work, &kv, &namespace, commit)).await
}

/// What would have to see its own effects is refused.
fn check_once(commit: &Commit) -> Result<()> {
    let same = |one: &Append, other: &Append| one.topic == other.topic && one.partition == other.partition;
    for (index, append) in commit.appends.iter().enumerate() {
        if commit.appends[..index].iter().any(|earlier| same(earlier, append)) {
            return Err(Error::invalid(format!(
                "the commit appends to partition {} of topic {} twice: put all records in one batch",
                append.partition, append.topic
            )));
        }
    }
    for (index, (queue, settle)) in commit.settle.iter().enumerate() {
        let is_same = |(other, earlier): &(_, coact_core::contract::queue::Settle)| {
            other == queue && earlier.receipt.id == settle.receipt.id
        };
        if commit.settle[..index].iter().any(is_same) {
            return Err(Error::invalid(format!("the commit settles job {} of queue {queue} twice", settle.receipt.id)));
        }
    }
    Ok(())
}

fn run(work: &mut Work<'_>, kv: &EmbeddedKv, namespace: &Namespace, commit: Commit) -> Result<CommitOutcome> {
    let Commit { kv: txn, appends, delayed, offsets, jobs, settle } = commit;
    let plans = appends.iter().map(|append| plan_append(work, namespace, append)).collect::<Result<Vec<_>>>()?;
    let places = plan_delayed(work, namespace, &delayed)?;
    let committed_at = offsets.as_ref().map(|offsets| plan_offsets(work, namespace, offsets)).transpose()?;
    let queues = jobs.iter().map(|(queue, _)| queue_of(work.messages, namespace, queue)).collect::<Result<Vec<_>>>()?;
    let settled_in =
        settle.iter().map(|(queue, _)| queue_of(work.messages, namespace, queue)).collect::<Result<Vec<_>>>()?;
    for ((queue, settle), id) in settle.iter().zip(&settled_in) {
        if !is_current(work.messages, *id, settle.receipt) {
            return Err(Error::new(
                ErrorKind::Fenced,
                format!("the claim of job {} of queue {queue} is over", settle.receipt.id),
            ));
        }
    }
    // Nothing was written so far. The transaction is the last that can refuse, and applies itself.
    let (kv, revision) = match txn.map(|(_, txn)| transact(work, kv, txn)).transpose()? {
        None => (None, 0),
        Some((TxnOutcome::Refused { check, found }, _)) => return Ok(CommitOutcome::Refused { check, found }),
        Some((TxnOutcome::Committed { revision, reads }, written)) => (Some((revision, reads)), written),
    };
    let appended = plans.into_iter().zip(appends).map(|(plan, append)| apply_append(work, plan, append)).collect();
    let delayed = apply_delayed(work, places, &delayed);
    if let (Some(places), Some(offsets)) = (committed_at, offsets) {
        apply_offsets(work, namespace, places, offsets);
    }
    let settled: Vec<Settled> =
        settle.into_iter().zip(settled_in).map(|((_, settle), queue)| apply_settle(work, queue, settle)).collect();
    let jobs = jobs.into_iter().zip(queues).map(|((_, job), queue)| apply_enqueue(work, queue, job)).collect();
    work.encoder.finish_frame(work.time_ms, revision);
    Ok(CommitOutcome::Committed(Committed { kv, appended, delayed, jobs, settled }))
}

/// Runs a Kv transaction in the frame that is being written; also returns the revision that the frame has, if any.
fn transact(work: &mut Work<'_>, kv: &EmbeddedKv, txn: Txn) -> Result<(TxnOutcome, u64)> {
    let reads = txn.reads.clone();
    let request = kv.request(txn);
    let transaction = Transaction::new(work.state, work.encoder, work.time_ms);
    let (response, revision) = transaction.run_in_frame(&request).map_err(error)?;
    Ok((kv.outcome(response, &reads), revision))
}
