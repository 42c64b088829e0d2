//! Topics, their records, and how far groups came.

use std::time::Duration;

use coact_core::{
    Result,
    contract::stream::{Offset, Read, Seek, StreamHandle},
    error::Effect,
    name::Group,
};
use coact_engine_etcd::{
    messages::{all, failure, part, try_all},
    wire::coact_v1::{
        AppendRequest, Appended, BoundsResponse, CancelDelayedRequest, CommitRequest, CommitResponse,
        DelayStatsResponse, Done, Existed, FenceGroupRequest, GetGroupResponse, GetTopicResponse, GroupRequest,
        GuaranteesRequest, GuaranteesResponse, ListDelayedRequest, ListDelayedResponse, ListGroupsRequest,
        ListGroupsResponse, ListTopicsRequest, ListTopicsResponse, PartitionRequest, ReadRequest, ReadResponse,
        RescheduleDelayedRequest, RescheduleDelayedResponse, ScheduleRequest, ScheduleResponse, SeekRequest,
        SeekResponse, SessionRequest, SessionResponse, TailRequest, TopicRequest, TopicSpecRequest, TrimRequest,
        streams_server::Streams,
    },
};
use futures::stream::{self, BoxStream};
use tonic::{Request, Response, Status, Streaming};

use super::{
    Node,
    desk::{Desk, READ_BYTES_MAX, reply, shown},
    session,
};
use crate::auth::{Block, Verb};

/// How long one look of a tail waits; then leave is asked again.
const TAIL_WAIT: Duration = Duration::from_secs(30);

#[tonic::async_trait]
impl Streams for Node {
    /// For every token, as the status of a node.
    async fn guarantees(&self, request: Request<GuaranteesRequest>) -> Result<Response<GuaranteesResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.store(&request.namespace).and_then(|store| Ok(store.streams()?.guarantees().into())))
    }

    async fn create_topic(&self, request: Request<TopicSpecRequest>) -> Result<Response<Done>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.create_topic(request).await)
    }

    async fn alter_topic(&self, request: Request<TopicSpecRequest>) -> Result<Response<Done>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.alter_topic(request).await)
    }

    async fn delete_topic(&self, request: Request<TopicRequest>) -> Result<Response<Existed>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.delete_topic(request).await)
    }

    async fn get_topic(&self, request: Request<TopicRequest>) -> Result<Response<GetTopicResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.get_topic(request).await)
    }

    async fn list_topics(&self, request: Request<ListTopicsRequest>) -> Result<Response<ListTopicsResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.list_topics(request).await)
    }

    async fn append(&self, request: Request<AppendRequest>) -> Result<Response<Appended>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.append(request).await)
    }

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<ReadResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.read(request).await)
    }

    type TailStream = BoxStream<'static, Result<ReadResponse, Status>>;

    async fn tail(&self, request: Request<TailRequest>) -> Result<Response<Self::TailStream>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        let responses = stream::unfold(Some((desk, request)), |open| async move {
            let (desk, mut request) = open?;
            match desk.tail(&mut request).await {
                Ok(response) => Some((Ok(response), Some((desk, request)))),
                Err(error) => Some((Err(failure::status(&shown(error))), None)),
            }
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn bounds(&self, request: Request<PartitionRequest>) -> Result<Response<BoundsResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.bounds(request).await)
    }

    async fn seek(&self, request: Request<SeekRequest>) -> Result<Response<SeekResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.seek(request).await)
    }

    async fn trim(&self, request: Request<TrimRequest>) -> Result<Response<Done>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.trim(request).await)
    }

    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.commit(request).await)
    }

    async fn fence_group(&self, request: Request<FenceGroupRequest>) -> Result<Response<Done>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.fence_group(request).await)
    }

    async fn get_group(&self, request: Request<GroupRequest>) -> Result<Response<GetGroupResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.get_group(request).await)
    }

    async fn list_groups(&self, request: Request<ListGroupsRequest>) -> Result<Response<ListGroupsResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.list_groups(request).await)
    }

    async fn delete_group(&self, request: Request<GroupRequest>) -> Result<Response<Existed>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.delete_group(request).await)
    }

    async fn schedule(&self, request: Request<ScheduleRequest>) -> Result<Response<ScheduleResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.schedule(request).await)
    }

    async fn cancel_delayed(&self, request: Request<CancelDelayedRequest>) -> Result<Response<Existed>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.cancel_delayed(request).await)
    }

    async fn reschedule_delayed(
        &self,
        request: Request<RescheduleDelayedRequest>,
    ) -> Result<Response<RescheduleDelayedResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.reschedule_delayed(request).await)
    }

    async fn list_delayed(
        &self,
        request: Request<ListDelayedRequest>,
    ) -> Result<Response<ListDelayedResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.list_delayed(request).await)
    }

    async fn delay_stats(&self, request: Request<TopicRequest>) -> Result<Response<DelayStatsResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.delay_stats(request).await)
    }

    type SessionStream = BoxStream<'static, Result<SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (desk, requests) = Desk::open(self, request)?;
        Ok(Response::new(session::serve(desk, requests)))
    }
}

/// What is not asked often enough to go over a session.
impl Desk {
    async fn create_topic(&self, request: TopicSpecRequest) -> Result<Done> {
        let (streams, topic) = self.topic(&request.namespace, &request.topic, Verb::Admin)?;
        streams.create_topic(&topic, &part(request.spec, "spec")?.into()).await?;
        Ok(Done {})
    }

    async fn alter_topic(&self, request: TopicSpecRequest) -> Result<Done> {
        let (streams, topic) = self.topic(&request.namespace, &request.topic, Verb::Admin)?;
        streams.alter_topic(&topic, &part(request.spec, "spec")?.into()).await?;
        Ok(Done {})
    }

    async fn delete_topic(&self, request: TopicRequest) -> Result<Existed> {
        let (streams, topic) = self.topic(&request.namespace, &request.topic, Verb::Admin)?;
        Ok(Existed { existed: streams.delete_topic(&topic).await? })
    }

    async fn get_topic(&self, request: TopicRequest) -> Result<GetTopicResponse> {
        let (streams, topic) = self.topic(&request.namespace, &request.topic, Verb::Read)?;
        Ok(GetTopicResponse { topic: streams.topic(&topic).await?.map(Into::into) })
    }

    async fn list_topics(&self, request: ListTopicsRequest) -> Result<ListTopicsResponse> {
        let streams = self.streams(&request.namespace, Verb::Read)?;
        Ok(ListTopicsResponse { topics: all(streams.topics(&request.after, request.limit as usize).await?) })
    }

    /// The next records of a tail.
    async fn tail(&self, request: &mut TailRequest) -> Result<ReadResponse> {
        loop {
            let (streams, topic) = self.topic(&request.namespace, &request.topic, Verb::Read)?;
            let read = Read {
                topic,
                partition: request.partition,
                from: Offset(request.from),
                max_bytes: request.max_bytes.min(READ_BYTES_MAX) as usize,
                wait: TAIL_WAIT,
            };
            let fetched = self.patiently(TAIL_WAIT, Effect::NotApplied, streams.read(read)).await?;
            request.from = fetched.next.0;
            if !fetched.batches.is_empty() {
                self.note_out(&request.namespace, &request.topic, &fetched);
                return Ok(fetched.into());
            }
        }
    }

    async fn bounds(&self, request: PartitionRequest) -> Result<BoundsResponse> {
        let (streams, topic) = self.topic(&request.namespace, &request.topic, Verb::Read)?;
        Ok(streams.bounds(&topic, request.partition).await?.into())
    }

    async fn seek(&self, request: SeekRequest) -> Result<SeekResponse> {
        let (streams, topic) = self.topic(&request.namespace, &request.topic, Verb::Read)?;
        let seek: Seek = part(request.to, "place to seek")?.into();
        Ok(SeekResponse { offset: streams.seek(&topic, request.partition, seek).await?.0 })
    }

    async fn trim(&self, request: TrimRequest) -> Result<Done> {
        let (streams, topic) = self.topic(&request.namespace, &request.topic, Verb::Admin)?;
        streams.trim(&topic, request.partition, Offset(request.before)).await?;
        Ok(Done {})
    }

    async fn fence_group(&self, request: FenceGroupRequest) -> Result<Done> {
        let (streams, group) = self.group(&request.namespace, &request.group, Verb::Write)?;
        streams.fence_group(&group, request.generation).await?;
        Ok(Done {})
    }

    async fn get_group(&self, request: GroupRequest) -> Result<GetGroupResponse> {
        let (streams, group) = self.group(&request.namespace, &request.group, Verb::Read)?;
        Ok(GetGroupResponse { group: streams.group(&group).await?.map(Into::into) })
    }

    async fn list_groups(&self, request: ListGroupsRequest) -> Result<ListGroupsResponse> {
        let streams = self.streams(&request.namespace, Verb::Read)?;
        Ok(ListGroupsResponse { groups: all(streams.groups(&request.after, request.limit as usize).await?) })
    }

    async fn delete_group(&self, request: GroupRequest) -> Result<Existed> {
        let (streams, group) = self.group(&request.namespace, &request.group, Verb::Admin)?;
        Ok(Existed { existed: streams.delete_group(&group).await? })
    }

    async fn schedule(&self, request: ScheduleRequest) -> Result<ScheduleResponse> {
        let namespace = &request.namespace;
        for delayed in &request.delayed {
            self.allow(Block::Mq, Verb::Write, namespace, &delayed.topic)?;
        }
        let store = self.store(namespace)?;
        Ok(ScheduleResponse { ids: all(store.streams()?.schedule(try_all(request.delayed)?).await?) })
    }

    async fn cancel_delayed(&self, request: CancelDelayedRequest) -> Result<Existed> {
        let (streams, topic) = self.topic(&request.namespace, &request.topic, Verb::Write)?;
        Ok(Existed { existed: streams.cancel(&topic, part(request.id, "handle")?.into()).await? })
    }

    async fn reschedule_delayed(&self, request: RescheduleDelayedRequest) -> Result<RescheduleDelayedResponse> {
        let (streams, topic) = self.topic(&request.namespace, &request.topic, Verb::Write)?;
        let id = part(request.id, "handle")?.into();
        let moved = streams.reschedule(&topic, id, request.due_ms).await?;
        Ok(RescheduleDelayedResponse { id: moved.map(Into::into) })
    }

    async fn list_delayed(&self, request: ListDelayedRequest) -> Result<ListDelayedResponse> {
        let (streams, topic) = self.topic(&request.namespace, &request.topic, Verb::Read)?;
        let after = request.after.map(Into::into);
        Ok(ListDelayedResponse { pending: all(streams.pending(&topic, after, request.limit as usize).await?) })
    }

    async fn delay_stats(&self, request: TopicRequest) -> Result<DelayStatsResponse> {
        let (streams, topic) = self.topic(&request.namespace, &request.topic, Verb::Read)?;
        Ok(streams.delay_stats(&topic).await?.into())
    }

    fn group(&self, namespace: &str, group: &str, verb: Verb) -> Result<(StreamHandle, Group)> {
        Ok((self.streams_for(namespace, group, verb)?, Group::new(group)?))
    }
}
