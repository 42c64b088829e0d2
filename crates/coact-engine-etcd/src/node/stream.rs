//! The stream contract of a coact node.

use std::{sync::Arc, time::Duration};

use coact_core::{
    Result,
    contract::{
        commit::{Commit, CommitOutcome},
        stream::{
            Append, Appended, Bounds, DelayId, DelayStats, Delayed, Fetched, GroupInfo, Offset, Pending, Read, Seek,
            StreamGuarantees, StreamStore, TopicInfo, TopicSpec,
        },
    },
    name::{Group, Realm, Topic},
};

use super::{Sessions, ask, streams_client, understood};
use crate::{
    connection::Connections,
    errors::{Access, malformed},
    messages::{all, outcome, to_limit, try_all},
    wire::coact_v1::{
        AppendRequest, CancelDelayedRequest, CommitRequest, FenceGroupRequest, GroupRequest, ListDelayedRequest,
        ListGroupsRequest, ListTopicsRequest, PartitionRequest, ReadRequest, RescheduleDelayedRequest, ScheduleRequest,
        SeekRequest, TopicRequest, TopicSpecRequest, TrimRequest, session_request::Request, session_response::Response,
    },
};

pub(super) struct NodeStreams {
    guarantees: StreamGuarantees,
    sessions: Sessions,
}

impl NodeStreams {
    pub(super) fn new(guarantees: StreamGuarantees, connections: Arc<Connections>) -> Self {
        Self { guarantees, sessions: Sessions::new(connections) }
    }

    fn topic_request(&self, topic: &Topic) -> TopicRequest {
        TopicRequest { namespace: self.sessions.namespace(), topic: topic.to_string() }
    }

    fn spec_request(&self, topic: &Topic, spec: &TopicSpec) -> TopicSpecRequest {
        TopicSpecRequest { namespace: self.sessions.namespace(), topic: topic.to_string(), spec: Some(spec.into()) }
    }

    fn group_request(&self, group: &Group) -> GroupRequest {
        GroupRequest { namespace: self.sessions.namespace(), group: group.to_string() }
    }
}

impl StreamStore for NodeStreams {
    fn guarantees(&self) -> &StreamGuarantees {
        &self.guarantees
    }

    fn describe(&self) -> String {
        self.sessions.description().to_owned()
    }

    async fn create_topic(&self, topic: &Topic, spec: &TopicSpec) -> Result<()> {
        let request = self.spec_request(topic, spec);
        ask!(self, Access::Write, streams_client.create_topic(request)).map(drop)
    }

    async fn alter_topic(&self, topic: &Topic, spec: &TopicSpec) -> Result<()> {
        let request = self.spec_request(topic, spec);
        ask!(self, Access::Idempotent, streams_client.alter_topic(request)).map(drop)
    }

    async fn delete_topic(&self, topic: &Topic) -> Result<bool> {
        let request = self.topic_request(topic);
        Ok(ask!(self, Access::Write, streams_client.delete_topic(request))?.existed)
    }

    async fn topic(&self, topic: &Topic) -> Result<Option<TopicInfo>> {
        let found = ask!(self, Access::Read, streams_client.get_topic(self.topic_request(topic)))?;
        understood(found.topic.map(TryInto::try_into).transpose(), "a topic")
    }

    async fn topics(&self, after: &str, limit: usize) -> Result<Vec<TopicInfo>> {
        let namespace = self.sessions.namespace();
        let request = ListTopicsRequest { namespace, after: after.to_owned(), limit: to_limit(limit) };
        understood(try_all(ask!(self, Access::Read, streams_client.list_topics(request))?.topics), "a list of topics")
    }

    /// One with a stamp is sent again after a lost connection: the node recognizes it.
    async fn append(&self, append: Append) -> Result<Appended> {
        let recognized = append.stamp.is_some() && self.guarantees.dedup.is_some();
        let access = if recognized { Access::Idempotent } else { Access::Write };
        let request = AppendRequest { namespace: self.sessions.namespace(), append: Some(append.into()) };
        match self.sessions.ask(access, Duration::ZERO, |_| Request::Append(request.clone())).await? {
            Response::Append(appended) => Ok(appended.into()),
            _ => Err(malformed("an append")),
        }
    }

    async fn read(&self, read: Read) -> Result<Fetched> {
        let request = ReadRequest {
            namespace: self.sessions.namespace(),
            topic: read.topic.to_string(),
            partition: read.partition,
            from: read.from.0,
            max_bytes: read.max_bytes as u64,
            wait_ms: 0,
        };
        let request = |wait_ms| Request::Read(ReadRequest { wait_ms, ..request.clone() });
        match self.sessions.ask(Access::Read, read.wait, request).await? {
            Response::Read(fetched) => understood(fetched.try_into(), "a read"),
            _ => Err(malformed("a read")),
        }
    }

    async fn bounds(&self, topic: &Topic, partition: u32) -> Result<Bounds> {
        let namespace = self.sessions.namespace();
        let request = PartitionRequest { namespace, topic: topic.to_string(), partition };
        Ok(ask!(self, Access::Read, streams_client.bounds(request))?.into())
    }

    async fn seek(&self, topic: &Topic, partition: u32, seek: Seek) -> Result<Offset> {
        let namespace = self.sessions.namespace();
        let request = SeekRequest { namespace, topic: topic.to_string(), partition, to: Some(seek.into()) };
        Ok(Offset(ask!(self, Access::Read, streams_client.seek(request))?.offset))
    }

    async fn trim(&self, topic: &Topic, partition: u32, before: Offset) -> Result<()> {
        let namespace = self.sessions.namespace();
        let request = TrimRequest { namespace, topic: topic.to_string(), partition, before: before.0 };
        ask!(self, Access::Idempotent, streams_client.trim(request)).map(drop)
    }

    async fn commit(&self, commit: Commit) -> Result<CommitOutcome> {
        let realm = commit.kv.as_ref().map_or_else(Realm::default, |(realm, _)| realm.clone());
        let request = CommitRequest::from((&self.sessions.connections().config.namespace, commit));
        match self.sessions.ask(Access::Write, Duration::ZERO, |_| Request::Commit(request.clone())).await? {
            Response::Commit(response) => understood(outcome(&realm, response), "a commit"),
            _ => Err(malformed("a commit")),
        }
    }

    async fn fence_group(&self, group: &Group, generation: u64) -> Result<()> {
        let namespace = self.sessions.namespace();
        let request = FenceGroupRequest { namespace, group: group.to_string(), generation };
        ask!(self, Access::Idempotent, streams_client.fence_group(request)).map(drop)
    }

    async fn group(&self, group: &Group) -> Result<Option<GroupInfo>> {
        let found = ask!(self, Access::Read, streams_client.get_group(self.group_request(group)))?;
        understood(found.group.map(TryInto::try_into).transpose(), "a group")
    }

    async fn groups(&self, after: &str, limit: usize) -> Result<Vec<GroupInfo>> {
        let namespace = self.sessions.namespace();
        let request = ListGroupsRequest { namespace, after: after.to_owned(), limit: to_limit(limit) };
        understood(try_all(ask!(self, Access::Read, streams_client.list_groups(request))?.groups), "a list of groups")
    }

    async fn delete_group(&self, group: &Group) -> Result<bool> {
        let request = self.group_request(group);
        Ok(ask!(self, Access::Write, streams_client.delete_group(request))?.existed)
    }

    async fn schedule(&self, delayed: Vec<Delayed>) -> Result<Vec<DelayId>> {
        let request = ScheduleRequest { namespace: self.sessions.namespace(), delayed: all(delayed) };
        Ok(all(ask!(self, Access::Write, streams_client.schedule(request))?.ids))
    }

    async fn cancel(&self, topic: &Topic, id: DelayId) -> Result<bool> {
        let namespace = self.sessions.namespace();
        let request = CancelDelayedRequest { namespace, topic: topic.to_string(), id: Some(id.into()) };
        Ok(ask!(self, Access::Write, streams_client.cancel_delayed(request))?.existed)
    }

    async fn reschedule(&self, topic: &Topic, id: DelayId, due_ms: u64) -> Result<Option<DelayId>> {
        let namespace = self.sessions.namespace();
        let request = RescheduleDelayedRequest { namespace, topic: topic.to_string(), id: Some(id.into()), due_ms };
        Ok(ask!(self, Access::Write, streams_client.reschedule_delayed(request))?.id.map(Into::into))
    }

    async fn pending(&self, topic: &Topic, after: Option<DelayId>, limit: usize) -> Result<Vec<Pending>> {
        let request = ListDelayedRequest {
            namespace: self.sessions.namespace(),
            topic: topic.to_string(),
            after: after.map(Into::into),
            limit: to_limit(limit),
        };
        let found = ask!(self, Access::Read, streams_client.list_delayed(request))?;
        understood(try_all(found.pending), "a list of delayed records")
    }

    async fn delay_stats(&self, topic: &Topic) -> Result<DelayStats> {
        Ok(ask!(self, Access::Read, streams_client.delay_stats(self.topic_request(topic)))?.into())
    }

    async fn close(&self) -> Result<()> {
        self.sessions.close().await;
        Ok(())
    }
}
