//! A picture of what goes on, again and again: `coact top` and `coact mq top`.

use std::{io::IsTerminal as _, time::Duration};

use clap::Args;
use coact::{Env, ErrorKind, Result};
use serde_json::{Map, Value};

use crate::{
    Target,
    cmd::{duration, serve::Signals},
    output,
};

/// How often to look.
#[derive(Debug, Args)]
pub(crate) struct Again {
    /// How often it looks.
    #[arg(long, default_value = "2s", value_parser = interval, value_name = "DURATION")]
    interval: Duration,
    /// Look once and return, for scripts; a rate takes two looks.
    #[arg(long)]
    once: bool,
}

impl Again {
    /// Shows what each look found, as JSON or as a page, until it is interrupted.
    pub(crate) async fn show<P>(
        &self,
        target: &Target,
        mut look: impl AsyncFnMut() -> Result<P>,
        json: impl Fn(&P) -> Value,
        page: impl Fn(&P) -> String,
    ) -> Result<()> {
        let mut signals = Signals::new()?;
        let mut picture = look().await?;
        loop {
            if target.output().is_table() {
                output::write_bytes((self.head(target) + &page(&picture)).as_bytes());
            } else {
                output::write_line(&json(&picture).to_string());
            }
            if self.once {
                return Ok(());
            }
            picture = tokio::select! {
                next = self.next(&mut look) => next?,
                () = signals.first() => return Ok(()),
            };
        }
    }

    /// The picture after the interval. A store that does not answer is asked again, and one that asks for patience said so.
    async fn next<P>(&self, look: &mut impl AsyncFnMut() -> Result<P>) -> Result<P> {
        loop {
            Env::real().sleep(self.interval).await;
            match look().await {
                Err(error) if error.kind() == ErrorKind::Unavailable => output::complain(&error.to_string()),
                picture => return picture,
            }
        }
    }

    fn head(&self, target: &Target) -> String {
        if self.once || !std::io::stdout().is_terminal() {
            return String::new();
        }
        format!("{CLEAR}{}, every {:?}\n\n", target.url().unwrap_or_default(), self.interval)
    }
}

/// At most so many rows as a table, and how many more there are.
pub(crate) fn table(rows: &[Value], most: usize) -> String {
    let cells: Vec<Map<_, _>> =
        rows.iter().take(most).map(|row| row.as_object().cloned().unwrap_or_default()).collect();
    let mut page = output::table(&cells);
    if rows.len() > most {
        page += &format!("… and {} more\n", rows.len() - most);
    }
    page + "\n"
}

/// The cursor to the upper left, and everything cleared.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Reads the interval: each look reads everything, so it has a bound.
fn interval(text: &str) -> std::result::Result<Duration, String> {
    let interval = duration(text)?;
    if interval < SHORTEST {
        return Err(format!("use at least {SHORTEST:?}"));
    }
    Ok(interval)
}

const SHORTEST: Duration = Duration::from_millis(100);
