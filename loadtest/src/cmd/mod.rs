//! The experiments, as commands. Each takes flags, runs one load, and gives findings. Not the
//! parts that they are made of. Invariant: whatever ends an experiment, its child processes end
//! with it.

mod abuse;
mod chaos;
mod churn;
mod clicks;
mod control;
mod fanout;
mod hop;
mod join;
mod loss;
mod relay;

use anyhow::Context as _;
use fanlight_ops::{
    log::{self, LogConfig},
    shutdown::Shutdown,
};

use crate::{
    lab::LabArgs,
    report::Findings,
    server::{Pins, raise_open_files},
};

/// Flags of `fanlight loadtest`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    /// Log filter, for example info or fanlight_loadtest=debug
    #[arg(long, value_name = "FILTER", default_value = "warn", global = true)]
    log: String,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Many viewers of a few streams, every packet verified
    Fanout(fanout::Args),
    /// Many joins: how long until the picture, and what they cost the router
    Join(join::Args),
    /// Bad networks: who is behind them, and who is not
    Loss(loss::Args),
    /// A bad line between a device host and its router
    Hop(hop::Args),
    /// People who come and go while others watch
    Churn(churn::Args),
    /// A long churn, and what grows in it
    Soak(churn::Args),
    /// Touches from viewer to device while others watch
    Clicks(clicks::Args),
    /// Hostile clients with valid tokens, while others watch
    Abuse(abuse::Args),
    /// Calls to the control API: how many one CPU answers, and how fast
    Control(control::Args),
    /// A whole fleet, and what people see of it while parts of it fail
    Chaos(chaos::Args),
    /// A bad network as a process, for browsers; measures nothing
    Relay(relay::Args),
}

/// Runs one experiment; ends early with the shutdown.
///
/// # Errors
/// Anything that keeps it from measuring what it is for.
pub async fn run(args: Args, shutdown: Shutdown) -> anyhow::Result<()> {
    log::init(&LogConfig { filter: args.log.clone(), ..LogConfig::default() });
    raise_open_files();
    let mut args = args;
    let pins = args.command.decide_pins();
    let (done, result) = tokio::sync::oneshot::channel();
    let token = shutdown.token();
    // A thread of its own, because what is pinned is a thread and those that it makes.
    let thread = std::thread::Builder::new().name("loadtest".to_owned()).spawn(move || {
        pins.join_load();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let outcome = runtime.context("cannot start the load's runtime").and_then(|runtime| {
            runtime.block_on(async {
                // It ends by being told to, which is no failure.
                if let Command::Relay(args) = &args.command {
                    return relay::run(args, token).await;
                }
                tokio::select! {
                    outcome = experiment(args.command) => outcome,
                    () = token.cancelled() => Err(anyhow::anyhow!("stopped before it was done")),
                }
            })
        });
        let _ = done.send(outcome);
    })?;
    let outcome = result.await.context("the load's thread ended")?;
    let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    outcome
}

impl Command {
    /// CPUs of what is measured and of the load.
    fn decide_pins(&mut self) -> Pins {
        if let Self::Control(args) = self {
            return args.decide_pins();
        }
        self.lab().map(LabArgs::decide_pins).unwrap_or_default()
    }

    /// The setting of the experiments that have one.
    fn lab(&mut self) -> Option<&mut LabArgs> {
        match self {
            Self::Fanout(args) => Some(&mut args.lab),
            Self::Join(args) => Some(&mut args.lab),
            Self::Loss(args) => Some(&mut args.lab),
            Self::Churn(args) | Self::Soak(args) => Some(&mut args.lab),
            Self::Clicks(args) => Some(&mut args.lab),
            Self::Abuse(args) => Some(&mut args.lab),
            Self::Control(_) | Self::Chaos(_) | Self::Hop(_) | Self::Relay(_) => None,
        }
    }
}

async fn experiment(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Fanout(args) => fanout::run(&args).await?.publish(&args.output),
        Command::Join(args) => join::run(&args).await?.publish(&args.output),
        Command::Hop(args) => hop::run(&args).await?.publish(&args.output),
        Command::Loss(args) => loss::run(&args).await?.publish(&args.output),
        Command::Churn(args) => churn::run(&args, "churn", 60).await?.publish(&args.output),
        Command::Soak(args) => churn::run(&args, "soak", 1_800).await?.publish(&args.output),
        Command::Clicks(args) => clicks::run(&args).await?.publish(&args.output),
        Command::Abuse(args) => abuse::run(&args).await?.publish(&args.output),
        Command::Chaos(args) => chaos::run(&args).await?.publish(&args.output),
        Command::Control(args) => control::run(&args).await?.publish(&args.output),
        Command::Relay(_) => Ok(()),
    }
}

/// Facts of the set-up that every experiment states.
fn set_up(findings: &mut Findings, lab: &LabArgs) {
    findings.set("source", lab.source.clone());
    findings.set("streams", lab.streams);
    findings.set("shards", lab.shards);
    findings.set("pinned", lab.pins.is_pinned());
    findings.set("debug_build", cfg!(debug_assertions));
}
