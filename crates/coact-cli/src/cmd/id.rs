//! `coact id`: unique ids of every kind.

use clap::{Subcommand, ValueEnum};
use coact::{
    Env, Error, Result, Session, SessionOptions,
    id::{self, Generator, IdOptions, Layout, Segment, SegmentOptions, Ulid, UlidGenerator, Uuid7, Uuid7Generator},
};
use serde_json::{Value, json};

use crate::{Target, exit::Exit, output};

/// Commands of `coact id`.
#[derive(Debug, Subcommand)]
pub(crate) enum Id {
    /// Print new ids, one a line.
    Next {
        /// What they are made of; ulid and uuid7 need no store.
        #[arg(long, value_enum, default_value = "snowflake")]
        kind: Kind,
        /// How many.
        #[arg(short = 'n', long = "count", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
        count: u64,
        /// Snowflake: how an id is divided: std (41/10/12), js53 (41/6/6, exact in JavaScript numbers), or bits time/worker/sequence.
        #[arg(long, default_value = "std")]
        layout: String,
        /// Snowflake: ids are unique within a space; all users of one have the same layout.
        #[arg(long, default_value = "main")]
        space: String,
        #[command(flatten)]
        target: Target,
    },
    /// Print when an id was made, and a snowflake's worker.
    Decode {
        /// The id: a number, a ULID, or a UUID of version 7.
        id: String,
        /// The layout that a number was made with.
        #[arg(long, default_value = "std")]
        layout: String,
        /// How the result is shown.
        #[arg(short, long, value_enum, default_value = "table")]
        output: output::Format,
    },
    /// List the worker numbers of a space that were ever used, and who uses them now.
    Workers {
        /// Which space.
        #[arg(long, default_value = "main")]
        space: String,
        #[command(flatten)]
        target: Target,
    },
    /// Print the next dense numbers of a counter, one a line, as for the keys of a table.
    Segment {
        /// Which counter.
        tag: String,
        /// How many.
        #[arg(short = 'n', long = "count", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
        count: u64,
        /// How many are taken from the store at once; what is not printed goes back.
        #[arg(long, default_value_t = 1_000)]
        step: u64,
        /// The first number, if the counter is new.
        #[arg(long, default_value_t = 1)]
        start: u64,
        #[command(flatten)]
        target: Target,
    },
}

/// What an id is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// 64 bits: time, worker number, sequence; unique by windows reserved in the store.
    Snowflake,
    /// 26 characters: time and 80 random bits.
    Ulid,
    /// 36 characters: time and 74 random bits, RFC 9562.
    Uuid7,
}

impl Id {
    pub(crate) async fn run(self) -> Result<Exit> {
        match self {
            Self::Next { kind: Kind::Snowflake, count, layout, space, target } => {
                next(count, &layout, space, &target).await
            }
            Self::Next { kind: Kind::Ulid, count, target, .. } => {
                let ulids = UlidGenerator::new(&Env::real());
                Ok(print(count, &target, || ulids.next().to_string()))
            }
            Self::Next { kind: Kind::Uuid7, count, target, .. } => {
                let uuids = Uuid7Generator::new(&Env::real());
                Ok(print(count, &target, || uuids.next().to_string()))
            }
            Self::Decode { id, layout, output } => decode(&id, &layout, output),
            Self::Workers { space, target } => workers(&space, &target).await,
            Self::Segment { tag, count, step, start, target } => segment(tag, count, step, start, &target).await,
        }
    }
}

async fn next(count: u64, layout: &str, space: String, target: &Target) -> Result<Exit> {
    let layout = Layout::parse(layout)?;
    let kv = target.open().await?;
    let session = Session::open(&kv, SessionOptions::default()).await?;
    let options = IdOptions { layout, space, ..IdOptions::default() };
    let ids = Generator::open(&session, options).await?;
    let mut out = target.output();
    let mut left = count;
    while left > 0 {
        let part = left.min(10_000) as usize;
        for id in ids.next_n(part).await? {
            // A string, since many JSON readers round numbers beyond 2^53.
            out.stream(json!({ "id": id.to_string() }), &id.to_string());
        }
        left -= part as u64;
    }
    ids.close().await?;
    session.close().await?;
    kv.close().await?;
    Ok(Exit::SUCCESS)
}

/// Prints ids that need no store.
fn print(count: u64, target: &Target, mut next: impl FnMut() -> String) -> Exit {
    let mut out = target.output();
    for _ in 0..count {
        let id = next();
        out.stream(json!({ "id": id }), &id);
    }
    Exit::SUCCESS
}

fn decode(text: &str, layout: &str, format: output::Format) -> Result<Exit> {
    let layout = Layout::parse(layout)?;
    let mut out = output::Output::new(format);
    out.row(decoded(text, layout)?);
    out.finish();
    Ok(Exit::SUCCESS)
}

/// The kinds differ in length: a number has at most 20 digits.
fn decoded(text: &str, layout: Layout) -> Result<Value> {
    let sortable = |id: String, kind: &str, unix_ms, random: u128| {
        let time = output::time(unix_ms);
        json!({ "id": id, "kind": kind, "time": time, "unix_ms": unix_ms, "random": format!("{random:x}") })
    };
    match text.len() {
        26 => {
            let ulid: Ulid = text.parse()?;
            Ok(sortable(ulid.to_string(), "ulid", ulid.timestamp_ms(), ulid.random()))
        }
        36 => {
            let uuid: Uuid7 = text.parse()?;
            Ok(sortable(uuid.to_string(), "uuid7", uuid.timestamp_ms(), uuid.random()))
        }
        _ => {
            let id: id::Id = text.parse().map_err(|_| {
                Error::invalid(format!(
                    "{text:?} is no id: use a decimal number from 0 to 9223372036854775807, a ULID, or a UUID of version 7"
                ))
            })?;
            let parts = layout.decode(id);
            Ok(json!({
                "id": id.to_string(),
                "time": output::time(parts.unix_ms),
                "unix_ms": parts.unix_ms,
                "worker": parts.worker,
                "sequence": parts.sequence,
            }))
        }
    }
}

async fn workers(space: &str, target: &Target) -> Result<Exit> {
    let kv = target.open().await?;
    let mut out = target.output();
    for worker in id::workers(&kv, &target.realm()?, space).await? {
        out.row(json!({
            "worker": worker.worker,
            "used_by": worker.used_by,
            "until": output::time(worker.until_ms),
            "epoch": worker.epoch,
            "layout": worker.layout.map(|layout| layout.to_string()),
            "owner": worker.owner,
        }));
    }
    out.finish();
    kv.close().await?;
    Ok(Exit::SUCCESS)
}

async fn segment(tag: String, count: u64, step: u64, start: u64, target: &Target) -> Result<Exit> {
    let kv = target.open().await?;
    let numbers = Segment::open(&kv, SegmentOptions { realm: target.realm()?, tag, step, start }).await?;
    let mut out = target.output();
    let mut left = count;
    while left > 0 {
        let part = left.min(10_000) as usize;
        for number in numbers.next_n(part).await? {
            out.stream(json!({ "id": number.to_string() }), &number.to_string());
        }
        left -= part as u64;
    }
    numbers.close().await?;
    kv.close().await?;
    Ok(Exit::SUCCESS)
}
