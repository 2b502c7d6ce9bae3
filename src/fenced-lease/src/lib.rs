//! Leader election on a Kubernetes [Lease], with terms that fence every write of a leader.
//!
//! One of several replicas of a controller leads. A leader that was paused, cut off or slow
//! may not know that another leads by now, and no election can tell it in time. So the
//! leader is only given a client that stops writing *before* anybody else may start, and
//! each write carries a [`Term`] by which the API server itself can refuse what still comes
//! late. The promise and its limits are in the README.
//!
//! ```no_run
//! use fenced_lease::{Contender, Identity, LeaderContext, LeaseRef};
//! use k8s_openapi::api::core::v1::ConfigMap;
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = kube::Client::try_default().await?;
//! let contender = Contender::builder(client, LeaseRef::new("default", "my-controller"))
//!     .identity(Identity::of_pod("my-controller-0", "the pod's uid"))
//!     .build()?;
//! let shutdown = CancellationToken::new();
//! contender
//!     .run(
//!         async |leader: LeaderContext| {
//!             // Writes carry the term, and stop when it is over.
//!             let config_maps = leader.client.api::<ConfigMap>();
//!             tokio::select! {
//!                 () = leader.drain.cancelled() => {}
//!                 () = leader.lost.cancelled() => {}
//!             }
//!             drop(config_maps);
//!         },
//!         shutdown,
//!     )
//!     .await;
//! # Ok(())
//! # }
//! ```
//!
//! # Glossary
//!
//! | word | what it is |
//! |---|---|
//! | *Lease* | the Kubernetes object that names the leader |
//! | [`Candidate`](candidate::Candidate) | one participant of the contest, as a pure state machine: what it has read and observed, and what it may do |
//! | [`Contender`] | the task that runs a candidate against an API server, and the leader's work while it leads |
//! | [`Term`] | one period of leadership of one candidate, and the fencing token of its writes |
//! | *Guard* | the layer below kube-leader-election that makes its writes conditional and its clock ours |
//! | *Fence* | the layer below a [`LeaderClient`] that stamps writes and stops them in time; the [`FencePolicy`] is its part in the API server |
//! | [`Heartbeat`] | the sign of life of the contender's task, for a liveness probe |
//! | *Proof* | the pod and container that a holder publishes; once the kubelet reports that container as terminated, the Lease is free at once |
//! | [`Leader`], [`Leadership`] | who leads as a candidate knows it, and the read side of that |
//! | [`LeaderWork`], [`LeaderContext`] | what a leader does, and what it is given for one term |
//!
//! # Features
//!
//! - `client` (default): everything that talks to an API server. Without it the crate is the
//!   pure protocol: [`candidate`], [`lease`], [`term`] and [`Timings`], which depend on
//!   nothing and are what a model checker links.
//! - `testing`: what tests of a leader's work need.
//!
//! [Lease]: https://kubernetes.io/docs/concepts/architecture/leases/
#![deny(missing_docs)]
#![cfg_attr(not(feature = "client"), allow(rustdoc::broken_intra_doc_links))]
pub mod candidate;
pub mod lease;
pub mod term;
mod timings;

pub use lease::AcquireReason;
pub use term::Term;
pub use timings::{InvalidTimings, Timings};

#[cfg(feature = "client")]
mod builder;
#[cfg(feature = "client")]
mod clock;
#[cfg(feature = "client")]
mod clocks;
#[cfg(feature = "client")]
mod contender;
#[cfg(feature = "client")]
mod error;
#[cfg(feature = "client")]
mod event;
#[cfg(feature = "client")]
mod fence;
#[cfg(feature = "client")]
mod guard;
#[cfg(feature = "client")]
mod heartbeat;
#[cfg(feature = "client")]
mod identity;
#[cfg(feature = "client")]
mod keys;
#[cfg(feature = "client")]
mod leadership;
#[cfg(feature = "client")]
mod policy;
#[cfg(feature = "client")]
mod proof;
#[cfg(all(test, feature = "client"))]
mod test_contender;
#[cfg(all(test, feature = "client"))]
mod test_server;
#[cfg(feature = "client")]
mod watch;

#[cfg(feature = "client")]
pub use crate::{
    builder::{ContenderBuilder, LeaseRef},
    clock::{Clock, System, Time},
    clocks::{Clocks, Dated, LeaderTime},
    contender::Contender,
    error::BuildError,
    event::{Barrier, EndReason, Event},
    fence::{CannotCarryTerm, LeaderClient, NotLeading},
    heartbeat::Heartbeat,
    identity::Identity,
    leadership::{Leader, LeaderContext, LeaderWork, Leadership},
    policy::{FencePolicy, is_fenced},
};
