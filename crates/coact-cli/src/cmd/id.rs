//! `coact id`: unique 64-bit ids.

use clap::Subcommand;
use coact::{
    Error, Result, Session, SessionOptions,
    id::{Generator, IdOptions, Layout},
};
use serde_json::json;

use crate::{Target, exit::Exit, output};

/// Commands of `coact id`.
#[derive(Debug, Subcommand)]
pub(crate) enum Id {
    /// Print new ids, one a line.
    Next {
        /// How many.
        #[arg(short = 'n', long = "count", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
        count: u64,
        /// How an id is divided: std (41/10/12), js53 (41/6/6, exact in JavaScript numbers), or bits time/worker/sequence.
        #[arg(long, default_value = "std")]
        layout: String,
        /// Ids are unique within a space; all users of one have the same layout.
        #[arg(long, default_value = "main")]
        space: String,
        #[command(flatten)]
        target: Target,
    },
    /// Print when and by which worker an id was made.
    Decode {
        /// The id.
        id: String,
        /// The layout that it was made with.
        #[arg(long, default_value = "std")]
        layout: String,
        /// How the result is shown.
        #[arg(short, long, value_enum, default_value = "table")]
        output: output::Format,
    },
}

impl Id {
    pub(crate) async fn run(self) -> Result<Exit> {
        match self {
            Self::Next { count, layout, space, target } => next(count, &layout, space, &target).await,
            Self::Decode { id, layout, output } => decode(&id, &layout, output),
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

fn decode(text: &str, layout: &str, format: output::Format) -> Result<Exit> {
    let layout = Layout::parse(layout)?;
    let id: coact::id::Id = text.parse().map_err(|_| {
        Error::invalid(format!("{text:?} is no id: use a decimal number from 0 to 9223372036854775807"))
    })?;
    let parts = layout.decode(id);
    let mut out = output::Output::new(format);
    out.row(json!({
        "id": id.to_string(),
        "time": output::time(parts.unix_ms),
        "unix_ms": parts.unix_ms,
        "worker": parts.worker,
        "sequence": parts.sequence,
    }));
    out.finish();
    Ok(Exit::SUCCESS)
}
