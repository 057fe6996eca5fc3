//! The program, as a library for its own `main` and for the tests.

pub mod cli;
