//! `coact kv`: entries of the Kv contract.

use std::{io::Read as _, time::Duration};

use clap::{Args, Subcommand};
use coact::{
    Dir, Error, Key, KvHandle, Realm, Result,
    kv::{Change, Check, Found, GoneCause, LeaseId, Order, Read, Revision, Scope, Txn, TxnOutcome, Write},
};
use futures::StreamExt;
use serde_json::{Value, json};

use crate::{Target, cmd::duration, exit::Exit, output};

/// How many entries one request lists.
const PAGE_ENTRIES: usize = 1000;

/// Commands of `coact kv`. A key is written dir/name; the last slash divides.
#[derive(Debug, Subcommand)]
pub(crate) enum Kv {
    /// Print the value of an entry; exit 3 if there is none.
    Get {
        /// dir/name
        key: String,
        #[command(flatten)]
        target: Target,
    },
    /// Set the value of an entry and print the revision.
    Put {
        /// dir/name
        key: String,
        /// The value; - reads it from stdin.
        value: String,
        /// Let the entry end by itself after this time.
        #[arg(long, value_parser = duration, value_name = "DURATION")]
        ttl: Option<Duration>,
        #[command(flatten)]
        target: Target,
    },
    /// Remove an entry.
    Del {
        /// dir/name
        key: String,
        #[command(flatten)]
        target: Target,
    },
    /// List the entries of a dir; without one, list the dirs.
    Ls {
        /// The dir.
        dir: Option<String>,
        /// The oldest entry first, instead of by name.
        #[arg(long)]
        by_age: bool,
        /// At most this many.
        #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
        limit: usize,
        #[command(flatten)]
        target: Target,
    },
    /// Print every change of an entry, or of a dir (dir/ with a slash at the end), until interrupted.
    Watch {
        /// dir/name, or dir/
        what: String,
        /// Start after this revision instead of now.
        #[arg(long, value_name = "REVISION")]
        after: Option<u64>,
        /// Stop after this many changes.
        #[arg(long, value_name = "N")]
        count: Option<u64>,
        #[command(flatten)]
        target: Target,
    },
    /// Do several writes at once if every check holds; exit 3 if one does not.
    Txn(TxnArgs),
}

/// Arguments of `coact kv txn`.
#[derive(Debug, Args)]
pub(crate) struct TxnArgs {
    /// absent:KEY, created:KEY=REVISION or modified:KEY=REVISION
    #[arg(long = "check", value_name = "CHECK")]
    checks: Vec<String>,
    /// Read this entry as it was before the writes.
    #[arg(long = "get", value_name = "KEY")]
    gets: Vec<String>,
    /// Set an entry.
    #[arg(long = "put", value_name = "KEY=VALUE")]
    puts: Vec<String>,
    /// Add to a number.
    #[arg(long = "incr", value_name = "KEY=NUMBER")]
    incrs: Vec<String>,
    /// Remove an entry.
    #[arg(long = "del", value_name = "KEY")]
    dels: Vec<String>,
    #[command(flatten)]
    target: Target,
}

impl Kv {
    pub(crate) async fn run(self) -> Result<Exit> {
        match self {
            Self::Get { key, target } => get(&key, &target).await,
            Self::Put { key, value, ttl, target } => put(&key, value, ttl, &target).await,
            Self::Del { key, target } => del(&key, &target).await,
            Self::Ls { dir: Some(dir), by_age, limit, target } => list(&dir, by_age, limit, &target).await,
            Self::Ls { dir: None, limit, target, .. } => list_dirs(limit, &target).await,
            Self::Watch { what, after, count, target } => watch(&what, after, count, &target).await,
            Self::Txn(args) => args.run().await,
        }
    }
}

async fn get(key: &str, target: &Target) -> Result<Exit> {
    let key = Key::parse(&target.realm()?, key)?;
    let Some(entry) = target.open().await?.get(&key).await? else {
        output::complain(&format!("there is no entry {key}"));
        return Ok(Exit::ABSENT);
    };
    let out = target.output();
    if out.is_table() {
        // The value as it is, so that it can be piped; a line's end only where a person looks at text.
        output::write_bytes(&entry.value);
        if !entry.value.ends_with(b"\n") {
            output::write_bytes(b"\n");
        }
    } else {
        out.one(output::entry(&entry), "");
    }
    Ok(Exit::SUCCESS)
}

async fn put(key: &str, value: String, ttl: Option<Duration>, target: &Target) -> Result<Exit> {
    let key = Key::parse(&target.realm()?, key)?;
    let value = if value == "-" { read_stdin()? } else { value.into_bytes() };
    let kv = target.open().await?;
    let lease: Option<LeaseId> = match ttl {
        Some(ttl) => Some(kv.lease_grant(ttl).await?.id),
        None => None,
    };
    let revision = kv.put(&key, value, lease).await?;
    kv.close().await?;
    target.output().one(json!({ "key": key.to_string(), "revision": revision.0 }), &revision.to_string());
    Ok(Exit::SUCCESS)
}

fn read_stdin() -> Result<Vec<u8>> {
    let mut value = Vec::new();
    std::io::stdin()
        .read_to_end(&mut value)
        .map_err(|error| Error::invalid("the value cannot be read from stdin").with_source(error))?;
    Ok(value)
}

async fn del(key: &str, target: &Target) -> Result<Exit> {
    let key = Key::parse(&target.realm()?, key)?;
    let kv = target.open().await?;
    let txn = Txn { reads: vec![Read::Get(key.clone())], writes: vec![Write::Delete(key.clone())], ..Txn::default() };
    let outcome = kv.txn(key.realm(), txn).await?;
    kv.close().await?;
    let TxnOutcome::Committed { revision, reads } = outcome else { return Ok(Exit::FAILURE) };
    if reads.first().and_then(Found::entry).is_none() {
        output::complain(&format!("there is no entry {key}"));
        return Ok(Exit::ABSENT);
    }
    target.output().one(json!({ "key": key.to_string(), "revision": revision.0 }), &revision.to_string());
    Ok(Exit::SUCCESS)
}

async fn list(dir: &str, by_age: bool, limit: usize, target: &Target) -> Result<Exit> {
    let dir = Dir::new(&target.realm()?, dir.strip_suffix('/').unwrap_or(dir))?;
    let kv = target.open().await?;
    let mut out = target.output();
    let mut left = limit;
    let mut order = if by_age { Order::Created { after: Revision(0) } } else { Order::Name { after: String::new() } };
    loop {
        let page = kv.list(&dir, order.clone(), left.min(PAGE_ENTRIES)).await?;
        page.entries.iter().for_each(|entry| out.row(output::entry(entry)));
        left -= page.entries.len();
        let Some(last) = page.entries.last().filter(|_| page.more && left > 0) else { break };
        order = if by_age {
            Order::Created { after: last.created }
        } else {
            Order::Name { after: last.key.name().to_owned() }
        };
    }
    out.finish();
    Ok(Exit::SUCCESS)
}

async fn list_dirs(limit: usize, target: &Target) -> Result<Exit> {
    let kv = target.open().await?;
    let realm = target.realm()?;
    let mut out = target.output();
    let mut left = limit;
    let mut after = String::new();
    while left > 0 {
        let asked = left.min(PAGE_ENTRIES);
        let dirs = kv.dirs(&realm, "", &after, asked).await?;
        dirs.iter().for_each(|dir| out.row(json!({ "dir": dir.path() })));
        left -= dirs.len();
        match dirs.last().filter(|_| dirs.len() == asked) {
            Some(last) => after = last.path().to_owned(),
            None => break,
        }
    }
    out.finish();
    Ok(Exit::SUCCESS)
}

async fn watch(what: &str, after: Option<u64>, count: Option<u64>, target: &Target) -> Result<Exit> {
    let realm = target.realm()?;
    let scope = match what.strip_suffix('/') {
        Some(dir) => Scope::Dir(Dir::new(&realm, dir)?),
        None => Scope::Key(Key::parse(&realm, what)?),
    };
    let kv = target.open().await?;
    let mut feed = kv.watch(scope, after.map(Revision)).await?;
    let mut out = target.output();
    let mut left = count.unwrap_or(u64::MAX);
    while left > 0 {
        let change = tokio::select! {
            change = feed.next() => change,
            _ = tokio::signal::ctrl_c() => break,
        };
        let Some(change) = change.transpose()? else { break };
        if let Some((row, text)) = show(&change) {
            out.stream(row, &text);
            left -= 1;
        }
    }
    Ok(Exit::SUCCESS)
}

fn show(change: &Change) -> Option<(Value, String)> {
    Some(match change {
        Change::Put(entry) => {
            let mut row = output::entry(entry);
            row["change"] = "put".into();
            let value = String::from_utf8_lossy(&entry.value);
            (row, format!("{}  put   {}  {}", entry.modified, entry.key, value.escape_debug()))
        }
        Change::Gone { key, at, cause } => {
            let cause = match cause {
                GoneCause::Deleted => "deleted",
                GoneCause::Expired => "expired",
                GoneCause::Unknown => "gone",
            };
            let row = json!({ "key": key.to_string(), "change": "gone", "cause": cause, "modified": at.0 });
            (row, format!("{at}  gone  {key}  {cause}"))
        }
        Change::Resync { why, at } => {
            let row = json!({ "change": "resync", "why": why, "modified": at.0 });
            (row, format!("{at}  resync  changes before may be missing: {why}"))
        }
        Change::Progress(_) => return None,
    })
}

impl TxnArgs {
    async fn run(self) -> Result<Exit> {
        let realm = self.target.realm()?;
        let txn = self.txn(&realm)?;
        let kv: KvHandle = self.target.open().await?;
        let outcome = kv.txn(&realm, txn).await?;
        kv.close().await?;
        match outcome {
            TxnOutcome::Committed { revision, reads } => {
                let found: Vec<_> = reads.iter().map(|found| found.entry().map(output::entry)).collect();
                let text = found.iter().map(|entry| format!("\n{}", json!(entry))).collect::<String>();
                let row = json!({ "committed": true, "revision": revision.0, "found": found });
                self.target.output().one(row, &format!("committed at revision {revision}{text}"));
                Ok(Exit::SUCCESS)
            }
            TxnOutcome::Refused { check, found } => {
                let failed = &self.checks[check.min(self.checks.len() - 1)];
                let found = found.as_ref().map(output::entry);
                let text = format!("refused: {failed} does not hold, found {}", json!(found));
                let row = json!({ "committed": false, "check": failed, "found": found });
                self.target.output().one(row, &text);
                Ok(Exit::ABSENT)
            }
        }
    }

    fn txn(&self, realm: &Realm) -> Result<Txn> {
        let mut txn = Txn::default();
        for text in &self.checks {
            txn.checks.push(parse_check(realm, text)?);
        }
        for key in &self.gets {
            txn.reads.push(Read::Get(Key::parse(realm, key)?));
        }
        for pair in &self.puts {
            let (key, value) = split_pair("--put", "KEY=VALUE", pair)?;
            txn.writes.push(Write::Put { key: Key::parse(realm, key)?, value: value.to_owned().into(), lease: None });
        }
        for pair in &self.incrs {
            let (key, number) = split_pair("--incr", "KEY=NUMBER", pair)?;
            let by =
                number.parse().map_err(|_| Error::invalid(format!("--incr {pair}: {number:?} is no whole number")))?;
            txn.writes.push(Write::Incr { key: Key::parse(realm, key)?, by });
        }
        for key in &self.dels {
            txn.writes.push(Write::Delete(Key::parse(realm, key)?));
        }
        if txn == Txn::default() {
            return Err(Error::invalid(
                "the transaction is empty: give at least one of --check, --get, --put, --incr, --del",
            ));
        }
        Ok(txn)
    }
}

fn parse_check(realm: &Realm, text: &str) -> Result<Check> {
    let bad = || {
        Error::invalid(format!(
            "--check {text:?} is not known: write absent:KEY, created:KEY=REVISION or modified:KEY=REVISION"
        ))
    };
    let (kind, rest) = text.split_once(':').ok_or_else(bad)?;
    if kind == "absent" {
        return Ok(Check::Absent(Key::parse(realm, rest)?));
    }
    let (key, revision) = rest.rsplit_once('=').ok_or_else(bad)?;
    let revision = Revision(revision.parse().map_err(|_| bad())?);
    let key = Key::parse(realm, key)?;
    match kind {
        "created" => Ok(Check::CreatedAt(key, revision)),
        "modified" => Ok(Check::ModifiedAt(key, revision)),
        _ => Err(bad()),
    }
}

fn split_pair<'a>(option: &str, form: &str, pair: &'a str) -> Result<(&'a str, &'a str)> {
    pair.split_once('=').ok_or_else(|| Error::invalid(format!("{option} {pair:?} has no =: write {option} {form}")))
}
