//! The reference of GetWorkerStatus: a tonic handler and nothing else. It gets one answer of a
//! replica, and then encodes that answer for each call.
use std::pin::Pin;

use clap::Parser;
use futures::Stream;
use ottoscaler_partners::proto::{
    ListTasksRequest, ListTasksResponse, ScaleRequest, ScaleResponse, TaskEvent, WorkerEvent,
    WorkerStatusRequest, WorkerStatusResponse,
    ottoscaler_service_client::OttoscalerServiceClient,
    ottoscaler_service_server::{OttoscalerService, OttoscalerServiceServer},
};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

#[derive(Debug, Parser)]
struct Args {
    /// The replica whose answer is taken, `host:port`
    #[arg(long)]
    of: String,
    #[arg(long)]
    task: String,
    /// `host:port`
    #[arg(long)]
    listen: String,
}

struct Prepared(WorkerStatusResponse);

#[tonic::async_trait]
impl OttoscalerService for Prepared {
    async fn get_worker_status(
        &self,
        _: Request<WorkerStatusRequest>,
    ) -> Result<Response<WorkerStatusResponse>, Status> {
        Ok(Response::new(self.0.clone()))
    }

    async fn scale_up(&self, _: Request<ScaleRequest>) -> Result<Response<ScaleResponse>, Status> {
        Err(Status::unimplemented("this is a reference"))
    }

    async fn scale_down(
        &self,
        _: Request<ScaleRequest>,
    ) -> Result<Response<ScaleResponse>, Status> {
        Err(Status::unimplemented("this is a reference"))
    }

    async fn list_tasks(
        &self,
        _: Request<ListTasksRequest>,
    ) -> Result<Response<ListTasksResponse>, Status> {
        Err(Status::unimplemented("this is a reference"))
    }

    type WatchTasksStream = Pin<Box<dyn Stream<Item = Result<TaskEvent, Status>> + Send>>;

    async fn watch_tasks(
        &self,
        _: Request<ListTasksRequest>,
    ) -> Result<Response<Self::WatchTasksStream>, Status> {
        Err(Status::unimplemented("this is a reference"))
    }

    type WatchWorkersStream = Pin<Box<dyn Stream<Item = Result<WorkerEvent, Status>> + Send>>;

    async fn watch_workers(
        &self,
        _: Request<WorkerStatusRequest>,
    ) -> Result<Response<Self::WatchWorkersStream>, Status> {
        Err(Status::unimplemented("this is a reference"))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut replica = OttoscalerServiceClient::connect(format!("http://{}", args.of)).await?;
    let request = WorkerStatusRequest {
        task_id: args.task,
        ..WorkerStatusRequest::default()
    };
    let answer = replica.get_worker_status(request).await?.into_inner();
    let listener = TcpListener::bind(&args.listen).await?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tonic::transport::Server::builder()
        .add_service(OttoscalerServiceServer::new(Prepared(answer)))
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}
