//! Groups: how far they came, how far behind they are, where they go on, and what they have put aside.

use axum::{Json as Answer, extract::State, http::StatusCode};
use coact_blocks::mq::{self, Committed, GroupLag, GroupMember, Monitor, Parked, ParkedKey, PartitionLag, Sample};
use coact_core::{
    Error, ErrorKind,
    contract::stream::{Seek, StreamHandle},
    name::{Group, Topic},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Block, Caller, Store, Verb,
    entry::key_of,
    extract::{Json, Path, Query, int32, int64, invalid},
    kv::{NamespacePath, PageQuery, limit},
    problem::{self, Problem},
    record::seek_of,
    topic::{TopicPath, absent},
};

/// A group.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct GroupPath {
    /// The namespace.
    #[param(example = "main", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    pub(super) namespace: String,
    /// The group.
    #[param(example = "billing", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    pub(super) group: String,
}

/// Where a group goes on in a topic.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SeekBody {
    /// Which topic.
    #[schema(example = "orders")]
    topic: String,
    /// Only in this partition; in all by default.
    #[serde(default, deserialize_with = "int32")]
    partition: Option<u32>,
    /// At this offset.
    #[serde(default, deserialize_with = "int64")]
    offset: Option<u64>,
    /// Here, if no offset is given: `earliest` (default) or `latest`.
    #[schema(example = "earliest")]
    at: Option<String>,
    /// At the first record that was appended at this time or later, in milliseconds since 1970.
    #[serde(default, deserialize_with = "int64")]
    time_ms: Option<u64>,
}

/// Which parked records come back.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RedriveBody {
    /// Those of a key of this topic; of all keys of all topics by default.
    #[schema(example = "orders")]
    topic: Option<String>,
    /// Of this key.
    key: Option<String>,
    /// Of this key, if it is not text.
    key_base64: Option<String>,
}

/// Groups, by name.
#[derive(Serialize, ToSchema)]
pub(super) struct GroupList {
    groups: Vec<String>,
}

/// A group as it is.
#[derive(Serialize, ToSchema)]
pub(super) struct GroupView {
    group: String,
    /// The generation that is stable, or being prepared; 0 if nobody ever joined.
    generation: u64,
    /// Whether partitions are changing hands.
    rebalancing: bool,
    /// How many records it is behind in all; absent if that is not known of some partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    lag: Option<u64>,
    /// How old the oldest record is that it has not done.
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_ms: Option<u64>,
    /// Oldest first: the first one coordinates.
    members: Vec<MemberView>,
    partitions: Vec<PartitionView>,
    parked: Vec<ParkedView>,
}

/// A member of a group.
#[derive(Serialize, ToSchema)]
struct MemberView {
    /// Its random name.
    incarnation: String,
    /// Who it is, for people.
    name: String,
    /// What it reads.
    topics: Vec<String>,
}

/// How far a group came in a partition.
#[derive(Serialize, ToSchema)]
struct PartitionView {
    topic: String,
    partition: u32,
    /// The incarnation of the member that has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    member: Option<String>,
    /// Everything before this offset is done; absent if nothing was ever committed.
    #[serde(skip_serializing_if = "Option::is_none")]
    committed: Option<u64>,
    /// Where the partition ends.
    end: u64,
    /// How many records are not done.
    #[serde(skip_serializing_if = "Option::is_none")]
    lag: Option<u64>,
    /// How old the first record is that is not done.
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_ms: Option<u64>,
}

/// A key whose records a group has put aside.
#[derive(Serialize, ToSchema)]
struct ParkedView {
    topic: String,
    partition: u32,
    /// The key, for people: cut, and with signs in place of what is no text.
    key: String,
    /// How many records wait.
    waiting: u64,
    /// Why the first one failed last.
    error: String,
    /// How often it was tried.
    attempts: u32,
    since_ms: u64,
    last_ms: u64,
    /// Whether its records are on their way back.
    redriving: bool,
}

/// Keys whose records a group has put aside.
#[derive(Serialize, ToSchema)]
pub(super) struct ParkedList {
    parked: Vec<ParkedView>,
}

/// How many keys come back.
#[derive(Serialize, ToSchema)]
pub(super) struct Redriven {
    keys: u64,
}

/// Where a group goes on.
#[derive(Serialize, ToSchema)]
pub(super) struct Sought {
    topic: String,
    partitions: Vec<SoughtOne>,
}

/// Where a group goes on in a partition.
#[derive(Serialize, ToSchema)]
struct SoughtOne {
    partition: u32,
    offset: u64,
}

/// How far behind a group was over time, as this node saw it since it started.
#[derive(Serialize, ToSchema)]
pub(super) struct HistoryView {
    /// Records that were not done.
    lag: Samples,
    /// How old the oldest of them was, in milliseconds.
    lag_ms: Samples,
}

/// Samples, oldest first: each the time in milliseconds since 1970, and the number.
#[derive(Serialize, ToSchema)]
struct Samples {
    /// Of the last hours, as often as the node looks.
    recent: Vec<[u64; 2]>,
    /// By the minute, of the last week.
    minutes: Vec<[u64; 2]>,
}

impl From<GroupLag> for GroupView {
    fn from(lag: GroupLag) -> Self {
        Self {
            generation: lag.generation,
            rebalancing: lag.rebalancing,
            lag: lag.messages(),
            lag_ms: lag.age_ms(),
            group: lag.group.to_string(),
            members: lag.members.into_iter().map(Into::into).collect(),
            partitions: lag.partitions.into_iter().map(Into::into).collect(),
            parked: lag.parked.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<GroupMember> for MemberView {
    fn from(member: GroupMember) -> Self {
        Self { incarnation: member.incarnation, name: member.name, topics: member.topics }
    }
}

impl From<PartitionLag> for PartitionView {
    fn from(lag: PartitionLag) -> Self {
        Self {
            topic: lag.place.topic.to_string(),
            partition: lag.place.partition,
            member: lag.member,
            committed: match lag.committed {
                Committed::Never => None,
                Committed::At(offset) => Some(offset.0),
            },
            end: lag.bounds.end.0,
            lag: lag.messages,
            lag_ms: lag.age_ms,
        }
    }
}

impl From<ParkedKey> for ParkedView {
    fn from(parked: ParkedKey) -> Self {
        Self {
            topic: parked.topic.to_string(),
            partition: parked.partition,
            waiting: parked.waiting,
            attempts: parked.attempts,
            since_ms: parked.since_ms,
            last_ms: parked.last_ms,
            redriving: parked.redriving,
            error: parked.error,
            key: parked.key,
        }
    }
}

/// List groups, by name.
#[utoipa::path(
    get, path = "/v1/{namespace}/groups", operation_id = "mq_groups", tag = "mq", params(NamespacePath, PageQuery),
    responses(
        (status = 200, description = "A page", body = GroupList),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<NamespacePath>,
    Query(query): Query<PageQuery>,
) -> Result<Answer<GroupList>, Problem> {
    let (store, streams) = api.streams(&caller, &path.namespace)?;
    let monitor = Monitor::new(store.kv(), &streams, &coact_core::name::Realm::default());
    let after = query.after.unwrap_or_default();
    let groups = monitor.groups().await?.into_iter().map(|group| group.to_string());
    Ok(Answer(GroupList { groups: groups.filter(|group| *group > after).take(limit(query.limit)?).collect() }))
}

/// Read a group: its members, how far it came, how far behind it is, in records and in time.
#[utoipa::path(
    get, path = "/v1/{namespace}/groups/{group}", operation_id = "mq_group", tag = "mq", params(GroupPath),
    responses(
        (status = 200, description = "The group", body = GroupView),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn read(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<GroupPath>,
) -> Result<Answer<GroupView>, Problem> {
    let desk = Desk::open(&api, caller, &path, Verb::Read)?;
    Ok(Answer(desk.monitor().group(&desk.group).await?.into()))
}

/// Forget how far a group came. Refused while it has members.
#[utoipa::path(
    delete, path = "/v1/{namespace}/groups/{group}", operation_id = "mq_delete_group", tag = "mq", params(GroupPath),
    responses(
        (status = 204, description = "It is forgotten"),
        (status = "default", description = "What went wrong; 409 while it has members", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn delete(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<GroupPath>,
) -> Result<StatusCode, Problem> {
    let desk = Desk::open(&api, caller, &path, Verb::Admin)?;
    desk.without_members().await?;
    if desk.streams.delete_group(&desk.group).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Error::new(ErrorKind::NotFound, format!("there is no group {}", desk.group)).into())
}

/// Let a group go on elsewhere in a topic; it begins to exist with this. Refused while it has members, who would commit
/// over it.
#[utoipa::path(
    post, path = "/v1/{namespace}/groups/{group}/seek", operation_id = "mq_seek", tag = "mq", params(GroupPath),
    request_body = SeekBody,
    responses(
        (status = 200, description = "It goes on there", body = Sought),
        (status = "default", description = "What went wrong; 409 while it has members", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn seek(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<GroupPath>,
    Json(body): Json<SeekBody>,
) -> Result<Answer<Sought>, Problem> {
    // How far a group came is of use to who may read the topic only.
    caller.allow(Block::Mq, Verb::Read, &path.namespace, &body.topic)?;
    let desk = Desk::open(&api, caller, &path, Verb::Write)?;
    let topic = Topic::new(&body.topic)?;
    let to = seek_of(body.offset, body.at.as_deref(), body.time_ms, Seek::Earliest)?;
    let of = TopicPath { namespace: path.namespace, name: body.topic };
    let count = desk.streams.topic(&topic).await?.ok_or_else(|| absent(&of))?.spec.partitions;
    desk.without_members().await?;
    let partitions = body.partition.map_or(0..=count - 1, |one| one..=one);
    let offsets = mq::seek(&desk.streams, &desk.group, &topic, partitions, to).await?;
    let partitions = offsets.iter().map(|one| SoughtOne { partition: one.partition, offset: one.offset.0 }).collect();
    Ok(Answer(Sought { topic: topic.to_string(), partitions }))
}

/// List the keys whose records a group has put aside.
#[utoipa::path(
    get, path = "/v1/{namespace}/groups/{group}/parked", operation_id = "mq_parked", tag = "mq", params(GroupPath),
    responses(
        (status = 200, description = "The keys", body = ParkedList),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn parked(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<GroupPath>,
) -> Result<Answer<ParkedList>, Problem> {
    let desk = Desk::open(&api, caller, &path, Verb::Read)?;
    let parked = desk.parked()?.list().await?;
    Ok(Answer(ParkedList { parked: parked.into_iter().map(Into::into).collect() }))
}

/// Let parked records come back, those of each key in order and before anything later of it. Members of the group do it.
#[utoipa::path(
    post, path = "/v1/{namespace}/groups/{group}/redrive", operation_id = "mq_redrive", tag = "mq", params(GroupPath),
    request_body = RedriveBody,
    responses(
        (status = 200, description = "It is asked for", body = Redriven),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn redrive(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<GroupPath>,
    Json(body): Json<RedriveBody>,
) -> Result<Answer<Redriven>, Problem> {
    let desk = Desk::open(&api, caller, &path, Verb::Admin)?;
    let parked = desk.parked()?;
    let keys = match (body.topic, key_of(body.key, body.key_base64)?) {
        (None, None) => parked.redrive_all().await?,
        (Some(topic), Some(key)) => usize::from(parked.redrive(&Topic::new(&topic)?, &key).await?),
        _ => return Err(invalid("say which records: a topic and a key of it (text or base64), or nothing for all")),
    };
    Ok(Answer(Redriven { keys: keys as u64 }))
}

/// Read how far behind a group was over time, as this node saw it.
#[utoipa::path(
    get, path = "/v1/{namespace}/groups/{group}/history", operation_id = "mq_group_history", tag = "mq",
    params(GroupPath),
    responses(
        (status = 200, description = "Samples", body = HistoryView),
        (status = "default", description = "What went wrong; 404 if the node has not looked at it yet", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn history(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<GroupPath>,
) -> Result<Answer<HistoryView>, Problem> {
    let desk = Desk::open(&api, caller, &path, Verb::Read)?;
    let shown = |samples: &mut dyn Iterator<Item = Sample>| samples.map(|one| [one.at_ms, one.value]).collect();
    let view = api.overview().history(&desk.store.namespace, &desk.group, |lag, age| {
        let samples = |history: &coact_blocks::mq::History| Samples {
            recent: shown(&mut history.seconds()),
            minutes: shown(&mut history.minutes()),
        };
        HistoryView { lag: samples(lag), lag_ms: samples(age) }
    });
    view.map(Answer).ok_or_else(|| {
        let detail = format!("the node has no history of group {}: it is new, unknown, or one too many", desk.group);
        Problem::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, detail)
    })
}

/// A group, and where it is.
struct Desk {
    store: Store,
    streams: StreamHandle,
    group: Group,
}

impl Desk {
    fn open(api: &Api, caller: Caller, path: &GroupPath, verb: Verb) -> Result<Self, Problem> {
        let (streams, group) = api.group(&caller, path, verb)?;
        Ok(Self { store: api.store(caller, &path.namespace, None)?, streams, group })
    }

    fn monitor(&self) -> Monitor {
        Monitor::new(&self.store.kv, &self.streams, &self.store.realm)
    }

    fn parked(&self) -> coact_core::Result<Parked> {
        Parked::open(&self.store.kv, &self.store.realm, &self.group)
    }

    async fn without_members(&self) -> Result<(), Problem> {
        let members = self.monitor().member_count(&self.group).await?;
        if members == 0 {
            return Ok(());
        }
        let detail =
            format!("group {} has {members} members, who would commit over it: let them leave first", self.group);
        Err(Problem::new(StatusCode::CONFLICT, ErrorKind::Conflict, detail))
    }
}
