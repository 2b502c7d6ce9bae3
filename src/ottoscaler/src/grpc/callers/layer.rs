//! The layer that lets a call through to its handler only when its caller may make it.
use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use tonic::{Status, body::Body, metadata::MetadataValue};
use tower::{Layer, Service};

use super::{
    super::{
        errors::record_outcome,
        forward::{FORWARDED, TERM},
    },
    CALLER, Caller, Callers, Mode, denied,
    rights::{self, Requirement, SCALE_DOWN, SCALE_UP},
};
use crate::listen::PeerNames;

/// The number of unproven hops after which a call goes no further, so that replicas which take
/// each other for the leader do not pass it to and fro.
const MAX_UNPROVEN_HOPS: usize = 2;

impl Callers {
    /// Returns the layer. With CALLERS=none there is none.
    pub(in crate::grpc) fn layer(&self) -> Option<CallersLayer> {
        match self.mode {
            Mode::None => None,
            Mode::Static(_) | Mode::Kubernetes(_) => Some(CallersLayer(self.clone())),
        }
    }

    /// Lets a call through, with its [`Caller`] in the extensions, or returns the status with which
    /// it is refused.
    async fn admit(&self, request: &mut Request<Body>) -> Result<(), Status> {
        let path = request.uri().path();
        let right = match rights::required(path).ok_or_else(denied::unknown_method)? {
            Requirement::Nothing => return Ok(()),
            Requirement::Known => None,
            Requirement::Right(right) => Some(right),
        };
        let is_scale = path == SCALE_UP || path == SCALE_DOWN;
        let peer = request.extensions().get::<PeerNames>().cloned();
        if is_scale
            && self.is_replica(peer.as_ref())
            && let Some(caller) = forwarded_caller(request.headers())
        {
            request.extensions_mut().insert(caller);
            return Ok(());
        }
        let hops = distrust(request.headers_mut());
        let token = bearer_token(request.headers()).map(str::to_owned);
        let mut caller = self
            .identify(token.as_deref(), peer.as_ref(), right)
            .await?;
        caller.hops = hops;
        caller.authorization = sensitive_authorization(request.headers());
        request.extensions_mut().insert(caller);
        Ok(())
    }

    fn is_replica(&self, peer: Option<&PeerNames>) -> bool {
        let (Some(peer), Some(name)) = (peer, &self.replicas_name) else {
            return false;
        };
        peer.0.iter().any(|peer| **peer == **name)
    }
}

/// Returns the caller that another replica names, if it forwarded the call.
fn forwarded_caller(headers: &HeaderMap) -> Option<Caller> {
    let name = headers.get(CALLER)?.to_str().ok()?;
    headers.contains_key(FORWARDED).then(|| Caller::new(name))
}

/// Removes what only a replica may say, and returns how many replicas say that they forwarded the
/// call. Past [`MAX_UNPROVEN_HOPS`] the mark stays: it can only make this replica refuse to forward
/// the call once more. The term stays too, because the response repeats it.
fn distrust(headers: &mut HeaderMap) -> usize {
    headers.remove(CALLER);
    let hops = headers.get_all(FORWARDED).iter().count();
    if hops < MAX_UNPROVEN_HOPS {
        headers.remove(FORWARDED);
    }
    hops
}

/// Returns the token of `authorization: Bearer <token>`.
fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn sensitive_authorization(headers: &HeaderMap) -> Option<tonic::metadata::AsciiMetadataValue> {
    let mut value = MetadataValue::try_from(headers.get(AUTHORIZATION)?.as_bytes()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// A `CallersLayer` wraps every service of the gRPC port.
#[derive(Debug, Clone)]
pub(in crate::grpc) struct CallersLayer(Callers);

impl<S> Layer<S> for CallersLayer {
    type Service = AuthorizedService<S>;

    fn layer(&self, inner: S) -> AuthorizedService<S> {
        AuthorizedService {
            inner,
            callers: self.0.clone(),
        }
    }
}

/// An `AuthorizedService` passes on the calls that their callers may make.
#[derive(Debug, Clone)]
pub(in crate::grpc) struct AuthorizedService<S> {
    inner: S,
    callers: Callers,
}

impl<S> Service<Request<Body>> for AuthorizedService<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // The call must go to the instance that is ready, and not to its clone.
        let copy = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, copy);
        let callers = self.callers.clone();
        Box::pin(async move {
            match callers.admit(&mut request).await {
                Ok(()) => inner.call(request).await,
                Err(status) => Ok(refusal_response(status, &request)),
            }
        })
    }
}

/// Makes the response of a refused call. It repeats the term of a forwarded one, so that the
/// replica which forwarded it knows whose answer it is.
fn refusal_response(status: Status, request: &Request<Body>) -> Response<Body> {
    let refused = record_outcome::<()>(Err(status));
    let mut response = refused.map_or_else(Status::into_http, |()| Response::default());
    if let Some(term) = request.headers().get(TERM) {
        response.headers_mut().insert(TERM, term.clone());
    }
    response
}
