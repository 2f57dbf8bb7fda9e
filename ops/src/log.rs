//! Log set-up: pretty on a terminal, JSON lines otherwise, always on standard error. Not a place
//! for what is logged. Invariant: the filter can be changed while running, and a filter that
//! cannot be read changes nothing.

use std::{
    fmt,
    io::IsTerminal as _,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, layer::SubscriberExt as _, reload,
    util::SubscriberInitExt as _,
};

/// Filter used when none is given: our own events, and the libraries' warnings. Targets match by
/// prefix, so `fanlight` stands for every package of ours.
pub const DEFAULT_FILTER: &str = "warn,fanlight=info";

/// Longest filter text, in bytes; more is refused.
pub const MAX_FILTER_BYTES: usize = 2048;

/// How to log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogConfig {
    /// Filter directives as `tracing-subscriber` reads them, for example `info,fanlight_router=debug`.
    pub filter: String,
    /// Form of the lines.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: DEFAULT_FILTER.to_owned(), format: LogFormat::Auto }
    }
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Pretty when standard error is a terminal, JSON otherwise.
    #[default]
    Auto,
    /// Short lines for people.
    Pretty,
    /// One JSON object per line.
    Json,
}

/// Why a filter was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The text is not a list of directives. The caller's mistake; the old filter stays.
    #[error("log filter {filter:?} cannot be read: {why}")]
    BadFilter {
        /// The text given, cut to 200 characters.
        filter: String,
        /// What the parser said.
        why: String,
    },
    /// Someone else's subscriber owns the process's log, so its filter is not ours to change.
    #[error("the log of this process was set up elsewhere")]
    NotOurs,
}

/// Changes the filter while running.
#[derive(Clone)]
pub struct LogHandle {
    inner: Arc<Inner>,
}

struct Inner {
    reload: Option<reload::Handle<EnvFilter, Registry>>,
    current: Mutex<String>,
}

static HANDLE: OnceLock<LogHandle> = OnceLock::new();

/// Sets up the log of the process and gives the handle to it. The first call decides; a later one
/// (several roles in one process, tests) gets the same handle. A filter that cannot be read is
/// replaced by [`DEFAULT_FILTER`] with a warning.
pub fn init(cfg: &LogConfig) -> LogHandle {
    HANDLE
        .get_or_init(|| {
            let (filter, text, mistake) = match parse(&cfg.filter) {
                Ok(filter) => (filter, cfg.filter.clone(), None),
                Err(e) => (EnvFilter::new(DEFAULT_FILTER), DEFAULT_FILTER.to_owned(), Some(e)),
            };
            let (filter, handle) = reload::Layer::new(filter);
            let pretty = match cfg.format {
                LogFormat::Auto => std::io::stderr().is_terminal(),
                LogFormat::Pretty => true,
                LogFormat::Json => false,
            };
            let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
            let lines = if pretty {
                lines.with_ansi(std::io::stderr().is_terminal()).compact().boxed()
            } else {
                lines.json().flatten_event(true).with_current_span(true).boxed()
            };
            let ours = tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok();
            if let Some(e) = mistake {
                tracing::warn!(error = %e, "using the default log filter");
            }
            let reload = ours.then_some(handle);
            LogHandle { inner: Arc::new(Inner { reload, current: Mutex::new(text) }) }
        })
        .clone()
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    let bad = |why: String| LogError::BadFilter { filter: filter.chars().take(200).collect(), why };
    if filter.len() > MAX_FILTER_BYTES {
        return Err(bad(format!("longer than {MAX_FILTER_BYTES} bytes")));
    }
    if filter.trim().is_empty() {
        return Err(bad("it is empty".to_owned()));
    }
    EnvFilter::builder().parse(filter).map_err(|e| bad(e.to_string()))
}

impl LogHandle {
    /// Takes a new filter.
    pub fn set_filter(&self, filter: &str) -> Result<(), LogError> {
        let parsed = parse(filter)?;
        let Some(handle) = &self.inner.reload else { return Err(LogError::NotOurs) };
        handle.reload(parsed).map_err(|_| LogError::NotOurs)?;
        filter.clone_into(&mut self.inner.current.lock());
        Ok(())
    }

    /// The filter in use, as it was given.
    pub fn filter(&self) -> String {
        self.inner.current.lock().clone()
    }
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogHandle").field("filter", &self.filter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_refused_and_the_old_one_stays() {
        let log = init(&LogConfig::default());
        log.set_filter("info,fanlight_ops=debug").unwrap();
        assert!(matches!(log.set_filter("a=notalevel"), Err(LogError::BadFilter { .. })));
        assert!(matches!(log.set_filter(" "), Err(LogError::BadFilter { .. })));
        assert!(matches!(log.set_filter(&"x".repeat(5000)), Err(LogError::BadFilter { .. })));
        assert_eq!(log.filter(), "info,fanlight_ops=debug");
        assert!(tracing::enabled!(target: "fanlight_ops", tracing::Level::DEBUG));
        log.set_filter("warn").unwrap();
        assert!(!tracing::enabled!(target: "fanlight_ops", tracing::Level::DEBUG));
    }

    #[test]
    fn the_default_filter_can_be_read() {
        parse(DEFAULT_FILTER).unwrap();
    }
}
