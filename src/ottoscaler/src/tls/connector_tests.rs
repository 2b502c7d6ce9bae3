//! Stock tonic clients over the connector, against the accept loop.
#![expect(clippy::unwrap_used)]
use std::sync::Mutex;

use hyper::body::Incoming;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, service::Routes, transport::Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_client::HealthClient, health_server::HealthServer,
};
use tower::ServiceBuilder;

use super::*;
use crate::{
    grpc::Health,
    listen::{self, ConnectionLimits, Lifecycle, Listener},
    tls::{
        Tls, TlsConfig,
        test_certificates::{Ca, config},
    },
};

const NAME: &str = "replicas.example";

/// Serves health with TLS on a port of loopback.
fn serve(config: TlsConfig, tasks: &mut JoinSet<()>) -> u16 {
    let listener = Listener::bind(0, ConnectionLimits::grpc(), Default::default()).unwrap();
    let port = listener.local_addr().unwrap().port();
    let routes = Routes::new(HealthServer::new(Health::default()));
    let service = ServiceBuilder::new()
        .map_request(|request: http::Request<Incoming>| request.map(Body::new))
        .service(routes);
    let lifecycle = Lifecycle {
        drain: CancellationToken::new(),
        stop: CancellationToken::new(),
    };
    let (sender, current) = tokio::sync::watch::channel(Arc::new(config));
    tasks.spawn(async move {
        listen::serve(listener, Some(Tls::new(current)), service, lifecycle).await;
        drop(sender);
    });
    port
}

async fn check(port: u16, tls: Option<TlsPeer>) -> Result<(), String> {
    let tcp = TcpOptions {
        keepalive: Duration::from_secs(30),
        retries: 3,
    };
    let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))
        .unwrap()
        .connect_timeout(Duration::from_secs(10))
        .connect_with_connector(Connector::new(tcp, tls))
        .await
        .map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
    let request = HealthCheckRequest::default();
    let checked = HealthClient::new(channel).check(request).await;
    // Whatever the health is, it was answered.
    checked.map(|_| ()).map_err(|status| status.to_string())
}

#[tokio::test]
async fn a_peer_is_verified_by_its_fixed_name_and_by_what_is_trusted_now() {
    let mut tasks = JoinSet::new();
    let (ca, next) = (Ca::new(), Ca::new());
    let ours = serve(config(&[&ca], &ca.issue(&[NAME])), &mut tasks);
    let named_otherwise = serve(config(&[&ca], &ca.issue(&["127.0.0.1"])), &mut tasks);
    let trusted = Arc::new(Mutex::new(config(&[&ca], &ca.issue(&[NAME])).client));
    let current = trusted.clone();
    let peer = TlsPeer::new(NAME.try_into().unwrap(), move || {
        current.lock().unwrap().clone()
    });
    check(ours, Some(peer.clone())).await.unwrap();
    let refused = check(named_otherwise, Some(peer.clone()))
        .await
        .unwrap_err();
    assert!(refused.contains("certificate"), "{refused}");
    assert!(check(ours, None).await.is_err(), "the port takes TLS only");
    // From now on another authority is trusted.
    *trusted.lock().unwrap() = config(&[&next], &next.issue(&[NAME])).client;
    let refused = check(ours, Some(peer)).await.unwrap_err();
    assert!(refused.contains("certificate"), "{refused}");
}
