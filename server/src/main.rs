//! The program: reads the command line and runs one command, whose exit code is the process's.

use std::process::ExitCode;

use clap::Parser as _;
use kubemq_server::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
