//! The program, as a library for its own `main` and for the tests.

pub mod cli;
mod desk;
pub mod gateway;
mod index_feed;
pub mod node;
mod replica;
