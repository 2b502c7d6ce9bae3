//! Whole connections on loopback, by hyper's client over TCP and TLS.
#![expect(clippy::unwrap_used)]
use std::{convert::Infallible, sync::Arc};

use http::StatusCode;
use http_body_util::Empty;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep},
};
use tokio_rustls::TlsConnector;
use tower::service_fn;

use super::*;
use crate::{
    listen::{ConnectionHandle, ConnectionLimits, Metrics, PeerNames},
    tls::{
        TlsConfig,
        test_certificates::{Ca, client, config},
    },
};

const LONG: Duration = Duration::from_secs(20);
const SERVER: &str = "replicas.example";

/// A port that ends with the test.
struct Served {
    port: u16,
    metrics: Metrics,
    lifecycle: Lifecycle,
    serving: JoinSet<()>,
}

/// Serves a port whose calls return the names of the peer's certificate. A call of `/closing`
/// returns when its connection closes, and one of `/never` not at all.
fn serve_port(limits: ConnectionLimits, tls: Option<Tls>) -> Served {
    let metrics = Metrics::default();
    let listener = Listener::bind(0, limits, metrics.clone()).unwrap();
    let port = listener.local_addr().unwrap().port();
    let service = service_fn(|request: Request<Incoming>| async move {
        let extensions = request.extensions();
        match request.uri().path() {
            "/closing" => ConnectionHandle::closing_of(extensions).cancelled().await,
            "/never" => std::future::pending().await,
            "/slow" => sleep(Duration::from_millis(400)).await,
            _ => {}
        }
        let names = extensions.get::<PeerNames>();
        let names = names.map_or_else(|| "none".to_owned(), |names| names.0.join(","));
        let response = Response::builder().header("names", names);
        Ok::<_, Infallible>(response.body(Empty::<Bytes>::new()).unwrap_or_default())
    });
    let lifecycle = Lifecycle {
        drain: CancellationToken::new(),
        stop: CancellationToken::new(),
    };
    let mut serving = JoinSet::new();
    serving.spawn(serve(listener, tls, service, lifecycle.clone()));
    Served {
        port,
        metrics,
        lifecycle,
        serving,
    }
}

/// A client's connection, whose task ends with the connection.
struct Client {
    send: SendRequest<Empty<Bytes>>,
    connection: JoinSet<bool>,
}

async fn http2(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Option<Client> {
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io));
    let (send, connection) = handshake.await.ok()?;
    let mut task = JoinSet::new();
    task.spawn(async move { connection.await.is_ok() });
    Some(Client {
        send,
        connection: task,
    })
}

impl Client {
    async fn call(&mut self, path: &str) -> Option<String> {
        let request = Request::get(format!("http://any{path}")).body(Empty::new());
        self.send.ready().await.ok()?;
        let response = self.send.send_request(request.unwrap()).await.ok()?;
        assert_eq!(response.status(), StatusCode::OK);
        Some(response.headers()["names"].to_str().unwrap().to_owned())
    }

    /// Waits for the end of the connection and says whether it was an orderly one.
    async fn ended_well(&mut self) -> bool {
        let ended = timeout(LONG, self.connection.join_next()).await;
        ended.unwrap().unwrap().unwrap()
    }
}

impl Served {
    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()
    }

    async fn plain(&self) -> Client {
        http2(self.tcp().await).await.unwrap()
    }

    /// Connects with TLS, or returns none when it or the first call is refused.
    async fn secured(&self, config: Arc<ClientConfig>) -> Option<Client> {
        let name = ServerName::try_from(SERVER).unwrap();
        let connector = TlsConnector::from(config);
        let stream = connector.connect(name, self.tcp().await).await.ok()?;
        http2(stream).await
    }

    /// Waits until so many connections are open.
    async fn open(&self, expected: i64) {
        let reached = async {
            while self.metrics.counts("grpc", "").0 != expected {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, reached).await.unwrap();
    }
}

fn aged(max_age: Duration) -> ConnectionLimits {
    ConnectionLimits {
        max_age,
        ..ConnectionLimits::grpc()
    }
}

fn tls(config: TlsConfig) -> (watch::Sender<Arc<TlsConfig>>, Tls) {
    let (sender, current) = watch::channel(Arc::new(config));
    (sender, Tls::new(current))
}

#[tokio::test]
async fn the_names_of_a_verified_client_certificate_reach_the_handler() {
    let (ours, others) = (Ca::new(), Ca::new());
    let (_sender, tls) = tls(config(&[&ours], &ours.issue(&[SERVER])));
    let port = serve_port(ConnectionLimits::grpc(), Some(tls));
    let shown = ours.issue(&["a.example", "b.example"]);
    let mut known = port.secured(client(&[&ours], Some(&shown))).await.unwrap();
    assert_eq!(
        known.call("/").await.as_deref(),
        Some("a.example,b.example")
    );
    let mut anonymous = port.secured(client(&[&ours], None)).await.unwrap();
    assert_eq!(anonymous.call("/").await.as_deref(), Some("none"));
    // A certificate of another authority is refused, and not taken for none.
    let foreign = others.issue(&["a.example"]);
    let refused = match port.secured(client(&[&ours], Some(&foreign))).await {
        None => None,
        Some(mut client) => client.call("/").await,
    };
    assert_eq!(refused, None);
    port.open(2).await;
    assert_eq!(port.metrics.counts("grpc", "tls_handshake").1, 1);
}

#[tokio::test]
async fn a_port_with_tls_takes_no_plaintext() {
    let ca = Ca::new();
    let (_sender, tls) = tls(config(&[&ca], &ca.issue(&[SERVER])));
    let port = serve_port(ConnectionLimits::grpc(), Some(tls));
    let answered = match http2(port.tcp().await).await {
        None => None,
        Some(mut client) => client.call("/").await,
    };
    assert_eq!(answered, None);
    port.open(0).await;
}

#[tokio::test]
async fn half_a_handshake_is_closed_at_its_deadline() {
    let ca = Ca::new();
    let (_sender, tls) = tls(config(&[&ca], &ca.issue(&[SERVER])));
    let port = serve_port(ConnectionLimits::grpc(), Some(tls));
    let mut peer = port.tcp().await;
    peer.write_all(&[0x16, 3, 1]).await.unwrap();
    port.open(1).await;
    tokio::time::pause();
    let began = Instant::now();
    let ended = peer.read(&mut [0; 16]).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    assert!(began.elapsed() >= Duration::from_secs(9), "it had its time");
    port.open(0).await;
}

#[tokio::test]
async fn a_connection_of_age_ends_after_its_calls_and_streams_are_told() {
    let port = serve_port(aged(Duration::from_millis(200)), None);
    let mut slow = port.plain().await;
    let mut stream = port.plain().await;
    let (slow_call, stream_call) = tokio::join!(slow.call("/slow"), stream.call("/closing"));
    assert_eq!(slow_call.as_deref(), Some("none"));
    assert_eq!(stream_call.as_deref(), Some("none"));
    assert!(slow.ended_well().await && stream.ended_well().await);
    // The next connection is served as before.
    assert!(port.plain().await.call("/").await.is_some());
}

#[tokio::test]
async fn a_call_that_does_not_end_is_cut_off_after_the_grace() {
    let port = serve_port(aged(Duration::from_millis(200)), None);
    let mut client = port.plain().await;
    port.open(1).await;
    tokio::time::pause();
    assert_eq!(client.call("/never").await, None);
    port.open(0).await;
}

#[tokio::test]
async fn a_removed_authority_ends_the_connections_of_its_clients_only() {
    let (old, new) = (Ca::new(), Ca::new());
    let own = new.issue(&[SERVER]);
    let (sender, tls) = tls(config(&[&old, &new], &own));
    let port = serve_port(ConnectionLimits::grpc(), Some(tls));
    let [of_old, of_new] = [old.issue(&["old.example"]), new.issue(&["new.example"])];
    let mut stays = port.secured(client(&[&new], Some(&of_new))).await.unwrap();
    let mut anonymous = port.secured(client(&[&new], None)).await.unwrap();
    let mut goes = port.secured(client(&[&new], Some(&of_old))).await.unwrap();
    for client in [&mut stays, &mut anonymous, &mut goes] {
        assert!(client.call("/").await.is_some());
    }
    // A new certificate of the same authorities ends nothing.
    sender.send_replace(Arc::new(config(&[&old, &new], &new.issue(&[SERVER]))));
    assert!(goes.call("/").await.is_some());
    sender.send_replace(Arc::new(config(&[&new], &own)));
    let (in_flight, ended) = tokio::join!(goes.call("/closing"), sleep(Duration::ZERO));
    let () = ended;
    // The call was in flight before the change, or the connection took none any more.
    assert!(in_flight.is_none() || in_flight.as_deref() == Some("old.example"));
    assert!(goes.ended_well().await);
    port.open(2).await;
    for client in [&mut stays, &mut anonymous] {
        assert!(client.call("/").await.is_some());
    }
    let refused = match port.secured(client(&[&new], Some(&of_old))).await {
        None => None,
        Some(mut client) => client.call("/").await,
    };
    assert_eq!(refused, None);
}

#[tokio::test]
async fn a_drain_ends_streams_and_takes_calls_until_the_stop() {
    let mut port = serve_port(ConnectionLimits::grpc(), None);
    let mut client = port.plain().await;
    let mut other = port.plain().await;
    let drain = port.lifecycle.drain.clone();
    let (streamed, ()) = tokio::join!(client.call("/closing"), async { drain.cancel() });
    assert!(streamed.is_some());
    assert!(client.call("/").await.is_some());
    let stop = port.lifecycle.stop.clone();
    let (slow, ()) = tokio::join!(other.call("/slow"), async {
        sleep(Duration::from_millis(50)).await;
        stop.cancel();
    });
    assert!(slow.is_some(), "a call in flight ends");
    assert!(client.ended_well().await && other.ended_well().await);
    timeout(LONG, port.serving.join_next()).await.unwrap();
}

#[tokio::test]
async fn a_stop_waits_for_no_peer_that_does_not_end() {
    let mut port = serve_port(ConnectionLimits::grpc(), None);
    let silent = port.tcp().await;
    let mut client = port.plain().await;
    port.open(2).await;
    let stop = port.lifecycle.stop.clone();
    tokio::time::pause();
    let began = Instant::now();
    let (unanswered, ()) = tokio::join!(client.call("/never"), async { stop.cancel() });
    assert_eq!(unanswered, None);
    port.serving.join_next().await.unwrap().unwrap();
    assert!(
        began.elapsed() <= DRAIN_TIMEOUT * 2,
        "{:?}",
        began.elapsed()
    );
    assert_eq!(port.metrics.counts("grpc", "").0, 0);
    drop(silent);
}
