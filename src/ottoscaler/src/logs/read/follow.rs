//! Opening and reading a worker's log as the API server serves it.
use std::{pin::Pin, time::Duration};

use futures::{AsyncBufRead, AsyncBufReadExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::LogParams};
use tokio::time::timeout;

use super::{
    gate::Gate,
    line::{Line, Splitter},
};
use crate::{domain::pod, election::LeaderClient};

/// The time within which a log must be opened. The API server dials the kubelet for it; a node that
/// does not answer by then is tried again later.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a log could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the log was not served in time")]
    Timeout,
    #[error("the pod is gone")]
    Gone,
    /// Later instances of the container have replaced it, and its log is gone.
    #[error("the container was replaced")]
    Replaced,
    /// The kubelet answered with an error text. It may quote the worker's own output.
    #[error("its kubelet does not serve the log")]
    Refused,
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("the log broke off: {0}")]
    Read(#[from] std::io::Error),
}

/// How to open a log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Open {
    /// The Unix second from which on lines are served; None: all.
    pub(crate) since: Option<i64>,
    pub(crate) follow: bool,
    /// Read the instance of the container before the one that is there now.
    pub(crate) previous: bool,
}

/// Where the logs of workers are read from.
#[tonic::async_trait]
pub(crate) trait Source: Send + Sync + 'static {
    async fn open(&self, pod: &pod::Pod, how: Open) -> Result<Reader, Error>;
}

/// Reads logs through the API server.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) pods: Api<Pod>,
    leader: Option<LeaderClient>,
    opens: Gate,
    /// The queue of writes to pods.
    pub(crate) writes: Gate,
}

impl Cluster {
    pub(crate) fn new(pods: Api<Pod>) -> Self {
        Self {
            pods,
            leader: None,
            opens: Gate::default(),
            writes: Gate::default(),
        }
    }

    /// Opens no log while renewals of the Lease are late.
    pub(crate) fn of_leader(client: &LeaderClient) -> Self {
        Self {
            leader: Some(client.clone()),
            ..Self::new(client.pods())
        }
    }

    /// Whether renewals of the Lease are late.
    pub(crate) fn is_late(&self) -> bool {
        self.leader.as_ref().is_some_and(LeaderClient::is_late)
    }
}

#[tonic::async_trait]
impl Source for Cluster {
    async fn open(&self, pod: &pod::Pod, how: Open) -> Result<Reader, Error> {
        let params = LogParams {
            container: Some(pod.container().to_owned()),
            follow: how.follow,
            previous: how.previous,
            timestamps: true,
            since_time: how.since.and_then(|s| jiff::Timestamp::from_second(s).ok()),
            ..LogParams::default()
        };
        // The deadline counts from the moment when the gate lets it pass.
        let open = async { timeout(OPEN_TIMEOUT, self.pods.log_stream(&pod.name, &params)).await };
        match self.opens.pass(|| self.is_late(), open).await {
            Err(_) => Err(Error::Timeout),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(Error::Gone),
            Ok(Err(kube::Error::Api(status)))
                if status.code == 400 && status.message.starts_with("previous terminated") =>
            {
                Err(Error::Replaced)
            }
            // The kubelet refused before it had sent anything.
            Ok(Err(kube::Error::Api(status))) if status.code == 400 => Err(Error::Refused),
            Ok(Err(error)) => Err(error.into()),
            Ok(Ok(bytes)) => Ok(Reader::new(Box::pin(bytes))),
        }
    }
}

/// What an open log gives.
#[derive(Debug)]
pub(crate) enum Piece {
    Line(Line),
    /// The log ended within a line.
    Unended(Line),
    /// The kubelet's error text in place of the log, or of the rest of it.
    Refused(String),
    End,
}

/// How error texts of a kubelet begin that cannot serve a log, or serve it any further. It has
/// answered 200 by then, so the text is the end of the body and has no timestamp.
const REFUSALS: [&str; 13] = [
    "unable to retrieve container logs for ",
    "container status is nil",
    "failed to try resolving symlinks in path ",
    "failed to open log file ",
    "failed to tail ",
    "failed to seek ",
    "failed to read log file ",
    "failed to reset seek in log file ",
    "failed to create fsnotify watcher: ",
    "failed to watch directory ",
    "failed to get parse function: ",
    "context cancelled",
    "rpc error: ",
];

/// How error texts begin that say that the node has no inotify instance left.
const CANNOT_FOLLOW: [&str; 2] = [
    "failed to create fsnotify watcher",
    "failed to watch directory",
];

/// Whether that error text says that the log can be read, but not followed.
pub(crate) fn cannot_follow(words: &str) -> bool {
    CANNOT_FOLLOW.iter().any(|begin| words.starts_with(begin))
}

fn is_refusal(line: &Line) -> bool {
    let begins = |words: &&str| line.text.starts_with(words.as_bytes());
    line.nanos.is_none() && REFUSALS.iter().any(begins)
}

/// Reads an open log line by line.
pub(crate) struct Reader {
    bytes: Pin<Box<dyn AsyncBufRead + Send>>,
    splitter: Splitter,
    ready: std::collections::VecDeque<Line>,
    /// At least one line was returned.
    has_lines: bool,
    /// The first line, while it may be an error text of the kubelet, which has no line after it.
    held: Option<Line>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("ready", &self.ready.len())
            .finish_non_exhaustive()
    }
}

impl Reader {
    /// Returns a line that was received already.
    pub(crate) fn ready(&mut self) -> Option<Line> {
        // The first line may be an error text.
        self.has_lines.then(|| self.ready.pop_front())?
    }

    pub(crate) fn new(bytes: Pin<Box<dyn AsyncBufRead + Send>>) -> Self {
        Self {
            bytes,
            splitter: Splitter::default(),
            ready: std::collections::VecDeque::new(),
            has_lines: false,
            held: None,
        }
    }

    /// Decides what the end of the body means.
    fn end(&mut self) -> Piece {
        let said = |line: &Line| String::from_utf8_lossy(&line.text).into_owned();
        match (self.held.take(), self.splitter.finish()) {
            (Some(held), None) => Piece::Refused(said(&held)),
            (Some(held), Some(rest)) => {
                self.ready.push_back(rest);
                self.has_lines = true;
                Piece::Line(held)
            }
            // Each line of a log has a timestamp, except for the rest of a line with which a
            // body may begin.
            (None, Some(line)) if self.has_lines && line.nanos.is_none() => {
                Piece::Refused(said(&line))
            }
            (None, Some(line)) if is_refusal(&line) => Piece::Refused(said(&line)),
            (None, Some(line)) => Piece::Unended(line),
            (None, None) => Piece::End,
        }
    }

    /// Returns what comes next. It is cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Piece, Error> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                if !self.has_lines && self.held.is_none() && is_refusal(&line) {
                    self.held = Some(line);
                    continue;
                }
                self.has_lines = true;
                // A worker may print such a text.
                let Some(held) = self.held.take() else {
                    return Ok(Piece::Line(line));
                };
                self.ready.push_front(line);
                return Ok(Piece::Line(held));
            }
            let chunk = self.bytes.fill_buf().await?;
            let length = chunk.len();
            if length == 0 {
                return Ok(self.end());
            }
            let ready = &mut self.ready;
            self.splitter.feed(chunk, |line| ready.push_back(line));
            self.bytes.as_mut().consume(length);
        }
    }
}
