//! The program, as a library for its own `main` and for the tests.
//!
//! A node is built in [`node`]; what a process adds to it, ports, signals and the data directory, is in [`serve`].
//! Clients come in through [`grpc`], operators through [`admin`], and everything they ask for goes through the
//! [`gateway`]; what is not stored goes on from there to [`live`].

pub mod admin;
pub mod cli;
pub mod config;
mod damage;
pub mod data_dir;
mod desk;
pub mod gateway;
pub mod grpc;
mod index_feed;
mod index_memory;
pub mod limits;
pub mod live;
pub mod metrics;
pub mod node;
mod power;
pub mod reference;
mod replica;
pub mod scrub;
pub mod serve;
pub mod telemetry;
mod traffic;
