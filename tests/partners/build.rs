//! Compiles the wire contract on its own, so that the partners do not share
//! generated code with the program they check.
use std::error::Error;

const PROTO_ROOT: &str = "../../proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO_ROOT}");
    let descriptors = protox::compile(
        [
            "ottoscaler/v1/ottoscaler.proto",
            "ottoscaler/v1/admin.proto",
            "ottoscaler/v1/log.proto",
        ],
        [PROTO_ROOT],
    )?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
