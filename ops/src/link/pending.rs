//! Reports that wait for the link. Pure. Not a log: of a stream and of a device only the latest
//! state waits. Invariant: bounded, whatever the node reports while no link is up.

use std::collections::{BTreeMap, VecDeque};

use fanlight_proto::node::v1::{DeviceStatus, Report, StreamReport, ViewerReport};

/// Streams and devices that may wait, each. A host has tens, a router some thousands.
const MAX_STATES: usize = 16_384;

/// Viewer changes that may wait; the oldest go first, since the Inventory after a new link lists
/// who is there anyway.
const MAX_VIEWERS: usize = 8192;

/// Entries in one message.
const MAX_PER_MESSAGE: usize = 1000;

/// Reports not sent yet.
#[derive(Debug, Default)]
pub(super) struct Pending {
    streams: BTreeMap<String, StreamReport>,
    viewers: VecDeque<ViewerReport>,
    devices: BTreeMap<String, DeviceStatus>,
}

impl Pending {
    /// Takes a report; gives the number of entries dropped at the bounds.
    pub(super) fn add(&mut self, report: Report) -> u64 {
        let mut dropped = 0;
        for stream in report.streams {
            let lower = self.streams.get(&stream.stream).is_some_and(|s| s.epoch > stream.epoch);
            if lower {
                continue;
            }
            dropped += insert_bounded(&mut self.streams, stream.stream.clone(), stream);
        }
        for device in report.devices {
            dropped += insert_bounded(&mut self.devices, device.device.clone(), device);
        }
        for viewer in report.viewers {
            if self.viewers.len() == MAX_VIEWERS {
                self.viewers.pop_front();
                dropped += 1;
            }
            self.viewers.push_back(viewer);
        }
        dropped
    }

    /// The next message to send, if there is anything to say.
    pub(super) fn take(&mut self) -> Option<Report> {
        let report = Report {
            streams: pop(&mut self.streams),
            viewers: self.viewers.drain(..self.viewers.len().min(MAX_PER_MESSAGE)).collect(),
            devices: pop(&mut self.devices),
        };
        let empty =
            report.streams.is_empty() && report.viewers.is_empty() && report.devices.is_empty();
        (!empty).then_some(report)
    }

    /// Puts a message back that could not be sent; what came since is newer.
    pub(super) fn put_back(&mut self, report: Report) {
        for stream in report.streams {
            self.streams.entry(stream.stream.clone()).or_insert(stream);
        }
        for device in report.devices {
            self.devices.entry(device.device.clone()).or_insert(device);
        }
        for viewer in report.viewers.into_iter().rev() {
            if self.viewers.len() < MAX_VIEWERS {
                self.viewers.push_front(viewer);
            }
        }
    }
}

fn insert_bounded<T>(map: &mut BTreeMap<String, T>, key: String, value: T) -> u64 {
    if map.len() >= MAX_STATES && !map.contains_key(&key) {
        return 1;
    }
    map.insert(key, value);
    0
}

fn pop<T>(map: &mut BTreeMap<String, T>) -> Vec<T> {
    let n = map.len().min(MAX_PER_MESSAGE);
    (0..n).filter_map(|_| map.pop_first()).map(|(_, v)| v).collect()
}

#[cfg(test)]
mod tests {
    use fanlight_proto::types::v1::StreamState;

    use super::*;

    fn stream(name: &str, epoch: u64, state: StreamState) -> Report {
        let report =
            StreamReport { stream: name.into(), epoch, state: state.into(), reason: String::new() };
        Report { streams: vec![report], ..Report::default() }
    }

    fn viewer(name: String) -> Report {
        Report {
            viewers: vec![ViewerReport { viewer: name, ..ViewerReport::default() }],
            ..Report::default()
        }
    }

    #[test]
    fn the_latest_state_of_the_greatest_epoch_is_said() {
        let mut pending = Pending::default();
        pending.add(stream("s", 2, StreamState::Assigned));
        pending.add(stream("s", 2, StreamState::Live));
        pending.add(stream("s", 1, StreamState::Ended));
        let report = pending.take().unwrap();
        assert_eq!(report.streams.len(), 1);
        assert_eq!(report.streams[0].state(), StreamState::Live);
        assert_eq!(pending.take(), None);
    }

    #[test]
    fn viewers_are_bounded_and_the_newest_stay() {
        let mut pending = Pending::default();
        let dropped: u64 = (0..MAX_VIEWERS + 5).map(|i| pending.add(viewer(i.to_string()))).sum();
        assert_eq!(dropped, 5);
        assert_eq!(pending.take().unwrap().viewers[0].viewer, "5");
    }

    #[test]
    fn what_could_not_be_sent_keeps_its_place_behind_nothing_newer() {
        let mut pending = Pending::default();
        pending.add(viewer("1".into()));
        pending.add(stream("s", 1, StreamState::Assigned));
        let unsent = pending.take().unwrap();
        pending.add(viewer("2".into()));
        pending.add(stream("s", 1, StreamState::Live));
        pending.put_back(unsent);
        let report = pending.take().unwrap();
        assert_eq!(report.streams[0].state(), StreamState::Live);
        let names: Vec<_> = report.viewers.iter().map(|v| v.viewer.as_str()).collect();
        assert_eq!(names, ["1", "2"]);
    }
}
