//! `kubemq doctor`: how fast the disk is, whether a stopped node's files are whole, and what to do about it.
//!
//! It changes nothing but one temporary file, which it removes. While a server runs on the files it measures the
//! disk and refuses to judge them.

mod advice;
mod disk_speed;
mod files;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use kubemq_runtime::{OnFailure, Runtime, chain};
use kubemq_storage::fs::{Disk, RealDisk};
use serde::Serialize;

use self::disk_speed::Speed;
use self::files::Files;
use super::client;
use super::output::{self, Ending, Failure, Format};
use super::settings::{self, Settings};

/// The exit code when something stored is damaged.
const DAMAGED: u8 = 70;

/// Measure the disk and check a stopped node's files
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubemq doctor
  kubemq doctor --data /var/lib/kubemq --output json

Nothing is changed. Stop the server first to have its files checked.

Exit codes: 0 nothing to worry about, 1 the files could not be looked at, 2 wrong usage, 70 something stored is damaged.")]
pub struct Doctor {
    /// Directory of the node's data [default: the configured one, ./kubemq-data]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Diagnosis {
    data: PathBuf,
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
        let data = std::path::absolute(&config.data).unwrap_or(config.data);
        let mut verdict = ExitCode::SUCCESS;
        let found = &mut verdict;
        let printed = client::run(|runtime| async move {
            let diagnosis = diagnose(&runtime, data).await?;
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

async fn diagnose(runtime: &Runtime, data: PathBuf) -> Result<Diagnosis, Failure> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let examination = examine(disk, runtime.clone(), data);
    // It reads files all the time, and so it needs a thread of its own.
    let examined = runtime.tasks.dedicated("doctor", OnFailure::Log, examination).await;
    examined.map_err(|_| Failure::Refused("the examination broke off".to_owned()))
}

async fn examine(disk: Arc<dyn Disk>, runtime: Runtime, data: PathBuf) -> Diagnosis {
    // Of a directory that is not there yet, the disk is that of the nearest one that is.
    let place = data.ancestors().find(|dir| dir.is_dir()).unwrap_or(&data).to_owned();
    let speed = match disk_speed::measure(&*disk, &runtime.clock, &place).await {
        Ok(speed) => Some(speed),
        Err(error) => {
            output::note(format_args!("the disk could not be measured: {}", chain(&error)));
            None
        }
    };
    let free_bytes = disk.free_space(&place).await.ok();
    let files = files::check(&disk, &runtime, &data).await;
    let advice = advice::advice(speed.as_ref(), free_bytes, &files);
    Diagnosis { data, speed, free_bytes, files, advice }
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
                for finding in &report.findings {
                    output::line(format_args!("  {} at byte {}: {}", finding.file, finding.offset, finding.what))?;
                }
            }
        }
        output::line("")?;
        self.advice.iter().try_for_each(|advice| output::line(format_args!("- {advice}")))
    }
}
