//! How a long load goes, on stderr.

use std::{
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use coact::Env;

use super::way::Tally;
use crate::output;

/// Says now and then how far it is: in place on a terminal, on lines of their own elsewhere.
pub(super) struct Progress {
    env: Env,
    terminal: bool,
    shown: bool,
    began: std::time::Instant,
    next: Option<std::time::Instant>,
}

const EVERY: Duration = Duration::from_secs(1);

impl Progress {
    /// On a terminal always, elsewhere only if it was asked for.
    pub(super) fn new(wanted: bool) -> Self {
        let env = Env::real();
        let terminal = std::io::stderr().is_terminal();
        let began = env.now();
        Self { env, terminal, shown: false, began, next: (terminal || wanted).then_some(began + EVERY) }
    }

    pub(super) fn show(&mut self, tally: &Tally) {
        let now = self.env.now();
        if self.next.is_none_or(|next| now < next) {
            return;
        }
        self.next = Some(now + EVERY);
        let text = describe(tally, now.saturating_duration_since(self.began));
        if self.terminal {
            self.shown = true;
            // Nobody is left to tell if stderr is gone.
            let _ = write!(std::io::stderr(), "\r{text}\x1b[K");
        } else {
            output::say(&text);
        }
    }

    /// Leaves the terminal's line empty.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn describe(tally: &Tally, taken: Duration) -> String {
    let megabytes = tally.bytes as f64 / 1e6;
    let seconds = taken.as_secs_f64().max(1e-3);
    let (records_s, megabytes_s) = (tally.records as f64 / seconds, megabytes / seconds);
    format!("{} records, {megabytes:.1} MB, {records_s:.0} records/s, {megabytes_s:.1} MB/s", tally.records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_whole_time() {
        let tally = Tally { records: 3000, bytes: 6_000_000, ..Tally::default() };
        assert_eq!(describe(&tally, Duration::from_secs(2)), "3000 records, 6.0 MB, 1500 records/s, 3.0 MB/s");
    }
}
