//! Configuration: TOML file < environment < flags, into one checked value. Not a place for any
//! role's own settings. Invariant: it is all read before any port is bound, every mistake that can
//! be found is reported at once, and no secret's value is ever part of a message.
//!
//! Environment variables are `FANLIGHT_` and the key in capitals, `__` between sections:
//! `FANLIGHT_ADMIN_LISTEN`, `FANLIGHT_ICE__PORT`. Lists and tables are written as JSON; a list of
//! words may be written with commas.
//!
//! Unknown keys are found by comparing what was given with what the value prints, so a
//! configuration type must serialise every field that it reads: no `skip_serializing_if`, no
//! `alias`.

mod merge;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use serde_json::Value;

pub use merge::{Mistake, load_from};

/// Prefix of environment variables.
pub const ENV_PREFIX: &str = "FANLIGHT_";

/// Variables with the prefix that are not configuration keys.
pub const RESERVED_ENV: &[&str] = &["FANLIGHT_BIN", "FANLIGHT_CONFIG", "FANLIGHT_ARTIFACTS"];

/// Largest configuration file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// All mistakes found in a configuration; one line each. The operator's to mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<Mistake>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// A value that is never shown: neither by `Debug`, nor by `--print-config`, nor in a message
/// about a mistake in it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Hides a value.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value, for the one place that needs it.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

/// What is shown in place of a secret.
pub const MASK: &str = "********";

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl<T> Serialize for Secret<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Secret<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The library's message would quote the value.
        T::deserialize(deserializer)
            .map(Self)
            .map_err(|_| serde::de::Error::custom("this secret cannot be read (value not shown)"))
    }
}

/// Reads a configuration: `file` < environment variables that begin with `env_prefix` < `flags`
/// (a JSON object; nulls and absent keys are flags that were not given).
pub fn load<T>(file: Option<&Path>, env_prefix: &str, flags: Value) -> Result<T, ConfigErrors>
where
    T: DeserializeOwned + Serialize,
{
    let text = match file {
        None => None,
        Some(path) => Some((path.display().to_string(), read(path)?)),
    };
    let file = text.as_ref().map(|(name, text)| (name.as_str(), text.as_str()));
    load_from(file, std::env::vars(), env_prefix, flags)
}

fn read(path: &Path) -> Result<String, ConfigErrors> {
    let fail = |why: String| ConfigErrors(vec![Mistake::of_file(&path.display().to_string(), why)]);
    let size = std::fs::metadata(path).map_err(|e| fail(e.to_string()))?.len();
    if size > MAX_FILE_BYTES {
        return Err(fail(format!("has {size} bytes, at most {MAX_FILE_BYTES} are read")));
    }
    std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))
}

/// The merged configuration as TOML, secrets masked.
pub fn print_config<T: Serialize>(config: &T) -> String {
    let mut value = match serde_json::to_value(config) {
        Ok(value) => value,
        Err(e) => return format!("# cannot be shown: {e}\n"),
    };
    drop_nulls(&mut value);
    toml::to_string_pretty(&value).unwrap_or_else(|e| format!("# cannot be shown: {e}\n"))
}

/// Writes `value` as JSON so that a reader sees the whole file or none.
///
/// # Errors
/// A folder that cannot be written to.
pub fn write_whole(path: &Path, value: &impl Serialize) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let staged = PathBuf::from(name);
    std::fs::write(&staged, serde_json::to_vec_pretty(value)?)?;
    std::fs::rename(&staged, path)
}

/// TOML has no null: a key that is not set is left out.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// The flags that every role has; flatten it into the role's `Args`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ConfigArgs {
    /// TOML file with the configuration; environment variables and flags go over it
    #[arg(long, value_name = "FILE", env = "FANLIGHT_CONFIG")]
    pub config: Option<PathBuf>,
    /// Show the merged configuration, secrets masked, and exit
    #[arg(long)]
    pub print_config: bool,
    /// Check the configuration and exit with 0 or 1
    #[arg(long)]
    pub check: bool,
    /// Write the addresses that were really bound to this file, as one JSON object, when all serve
    #[arg(long, value_name = "PATH")]
    pub ready_json: Option<PathBuf>,
}

impl ConfigArgs {
    /// Writes `--ready-json`, if it was asked for. The role calls it once everything serves.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn announce(&self, ready: &impl Serialize) -> std::io::Result<()> {
        let Some(path) = &self.ready_json else { return Ok(()) };
        write_whole(path, ready).map_err(|e| {
            std::io::Error::new(e.kind(), format!("cannot write {}: {e}", path.display()))
        })
    }

    /// Reads the configuration. `None`: `--print-config` or `--check` was given and is done, so
    /// the caller returns without starting anything.
    pub fn load<T>(&self, flags: Value) -> Result<Option<T>, ConfigErrors>
    where
        T: DeserializeOwned + Serialize,
    {
        let config = load(self.config.as_deref(), ENV_PREFIX, flags)?;
        self.finish(config, |_| Vec::new())
    }

    /// As [`Self::load`], with the role's own check of values that are well-formed one by one.
    pub fn load_checked<T>(
        &self,
        flags: Value,
        check: impl FnOnce(&T) -> Vec<Mistake>,
    ) -> Result<Option<T>, ConfigErrors>
    where
        T: DeserializeOwned + Serialize,
    {
        let config = load(self.config.as_deref(), ENV_PREFIX, flags)?;
        self.finish(config, check)
    }

    fn finish<T: Serialize>(
        &self,
        config: T,
        check: impl FnOnce(&T) -> Vec<Mistake>,
    ) -> Result<Option<T>, ConfigErrors> {
        let mistakes = check(&config);
        if !mistakes.is_empty() {
            return Err(ConfigErrors(mistakes));
        }
        if self.print_config {
            #[allow(clippy::print_stdout, reason = "this text is what the flag asks for")]
            {
                print!("{}", print_config(&config));
            }
        }
        Ok((!self.print_config && !self.check).then_some(config))
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
