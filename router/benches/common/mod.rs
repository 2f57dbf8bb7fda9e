//! What the benchmarks share: clocks, contests, sinks, the floor, reports. Not a harness with
//! statistics: figures are the best of interleaved samples, because everything that disturbs a
//! sample only makes it slower. Invariant: what is compared is measured in the same process, in
//! turns.

#![allow(dead_code, reason = "each benchmark uses its part")]
#![allow(unreachable_pub, reason = "shared by several crates as source")]

pub mod args;
pub mod contest;
pub mod feedback;
pub mod floor;
pub mod report;
pub mod rig;
pub mod rival;
pub mod sinks;
