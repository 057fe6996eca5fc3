//! Compiles `kubemq.proto` without `protoc`: the messages and the client, then the server.
//!
//! The server does not build an `EventReceive` or a `Request` per receiver: in its half of the code the two
//! subscriptions stream `Frame`s (src/frame.rs), whose bytes are those of these messages.

use std::error::Error;
use std::path::PathBuf;

use prost_build::Config;
use prost_types::FileDescriptorSet;

/// The methods whose answers are encoded once for all receivers.
const SUBSCRIPTIONS: [&str; 2] = ["SubscribeToEvents", "SubscribeToRequests"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=kubemq.proto");
    let mut descriptors = protox::compile(["kubemq.proto"], ["."])?;
    let directory = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(directory.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    let builder = tonic_prost_build::configure().emit_rerun_if_changed(false);
    builder.clone().build_server(false).compile_fds_with_config(descriptors.clone(), config())?;

    stream_frames(&mut descriptors);
    let server = directory.join("server");
    std::fs::create_dir_all(&server)?;
    let mut config = config();
    config.extern_path(".kubemq", "crate::kubemq").extern_path(".kubemq.Frame", "crate::frame::Frame");
    builder.build_client(false).out_dir(server).compile_fds_with_config(descriptors, config)?;
    Ok(())
}

fn config() -> Config {
    let mut config = Config::new();
    // Decoding slices the receive buffer instead of copying bodies; maps iterate in the order of their keys,
    // so that a message has one encoding.
    config.bytes(["."]).btree_map(["."]);
    config
}

fn stream_frames(descriptors: &mut FileDescriptorSet) {
    for file in &mut descriptors.file {
        file.message_type.push(prost_types::DescriptorProto { name: Some("Frame".to_owned()), ..Default::default() });
        for method in file.service.iter_mut().flat_map(|service| &mut service.method) {
            if SUBSCRIPTIONS.contains(&method.name()) {
                method.output_type = Some(".kubemq.Frame".to_owned());
            }
        }
    }
}
