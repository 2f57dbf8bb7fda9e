//! The control API: streams and viewers for the platform's backend, links to routers and ingest
//! workers, placement, join tokens. Never media bytes. Invariant: nodes keep running what they were
//! told when this process is gone; everything here is intent and index.
//!
//! Reading order: [`api`] (start-up, in order) → [`layers`] (what every call passes) → `service/`
//! (translate only) → [`steward`] (who places and moves) → [`place`], [`stress`], [`witness`],
//! [`lease`] (pure) → [`store`] (intents; `memory://` is the model) → [`want`] → [`link`]. Beside
//! them: [`auth`] and [`limit`] (who calls, how often), [`webhook`] (events that leave),
//! [`rest`] (the services as JSON).

pub mod api;
pub mod auth;
pub mod backend_token;
pub mod clock;
pub mod config;
pub mod error;
pub mod http;
pub mod incoming;
pub mod invite;
pub mod layers;
pub mod lease;
pub mod limit;
pub mod link;
pub mod metrics;
pub mod page;
pub mod place;
pub mod rest;
pub mod service;
pub mod steward;
pub mod store;
pub mod stress;
pub mod token;
pub mod want;
pub mod webhook;
pub mod witness;

pub use api::{Args, ControlApi, run};
pub use config::ControlConfig;
