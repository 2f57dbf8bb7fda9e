//! `fanlight control token`: mints a backend's bearer token. For tests and development; a platform
//! signs its own with any library for JWTs. Not the checking (`auth.rs`). Invariant: the private
//! key is made once, mode 0600, and never printed.

#![allow(clippy::print_stdout, reason = "a command-line tool talks to its terminal")]

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::{
    auth::{ALL_TENANTS, BACKEND_AUDIENCE, BackendClaims, MAX_TOKEN_LIFE, Scope},
    clock::unix_seconds,
    token::TokenKey,
};

/// Flags of `fanlight control token`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Private key of the backend (Ed25519, PKCS#8 PEM); made when it is not there
    #[arg(long, value_name = "FILE")]
    pub key_file: PathBuf,
    /// JWK set that the public half is added to; what `backend_keys_file` names
    #[arg(long, value_name = "FILE")]
    pub jwks_file: Option<PathBuf>,
    /// Who calls
    #[arg(long, value_name = "NAME", default_value = "backend")]
    pub subject: String,
    /// Issuer; what `backend_issuer` names
    #[arg(long, value_name = "NAME", default_value = "fanlight-backend")]
    pub issuer: String,
    /// Tenant that the caller is confined to; "*": all
    #[arg(long, value_name = "NAME", default_value = ALL_TENANTS)]
    pub tenant: String,
    /// What the caller may do; may be given several times. Nothing given: everything
    #[arg(long = "scope", value_name = "SCOPE")]
    pub scopes: Vec<Scope>,
    /// Life of the token in seconds, at most 3600
    #[arg(long, value_name = "SECONDS", default_value_t = MAX_TOKEN_LIFE.as_secs())]
    pub ttl_s: u64,
}

/// Prints a token.
///
/// # Errors
/// Files that cannot be used, a life that is too long.
pub fn run(args: &Args) -> anyhow::Result<()> {
    println!("{}", mint(args)?);
    Ok(())
}

/// Makes what is missing and mints a token.
///
/// # Errors
/// As [`run`].
pub fn mint(args: &Args) -> anyhow::Result<String> {
    let ttl = Duration::from_secs(args.ttl_s);
    ensure!(!ttl.is_zero() && ttl <= MAX_TOKEN_LIFE, "a token lasts 1 to 3600 seconds");
    ensure!(!args.tenant.is_empty() && !args.subject.is_empty(), "tenant and subject are needed");
    let key = TokenKey::load_or_create(&args.key_file)?;
    if let Some(path) = &args.jwks_file {
        publish(path, &key)?;
    }
    let scopes = if args.scopes.is_empty() { Scope::ALL } else { args.scopes.as_slice() };
    let scope = scopes.iter().map(|s| s.as_str()).collect::<Vec<_>>().join(" ");
    let iat = unix_seconds();
    let claims = BackendClaims {
        iss: args.issuer.clone(),
        aud: BACKEND_AUDIENCE.to_owned(),
        sub: args.subject.clone(),
        iat,
        exp: iat + args.ttl_s,
        scope,
        tenant: args.tenant.clone(),
    };
    Ok(key.sign(&claims)?)
}

/// Adds the public half to a JWK set, unless it is there.
fn publish(path: &Path, key: &TokenKey) -> anyhow::Result<()> {
    let ours: Value = serde_json::from_str(&key.jwks_json())?;
    let ours = ours["keys"].as_array().cloned().unwrap_or_default();
    let mut set: Value = match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .with_context(|| format!("{} is not JSON", path.display()))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => serde_json::json!({ "keys": [] }),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    let Some(keys) = set.get_mut("keys").and_then(Value::as_array_mut) else {
        bail!("{} is not a JWK set", path.display());
    };
    let new: Vec<_> = ours.into_iter().filter(|k| !keys.contains(k)).collect();
    if new.is_empty() {
        return Ok(());
    }
    keys.extend(new);
    // Renamed into place: a replica that reads it at this moment sees the old or the new one.
    let staged = path.with_extension(format!("new.{}", std::process::id()));
    let write = || {
        fs::write(&staged, serde_json::to_vec_pretty(&set)?)?;
        fs::rename(&staged, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
