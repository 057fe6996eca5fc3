//! `kubemq doctor`: how fast the disk is, whether a stopped node's files are whole, and what to do about it.
//!
//! It changes nothing but temporary files, which it removes. While a server runs on the files it measures the
//! disk and refuses to judge them. `export` writes down what the files hold, also when they are damaged.

mod advice;
mod disk_speed;
mod export;
mod files;
mod holdings;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use kubemq_runtime::{OnFailure, Runtime, chain};
use kubemq_storage::fs::{Disk, RealDisk};
use kubemq_storage::log::Salvage;
use serde::Serialize;

use self::disk_speed::Speed;
use self::export::Line;
use self::files::Files;
use self::holdings::Holdings;
use super::client;
use super::output::{self, Ending, Failure, Format};
use super::settings::{self, Settings};
use crate::config::Config;

/// The exit code when something stored is damaged.
const DAMAGED: u8 = 70;

/// Measure the disk and check a stopped node's files
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq doctor
  kubemq doctor --data /var/lib/kubemq --output json
  kubemq doctor export > messages.jsonl

Nothing is changed. Stop the server first to have its files checked.

Exit codes: 0 nothing to worry about, 1 the files could not be looked at, 2 wrong usage, 70 something stored is damaged.")]
pub struct Doctor {
    #[command(subcommand)]
    command: Option<Task>,
    /// Directory of the node's data [default: the configured one, ./kubemq-data]
    #[arg(long, value_name = "DIR", global = true)]
    data: Option<String>,
    /// Check the files and do not measure the disk
    #[arg(long)]
    files_only: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// What else the doctor does.
#[derive(Debug, clap::Subcommand)]
enum Task {
    Export(Export),
}

/// Write what a stopped node's files hold to standard output, damaged or not
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq doctor export > messages.jsonl
  kubemq doctor export --data /var/lib/kubemq --channel orders

A line of JSON for each message of queues and stored events: its channel, kind, sequence, times in nanoseconds since
1970, metadata, tags, and the body in base64. A message that cannot be read has a line that says why. What is in doubt is
told on standard error. Nothing is changed.

Exit codes: 0 everything was written, 1 the files could not be looked at, 2 wrong usage, 70 something is missing or in
doubt.")]
struct Export {
    /// Only this channel; may be repeated
    #[arg(long = "channel", value_name = "NAME")]
    channels: Vec<String>,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Diagnosis {
    data: PathBuf,
    durability: String,
    speed: Option<Speed>,
    free_bytes: Option<u64>,
    files: Files,
    advice: Vec<String>,
}

impl Doctor {
    /// Runs the command and returns the exit code of the process.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let config = match Settings::for_data(self.data).load() {
            Ok(config) => config,
            Err(invalid) => {
                settings::complain(&invalid);
                return ExitCode::FAILURE;
            }
        };
        let data = std::path::absolute(&config.data).unwrap_or_else(|_| config.data.clone());
        let mut verdict = ExitCode::SUCCESS;
        let found = &mut verdict;
        let printed = client::run(|runtime| async move {
            if let Some(Task::Export(Export { channels })) = self.command {
                if !write_out(&runtime, data, channels).await? {
                    *found = ExitCode::from(DAMAGED);
                }
                return Ok(Ending::Done);
            }
            let diagnosis = diagnose(&runtime, data, &config, self.files_only).await?;
            *found = diagnosis.exit_code();
            diagnosis.print(self.output)?;
            Ok(Ending::Done)
        });
        match printed {
            Ok(_) => verdict,
            failed => output::finish(failed),
        }
    }
}

async fn diagnose(runtime: &Runtime, data: PathBuf, config: &Config, files_only: bool) -> Result<Diagnosis, Failure> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let examination = examine(disk, runtime.clone(), data, config.clone(), files_only);
    // It reads files all the time, and so it needs a thread of its own.
    let examined = runtime.tasks.dedicated("doctor", OnFailure::Log, examination).await;
    examined.map_err(|_| Failure::Refused("the examination broke off".to_owned()))
}

/// Writes down what the files hold; returns whether nothing is missing or in doubt.
async fn write_out(runtime: &Runtime, data: PathBuf, channels: Vec<String>) -> Result<bool, Failure> {
    let own = runtime.clone();
    let writing = async move {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let refused = |reason: String| Failure::Refused(format!("{}: {reason}", data.display()));
        let _taken = files::take(&disk, &data).await.map_err(refused)?;
        let failed = |error: kubemq_storage::Error| refused(chain(&error).to_string());
        let salvage = Salvage::open(Arc::clone(&disk), &data.join("log")).await.map_err(failed)?;
        let mut holdings = Holdings::open(&disk, &own, &data, salvage).await.map_err(failed)?;
        let (mut written, mut unreadable) = (0_u64, 0_u64);
        let wanted = |channel: &str| channels.is_empty() || channels.iter().any(|wanted| wanted == channel);
        holdings
            .each(|item| {
                if !wanted(item.channel) {
                    return Ok(());
                }
                let line = Line::new(&item);
                let count = if line.is_readable() { &mut written } else { &mut unreadable };
                *count += 1;
                output::json(&line)
            })
            .await?;
        for doubt in holdings.doubts() {
            output::note(format_args!("{doubt}"));
        }
        output::note(format_args!("{written} messages written, {unreadable} cannot be read"));
        Ok(unreadable == 0 && holdings.doubts().is_empty())
    };
    let written = runtime.tasks.dedicated("doctor", OnFailure::Log, writing).await;
    written.map_err(|_| Failure::Refused("the export broke off".to_owned()))?
}

async fn examine(disk: Arc<dyn Disk>, runtime: Runtime, data: PathBuf, config: Config, files_only: bool) -> Diagnosis {
    // Of a directory that is not there yet, the disk is that of the nearest one that is.
    let place = data.ancestors().find(|dir| dir.is_dir()).unwrap_or(&data).to_owned();
    let speed = if files_only { None } else { measure(&*disk, &runtime, &place).await };
    let free_bytes = disk.free_space(&place).await.ok();
    let files = files::check(&disk, &runtime, &data).await;
    let advice = advice::advice(config.flush, speed.as_ref(), free_bytes, &files);
    Diagnosis { data, durability: config.durability(), speed, free_bytes, files, advice }
}

async fn measure(disk: &dyn Disk, runtime: &Runtime, place: &Path) -> Option<Speed> {
    match disk_speed::measure(disk, &runtime.clock, place).await {
        Ok(speed) => Some(speed),
        Err(error) => {
            output::note(format_args!("the disk could not be measured: {}", chain(&error)));
            None
        }
    }
}

impl Diagnosis {
    fn exit_code(&self) -> ExitCode {
        match &self.files {
            Files::Unreadable { .. } => ExitCode::FAILURE,
            Files::Checked(report) if report.is_damaged() => ExitCode::from(DAMAGED),
            Files::None | Files::Checked(_) => ExitCode::SUCCESS,
        }
    }

    fn print(&self, format: Format) -> std::io::Result<()> {
        if format == Format::Json {
            return output::json(self);
        }
        output::line(format_args!("Data directory  {}", self.data.display()))?;
        output::line(format_args!("Durability      {}", self.durability))?;
        if let Some(speed) = &self.speed {
            output::line(format_args!(
                "Flush of 4 KiB  p50 {} µs, p99 {} µs, longest {} µs, over {} flushes",
                speed.p50_us, speed.p99_us, speed.longest_us, speed.flushes
            ))?;
        }
        if let Some(free) = self.free_bytes {
            output::line(format_args!("Free space      {} MiB", free >> 20))?;
        }
        match &self.files {
            Files::None => output::line("Files           none: no node has run there")?,
            Files::Unreadable { reason } => output::line(format_args!("Files           not checked: {reason}"))?,
            Files::Checked(report) => {
                output::line(format_args!(
                    "Log             {} files, {} MiB, {} entries: {}",
                    report.segments,
                    report.bytes >> 20,
                    report.entries,
                    report.log_verdict()
                ))?;
                output::line(format_args!("Snapshots       {}", report.snapshot_verdict()))?;
                output::line(format_args!("Index           {}", report.index))?;
                for holds in &report.holds {
                    let files::Holds { kind, channels, messages, unreadable } = holds;
                    let unreadable =
                        if *unreadable == 0 { String::new() } else { format!(", {unreadable} UNREADABLE") };
                    output::line(format_args!(
                        "Holds           {channels} {kind} with {messages} messages{unreadable}"
                    ))?;
                }
                for doubt in &report.doubts {
                    output::line(format_args!("  in doubt: {doubt}"))?;
                }
                for finding in &report.findings {
                    output::line(format_args!("  {} at byte {}: {}", finding.file, finding.offset, finding.what))?;
                }
            }
        }
        output::line("")?;
        self.advice.iter().try_for_each(|advice| output::line(format_args!("- {advice}")))
    }
}
