//! What the tour shows on its way.

use std::{io::IsTerminal as _, time::Instant};

use coact::Env;

use crate::output::say;

/// Events with their time, and how far it is.
pub(super) struct Timeline {
    env: Env,
    began: Instant,
    shown_tenth: usize,
    terminal: bool,
}

impl Timeline {
    pub(super) fn new(env: Env) -> Self {
        Self { began: env.now(), env, shown_tenth: 0, terminal: std::io::stderr().is_terminal() }
    }

    pub(super) fn event(&self, text: &str) {
        let seconds = (self.env.now() - self.began).as_secs_f64();
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        say(&format!("{clear}{seconds:7.2}s  {text}"));
    }

    /// Another part begins.
    pub(super) fn begin_part(&mut self) {
        self.shown_tenth = 0;
    }

    /// Shows another tenth, with what there is to say of it.
    pub(super) fn progress(&mut self, done: usize, total: usize, more: &str) {
        let tenth = (done * 10 / total.max(1)).min(10);
        if tenth > self.shown_tenth {
            self.shown_tenth = tenth;
            let text = format!("{:3} %  {}{}  {more}", tenth * 10, "#".repeat(tenth * 3), ".".repeat(30 - tenth * 3));
            self.event(text.trim_end());
        }
    }
}
