//! The command of the simulation.

fn main() {}
