//! What the worker tells the control plane: which devices are there, which streams flow. Latest
//! state only. Not the link (`fanlight_ops::link` owns it). Invariant: what is on the board is what
//! was last reported, and each change is reported once.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use fanlight_ops::link::LinkHandle;
use fanlight_proto::{
    node::v1::{DeviceStatus, Report, StreamReport, device_status},
    types::v1::StreamState,
};
use parking_lot::Mutex;

/// Latest states, and the link they are reported on once there is one.
#[derive(Clone, Debug, Default)]
pub struct Board {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    devices: Mutex<BTreeMap<String, DeviceStatus>>,
    streams: Mutex<BTreeMap<String, StreamReport>>,
    link: OnceLock<LinkHandle>,
}

impl Board {
    /// Reports go here from now on. Called once; what is on the board goes with Hello.
    pub fn connect(&self, link: LinkHandle) {
        let _ = self.inner.link.set(link);
    }

    /// A device can be captured, or cannot and why.
    pub fn device(&self, device: &str, state: Result<(), &str>) {
        let (state, reason) = match state {
            Ok(()) => (device_status::State::Online, String::new()),
            Err(reason) => (device_status::State::Offline, reason.chars().take(500).collect()),
        };
        let device = format!("devices/{device}");
        let status = DeviceStatus { device: device.clone(), state: state.into(), reason };
        let old = self.inner.devices.lock().insert(device, status.clone());
        if old.as_ref() != Some(&status) {
            self.report(Report { devices: vec![status], ..Report::default() });
        }
    }

    /// A stream flows or waits. A report of an older epoch than the board's is not news.
    pub fn stream(&self, stream: &str, epoch: u64, state: StreamState, reason: &str) {
        let report = StreamReport {
            stream: stream.to_owned(),
            epoch,
            state: state.into(),
            reason: reason.chars().take(500).collect(),
        };
        {
            let mut streams = self.inner.streams.lock();
            let old = streams.get(stream);
            if old.is_some_and(|o| o.epoch > epoch || *o == report) {
                return;
            }
            streams.insert(stream.to_owned(), report.clone());
        }
        self.report(Report { streams: vec![report], ..Report::default() });
    }

    /// A stream is not wanted any more.
    pub fn forget_stream(&self, stream: &str, epoch: u64) {
        let mut streams = self.inner.streams.lock();
        if streams.get(stream).is_some_and(|s| s.epoch <= epoch) {
            streams.remove(stream);
        }
    }

    /// All devices.
    pub fn devices(&self) -> Vec<DeviceStatus> {
        self.inner.devices.lock().values().cloned().collect()
    }

    /// State of a stream.
    pub fn stream_state(&self, stream: &str) -> StreamState {
        let streams = self.inner.streams.lock();
        streams.get(stream).map_or(StreamState::Assigned, StreamReport::state)
    }

    fn report(&self, report: Report) {
        if let Some(link) = self.inner.link.get() {
            link.report(report);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_state_stays_and_older_epochs_change_nothing() {
        let board = Board::default();
        board.stream("streams/a", 2, StreamState::Live, "");
        board.stream("streams/a", 1, StreamState::Assigned, "old");
        assert_eq!(board.stream_state("streams/a"), StreamState::Live);
        board.forget_stream("streams/a", 1);
        assert_eq!(board.stream_state("streams/a"), StreamState::Live);
        board.forget_stream("streams/a", 2);
        assert_eq!(board.stream_state("streams/a"), StreamState::Assigned);
    }

    #[test]
    fn a_device_is_listed_with_its_reason() {
        let board = Board::default();
        board.device("pixel", Err("refused"));
        board.device("pixel", Err("no jar"));
        let devices = board.devices();
        assert_eq!(devices.len(), 1);
        assert_eq!(
            (devices[0].device.as_str(), devices[0].reason.as_str()),
            ("devices/pixel", "no jar")
        );
    }
}
