//! The client of one command: it has one server, one trace and one deadline.
use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tonic::{
    Code, Request, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

use super::{tls::TlsArgs, token::Token};
use api::{
    PauseRequest, PauseState, ResumeRequest, ScaleRequest, ScaleResponse, ShowLogsRequest,
    ShownLine, WorkerEvent, WorkerStatusRequest, WorkerStatusResponse,
    ottoscaler_admin_service_client::OttoscalerAdminServiceClient,
    ottoscaler_service_client::OttoscalerServiceClient,
};

/// The time between two attempts of a call that no server could answer. A person does not notice
/// it, and a server that starts is not flooded by those who wait.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// The time between a broken stream and the next one. A server that ends every stream at once gets
/// two calls a second from each person.
const REOPEN_DELAY: Duration = Duration::from_millis(500);
/// The timeout of one attempt to connect, after which another address of the same name is tried. It
/// allows for one lost SYN, which is sent again after a second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The keepalive interval of TCP, which ends an idle stream when the host of its server is gone.
/// HTTP/2 pings would do the same, but many servers close connections that send them often.
const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// The number of unanswered probes after which the host counts as gone: one or two may be lost by
/// chance.
const TCP_KEEPALIVE_RETRIES: u32 = 3;

/// A `Client` calls one server for one command.
pub(super) struct Client {
    channel: Channel,
    /// The address as the user gave it.
    server: String,
    timeout: Duration,
    deadline: Instant,
    traceparent: String,
    token: Token,
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

impl Client {
    pub(super) fn new(
        server: &str,
        timeout: Duration,
        traceparent: Option<String>,
        token: Token,
        tls: &TlsArgs,
    ) -> anyhow::Result<Self> {
        // A token that cannot be read is told before any call.
        token.authorization()?;
        let tls = tls.config(server)?;
        let address = server.split_once("://").map_or(server, |(_, rest)| rest);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{address}");
        let endpoint =
            Endpoint::from_shared(url).with_context(|| format!("{server:?} is no host:port"))?;
        let has_valid_authority = endpoint.uri().authority().is_some_and(|authority| {
            authority.as_str() == authority.host() || authority.port_u16().is_some()
        });
        anyhow::ensure!(has_valid_authority, "{server:?} is no host:port");
        let endpoint = match tls {
            Some(tls) => endpoint.tls_config(tls).context("the TLS options")?,
            None => endpoint,
        };
        let channel = endpoint
            .connect_timeout(timeout.min(CONNECT_TIMEOUT))
            .tcp_keepalive(Some(TCP_KEEPALIVE_INTERVAL))
            .tcp_keepalive_interval(Some(TCP_KEEPALIVE_INTERVAL))
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
            token,
        })
    }

    pub(super) fn trace_id(&self) -> &str {
        self.traceparent.split('-').nth(1).unwrap_or_default()
    }

    /// Returns a new id for each command. Several commands in one trace, which a worker can run
    /// with its TRACEPARENT, are different requests.
    fn new_request_id(&self) -> String {
        format!("ottoctl-{}-{:016x}", self.trace_id(), random())
    }

    fn service(&self) -> OttoscalerServiceClient<Channel> {
        OttoscalerServiceClient::new(self.channel.clone())
    }

    fn request<T>(&self, message: T, request_id: Option<&str>, bounded: bool) -> Request<T> {
        let mut request = Request::new(message);
        if let Ok(value) = self.traceparent.parse() {
            request.metadata_mut().insert("traceparent", value);
        }
        if let Some(value) = request_id.and_then(|id| id.parse().ok()) {
            request.metadata_mut().insert("request_id", value);
        }
        // A file that cannot be read any more sends no token, and the server says so.
        if let Ok(Some(value)) = self.token.authorization() {
            request.metadata_mut().insert("authorization", value);
        }
        if bounded {
            request.set_timeout(self.deadline.saturating_duration_since(Instant::now()));
        }
        request
    }

    /// Retries a call that no server could answer, as the same request, until the deadline.
    async fn retry<T, F>(&self, call: impl FnMut() -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.retry_until(self.deadline, call).await
    }

    /// Opens a stream. The timeout bounds the time until it begins and not the stream itself.
    async fn open_stream<T, F>(&self, call: impl FnMut() -> F) -> Result<Streaming<T>, Status>
    where
        F: Future<Output = Result<Response<Streaming<T>>, Status>>,
    {
        self.retry_until(Instant::now() + self.timeout, call).await
    }

    async fn retry_until<T, F>(
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
                Ok(Err(status)) => self.describe(status),
                // The last status is more useful than a report of the timeout.
                Err(_) => return Err(last.unwrap_or_else(|| self.no_answer())),
            };
            if status.code() != Code::Unavailable || Instant::now() + RETRY_INTERVAL >= deadline {
                return Err(status);
            }
            last = Some(status);
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    fn no_answer(&self) -> Status {
        Status::deadline_exceeded(format!(
            "no answer from {} within {} s",
            self.server,
            self.timeout.as_secs()
        ))
    }

    /// Rewrites the status of a failed connection so that it says what failed and where. A status
    /// from the server stays as it is.
    fn describe(&self, status: Status) -> Status {
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

    /// Pauses with a reason, or ends the pause without one.
    pub(super) async fn pause(&self, reason: Option<String>) -> Result<PauseState, Status> {
        self.retry(|| {
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
        self.retry(|| {
            let request = self.request(message.clone(), Some(&id), true);
            let mut service = self.service();
            async move { service.scale_up(request).await }
        })
        .await
    }

    pub(super) async fn scale_down(&self, message: ScaleRequest) -> Result<ScaleResponse, Status> {
        let id = self.new_request_id();
        self.retry(|| {
            let request = self.request(message.clone(), Some(&id), true);
            let mut service = self.service();
            async move { service.scale_down(request).await }
        })
        .await
    }

    /// Returns all selected workers, page by page. The counts are those of the last page.
    pub(super) async fn status(
        &self,
        mut message: WorkerStatusRequest,
    ) -> Result<WorkerStatusResponse, Status> {
        let mut workers = Vec::new();
        loop {
            let page = self.retry(|| {
                let request = self.request(message.clone(), None, true);
                let mut service = self.service();
                async move { service.get_worker_status(request).await }
            });
            let mut page = page.await?;
            workers.append(&mut page.workers);
            if page.next_page_token.is_empty() {
                return Ok(WorkerStatusResponse { workers, ..page });
            }
            message.page_token = std::mem::take(&mut page.next_page_token);
        }
    }

    pub(super) async fn logs(
        &self,
        message: ShowLogsRequest,
    ) -> Result<Streaming<ShownLine>, Status> {
        self.open_stream(|| {
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
        self.open_stream(|| {
            let request = self.request(message.clone(), None, false);
            let mut service = self.service();
            async move { service.watch_workers(request).await }
        })
        .await
    }
}

/// A `StreamRetry` decides whether a broken stream is opened again, since replicas may restart one
/// after the other.
pub(super) struct StreamRetry<'a> {
    client: &'a Client,
    last_progress: Instant,
}

impl<'a> StreamRetry<'a> {
    pub(super) fn new(client: &'a Client) -> Self {
        let last_progress = Instant::now();
        Self {
            client,
            last_progress,
        }
    }

    pub(super) fn record_progress(&mut self) {
        self.last_progress = Instant::now();
    }

    /// Waits until the stream can be opened again.
    ///
    /// # Errors
    /// Returns the status of the broken stream when a retry would not help: the server refused it,
    /// or nothing new was received for the timeout.
    pub(super) async fn wait_after(&mut self, broken: Status) -> Result<(), Status> {
        let broken = self.client.describe(broken);
        let is_retryable = matches!(
            broken.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
        );
        if !is_retryable || self.last_progress.elapsed() >= self.client.timeout {
            return Err(broken);
        }
        tokio::time::sleep(REOPEN_DELAY).await;
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
            let trace = Some(trace.to_owned());
            Client::new(
                "127.0.0.1:1",
                timeout,
                trace,
                Token::None,
                &TlsArgs::default(),
            )
            .unwrap()
        };
        let (one, other) = (client().new_request_id(), client().new_request_id());
        assert_ne!(one, other);
        assert!(one.contains("0af7651916cd43dd8448eb211c80319c"), "{one}");
    }
}
