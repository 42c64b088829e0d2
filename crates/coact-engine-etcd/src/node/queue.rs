//! The queue contract of a coact node.

use std::{sync::Arc, time::Duration};

use coact_core::{
    Result,
    contract::queue::{
        Claim, Claimed, Enqueued, Job, JobId, JobState, Moved, NewJob, QueueInfo, QueueSpec, QueueStats, QueueStore,
        Settle, Settled, StreamGuarantees,
    },
    name::Queue,
};

use super::{Sessions, ask, queues_client, understood};
use crate::{
    connection::Connections,
    errors::{Access, malformed},
    messages::{all, settled, to_limit, to_ms, try_all},
    wire::coact_v1::{
        self as wire, ClaimRequest, DeadJobsRequest, EnqueueRequest, FindJobRequest, JobRequest, ListJobsRequest,
        ListQueuesRequest, PauseRequest, PutQueueRequest, QueueRequest, RescheduleJobRequest, SettleRequest,
        session_request::Request, session_response::Response,
    },
};

pub(super) struct NodeQueues {
    guarantees: StreamGuarantees,
    sessions: Sessions,
}

impl NodeQueues {
    pub(super) fn new(guarantees: StreamGuarantees, connections: Arc<Connections>) -> Self {
        Self { guarantees, sessions: Sessions::new(connections) }
    }

    fn queue_request(&self, queue: &Queue) -> QueueRequest {
        QueueRequest { namespace: self.sessions.namespace(), queue: queue.to_string() }
    }

    fn job_request(&self, queue: &Queue, id: JobId) -> JobRequest {
        JobRequest { namespace: self.sessions.namespace(), queue: queue.to_string(), id: id.0 }
    }

    fn dead_jobs_request(&self, queue: &Queue, ids: Vec<JobId>, limit: usize) -> DeadJobsRequest {
        DeadJobsRequest {
            namespace: self.sessions.namespace(),
            queue: queue.to_string(),
            ids: ids.into_iter().map(|JobId(id)| id).collect(),
            limit: limit as u64,
        }
    }
}

impl QueueStore for NodeQueues {
    fn guarantees(&self) -> &StreamGuarantees {
        &self.guarantees
    }

    fn describe(&self) -> String {
        self.sessions.description().to_owned()
    }

    async fn put_queue(&self, queue: &Queue, spec: &QueueSpec) -> Result<bool> {
        let namespace = self.sessions.namespace();
        let request = PutQueueRequest { namespace, queue: queue.to_string(), spec: Some(spec.into()) };
        Ok(ask!(self, Access::Write, queues_client.put_queue(request))?.created)
    }

    async fn delete_queue(&self, queue: &Queue) -> Result<bool> {
        Ok(ask!(self, Access::Write, queues_client.delete_queue(self.queue_request(queue)))?.existed)
    }

    async fn queue(&self, queue: &Queue) -> Result<Option<QueueInfo>> {
        let found = ask!(self, Access::Read, queues_client.get_queue(self.queue_request(queue)))?;
        understood(found.queue.map(TryInto::try_into).transpose(), "a queue")
    }

    async fn queues(&self, after: &str, limit: usize) -> Result<Vec<QueueInfo>> {
        let namespace = self.sessions.namespace();
        let request = ListQueuesRequest { namespace, after: after.to_owned(), limit: to_limit(limit) };
        understood(try_all(ask!(self, Access::Read, queues_client.list_queues(request))?.queues), "a list of queues")
    }

    async fn enqueue(&self, queue: &Queue, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>> {
        let namespace = self.sessions.namespace();
        let request = EnqueueRequest { namespace, queue: queue.to_string(), jobs: all(jobs) };
        match self.sessions.ask(Access::Write, Duration::ZERO, |_| Request::Enqueue(request.clone())).await? {
            Response::Enqueue(response) => Ok(all(response.jobs)),
            _ => Err(malformed("jobs that were enqueued")),
        }
    }

    async fn claim(&self, claim: Claim) -> Result<Vec<Claimed>> {
        let request = ClaimRequest {
            namespace: self.sessions.namespace(),
            queue: claim.queue.to_string(),
            worker: claim.worker,
            limit: to_limit(claim.limit),
            lease_ms: to_ms(claim.lease),
            wait_ms: 0,
        };
        let request = |wait_ms| Request::Claim(ClaimRequest { wait_ms, ..request.clone() });
        match self.sessions.ask(Access::Write, claim.wait, request).await? {
            Response::Claim(response) => understood(try_all(response.jobs), "a claim"),
            _ => Err(malformed("a claim")),
        }
    }

    async fn settle(&self, queue: &Queue, settle: Vec<Settle>) -> Result<Vec<Settled>> {
        let namespace = self.sessions.namespace();
        let request = SettleRequest { namespace, queue: queue.to_string(), settle: all(settle) };
        match self.sessions.ask(Access::Write, Duration::ZERO, |_| Request::Settle(request.clone())).await? {
            Response::Settle(response) => understood(settled(response.settled), "claims that were settled"),
            _ => Err(malformed("claims that were settled")),
        }
    }

    async fn cancel(&self, queue: &Queue, id: JobId) -> Result<Moved> {
        let moved = ask!(self, Access::Write, queues_client.cancel_job(self.job_request(queue, id)))?;
        understood(moved.try_into(), "a job that was cancelled")
    }

    async fn reschedule(&self, queue: &Queue, id: JobId, run_at_ms: u64) -> Result<Moved> {
        let namespace = self.sessions.namespace();
        let request = RescheduleJobRequest { namespace, queue: queue.to_string(), id: id.0, run_at_ms };
        let moved = ask!(self, Access::Write, queues_client.reschedule_job(request))?;
        understood(moved.try_into(), "a job that was rescheduled")
    }

    async fn job(&self, queue: &Queue, id: JobId) -> Result<Option<Job>> {
        let found = ask!(self, Access::Read, queues_client.get_job(self.job_request(queue, id)))?;
        understood(found.job.map(TryInto::try_into).transpose(), "a job")
    }

    async fn jobs(&self, queue: &Queue, state: JobState, after: Option<JobId>, limit: usize) -> Result<Vec<Job>> {
        let request = ListJobsRequest {
            namespace: self.sessions.namespace(),
            queue: queue.to_string(),
            state: wire::JobState::from(state).into(),
            after: after.map(|JobId(id)| id),
            limit: to_limit(limit),
        };
        understood(try_all(ask!(self, Access::Read, queues_client.list_jobs(request))?.jobs), "a list of jobs")
    }

    async fn find(&self, queue: &Queue, name: &str) -> Result<Option<JobId>> {
        let namespace = self.sessions.namespace();
        let request = FindJobRequest { namespace, queue: queue.to_string(), name: name.to_owned() };
        Ok(ask!(self, Access::Read, queues_client.find_job(request))?.id.map(JobId))
    }

    async fn redrive(&self, queue: &Queue, ids: Vec<JobId>, limit: usize) -> Result<u64> {
        let request = self.dead_jobs_request(queue, ids, limit);
        Ok(ask!(self, Access::Write, queues_client.redrive(request))?.count)
    }

    async fn purge(&self, queue: &Queue, ids: Vec<JobId>, limit: usize) -> Result<u64> {
        let request = self.dead_jobs_request(queue, ids, limit);
        Ok(ask!(self, Access::Write, queues_client.purge(request))?.count)
    }

    async fn pause(&self, queue: &Queue, paused: bool) -> Result<()> {
        let namespace = self.sessions.namespace();
        let request = PauseRequest { namespace, queue: queue.to_string(), paused };
        ask!(self, Access::Idempotent, queues_client.pause(request)).map(drop)
    }

    async fn stats(&self, queue: &Queue) -> Result<QueueStats> {
        Ok(ask!(self, Access::Read, queues_client.stats(self.queue_request(queue)))?.into())
    }

    async fn close(&self) -> Result<()> {
        self.sessions.close().await;
        Ok(())
    }
}
