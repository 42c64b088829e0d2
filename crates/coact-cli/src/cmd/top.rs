//! `coact top`: what is held, waited for, led, used and served, again and again.

mod collect;

use std::{io::IsTerminal as _, time::Duration};

use clap::Args;
use coact::{Env, ErrorKind, Result};
use serde_json::{Map, Value};

use crate::{
    Target,
    cmd::{duration, serve::Signals},
    exit::Exit,
    output,
};
use collect::{Collector, Picture};

/// Arguments of `coact top`.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// How often it looks.
    #[arg(long, default_value = "2s", value_parser = interval, value_name = "DURATION")]
    interval: Duration,
    /// Look once and return, for scripts.
    #[arg(long)]
    once: bool,
    /// How many rows of each kind a table shows; JSON has them all.
    #[arg(long, default_value_t = 10, value_name = "N")]
    rows: usize,
    #[command(flatten)]
    target: Target,
}

impl Top {
    pub(crate) async fn run(self) -> Result<Exit> {
        let mut signals = Signals::new()?;
        let kv = self.target.open().await?;
        let mut collector = Collector::new(&kv, self.target.realm()?)?;
        let mut picture = collector.look().await?;
        loop {
            self.show(&picture);
            if self.once {
                return Ok(Exit::SUCCESS);
            }
            picture = tokio::select! {
                next = self.next(&mut collector) => next?,
                () = signals.first() => return Ok(Exit::SUCCESS),
            };
        }
    }

    /// The picture after the interval. A store that does not answer is asked again, and one that asks for patience said so.
    async fn next(&self, collector: &mut Collector) -> Result<Picture> {
        loop {
            Env::real().sleep(self.interval).await;
            match collector.look().await {
                Err(error) if error.kind() == ErrorKind::Unavailable => output::complain(&error.to_string()),
                picture => return picture,
            }
        }
    }

    fn show(&self, picture: &Picture) {
        if !self.target.output().is_table() {
            return output::write_line(&picture.to_json().to_string());
        }
        let mut page = String::new();
        if !self.once && std::io::stdout().is_terminal() {
            page += CLEAR;
            page += &format!("{}, every {:?}\n\n", self.target.url().unwrap_or_default(), self.interval);
        }
        page += &self.page(picture);
        output::write_bytes(page.as_bytes());
    }

    fn page(&self, picture: &Picture) -> String {
        let mut page = String::new();
        for (_, rows) in picture.sections() {
            if rows.is_empty() {
                continue;
            }
            page += &output::table(&rows[..rows.len().min(self.rows)].iter().map(as_cells).collect::<Vec<_>>());
            if rows.len() > self.rows {
                page += &format!("… and {} more\n", rows.len() - self.rows);
            }
            page += "\n";
        }
        for note in &picture.notes {
            page += &format!("{note}\n");
        }
        if page.is_empty() {
            page += "nothing is held, led or served\n\n";
        }
        page
    }
}

/// The cursor to the upper left, and everything cleared.
const CLEAR: &str = "\x1b[H\x1b[2J";

fn as_cells(row: &Value) -> Map<String, Value> {
    row.as_object().cloned().unwrap_or_default()
}

/// Reads the interval: each look reads everything, so it has a bound.
fn interval(text: &str) -> std::result::Result<Duration, String> {
    let interval = duration(text)?;
    if interval < SHORTEST {
        return Err(format!("use at least {SHORTEST:?}"));
    }
    Ok(interval)
}

const SHORTEST: Duration = Duration::from_millis(100);
