//! `fanlight pki`: the private CA of a fleet and certificates for its nodes, as files. Not their
//! use (`fanlight_ops::pki`). Invariant: an existing CA key is never overwritten.

#![allow(clippy::print_stdout, reason = "a command-line tool talks to its terminal")]

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use fanlight_ops::pki::Ca;
use fanlight_proto::id::NodeId;

/// Flags of `fanlight pki`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Action {
    /// Makes the CA, unless the folder has one
    Init {
        /// Folder of the CA
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Signs a certificate for a node and writes node.pem, node.key and ca.pem
    Issue {
        /// Folder of the CA
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Name of the node
        #[arg(long)]
        node: NodeId,
        /// Folder to write to
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Further DNS name or IP address of the node; may be given several times
        #[arg(long = "san", value_name = "NAME")]
        sans: Vec<String>,
    },
}

/// Runs it.
///
/// # Errors
/// Files that cannot be read or written, an output folder that already holds a certificate.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.action {
        Action::Init { dir } => {
            Ca::load_or_create(dir)?;
            println!("the CA is in {}", dir.display());
        }
        Action::Issue { dir, node, out, sans } => {
            if !dir.join("ca.key").is_file() {
                bail!("{} holds no CA; make one: fanlight pki init --dir …", dir.display());
            }
            if out.join("node.key").exists() {
                bail!("{} already holds a certificate", out.display());
            }
            let cert = Ca::load_or_create(dir)?.issue_node(node, sans)?;
            cert.save(out).with_context(|| format!("cannot write to {}", out.display()))?;
            println!("certificate of {node} is in {}", out.display());
        }
    }
    Ok(())
}
