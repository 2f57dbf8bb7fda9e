//! What the logs tell: where each stream was published (no epoch at two routers, and none below one
//! before it), and in which order processes noticed a fault. Not the routers' own opinion of what is
//! live now. Invariant: what a log does
//! not say is not taken for right: a stream without any entry is a finding.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::SystemTime,
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// What a router says when it has taken a publish.
const PUBLISHED: &str = "published";

/// Beginnings of the lines that say how a fault was noticed and mended.
const STEPS: [&str; 11] = [
    "link ended",
    "link lost",
    "linked",
    "connection to router",
    "stream assigned",
    "stream moves",
    "no origin",
    "publishing",
    "published",
    "joined",
    "shutting down",
];
/// Steps told of one fault; later ones are left out.
const STEPS_MAX: usize = 80;

/// A line of a log, as far as it is of use.
#[derive(Debug, Deserialize)]
struct Line {
    timestamp: String,
    message: String,
    #[serde(default)]
    stream: String,
    #[serde(default)]
    epoch: u64,
    #[serde(default)]
    node: String,
}

/// One thing that a process said after a fault.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Step {
    /// Milliseconds since the fault.
    after_ms: f64,
    /// Which process.
    who: String,
    /// What it said.
    what: String,
    /// Of which stream or node.
    of: String,
}

/// Reads what a process said after `begun`: the first of each kind, of each stream.
pub(super) fn steps(who: &str, text: &str, begun: SystemTime) -> Vec<Step> {
    let mut seen = BTreeSet::new();
    let mut steps = Vec::new();
    for line in text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()) {
        let Some(kind) = STEPS.iter().find(|step| line.message.starts_with(**step)) else {
            continue;
        };
        let at = line.timestamp.parse::<prost_types::Timestamp>().ok();
        let Some(at) = at.and_then(|at| SystemTime::try_from(at).ok()) else { continue };
        let Ok(after) = at.duration_since(begun) else { continue };
        let of = if line.stream.is_empty() { line.node } else { line.stream };
        let of = of.trim_start_matches("streams/").to_owned();
        if seen.insert((*kind, of.clone())) {
            let after_ms = (after.as_secs_f64() * 1e4).round() / 10.0;
            steps.push(Step { after_ms, who: who.to_owned(), what: line.message, of });
        }
    }
    steps
}

/// The steps of all processes in the order of time, no more than are worth reading.
pub(super) fn in_order(mut steps: Vec<Step>) -> Vec<Step> {
    steps.sort_by(|a, b| a.after_ms.total_cmp(&b.after_ms));
    steps.truncate(STEPS_MAX);
    steps
}

/// A publish that a router took.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Taken {
    /// RFC 3339 in UTC with microseconds: its order is that of time.
    at: String,
    router: String,
    epoch: u64,
}

/// All publishes, by stream.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    streams: BTreeMap<String, Vec<Taken>>,
}

/// What is wrong with a history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Publishes that routers took.
    pub(super) publishes: usize,
    /// Epochs of a stream that more than one router took.
    pub(super) dual_origin_intervals: usize,
    /// Publishes of an epoch below one taken before it.
    pub(super) epochs_backwards: usize,
    /// Streams nobody took.
    pub(super) streams_unseen: usize,
    /// The first of these, in words.
    pub(super) first: Option<String>,
}

impl History {
    /// Reads one router's log.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn read(&mut self, router: &str, log: &Path) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(log).with_context(|| format!("{}", log.display()))?;
        self.take(router, &text);
        Ok(())
    }

    fn take(&mut self, router: &str, text: &str) {
        // Lines that are no JSON are those of a panic or of a line that was cut by a kill.
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        for line in lines.filter(|line| line.message == PUBLISHED && !line.stream.is_empty()) {
            let stream = line.stream.trim_start_matches("streams/").to_owned();
            let taken = Taken { at: line.timestamp, router: router.to_owned(), epoch: line.epoch };
            self.streams.entry(stream).or_default().push(taken);
        }
    }

    /// Judges all of it.
    pub(super) fn verdict(&self, names: &[String]) -> Verdict {
        let mut verdict = Verdict::default();
        for name in names {
            let mut taken = self.streams.get(name).cloned().unwrap_or_default();
            taken.sort();
            verdict.publishes += taken.len();
            if taken.is_empty() {
                verdict.streams_unseen += 1;
                verdict.first.get_or_insert_with(|| format!("no router ever took {name}"));
            }
            let mut routers: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
            let mut highest = 0;
            for Taken { at, router, epoch } in &taken {
                routers.entry(*epoch).or_default().insert(router);
                if *epoch < highest {
                    verdict.epochs_backwards += 1;
                    let what = format!("{router} took {name} of {epoch} after {highest} at {at}");
                    verdict.first.get_or_insert(what);
                }
                highest = highest.max(*epoch);
            }
            for (epoch, routers) in routers.iter().filter(|(_, routers)| routers.len() > 1) {
                verdict.dual_origin_intervals += 1;
                let what = format!("{name} of {epoch} was taken by {routers:?}");
                verdict.first.get_or_insert(what);
            }
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(second: u32, stream: &str, epoch: u64) -> String {
        format!(
            "{{\"timestamp\":\"2026-01-01T00:00:{second:02}.000000Z\",\"level\":\"INFO\",\
             \"message\":\"published\",\"stream\":\"streams/{stream}\",\"epoch\":{epoch},\"slot\":1}}\n"
        )
    }

    fn verdict(logs: &[(&str, String)], names: &[&str]) -> Verdict {
        let mut history = History::default();
        for (router, log) in logs {
            history.take(router, log);
        }
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        history.verdict(&names)
    }

    #[test]
    fn a_stream_that_moves_with_growing_epochs_is_right() {
        let logs =
            [("r1", line(1, "a", 10) + "cut {\n" + &line(2, "a", 10)), ("r2", line(5, "a", 11))];
        let right = Verdict { publishes: 3, ..Verdict::default() };
        assert_eq!(verdict(&logs, &["a"]), right);
    }

    #[test]
    fn steps_are_those_after_the_fault_each_once() {
        let text = line(1, "a", 10) + &line(5, "a", 11) + &line(6, "a", 12) + &line(4, "b", 11);
        let begun: prost_types::Timestamp = "2026-01-01T00:00:02.5Z".parse().unwrap();
        let told = in_order(steps("r1", &text, begun.try_into().unwrap()));
        let told: Vec<_> = told.iter().map(|s| (s.after_ms, s.of.as_str())).collect();
        assert_eq!(told, [(1_500.0, "b"), (2_500.0, "a")]);
    }

    #[test]
    fn one_epoch_at_two_routers_is_seen() {
        let logs = [("r1", line(1, "a", 10)), ("r2", line(5, "a", 10))];
        let wrong = verdict(&logs, &["a"]);
        assert_eq!((wrong.dual_origin_intervals, wrong.epochs_backwards), (1, 0));
        assert!(wrong.first.unwrap().contains("10"));
    }

    #[test]
    fn an_epoch_that_goes_back_is_seen_and_so_is_silence() {
        let logs = [("r1", line(1, "a", 12)), ("r2", line(5, "a", 11))];
        let wrong = verdict(&logs, &["a", "b"]);
        assert_eq!((wrong.epochs_backwards, wrong.streams_unseen), (1, 1));
    }
}
