//! Compiles `kubemq.proto` without `protoc`.

use std::error::Error;
use std::path::PathBuf;

use prost_build::Config;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=kubemq.proto");
    let descriptors = protox::compile(["kubemq.proto"], ["."])?;
    let directory = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(directory.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    let mut config = Config::new();
    // Decoding slices the receive buffer instead of copying bodies; maps iterate in the order of their keys,
    // so that a message has one encoding.
    config.bytes(["."]).btree_map(["."]);
    tonic_prost_build::configure().emit_rerun_if_changed(false).compile_fds_with_config(descriptors, config)?;
    Ok(())
}
