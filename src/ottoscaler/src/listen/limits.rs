//! What a port requires of its peers.
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The age at which a connection is closed in an orderly way, give or take a tenth (gRFC A9). Within
/// an hour or so after a rollout the clients of a Service use all replicas again, and reconnecting
/// once an hour costs nothing.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(3_600);
/// The time in which a client that scrapes metrics is expected to send the next request. One that
/// scrapes less often connects again.
const METRICS_IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// The number of calls in flight over one connection. otto-handler may use a single connection for
/// as many workers as a task may have.
const MAX_STREAMS_PER_CONNECTION: u32 = 1_000;
/// The number of calls in flight over one connection of the probe port. A probe needs one.
const MAX_PROBE_STREAMS_PER_CONNECTION: u32 = 4;

/// The version of HTTP that a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/2 without an upgrade, as gRPC takes it, with a maximum of concurrent streams.
    Http2 {
        max_streams: u32,
    },
    Http1,
}

/// The `ConnectionLimits` of a port are what it requires of its peers.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// The name of the port in metrics and logs.
    pub name: &'static str,
    pub(super) protocol: Protocol,
    /// The number of connections at a time.
    pub max_connections: usize,
    /// The number of bytes that a peer must send within the opening timeout.
    pub opening_bytes: usize,
    /// The time after which a connection is closed when nothing was received. There is none where
    /// the protocol itself finds dead peers.
    pub idle_timeout: Option<Duration>,
    /// The age at which a connection is closed in an orderly way.
    pub max_age: Duration,
}

impl ConnectionLimits {
    /// The length of the connection preface of HTTP/2 (RFC 9113, 3.4).
    const HTTP2_PREFACE_BYTES: usize = 24;

    /// Returns the limits of the port for clients and other replicas. Its connections take at most
    /// a quarter of the files that this process may open, since logs and the spool need files too.
    pub fn grpc() -> Self {
        let files = getrlimit(Resource::Nofile).current;
        let quarter = files.map_or(usize::MAX, |n| usize::try_from(n / 4).unwrap_or(usize::MAX));
        Self {
            name: "grpc",
            protocol: Protocol::Http2 {
                max_streams: MAX_STREAMS_PER_CONNECTION,
            },
            max_connections: quarter.clamp(16, 1_000),
            opening_bytes: Self::HTTP2_PREFACE_BYTES,
            idle_timeout: None,
            max_age: MAX_CONNECTION_AGE,
        }
    }

    /// Returns the limits of the port for the kubelet's probes.
    pub fn health() -> Self {
        Self {
            name: "health",
            protocol: Protocol::Http2 {
                max_streams: MAX_PROBE_STREAMS_PER_CONNECTION,
            },
            max_connections: 64,
            ..Self::grpc()
        }
    }

    /// Returns the limits of the port for Prometheus, which uses HTTP/1.
    pub fn metrics() -> Self {
        Self {
            name: "metrics",
            protocol: Protocol::Http1,
            max_connections: 64,
            // This is the length of `GET / HTTP/1.1`.
            opening_bytes: 14,
            idle_timeout: Some(METRICS_IDLE_TIMEOUT),
            ..Self::grpc()
        }
    }

    /// Returns the age of one connection: those that began together do not end together.
    pub(super) fn jittered_age(&self) -> Duration {
        self.max_age.mul_f64(0.9 + 0.2 * fastrand::f64())
    }
}

/// Raises the limit of open files to the hard limit: the usual soft limit of 1,024 is for programs
/// that use `select`. The process calls it once, at its start.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, limit = limit.current, "the limit of open files stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_as_the_system_allows_may_be_open() {
        raise_open_files();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }

    #[test]
    fn connections_that_begin_together_do_not_end_together() {
        let limits = ConnectionLimits::grpc();
        let ages: Vec<Duration> = (0..100).map(|_| limits.jittered_age()).collect();
        let (min, max) = (ages.iter().min(), ages.iter().max());
        assert!(min >= Some(&(MAX_CONNECTION_AGE * 9 / 10)), "{min:?}");
        assert!(max <= Some(&(MAX_CONNECTION_AGE * 11 / 10)), "{max:?}");
        assert!(
            max.zip(min)
                .is_some_and(|(max, min)| *max - *min > MAX_CONNECTION_AGE / 20)
        );
    }
}
