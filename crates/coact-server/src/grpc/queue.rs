//! Queues and their jobs.

use coact_core::{Result, contract::queue::JobId};
use coact_engine_etcd::{
    messages::{all, part},
    wire::coact_v1::{
        ClaimRequest, ClaimResponse, CountResponse, DeadJobsRequest, Done, EnqueueRequest, EnqueueResponse, Existed,
        FindJobRequest, FindJobResponse, GetJobResponse, GetQueueResponse, JobRequest, ListJobsRequest,
        ListJobsResponse, ListQueuesRequest, ListQueuesResponse, MovedResponse, PauseRequest, PutQueueRequest,
        PutQueueResponse, QueueRequest, QueueStats, RescheduleJobRequest, SettleRequest, SettleResponse,
        queues_server::Queues,
    },
};
use tonic::{Request, Response, Status};

use super::{
    Node,
    desk::{Desk, reply},
};
use crate::auth::Verb;

#[tonic::async_trait]
impl Queues for Node {
    async fn put_queue(&self, request: Request<PutQueueRequest>) -> Result<Response<PutQueueResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.put_queue(request).await)
    }

    async fn delete_queue(&self, request: Request<QueueRequest>) -> Result<Response<Existed>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.delete_queue(request).await)
    }

    async fn get_queue(&self, request: Request<QueueRequest>) -> Result<Response<GetQueueResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.get_queue(request).await)
    }

    async fn list_queues(&self, request: Request<ListQueuesRequest>) -> Result<Response<ListQueuesResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.list_queues(request).await)
    }

    async fn enqueue(&self, request: Request<EnqueueRequest>) -> Result<Response<EnqueueResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.enqueue(request).await)
    }

    async fn claim(&self, request: Request<ClaimRequest>) -> Result<Response<ClaimResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.claim(request).await)
    }

    async fn settle(&self, request: Request<SettleRequest>) -> Result<Response<SettleResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.settle(request).await)
    }

    async fn cancel_job(&self, request: Request<JobRequest>) -> Result<Response<MovedResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.cancel_job(request).await)
    }

    async fn reschedule_job(&self, request: Request<RescheduleJobRequest>) -> Result<Response<MovedResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.reschedule_job(request).await)
    }

    async fn get_job(&self, request: Request<JobRequest>) -> Result<Response<GetJobResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.get_job(request).await)
    }

    async fn list_jobs(&self, request: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.list_jobs(request).await)
    }

    async fn find_job(&self, request: Request<FindJobRequest>) -> Result<Response<FindJobResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.find_job(request).await)
    }

    async fn redrive(&self, request: Request<DeadJobsRequest>) -> Result<Response<CountResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.redrive(request).await)
    }

    async fn purge(&self, request: Request<DeadJobsRequest>) -> Result<Response<CountResponse>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.purge(request).await)
    }

    async fn pause(&self, request: Request<PauseRequest>) -> Result<Response<Done>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.pause(request).await)
    }

    async fn stats(&self, request: Request<QueueRequest>) -> Result<Response<QueueStats>, Status> {
        let (desk, request) = Desk::open(self, request)?;
        reply(desk.stats(request).await)
    }
}

/// What is not asked often enough to go over a session.
impl Desk {
    async fn put_queue(&self, request: PutQueueRequest) -> Result<PutQueueResponse> {
        let (queues, queue) = self.queue(&request.namespace, &request.queue, &[Verb::Admin])?;
        Ok(PutQueueResponse { created: queues.put_queue(&queue, &part(request.spec, "spec")?.into()).await? })
    }

    async fn delete_queue(&self, request: QueueRequest) -> Result<Existed> {
        let (queues, queue) = self.queue(&request.namespace, &request.queue, &[Verb::Admin])?;
        Ok(Existed { existed: queues.delete_queue(&queue).await? })
    }

    async fn get_queue(&self, request: QueueRequest) -> Result<GetQueueResponse> {
        let (queues, queue) = self.queue(&request.namespace, &request.queue, &[Verb::Read])?;
        Ok(GetQueueResponse { queue: queues.queue(&queue).await?.map(Into::into) })
    }

    async fn list_queues(&self, request: ListQueuesRequest) -> Result<ListQueuesResponse> {
        let queues = self.queues(&request.namespace, Verb::Read)?;
        Ok(ListQueuesResponse { queues: all(queues.queues(&request.after, request.limit as usize).await?) })
    }

    async fn cancel_job(&self, request: JobRequest) -> Result<MovedResponse> {
        let (queues, queue) = self.queue(&request.namespace, &request.queue, &[Verb::Write])?;
        Ok(queues.cancel(&queue, JobId(request.id)).await?.into())
    }

    async fn reschedule_job(&self, request: RescheduleJobRequest) -> Result<MovedResponse> {
        let (queues, queue) = self.queue(&request.namespace, &request.queue, &[Verb::Write])?;
        Ok(queues.reschedule(&queue, JobId(request.id), request.run_at_ms).await?.into())
    }

    async fn get_job(&self, request: JobRequest) -> Result<GetJobResponse> {
        let (queues, queue) = self.queue(&request.namespace, &request.queue, &[Verb::Read])?;
        Ok(GetJobResponse { job: queues.job(&queue, JobId(request.id)).await?.map(Into::into) })
    }

    async fn list_jobs(&self, request: ListJobsRequest) -> Result<ListJobsResponse> {
        let (queues, queue) = self.queue(&request.namespace, &request.queue, &[Verb::Read])?;
        let (state, after) = (request.state().try_into()?, request.after.map(JobId));
        Ok(ListJobsResponse { jobs: all(queues.jobs(&queue, state, after, request.limit as usize).await?) })
    }

    async fn find_job(&self, request: FindJobRequest) -> Result<FindJobResponse> {
        let (queues, queue) = self.queue(&request.namespace, &request.queue, &[Verb::Read])?;
        Ok(FindJobResponse { id: queues.find(&queue, &request.name).await?.map(|JobId(id)| id) })
    }

    async fn redrive(&self, request: DeadJobsRequest) -> Result<CountResponse> {
        let (queues, queue) = self.queue(&request.namespace, &request.queue, &[Verb::Admin])?;
        let (ids, limit) = dead_jobs(request);
        Ok(CountResponse { count: queues.redrive(&queue, ids, limit).await? })
    }

    async fn purge(&self, request: DeadJobsRequest) -> Result<CountResponse> {
        let (queues, queue) = self.queue(&request.namespace, &request.queue, &[Verb::Admin])?;
        let (ids, limit) = dead_jobs(request);
        Ok(CountResponse { count: queues.purge(&queue, ids, limit).await? })
    }

    async fn pause(&self, request: PauseRequest) -> Result<Done> {
        let (queues, queue) = self.queue(&request.namespace, &request.queue, &[Verb::Admin])?;
        queues.pause(&queue, request.paused).await?;
        Ok(Done {})
    }

    async fn stats(&self, request: QueueRequest) -> Result<QueueStats> {
        let (queues, queue) = self.queue(&request.namespace, &request.queue, &[Verb::Read])?;
        Ok(queues.stats(&queue).await?.into())
    }
}

fn dead_jobs(request: DeadJobsRequest) -> (Vec<JobId>, usize) {
    let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
    (request.ids.into_iter().map(JobId).collect(), limit)
}
