//! The gRPC contract of Ottoscaler: the messages, clients and servers that are generated from
//! `proto/ottoscaler/v1`.
pub mod encoded;

tonic::include_proto!("ottoscaler.v1");

/// The encoded `FileDescriptorSet` of the contract, which gRPC reflection serves.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The key of the request metadata in which a client says how many bytes of a response it accepts.
///
/// Without it a response has at most the 4 MiB that gRPC clients accept by default.
pub const MAX_RESPONSE_BYTES_KEY: &str = "ottoscaler-max-answer-bytes";
