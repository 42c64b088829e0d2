//! Consuming as a member of a group. A member hangs on a session, is kept by the node that it joined at, and ends with
//! either: its partitions go to others then, and what it did not settle is done again.
//!
//! A record that was handed out is named by a number of its own. Who settles too late is answered `fenced`: the record
//! was handed out anew, or its partition is somebody else's.

mod hold;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json as Answer,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use coact_blocks::{
    Session,
    mq::{Consumer, ConsumerOptions, Start, TopicPartition, dead_topic},
};
use coact_core::{Error, ErrorKind, Result, name::Topic};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

pub(super) use hold::Members;

use super::{
    Api, Block, Caller, Verb,
    extract::{IdempotencyKey, Json, Path, int64, invalid, wait_of},
    group::GroupPath,
    idempotency::digest,
    kv::limit,
    problem::{self, Problem},
    record::RecordView,
    session,
    topic::{TopicPath, absent},
};
use hold::{Held, Member};

/// How long a record is its client's, if nothing else is said.
const ACK_WAIT_MS: u64 = 30_000;
const ACK_WAIT_MAX_MS: u64 = 3_600_000;

/// A member.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct MemberPath {
    /// The namespace.
    #[param(example = "main", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    namespace: String,
    /// The group.
    #[param(example = "billing", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    group: String,
    /// Its id.
    member: String,
}

/// How a member joins.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct JoinBody {
    /// The session that it ends with. Asking for records and settling them renews it.
    session: String,
    /// What it reads.
    #[schema(min_items = 1, example = json!(["orders"]))]
    topics: Vec<String>,
    /// Where the group begins in a partition for which it has committed nothing: `earliest` (default) or `latest`.
    #[schema(example = "earliest")]
    start: Option<String>,
    /// How long a record is this member's to settle before it is handed out again; 30000 by default.
    #[schema(minimum = 100, maximum = 3_600_000)]
    #[serde(default, deserialize_with = "int64")]
    ack_wait_ms: Option<u64>,
}

/// Asking for records.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FetchBody {
    /// At most so many; 100 by default.
    #[schema(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// How long to wait for a record if there is none; 0 by default, at most 60000.
    #[schema(minimum = 0, maximum = 60000)]
    #[serde(default, deserialize_with = "int64")]
    wait_ms: Option<u64>,
}

/// What became of records, each for itself.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SettleBody {
    settle: Vec<SettleOne>,
}

/// What became of a record.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SettleOne {
    /// Which, as it was handed out.
    delivery: u64,
    /// `ack`: it is done. `nack`: it is to be handed out again, to this member. `kill`: it goes to the dead letters of its
    /// topic, which takes the permission to write to them.
    #[schema(value_type = String, example = "ack")]
    verdict: Word,
    /// With `nack`: not before so long from now.
    #[serde(default, deserialize_with = "int64")]
    delay_ms: Option<u64>,
    /// With `kill`: why.
    error: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Ack,
    Nack,
    Kill,
}

/// A member that joined.
#[derive(Serialize, ToSchema)]
pub(super) struct Joined {
    /// Its id: whoever knows it can act for the member.
    member: String,
    /// Its name in the list of the group's members.
    incarnation: String,
    ack_wait_ms: u64,
}

/// Records for a member; none if there was none in time.
#[derive(Serialize, ToSchema)]
pub(super) struct FetchedView {
    records: Vec<DeliveryView>,
    /// The generation of the group that it commits in; 0 before the first.
    generation: u64,
    /// The partitions that it holds now.
    assigned: Vec<PlaceView>,
}

/// A record that is a member's to settle.
#[derive(Serialize, ToSchema)]
struct DeliveryView {
    /// Names it when it is settled.
    delivery: u64,
    /// How often it was handed out to this member, from 1.
    attempt: u32,
    topic: String,
    #[serde(flatten)]
    record: RecordView,
}

/// A partition of a topic.
#[derive(Serialize, ToSchema)]
struct PlaceView {
    topic: String,
    partition: u32,
}

/// What became of each, in the order of the request.
#[derive(Serialize, ToSchema)]
pub(super) struct SettledAll {
    /// `done`: the group has committed it. `back`: it will be handed out again. `dead`: it is with the dead letters. `fenced`: it was not this member's any
    /// more, and nothing was changed.
    #[schema(value_type = Vec<String>, example = json!(["done"]))]
    settled: Vec<&'static str>,
}

/// Join a group, as a member that ends with its session.
#[utoipa::path(
    post, path = "/v1/{namespace}/groups/{group}/members", operation_id = "mq_join", tag = "mq",
    params(
        GroupPath,
        ("Idempotency-Key" = Option<String>, Header, description = "Repeating it gives the same member while that lives"),
    ),
    request_body = JoinBody,
    responses(
        (status = 201, description = "It joined; which partitions it gets, the group decides", body = Joined),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn join(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<GroupPath>,
    idempotency: Option<IdempotencyKey>,
    Json(body): Json<JoinBody>,
) -> Result<Response, Problem> {
    body.topics.iter().try_for_each(|topic| caller.allow(Block::Mq, Verb::Read, &path.namespace, topic))?;
    let (streams, group) = api.group(&caller, &path, Verb::Write)?;
    let store = api.store(caller, &path.namespace, None)?;
    let ack_wait_ms = body.ack_wait_ms.unwrap_or(ACK_WAIT_MS);
    if !(100..=ACK_WAIT_MAX_MS).contains(&ack_wait_ms) {
        return Err(invalid(format!("ack_wait_ms {ack_wait_ms} is not allowed: use 100 to {ACK_WAIT_MAX_MS}")));
    }
    let options = ConsumerOptions { start: start_of(body.start.as_deref())?, ..ConsumerOptions::default() };
    let mut topics = Vec::new();
    for name in &body.topics {
        let topic = Topic::new(name)?;
        let of = TopicPath { namespace: path.namespace.clone(), name: name.clone() };
        streams.topic(&topic).await?.ok_or_else(|| absent(&of))?;
        topics.push(topic);
    }
    let id = match idempotency {
        // Two sessions may use the same text for different members.
        Some(IdempotencyKey(key)) => {
            digest(format!("member {} {group} {} {key}", path.namespace, body.session).as_bytes())
        }
        None => format!("{:016x}{:016x}", api.env().random(), api.env().random()),
    };
    let members = &api.0.members;
    if let Some((known, held)) = members.get(&id).and_then(|known| known.held().ok().map(|held| (known, held))) {
        return Ok((StatusCode::CREATED, Answer(Joined::new(id, &known, &held))).into_response());
    }
    let known = session::find(&store, &body.session).await?;
    members.make_room()?;
    let session = Session::join(&store.kv, known.lease, known.name).await?;
    let consumer = Consumer::join(&session, &streams, &group, topics.clone(), options).await?;
    let ack_wait = Duration::from_millis(ack_wait_ms);
    let member = Member::start(&session, consumer, path.namespace, topics, ack_wait);
    let joined = Joined::new(id.clone(), &member, &*member.held()?);
    members.insert(id, member);
    Ok((StatusCode::CREATED, Answer(joined)).into_response())
}

/// Ask for records: those of one partition come in order. Waits for one as long as is asked.
#[utoipa::path(
    post, path = "/v1/{namespace}/groups/{group}/members/{member}/fetch", operation_id = "mq_fetch", tag = "mq",
    params(MemberPath), request_body = FetchBody,
    responses(
        (status = 200, description = "Records, or none", body = FetchedView),
        (status = "default", description = "What went wrong; 409 `fenced` when its session has ended: join anew", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn fetch(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<MemberPath>,
    Json(body): Json<FetchBody>,
) -> Result<Answer<FetchedView>, Problem> {
    let member = api.member(&caller, &path)?;
    let (limit, wait) = (limit(body.limit)?, wait_of(body.wait_ms)?);
    let held = member.held()?;
    let records = tokio::select! {
        records = member.fetch(&held, api.env(), limit, wait) => records?,
        () = api.until_cut(caller) => Vec::new(),
    };
    let mut by_topic: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (view, bytes) in &records {
        let (count, sum) = by_topic.entry(&view.topic).or_default();
        (*count, *sum) = (*count + 1, *sum + bytes);
    }
    for (topic, (count, bytes)) in by_topic {
        api.traffic().note_out(&path.namespace, topic, count, bytes);
    }
    let place = |place: TopicPartition| PlaceView { topic: place.topic.to_string(), partition: place.partition };
    Ok(Answer(FetchedView {
        records: records.into_iter().map(|(view, _)| view).collect(),
        generation: held.consumer.generation(),
        assigned: held.consumer.assigned().into_iter().map(place).collect(),
    }))
}

/// Settle records, each for itself. Those that are done are committed before the answer.
#[utoipa::path(
    post, path = "/v1/{namespace}/groups/{group}/members/{member}/settle", operation_id = "mq_settle", tag = "mq",
    params(MemberPath), request_body = SettleBody,
    responses(
        (status = 200, description = "What became of each", body = SettledAll),
        (status = "default", description = "What went wrong; 409 `fenced` when its session has ended, or, with effect `unknown`, while the group goes over to a newer generation", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn settle(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<MemberPath>,
    Json(body): Json<SettleBody>,
) -> Result<Answer<SettledAll>, Problem> {
    let member = api.member(&caller, &path)?;
    body.settle.iter().try_for_each(SettleOne::check)?;
    if body.settle.iter().any(|one| one.verdict == Word::Kill) {
        for topic in &member.topics {
            let dead = dead_topic(topic, &member.group)?;
            caller.allow(Block::Mq, Verb::Write, &path.namespace, dead.as_str())?;
        }
    }
    let held = member.held()?;
    held.renew().await?;
    let (mut settled, killed) = member.settle(&body.settle, api.env());
    if settled.contains(&"done") {
        held.consumer.commit().await.map_err(Error::effect_unknown)?;
    }
    for (index, answer) in member.bury_all(&held, killed, api.env()).await? {
        settled[index] = answer;
    }
    Ok(Answer(SettledAll { settled }))
}

/// Leave the group. What was not settled is done again by others. No effect if the member has ended.
#[utoipa::path(
    delete, path = "/v1/{namespace}/groups/{group}/members/{member}", operation_id = "mq_leave", tag = "mq",
    params(MemberPath),
    responses(
        (status = 204, description = "It is gone"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn leave(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<MemberPath>,
) -> Result<StatusCode, Problem> {
    let member = match api.member(&caller, &path) {
        Ok(member) => member,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(StatusCode::NO_CONTENT),
        Err(error) => return Err(error.into()),
    };
    api.0.members.remove(&path.member);
    if let Some(held) = member.end(Error::new(ErrorKind::Closed, "the member has left its group")) {
        held.consumer.leave().await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

impl Api {
    /// A member, if the caller may still consume what it reads.
    fn member(&self, caller: &Caller, path: &MemberPath) -> Result<Arc<Member>> {
        let of = GroupPath { namespace: path.namespace.clone(), group: path.group.clone() };
        let (_, group) = self.group(caller, &of, Verb::Write)?;
        let is_it = |member: &Arc<Member>| member.namespace == path.namespace && member.group == group;
        let member = self.0.members.get(&path.member).filter(is_it).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("group {group} has no such member at this node: join anew"))
        })?;
        let allow = |topic: &Topic| caller.allow(Block::Mq, Verb::Read, &path.namespace, topic.as_str());
        member.topics.iter().try_for_each(allow)?;
        Ok(member)
    }
}

impl Joined {
    fn new(member: String, of: &Member, held: &Held) -> Self {
        let ack_wait_ms = u64::try_from(of.ack_wait.as_millis()).unwrap_or(u64::MAX);
        Self { member, incarnation: held.consumer.incarnation().to_owned(), ack_wait_ms }
    }
}

impl SettleOne {
    fn check(&self) -> Result<(), Problem> {
        let fits = match self.verdict {
            Word::Ack => self.delay_ms.is_none() && self.error.is_none(),
            Word::Nack => self.error.is_none(),
            Word::Kill => self.delay_ms.is_none(),
        };
        if fits {
            return Ok(());
        }
        Err(invalid(format!("delivery {}: delay_ms goes with nack, error with kill", self.delivery)))
    }
}

fn start_of(text: Option<&str>) -> Result<Start, Problem> {
    match text.unwrap_or("earliest") {
        "earliest" => Ok(Start::Earliest),
        "latest" => Ok(Start::Latest),
        other => Err(invalid(format!("start {other:?} is not known: choose from earliest, latest"))),
    }
}
