//! Ingest worker

pub mod backoff;
pub mod cc;
pub mod config;
pub mod feed;
pub mod fence;
pub mod frame;
pub mod gop;
pub mod hygiene;
pub mod inject;
pub mod keyframe;
pub mod life;
pub mod rate;
pub mod source;
