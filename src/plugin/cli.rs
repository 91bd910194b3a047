//! The command line of the plugin.

use super::cluster::Connection;
use super::error::{Error, NOT_FOUND};
use super::output::{fail, print};
use super::who::Who;
use crate::telemetry::metrics::{COMMIT, VERSION};
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use std::sync::LazyLock;

/// Who holds a binding of switchboard.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-switchboard",
    bin_name = "kubectl switchboard",
    version,
    long_version = LONG_VERSION.as_str(),
    max_term_width = 120,
    after_long_help = MORE
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    connection: Connection,
}

/// The output of `--version`.
static LONG_VERSION: LazyLock<String> = LazyLock::new(|| format!("{VERSION}\ncommit {COMMIT}"));

const MORE: &str = "\
Examples:
  kubectl switchboard who sms '+1 (555) 867-5310' +15017122661

Colours are used on a terminal only, and not if NO_COLOR is set.

Exit codes:
  0  success
  1  failure; the last line on stderr has the cause and the next step
  2  invalid command line
  3  no conversation holds the binding";

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the conversation that holds a binding, and those that wait for it, in all namespaces
    Who(Who),
}

impl Cli {
    /// Runs the command.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime.map_err(Error::from).and_then(|runtime| runtime.block_on(self.execute())) {
            Ok(code) => code,
            Err(error) => {
                fail(&error);
                error.exit_code()
            }
        }
    }

    async fn execute(self) -> Result<ExitCode, Error> {
        let cluster = self.connection.connect().await?;
        match self.command {
            Command::Who(who) => {
                let (text, is_found) = who.run(&cluster).await?;
                print(&text)?;
                Ok(if is_found { ExitCode::SUCCESS } else { NOT_FOUND.into() })
            }
        }
    }
}
