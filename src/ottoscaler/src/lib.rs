//! Ottoscaler runs CI/CD workers as pods for otto-handler.
//!
//! The way of a `ScaleUp`: `grpc` takes the call and checks it with `domain`,
//! on a follower `grpc::forward` sends it on to the leader; there `workers`
//! writes the WorkerTask and its pods through `cluster`. What the API server
//! then tells comes back through `cluster::watch` into `index`, from which
//! `grpc` answers status, `workers` plans on and `logs` follows the pods.
pub mod app;
pub mod args;
pub mod cluster;
pub mod election;
pub mod grpc;
pub mod handler;
pub mod index;
mod leader;
pub mod listen;
pub mod logs;
pub mod mounted;
pub mod supervisor;
pub mod telemetry;
pub mod tls;
pub mod workers;

pub use api as proto;
pub use domain;
