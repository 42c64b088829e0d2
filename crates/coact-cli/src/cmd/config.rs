//! `coact config`: versioned configuration entries.

use std::{io::Read as _, path::PathBuf};

use clap::Subcommand;
use coact::{
    Error, ErrorKind, Result,
    directory::{Setting, SettingChange, Settings},
};
use serde_json::{Value, json};

use crate::{Target, exit::Exit, output};

/// Commands of `coact config`. A setting is written GROUP/KEY.
#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Write a new version.
    Put {
        /// GROUP/KEY.
        setting: String,
        /// The value; - reads it from stdin.
        #[arg(required_unless_present = "file")]
        value: Option<String>,
        /// Read the value from a file.
        #[arg(long, conflicts_with = "value")]
        file: Option<PathBuf>,
        /// Only over this version; 0 for none.
        #[arg(long, value_name = "VERSION")]
        expect: Option<u64>,
        #[command(flatten)]
        target: Target,
    },
    /// Print the value (exit 3 if there is none).
    Get {
        /// GROUP/KEY.
        setting: String,
        #[command(flatten)]
        target: Target,
    },
    /// Show the settings of a group, or all groups.
    Ls {
        /// The group.
        group: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Show the last versions.
    History {
        /// GROUP/KEY.
        setting: String,
        #[command(flatten)]
        target: Target,
    },
    /// Bring an earlier value back, as a new version.
    Rollback {
        /// GROUP/KEY.
        setting: String,
        /// One of the history.
        #[arg(value_name = "VERSION")]
        to: u64,
        #[command(flatten)]
        target: Target,
    },
    /// Delete a setting; its history stays.
    Rm {
        /// GROUP/KEY.
        setting: String,
        #[command(flatten)]
        target: Target,
    },
    /// Show every setting of a group, then each change, with a line for each.
    Watch {
        /// The group.
        group: String,
        #[command(flatten)]
        target: Target,
    },
}

impl Config {
    pub(crate) async fn run(self) -> Result<Exit> {
        match self {
            Self::Put { setting, value, file, expect, target } => {
                let (group, key) = split(&setting)?;
                let value = read_value(value, file)?;
                let version = open(&target).await?.put(group, key, value, expect).await?;
                written(&target, version);
            }
            Self::Get { setting, target } => {
                let (group, key) = split(&setting)?;
                let Some(found) = open(&target).await?.get(group, key).await? else { return Ok(absent(&setting)) };
                if target.output().is_table() {
                    // As it was written, so that it can go into a file.
                    output::write_bytes(found.value.as_deref().unwrap_or_default());
                    if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
                        output::write_bytes(b"\n");
                    }
                } else {
                    target.output().one(row(&found), "");
                }
            }
            Self::Ls { group: Some(group), target } => show(&target, open(&target).await?.list(&group).await?),
            Self::Ls { group: None, target } => list_groups(&target).await?,
            Self::History { setting, target } => {
                let (group, key) = split(&setting)?;
                let versions = open(&target).await?.history(group, key).await?;
                if versions.is_empty() {
                    return Ok(absent(&setting));
                }
                show(&target, versions);
            }
            Self::Rollback { setting, to, target } => {
                let (group, key) = split(&setting)?;
                let version = open(&target).await?.rollback(group, key, to).await?;
                written(&target, version);
            }
            Self::Rm { setting, target } => {
                let (group, key) = split(&setting)?;
                if open(&target).await?.delete(group, key).await?.is_none() {
                    return Ok(absent(&setting));
                }
            }
            Self::Watch { group, target } => watch(&group, &target).await?,
        }
        Ok(Exit::SUCCESS)
    }
}

async fn open(target: &Target) -> Result<Settings> {
    Settings::new(&target.open().await?, target.realm()?)
}

async fn list_groups(target: &Target) -> Result<()> {
    const PAGE: usize = 1_000;
    let settings = open(target).await?;
    let mut out = target.output();
    let mut after = String::new();
    loop {
        let groups = settings.groups("", &after, PAGE).await?;
        groups.iter().for_each(|group| out.row(json!({ "group": group })));
        match groups.last() {
            Some(last) if groups.len() == PAGE => after.clone_from(last),
            _ => break,
        }
    }
    out.finish();
    Ok(())
}

async fn watch(group: &str, target: &Target) -> Result<()> {
    let mut changes = open(target).await?.watch(group)?;
    let mut out = target.output();
    loop {
        match changes.next().await? {
            SettingChange::Set(setting) => {
                let text = format!("{} {} = {}", setting.key, setting.version, shown(&setting));
                out.stream(json!({ "set": row(&setting) }), &text);
            }
            SettingChange::Deleted { key } => out.stream(json!({ "deleted": key }), &format!("{key} -")),
        }
    }
}

fn split(setting: &str) -> Result<(&str, &str)> {
    setting.rsplit_once('/').ok_or_else(|| {
        Error::invalid(format!(
            "setting {setting:?} has no group: write it as GROUP/KEY, for example billing/{setting}"
        ))
    })
}

fn read_value(value: Option<String>, file: Option<PathBuf>) -> Result<Vec<u8>> {
    let unreadable = |what: String, error: std::io::Error| {
        Error::new(ErrorKind::NotFound, format!("{what} cannot be read")).with_source(error)
    };
    match (value, file) {
        (_, Some(file)) => std::fs::read(&file).map_err(|error| unreadable(file.display().to_string(), error)),
        (Some(dash), None) if dash == "-" => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).map_err(|error| unreadable("stdin".to_owned(), error))?;
            Ok(bytes)
        }
        (value, None) => Ok(value.unwrap_or_default().into_bytes()),
    }
}

fn written(target: &Target, version: u64) {
    target.output().one(json!({ "version": version }), &format!("version {version}"));
}

fn absent(setting: &str) -> Exit {
    output::complain(&format!("there is no setting {setting}"));
    Exit::ABSENT
}

fn show(target: &Target, settings: Vec<Setting>) {
    let mut out = target.output();
    settings.iter().for_each(|setting| out.row(row(setting)));
    out.finish();
}

fn row(setting: &Setting) -> Value {
    json!({
        "key": setting.key,
        "version": setting.version,
        "restores": setting.restores,
        "at": output::time(setting.at_ms),
        "value": setting.value.as_ref().map(|_| shown(setting)),
    })
}

fn shown(setting: &Setting) -> String {
    match (setting.text(), &setting.value) {
        (Some(text), _) => text.to_owned(),
        (None, Some(bytes)) => format!("<{} bytes>", bytes.len()),
        (None, None) => "<deleted>".to_owned(),
    }
}
