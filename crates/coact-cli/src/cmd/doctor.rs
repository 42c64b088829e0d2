//! `coact doctor`: looks at one thing after another, says how it is and what to do.

mod leftovers;
mod probe;

use std::time::Duration;

use clap::Args;
use coact::{
    Env, Error, ErrorKind, KvHandle, Result, Url, directory,
    guarantees::{Accepted, Needs},
    id, lock,
};
use serde_json::json;

use crate::{Target, exit::Exit, output};

/// Arguments of `coact doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    target: Target,
}

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ok,
    /// It works, and somebody should know.
    Warn,
    Fail,
    /// It was not looked at.
    Skip,
}

/// What was found about one thing.
struct Finding {
    check: &'static str,
    status: Status,
    detail: String,
    /// What to do.
    advice: Option<String>,
}

impl Doctor {
    pub(crate) async fn run(self) -> Result<Exit> {
        let mut report = Report { out: self.target.output(), failed: false };
        if let Some(kv) = self.reach(&mut report).await {
            self.examine(&kv, &mut report).await;
            // Whatever is wrong was found by now.
            let _ = kv.close().await;
        }
        Ok(report.finish())
    }

    /// The engine, if it can be talked to.
    async fn reach(&self, report: &mut Report) -> Option<KvHandle> {
        let url = match self.target.url().and_then(|url| Url::parse(&url)) {
            Ok(url) => url,
            Err(error) => {
                report.add(Finding::of_error(
                    "url",
                    &error,
                    "write coact://host:7070, embedded:///path or etcd://host:2379",
                ));
                return None;
            }
        };
        report.add(Finding::ok("url", url.to_string()));
        let kv = match in_time(self.target.open()).await {
            Ok(kv) => kv,
            Err(error) => {
                report.add(Finding::failure("engine", &error, IS_IT_UP));
                return None;
            }
        };
        // Some only connect when they are first needed.
        match in_time(self.ask(&kv)).await {
            Ok(()) => report.add(Finding::ok("engine", format!("{} answers", kv.describe()))),
            Err(error) if error.kind() == ErrorKind::Denied => report.add(Finding::of_error("engine", &error, "")),
            Err(error) => {
                report.add(Finding::failure("engine", &error, IS_IT_UP));
                return None;
            }
        }
        Some(kv)
    }

    async fn ask(&self, kv: &KvHandle) -> Result<()> {
        kv.dirs(&self.target.realm()?, "", "", 1).await.map(drop)
    }

    async fn examine(&self, kv: &KvHandle, report: &mut Report) {
        for needs in [&lock::NEEDS, &id::NEEDS, &directory::NEEDS, &directory::PERSISTENT_NEEDS] {
            report.add(guarantees(kv, needs));
        }
        let realm = match self.target.realm() {
            Ok(realm) => realm,
            Err(error) => return report.add(Finding::of_error("realm", &error, "choose another with --realm")),
        };
        probe::examine(kv, &realm, report).await;
        report.add(Finding {
            check: "clock",
            status: Status::Skip,
            detail: "not checked: the engine tells no time, so its clock cannot be compared with this one".to_owned(),
            advice: None,
        });
        leftovers::examine(kv, &realm, report).await;
    }
}

const IS_IT_UP: &str = "is it up, and is this its address? A node starts with: coact serve";
/// How long the engine may take to answer at all.
const PATIENCE: Duration = Duration::from_secs(10);

async fn in_time<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    Env::real()
        .timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|| Err(Error::new(ErrorKind::Unavailable, format!("no answer within {PATIENCE:?}"))))
}

/// Whether what the engine declares is enough for a block.
fn guarantees(kv: &KvHandle, needs: &Needs) -> Finding {
    let check = match needs.block {
        "lock" => "guarantees for locks and elections",
        "id" => "guarantees for ids",
        "directory" => "guarantees for the directory",
        _ => "guarantees for persistent instances and config",
    };
    let declared = kv.guarantees();
    let Err(shortfall) = declared.require(&kv.describe(), needs, &Accepted::default()) else {
        return Finding::ok(check, format!("{}, {:?} reads", declared.writes, declared.reads));
    };
    match kv.require(needs) {
        Ok(()) => Finding::warn(
            check,
            format!("accepted by name in the URL: {shortfall}"),
            "keep that to what may be lost; otherwise leave accept= out",
        ),
        Err(error) => Finding::of_error(check, &error, "use an engine with stronger guarantees for this block"),
    }
}

impl Finding {
    fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, status: Status::Ok, detail: detail.into(), advice: None }
    }

    /// What a token may not do could not be checked, which is no fault of the engine's.
    fn of_error(check: &'static str, error: &Error, advice: &str) -> Self {
        if error.kind() != ErrorKind::Denied {
            return Self::failure(check, error, advice);
        }
        let advice = "to check it, use a token that may read all, and write to the dir `doctor`";
        Self::warn(check, format!("not checked: {error}"), advice)
    }

    fn failure(check: &'static str, error: &Error, advice: &str) -> Self {
        let advice = format!("{advice} (coact explain {})", error.kind());
        Self { check, status: Status::Fail, detail: error.to_string(), advice: Some(advice) }
    }

    fn warn(check: &'static str, detail: String, advice: &str) -> Self {
        Self { check, status: Status::Warn, detail, advice: Some(advice.to_owned()) }
    }
}

/// Shows each finding as it comes, and remembers whether one is bad.
struct Report {
    out: output::Output,
    failed: bool,
}

impl Report {
    fn add(&mut self, finding: Finding) {
        let Finding { check, status, detail, advice } = finding;
        self.failed |= status == Status::Fail;
        if !self.out.is_table() {
            return self
                .out
                .row(json!({ "check": check, "status": status.name(), "detail": detail, "advice": advice }));
        }
        output::write_line(&format!("{:5} {check}: {}", status.name(), detail.escape_debug()));
        if let Some(advice) = advice {
            output::write_line(&format!("      → {advice}"));
        }
    }

    fn finish(self) -> Exit {
        if !self.out.is_table() {
            self.out.finish();
        }
        if self.failed { Exit::FAILURE } else { Exit::SUCCESS }
    }
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Skip => "skip",
        }
    }
}
