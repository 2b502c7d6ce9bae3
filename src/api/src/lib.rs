//! The contract of Ottoscaler with its callers: messages, clients and servers
//! that are generated from `proto/ottoscaler/v1`.
tonic::include_proto!("ottoscaler.v1");

/// The encoded `FileDescriptorSet` of the contract, which gRPC reflection serves.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The key of the request metadata in which a caller says how many bytes of an answer it takes.
///
/// Without it an answer has at most the 4 MiB that gRPC clients take by default.
pub const MAX_ANSWER: &str = "ottoscaler-max-answer-bytes";
