//! What the core promises, one test per promise, played in [`crate::world`].

mod feedback;
mod inputs;
mod joins;
mod lives;
mod media;
