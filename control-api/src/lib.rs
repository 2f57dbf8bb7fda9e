//! tmp
pub mod clock;
pub mod error;
pub mod lease;
pub mod metrics;
pub mod page;
pub mod place;
pub mod store;
pub mod stress;
pub mod token;
pub mod want;
pub mod witness;
