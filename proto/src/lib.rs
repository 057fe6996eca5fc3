//! The words on the wire.
//!
//! [`kubemq`] is the client API, generated from `kubemq.proto`. Around it stand the rules that every door to
//! the broker shares: [`validate`] and [`subscribe`] decide in which order a client's mistakes are reported, [`strings`] holds
//! every sentence that a client can read, [`id`] makes ids, [`stored`] turns a message on the wire into the
//! bytes that are stored and back, and [`frame`] is what subscribers are sent. Nothing here waits, reads a clock
//! or touches a socket.

pub mod frame;
pub mod id;
pub mod stored;
pub mod strings;
pub mod subscribe;
pub mod validate;

/// The client API as generated from `kubemq.proto`: messages, client and server.
#[expect(missing_docs, reason = "generated; the fields are described in kubemq.proto")]
pub mod kubemq {
    tonic::include_proto!("kubemq");
    include!(concat!(env!("OUT_DIR"), "/server/kubemq.rs"));
}

/// The encoded descriptors of `kubemq.proto`, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
