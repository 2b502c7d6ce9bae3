//! Compiles `proto/` without a system protoc, and stores the descriptors for gRPC reflection.
use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const SERVICE: &str = "ottoscaler/v1/ottoscaler.proto";
const PROTOS: [&str; 3] = [
    SERVICE,
    "ottoscaler/v1/admin.proto",
    "ottoscaler/v1/log.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=../../proto");
    let descriptors = protox::compile(PROTOS, ["../../proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Equal workers have equal encodings.
        .btree_map(".ottoscaler.v1.WorkerPodStatus")
        .compile_fds(descriptors)?;

    // The same service once more, whose responses `src/encoded.rs` writes.
    let encoded = out.join("encoded");
    fs::create_dir_all(&encoded)?;
    let mut service = tonic_prost_build::configure()
        .out_dir(encoded)
        .build_client(false)
        .extern_path(".ottoscaler.v1", "crate");
    for message in ["WorkerStatusResponse", "WorkerEvent"] {
        service = service.extern_path(
            format!(".ottoscaler.v1.{message}"),
            format!("crate::encoded::{message}"),
        );
    }
    service.compile_fds(protox::compile([SERVICE], ["../../proto"])?)?;
    Ok(())
}
