//! Load and proof: publishers, viewers, bad networks, reports. Not the router: this package is
//! its peer and shares no code with it above the wire. Invariant: what could not be measured is
//! an error, never a zero.
#![forbid(unsafe_code)]
