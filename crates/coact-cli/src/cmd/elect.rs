//! `coact elect` and `coact leader`: run a command while leading; see who leads.

use std::time::Duration;

use clap::Args;
use coact::{
    Result, Session,
    lock::{self, Election, Kind, Leader, LockOptions},
};
use futures::{StreamExt, pin_mut};
use serde_json::json;

use crate::{
    Target,
    cmd::{
        child::default_label,
        hold::{Acquire, Held, Hold},
    },
    exit::Exit,
    output,
};

/// Arguments of `coact elect`.
#[derive(Debug, Args)]
pub(crate) struct Elect {
    #[command(flatten)]
    hold: Hold,
    /// What the leader says about itself, as shown by `coact leader`; by default its host and process.
    #[arg(long)]
    value: Option<String>,
    /// Run for leader again after the leadership was lost or the store did not answer, instead of ending. The end of the
    /// command is still the end.
    #[arg(long)]
    again: bool,
}

impl Elect {
    pub(crate) async fn run(self) -> Result<Exit> {
        let value = self.value.unwrap_or_else(default_label);
        let candidate = Candidate { name: self.hold.name.clone(), value };
        if self.again { self.hold.run_again(&candidate).await } else { self.hold.run(&candidate).await }
    }
}

struct Candidate {
    name: String,
    value: String,
}

impl Acquire for Candidate {
    const KIND: Kind = Kind::Election;

    async fn acquire(&self, session: &Session, options: LockOptions, wait: Option<Duration>) -> Result<Held> {
        let election = Election::with_options(session, &self.name, options)?;
        let leadership = match wait {
            None => election.campaign(&self.value).await?,
            Some(limit) => election.campaign_within(&self.value, limit).await?,
        };
        Ok(Held::Leadership(leadership))
    }
}

/// Arguments of `coact leader`.
#[derive(Debug, Args)]
pub(crate) struct ShowLeader {
    /// The name of the election.
    name: String,
    /// Go on, with a line for each change.
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    target: Target,
}

impl ShowLeader {
    pub(crate) async fn run(self) -> Result<Exit> {
        let (kv, realm) = (self.target.open().await?, self.target.realm()?);
        if !self.watch {
            let Some(leader) = lock::leader(&kv, &realm, &self.name).await? else {
                output::complain(&format!("nobody leads {}", self.name));
                return Ok(Exit::ABSENT);
            };
            let text = format!("{} (token {}, {})", leader.value, leader.token, leader.label);
            self.target.output().one(json!(leader), &text);
            return Ok(Exit::SUCCESS);
        }
        let leaders = lock::observe(&kv, &realm, &self.name)?;
        pin_mut!(leaders);
        let mut out = self.target.output();
        while let Some(leader) = leaders.next().await {
            show(&mut out, leader?);
        }
        Ok(Exit::SUCCESS)
    }
}

fn show(out: &mut output::Output, leader: Option<Leader>) {
    match leader {
        Some(leader) => {
            let text = format!("{} (token {}, {})", leader.value, leader.token, leader.label);
            out.stream(json!({ "leader": leader }), &text);
        }
        None => out.stream(json!({ "leader": null }), "-"),
    }
}
