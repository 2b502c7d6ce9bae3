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

use api::MAX_ANSWER;
use api::{
    PauseRequest, PauseState, ResumeRequest, ScaleRequest, ScaleResponse, ShowLogsRequest,
    ShownLine, WorkerEvent, WorkerStatusRequest, WorkerStatusResponse,
    ottoscaler_admin_service_client::OttoscalerAdminServiceClient,
    ottoscaler_service_client::OttoscalerServiceClient,
};

/// Of an answer; a server refuses longer ones than most clients take unless it is
/// told.
const LONGEST_ANSWER: usize = 64 * 1024 * 1024;
/// Between two tries of a call that met nobody.
const TRY_AGAIN: Duration = Duration::from_millis(250);
/// Between a stream that broke and the next.
const REOPEN_AFTER: Duration = Duration::from_millis(500);
/// For one try to connect, so that another address of the same name gets its turn.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Of TCP, so that a stream that is silent ends when its server's host is gone. HTTP/2 pings
/// would do the same, but many servers end connections that send them often.
const TCP_KEEPALIVE: Duration = Duration::from_secs(20);
const TCP_KEEPALIVE_RETRIES: u32 = 3;

pub(super) struct Client {
    channel: Channel,
    /// As it was given.
    server: String,
    timeout: Duration,
    deadline: Instant,
    traceparent: String,
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
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
        let is_address = endpoint.uri().authority().is_some_and(|authority| {
            authority.as_str() == authority.host() || authority.port_u16().is_some()
        });
        anyhow::ensure!(is_address, "{server:?} is no host:port");
        let channel = endpoint
            .connect_timeout(timeout.min(CONNECT_TIMEOUT))
            .tcp_keepalive(Some(TCP_KEEPALIVE))
            .tcp_keepalive_interval(Some(TCP_KEEPALIVE))
            .tcp_keepalive_retries(Some(TCP_KEEPALIVE_RETRIES))
            .connect_lazy();
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
            server: server.to_owned(),
            timeout,
            deadline: Instant::now() + timeout,
            traceparent,
        })
    }

    pub(super) fn trace_id(&self) -> &str {
        self.traceparent.split('-').nth(1).unwrap_or_default()
    }

    /// A new one for each command: whoever runs several of them in one trace, as every
    /// worker may with its TRACEPARENT, asks for several things.
    fn new_request_id(&self) -> String {
        format!("ottoctl-{}-{:016x}", self.trace_id(), random())
    }

    fn service(&self) -> OttoscalerServiceClient<Channel> {
        OttoscalerServiceClient::new(self.channel.clone()).max_decoding_message_size(LONGEST_ANSWER)
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
    async fn repeat<T, F>(&self, call: impl FnMut() -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.repeat_until(self.deadline, call).await
    }

    /// A stream begins in time, and then lasts as long as the server lets it.
    async fn open<T, F>(&self, call: impl FnMut() -> F) -> Result<Streaming<T>, Status>
    where
        F: Future<Output = Result<Response<Streaming<T>>, Status>>,
    {
        self.repeat_until(Instant::now() + self.timeout, call).await
    }

    async fn repeat_until<T, F>(
        &self,
        deadline: Instant,
        mut call: impl FnMut() -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut last = None;
        loop {
            let answer = tokio::time::timeout_at(deadline.into(), call()).await;
            let status = match answer {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => self.in_words(status),
                // What came before says more.
                Err(_) => return Err(last.unwrap_or_else(|| self.no_answer())),
            };
            if status.code() != Code::Unavailable || Instant::now() + TRY_AGAIN >= deadline {
                return Err(status);
            }
            last = Some(status);
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }

    fn no_answer(&self) -> Status {
        Status::deadline_exceeded(format!(
            "no answer from {} within {} s",
            self.server,
            self.timeout.as_secs()
        ))
    }

    /// A failure of the connection says what failed and where; the server's own words stay.
    fn in_words(&self, status: Status) -> Status {
        let source = std::error::Error::source(&status);
        let Some(innermost) = std::iter::successors(source, |error| (*error).source()).last()
        else {
            return status;
        };
        if innermost.is::<tonic::TimeoutExpired>() {
            return self.no_answer();
        }
        let cause = match innermost.downcast_ref::<std::io::Error>() {
            Some(error) if error.raw_os_error().is_some() => error.kind().to_string(),
            _ => innermost.to_string(),
        };
        Status::new(status.code(), format!("{cause} at {}", self.server))
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
        let id = request_id.unwrap_or_else(|| self.new_request_id());
        self.repeat(|| {
            let request = self.request(message.clone(), Some(&id), true);
            let mut service = self.service();
            async move { service.scale_up(request).await }
        })
        .await
    }

    pub(super) async fn scale_down(&self, message: ScaleRequest) -> Result<ScaleResponse, Status> {
        let id = self.new_request_id();
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
            let mut request = self.request(message.clone(), None, true);
            let longest = LONGEST_ANSWER.into();
            request.metadata_mut().insert(MAX_ANSWER, longest);
            let mut service = self.service();
            async move { service.get_worker_status(request).await }
        })
        .await
    }

    pub(super) async fn logs(
        &self,
        message: ShowLogsRequest,
    ) -> Result<Streaming<ShownLine>, Status> {
        self.open(|| {
            let request = self.request(message.clone(), None, false);
            let mut admin = OttoscalerAdminServiceClient::new(self.channel.clone());
            async move { admin.show_logs(request).await }
        })
        .await
    }

    pub(super) async fn watch(
        &self,
        message: WorkerStatusRequest,
    ) -> Result<Streaming<WorkerEvent>, Status> {
        self.open(|| {
            let request = self.request(message.clone(), None, false);
            let mut service = self.service();
            async move { service.watch_workers(request).await }
        })
        .await
    }
}

/// Streams that are opened anew: replicas may go away one after the other.
pub(super) struct Reopening<'a> {
    client: &'a Client,
    progress: Instant,
}

impl<'a> Reopening<'a> {
    pub(super) fn new(client: &'a Client) -> Self {
        let progress = Instant::now();
        Self { client, progress }
    }

    pub(super) fn progressed(&mut self) {
        self.progress = Instant::now();
    }

    /// Waits for the next try.
    ///
    /// # Errors
    /// Another one would not help: it was refused, or nothing new has come for the timeout.
    pub(super) async fn after(&mut self, broken: Status) -> Result<(), Status> {
        let broken = self.client.in_words(broken);
        let may_pass = matches!(
            broken.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
        );
        if !may_pass || self.progress.elapsed() >= self.client.timeout {
            return Err(broken);
        }
        tokio::time::sleep(REOPEN_AFTER).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn commands_of_one_trace_are_requests_of_their_own() {
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let client = || {
            let timeout = Duration::from_secs(1);
            Client::new("127.0.0.1:1", timeout, Some(trace.to_owned())).unwrap()
        };
        let (one, other) = (client().new_request_id(), client().new_request_id());
        assert_ne!(one, other);
        assert!(one.contains("0af7651916cd43dd8448eb211c80319c"), "{one}");
    }
}
