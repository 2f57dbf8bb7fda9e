//! Compiles `fanlight/**/*.proto` to Rust with protox: no `protoc` is needed.

use std::{env, error::Error, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 7] = [
    "fanlight/types/v1/types.proto",
    "fanlight/control/v1/stream_service.proto",
    "fanlight/control/v1/viewer_service.proto",
    "fanlight/control/v1/node_service.proto",
    "fanlight/control/v1/event_service.proto",
    "fanlight/node/v1/node_link.proto",
    "fanlight/node/v1/hop.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // Ordered maps, so that equal messages encode to equal bytes (request fingerprints need it).
    tonic_prost_build::configure().btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
