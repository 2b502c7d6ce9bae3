//! Programs that stand opposite Ottoscaler in its tests, and the formats that
//! they share. Nothing here uses Ottoscaler's own code.
pub mod audit;
pub mod check;
pub mod pace;
pub mod record;
pub mod tail;
pub mod truth;

/// Generated from the wire contract on its own.
pub mod proto {
    tonic::include_proto!("ottoscaler.v1");
}
