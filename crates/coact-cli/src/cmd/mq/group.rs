//! Groups: how far they came, how far behind they are, and where they go on.

use clap::{Args, Subcommand};
use coact::{
    Error, ErrorKind, Realm, Result, Store, Topic,
    mq::{self, Committed, GroupLag, Monitor, PartitionLag},
};
use serde_json::{Value, json};

use super::{chosen, tail::From, topic::cells, topic_of};
use crate::{Target, exit::Exit, output};

/// Commands of `coact mq group`.
#[derive(Debug, Subcommand)]
pub(crate) enum Group {
    /// List groups.
    Ls {
        #[command(flatten)]
        target: Target,
    },
    /// Show a group: its members, and how far it came.
    Describe {
        /// Its name.
        group: String,
        #[command(flatten)]
        target: Target,
    },
    /// Forget how far a group came; exit 3 if there is none, 4 while it has members.
    Rm {
        /// Its name.
        group: String,
        /// Also while it has members: they commit anew.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        target: Target,
    },
}

/// Arguments of `coact mq seek`.
#[derive(Debug, Args)]
pub(crate) struct Seek {
    /// The group; it begins to exist with this.
    group: String,
    /// The topic.
    topic: String,
    /// Where it goes on: earliest, latest, an offset, a time (RFC 3339), or how long ago (10m, 2h, 1d).
    #[arg(long, value_parser = From::read, value_name = "WHERE")]
    to: From,
    /// Only in this partition.
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Also while the group has members, who go on where they are and commit over it.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    target: Target,
}

/// Arguments of `coact mq lag`.
#[derive(Debug, Args)]
pub(crate) struct Lag {
    /// The group; all by default.
    group: Option<String>,
    #[command(flatten)]
    target: Target,
}

impl Group {
    pub(crate) async fn run(self) -> Result<Exit> {
        match self {
            Self::Ls { target } => list(&target).await,
            Self::Describe { group, target } => describe(&group, &target).await,
            Self::Rm { group, force, target } => remove(&group, force, &target).await,
        }
    }
}

async fn list(target: &Target) -> Result<Exit> {
    let monitor = monitor(&target.open_store().await?, &target.realm()?)?;
    let mut out = target.output();
    for group in monitor.groups().await? {
        let Some(lag) = found(&monitor, &group).await? else { continue };
        let mut topics: Vec<_> = lag.partitions.iter().map(|one| one.place.topic.as_str()).collect();
        topics.dedup();
        out.row(json!({
            "group": group.as_str(),
            "members": lag.members.len(),
            "generation": lag.generation,
            "topics": topics.join(","),
            "lag": lag.messages(),
        }));
    }
    out.finish();
    Ok(Exit::SUCCESS)
}

pub(super) fn monitor(store: &Store, realm: &Realm) -> Result<Monitor> {
    Ok(Monitor::new(store.kv(), store.streams()?, realm))
}

/// A group; `None` if there is none.
pub(super) async fn found(monitor: &Monitor, group: &coact::Group) -> Result<Option<GroupLag>> {
    match monitor.group(group).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        lag => lag.map(Some),
    }
}

async fn describe(name: &str, target: &Target) -> Result<Exit> {
    let name = coact::Group::new(name)?;
    let monitor = monitor(&target.open_store().await?, &target.realm()?)?;
    let Some(lag) = found(&monitor, &name).await? else { return Ok(absent(&name)) };
    let members: Vec<Value> = lag
        .members
        .iter()
        .map(|one| json!({ "member": one.incarnation, "name": one.name, "topics": one.topics.join(",") }))
        .collect();
    let partitions: Vec<Value> = lag.partitions.iter().map(|one| row(&name, one)).collect();
    let parked: Vec<Value> = lag.parked.iter().map(|one| json!({ "parked": format!("{one:?}") })).collect();
    let out = target.output();
    if out.is_table() {
        let sections = [members, partitions, parked];
        let sections = sections.iter().map(|rows| output::table(&cells(rows))).filter(|table| !table.is_empty());
        output::write_bytes(sections.collect::<Vec<_>>().join("\n").as_bytes());
    } else {
        let document = json!({
            "group": name.as_str(), "generation": lag.generation, "rebalancing": lag.rebalancing,
            "members": members, "partitions": partitions,
        });
        out.one(document, "");
    }
    Ok(Exit::SUCCESS)
}

async fn remove(name: &str, force: bool, target: &Target) -> Result<Exit> {
    let name = coact::Group::new(name)?;
    let store = target.open_store().await?;
    if !force {
        without_members(&store, &target.realm()?, &name).await?;
    }
    let deleted = store.streams()?.delete_group(&name).await?;
    store.close().await?;
    if !deleted {
        return Ok(absent(&name));
    }
    target.output().one(json!({ "group": name.as_str(), "deleted": true }), "deleted");
    Ok(Exit::SUCCESS)
}

fn absent(name: &coact::Group) -> Exit {
    output::complain(&format!("there is no group {name}"));
    Exit::ABSENT
}

async fn without_members(store: &Store, realm: &Realm, group: &coact::Group) -> Result<()> {
    match monitor(store, realm)?.member_count(group).await? {
        0 => Ok(()),
        count => Err(Error::new(
            ErrorKind::Conflict,
            format!("group {group} has {count} members, who would commit over it: stop them first, or use --force"),
        )),
    }
}

impl Seek {
    pub(crate) async fn run(self) -> Result<Exit> {
        let (group, topic) = (coact::Group::new(&self.group)?, Topic::new(&self.topic)?);
        let store = self.target.open_store().await?;
        let streams = store.streams()?;
        let info = topic_of(streams, &topic).await?;
        if !self.force {
            without_members(&store, &self.target.realm()?, &group).await?;
        }
        let to = self.to.seek_to(streams);
        let offsets = mq::seek(streams, &group, &topic, chosen(self.partition, &info), to).await?;
        store.close().await?;
        let mut out = self.target.output();
        for one in offsets {
            out.row(json!({
                "group": group.as_str(), "topic": topic.as_str(), "partition": one.partition, "offset": one.offset.0,
            }));
        }
        out.finish();
        Ok(Exit::SUCCESS)
    }
}

impl Lag {
    pub(crate) async fn run(self) -> Result<Exit> {
        let monitor = monitor(&self.target.open_store().await?, &self.target.realm()?)?;
        let groups = match &self.group {
            None => monitor.groups().await?,
            Some(name) => vec![coact::Group::new(name)?],
        };
        let mut out = self.target.output();
        for group in groups {
            match found(&monitor, &group).await? {
                Some(lag) => lag.partitions.iter().for_each(|one| out.row(row(&group, one))),
                None if self.group.is_some() => return Ok(absent(&group)),
                None => {}
            }
        }
        out.finish();
        Ok(Exit::SUCCESS)
    }
}

/// How far a group came in a partition, as it is shown.
pub(super) fn row(group: &coact::Group, lag: &PartitionLag) -> Value {
    json!({
        "group": group.as_str(),
        "topic": lag.place.topic.as_str(),
        "partition": lag.place.partition,
        "committed": match lag.committed {
            Committed::Never => None,
            Committed::At(offset) => Some(offset.0),
        },
        "end": lag.bounds.end.0,
        "lag": lag.messages,
        "oldest_s": lag.age_ms.map(|age| age / 1_000),
    })
}
