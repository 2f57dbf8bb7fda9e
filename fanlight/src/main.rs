//! Entry point: every role as a subcommand, and the demo. Not the roles. Invariant: an error ends
//! the process with one clear line on standard error and exit code 1.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use fanlight::cli::{Cli, Command};
use fanlight_ops::shutdown::Shutdown;

/// Time the tasks of a role have after SIGINT or SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(&anyhow::Error::new(e).context("cannot start the runtime")),
    };
    let result = runtime.block_on(run(cli.command));
    // Blocking threads that have not ended by now hold nothing that must be kept.
    runtime.shutdown_timeout(Duration::from_millis(200));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("fanlight: {error:#}");
    ExitCode::FAILURE
}

async fn run(command: Command) -> anyhow::Result<()> {
    let shutdown = Shutdown::new(STOP_DEADLINE);
    match command {
        Command::Pki(args) => return fanlight::pki::run(&args),
        Command::Router(_) => shutdown.listen_signals_draining()?,
        _ => shutdown.listen_signals()?,
    }
    match command {
        Command::Demo(args) => fanlight::demo::run(*args, shutdown.clone()).await?,
        Command::Router(args) => fanlight_router::run(*args, shutdown.clone()).await?,
        Command::Ingest(args) => fanlight_ingest::run(*args, shutdown.clone()).await?,
        Command::DeviceSim(args) => fanlight_device_sim::run(*args, shutdown.clone()).await?,
        Command::Control(args) => fanlight_control::run(*args, shutdown.clone()).await?,
        Command::Loadtest(args) => fanlight_loadtest::run(*args, shutdown.clone()).await?,
        Command::Pki(_) => {}
    }
    shutdown.trigger();
    Ok(shutdown.wait().await?)
}
