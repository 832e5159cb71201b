//! A broker with a bug planted, as a process of its own: the `torture` binary under another name.
//!
//! The real binary has no bugs to plant. This one starts the same broker from the same settings, and
//! says that it is ready in the same words.

use std::ffi::OsStr;
use std::process::{Command, ExitCode};

use longwire_broker::config::{Sources, load};
use longwire_broker::{Broker, StartError};
use longwire_storage::{OpenError, Plant, plant};

/// The first argument that makes the `torture` binary a broker.
const NAME: &str = "planted-broker";
const DAMAGED: u8 = 65;
const FAILED: u8 = 74;

/// A process of the `torture` binary that is a broker with this bug. Takes `--set KEY=VALUE`.
pub fn command(torture: impl AsRef<OsStr>, bug: Plant) -> Command {
    let name = Plant::ALL.iter().find(|(_, known)| *known == bug).map_or("", |(name, _)| name);
    let mut command = Command::new(torture);
    command.args([NAME, name]);
    command
}

/// Is that broker until its store fails, if this process was started by [`command`].
pub fn run_if_asked(mut arguments: impl Iterator<Item = String>) -> Option<ExitCode> {
    if arguments.next().as_deref() != Some(NAME) {
        return None;
    }
    let bug = arguments.next().unwrap_or_default();
    plant(Plant::ALL.iter().find(|(name, _)| *name == bug).map(|(_, bug)| *bug));
    let settings = arguments.filter(|argument| argument != "--set").collect();
    let status = serve(settings).unwrap_or_else(|(status, problem)| {
        eprintln!("{NAME}: {problem}");
        status
    });
    Some(ExitCode::from(status))
}

fn serve(settings: Vec<String>) -> Result<u8, (u8, String)> {
    let failed = |problem: &dyn std::fmt::Display| (FAILED, problem.to_string());
    let loaded = load(&Sources { settings, ..Sources::default() }).map_err(|e| failed(&e))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| failed(&e))?.block_on(async {
        let broker = Broker::start(loaded.config).await.map_err(|error| match error {
            StartError::Store(OpenError::Corrupt { .. }) => (DAMAGED, error.to_string()),
            error => failed(&error),
        })?;
        let (data, control, http) = (broker.data_addr(), broker.control_addr(), broker.http_addr());
        eprintln!("{NAME}: ready data={data} control={control} http={http}");
        eprintln!("{NAME}: the store has failed: {}", broker.failed().await);
        Ok(FAILED)
    })
}
