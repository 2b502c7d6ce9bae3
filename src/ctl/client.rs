//! One server, one trace, one deadline.
use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tonic::{
    Code, Request, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::proto::{
    PauseRequest, PauseState, ResumeRequest, ScaleRequest, ScaleResponse, ShowLogsRequest,
    ShownLine, WorkerEvent, WorkerStatusRequest, WorkerStatusResponse,
    ottoscaler_admin_service_client::OttoscalerAdminServiceClient,
    ottoscaler_service_client::OttoscalerServiceClient,
};

/// Between two tries of a call that met nobody.
const TRY_AGAIN: Duration = Duration::from_millis(250);

/// Of a stream that broke: replicas may go away one after the other.
pub(super) const REOPENS: usize = 60;
pub(super) const REOPEN_AFTER: Duration = Duration::from_millis(500);

pub(super) struct Client {
    channel: Channel,
    deadline: Instant,
    traceparent: String,
}

impl Client {
    pub(super) fn new(
        server: &str,
        timeout: Duration,
        traceparent: Option<String>,
    ) -> anyhow::Result<Self> {
        let url = if server.contains("://") {
            server.to_owned()
        } else {
            format!("http://{server}")
        };
        let endpoint =
            Endpoint::from_shared(url).with_context(|| format!("{server:?} is no host:port"))?;
        let channel = endpoint
            .connect_timeout(Duration::from_secs(3))
            .connect_lazy();
        let random = || RandomState::new().build_hasher().finish();
        let traceparent = traceparent
            .filter(|t| t.split('-').count() == 4)
            .unwrap_or_else(|| {
                format!(
                    "00-{:016x}{:016x}-{:016x}-01",
                    random(),
                    random(),
                    random() | 1
                )
            });
        Ok(Self {
            channel,
            deadline: Instant::now() + timeout,
            traceparent,
        })
    }

    pub(super) fn trace_id(&self) -> &str {
        self.traceparent.split('-').nth(1).unwrap_or_default()
    }

    fn service(&self) -> OttoscalerServiceClient<Channel> {
        OttoscalerServiceClient::new(self.channel.clone())
            .max_decoding_message_size(64 * 1024 * 1024)
    }

    fn request<T>(&self, message: T, request_id: Option<&str>, bounded: bool) -> Request<T> {
        let mut request = Request::new(message);
        if let Ok(value) = self.traceparent.parse() {
            request.metadata_mut().insert("traceparent", value);
        }
        if let Some(value) = request_id.and_then(|id| id.parse().ok()) {
            request.metadata_mut().insert("request_id", value);
        }
        if bounded {
            request.set_timeout(self.deadline.saturating_duration_since(Instant::now()));
        }
        request
    }

    /// Repeats a call that met nobody, as the same request, until the deadline.
    async fn repeat<T, F>(&self, mut call: impl FnMut() -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        loop {
            match call().await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status)
                    if status.code() == Code::Unavailable
                        && Instant::now() + TRY_AGAIN < self.deadline =>
                {
                    tokio::time::sleep(TRY_AGAIN).await;
                }
                Err(status) => return Err(status),
            }
        }
    }

    /// None ends the pause.
    pub(super) async fn pause(&self, reason: Option<String>) -> Result<PauseState, Status> {
        self.repeat(|| {
            let mut admin = OttoscalerAdminServiceClient::new(self.channel.clone());
            let reason = reason.clone();
            let pause = |reason| self.request(PauseRequest { reason }, None, true);
            let (pause, resume) = (
                reason.map(pause),
                self.request(ResumeRequest {}, None, true),
            );
            async move {
                match pause {
                    Some(pause) => admin.pause(pause).await,
                    None => admin.resume(resume).await,
                }
            }
        })
        .await
    }

    pub(super) async fn scale_up(
        &self,
        message: ScaleRequest,
        request_id: Option<String>,
    ) -> Result<ScaleResponse, Status> {
        let id = request_id.unwrap_or_else(|| format!("ottoctl-{}", self.trace_id()));
        self.repeat(|| {
            let request = self.request(message.clone(), Some(&id), true);
            let mut service = self.service();
            async move { service.scale_up(request).await }
        })
        .await
    }

    pub(super) async fn scale_down(&self, message: ScaleRequest) -> Result<ScaleResponse, Status> {
        let id = format!("ottoctl-{}", self.trace_id());
        self.repeat(|| {
            let request = self.request(message.clone(), Some(&id), true);
            let mut service = self.service();
            async move { service.scale_down(request).await }
        })
        .await
    }

    pub(super) async fn status(
        &self,
        message: WorkerStatusRequest,
    ) -> Result<WorkerStatusResponse, Status> {
        self.repeat(|| {
            let request = self.request(message.clone(), None, true);
            let mut service = self.service();
            async move { service.get_worker_status(request).await }
        })
        .await
    }

    /// Lasts as long as the server lets it.
    pub(super) async fn logs(
        &self,
        message: ShowLogsRequest,
    ) -> Result<Streaming<ShownLine>, Status> {
        let request = self.request(message, None, false);
        let mut admin = OttoscalerAdminServiceClient::new(self.channel.clone());
        Ok(admin.show_logs(request).await?.into_inner())
    }

    /// Lasts as long as the server lets it.
    pub(super) async fn watch(
        &self,
        message: WorkerStatusRequest,
    ) -> Result<Streaming<WorkerEvent>, Status> {
        let request = self.request(message, None, false);
        Ok(self.service().watch_workers(request).await?.into_inner())
    }
}
