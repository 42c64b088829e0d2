//! `coact elect` and `coact leader`: run a command while leading; see who leads.

use std::{ffi::OsString, time::Duration};

use clap::Args;
use coact::{
    Result, Session, SessionOptions,
    lock::{self, Election, Leader, LockOptions},
};
use futures::{StreamExt, pin_mut};
use serde_json::json;

use crate::{
    Target,
    cmd::{
        child::{Running, default_label},
        duration,
        serve::Signals,
    },
    exit::Exit,
    output,
};

/// Arguments of `coact elect`.
#[derive(Debug, Args)]
pub(crate) struct Elect {
    /// The name of the election.
    name: String,
    /// What the leader says about itself, as shown by `coact leader`; by default its host and process.
    #[arg(long)]
    value: Option<String>,
    /// How long a leadership outlives a leader that cannot renew it.
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    ttl: Duration,
    /// How long the command may take to end after SIGTERM when the leadership is lost, before SIGKILL.
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "DURATION")]
    grace: Duration,
    /// Run for leader again after the leadership was lost, instead of ending.
    #[arg(long)]
    again: bool,
    #[command(flatten)]
    target: Target,
    /// The command. It finds its fencing token in COACT_FENCING_TOKEN.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Elect {
    pub(crate) async fn run(self) -> Result<Exit> {
        let mut signals = Signals::new()?;
        loop {
            let exit = self.lead_once(&mut signals).await?;
            if exit != Exit::LOST || !self.again {
                return Ok(exit);
            }
        }
    }

    /// With a session of its own: one that was lost does not come back.
    async fn lead_once(&self, signals: &mut Signals) -> Result<Exit> {
        let kv = self.target.open().await?;
        let options = SessionOptions { ttl: self.ttl, name: Some(default_label()) };
        let session = Session::open(&kv, options).await?;
        let options = LockOptions { realm: self.target.realm()?, ..LockOptions::default() };
        let election = Election::with_options(&session, &self.name, options)?;
        let value = self.value.clone().unwrap_or_else(default_label);
        let leadership = tokio::select! {
            leadership = election.campaign(value) => leadership?,
            () = signals.first() => {
                session.close().await?;
                return Ok(Exit(128 + 2));
            }
        };
        let environment =
            [("COACT_FENCING_TOKEN", leadership.token().to_string()), ("COACT_ELECTION", self.name.clone())];
        let what = format!("leadership of {}", self.name);
        let exit = match Running::start(&self.command, &environment, self.grace) {
            Ok(running) => running.until_lost(&what, leadership.lost(), signals).await?,
            Err(exit) => exit,
        };
        if exit != Exit::LOST {
            leadership.resign().await?;
            session.close().await?;
            kv.close().await?;
        }
        Ok(exit)
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
