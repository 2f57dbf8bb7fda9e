//! One device: does what its `Life` says, keeps its publishes in line with what is wanted. Not the
//! decisions (`life.rs`) and not the bytes. Invariant: nothing here waits for another device, and
//! whatever fails here ends in a retry of this device alone.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use fanlight_adb::{AdbDevice, AdbKey};
use fanlight_proto::types::v1::StreamState;
use futures::future::BoxFuture;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    board::Board,
    config::DeviceConfig,
    life::{Action, Event, Life},
    reach,
    shared::{Command, Shared, Sink},
    source::{self, SourceError},
    uplink::{Host as _, PublishSpec, Published, RouterKey, Uplinks, publish},
};

/// How long a source that was told to stop may take to lift fingers and close its sockets.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

/// One publish that is wanted of a device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// What to publish.
    pub spec: PublishSpec,
    /// To whom.
    pub router: RouterKey,
}

/// All a device needs.
#[derive(Debug)]
pub struct DeviceContext {
    /// Its settings.
    pub config: DeviceConfig,
    /// For devices that ask for a key.
    pub key: Option<Arc<AdbKey>>,
    /// What is wanted of it, latest state.
    pub wanted: watch::Receiver<Vec<Wanted>>,
    /// Connections to routers.
    pub uplinks: Uplinks,
    /// Where its state is told.
    pub board: Board,
    /// What its tasks share.
    pub shared: Arc<Shared>,
    /// Ends it.
    pub end: CancellationToken,
}

/// A capture's task, its number, and the bitrate that was asked of it.
struct Running {
    number: u64,
    bitrate_bps: u64,
    task: AbortOnDropHandle<SourceError>,
}

struct Device {
    context: DeviceContext,
    life: Life,
    adb: Option<AdbDevice>,
    connecting: Option<BoxFuture<'static, Result<AdbDevice, String>>>,
    gone: Option<BoxFuture<'static, String>>,
    capture: Option<Running>,
    /// A second capture, at another bitrate, until it takes over.
    heir: Option<Running>,
    publishes: HashMap<Wanted, AbortOnDropHandle<()>>,
    online: bool,
}

/// Runs until ended.
pub async fn run(context: DeviceContext) {
    let device = Device {
        context,
        life: Life::new(rand::random),
        adb: None,
        connecting: None,
        gone: None,
        capture: None,
        heir: None,
        publishes: HashMap::new(),
        online: false,
    };
    device.run().await;
}

impl Device {
    async fn run(mut self) {
        let mut feed = self.context.shared.feed().state();
        let end = self.context.end.clone();
        self.reconcile();
        loop {
            while let Some(action) = self.life.poll_action() {
                self.act(action);
            }
            let now = std::time::Instant::now();
            let life_due = self.life.next_timeout();
            let reset_due = self.context.shared.next_reset();
            let far = now + Duration::from_secs(3_600);
            tokio::select! {
                () = end.cancelled() => break,
                () = sleep_until(Instant::from_std(life_due.unwrap_or(far))), if life_due.is_some() => {
                    self.life.timeout(std::time::Instant::now());
                }
                () = sleep_until(Instant::from_std(reset_due.unwrap_or(far))), if reset_due.is_some() => {
                    self.context.shared.reset_if_due(std::time::Instant::now());
                }
                () = self.context.shared.keyframe_asked() => {}
                connected = maybe(&mut self.connecting) => self.connected(connected),
                reason = maybe(&mut self.gone) => self.lost(reason),
                () = self.context.shared.turned() => self.turned(),
                ended = joined(&mut self.capture) => self.capture_ended(&ended),
                ended = joined(&mut self.heir) => self.heir_ended(&ended),
                Ok(()) = self.context.wanted.changed() => self.reconcile(),
                Ok(()) = feed.changed() => {
                    if feed.borrow_and_update().live {
                        self.life.handle(std::time::Instant::now(), Event::Picture);
                    }
                }
            }
        }
        self.finish().await;
    }

    fn event(&mut self, event: Event) {
        self.life.handle(std::time::Instant::now(), event);
    }

    fn act(&mut self, action: Action) {
        let name = &self.context.config.device;
        match action {
            Action::ConnectAdb => {
                let (config, key) = (self.context.config.clone(), self.context.key.clone());
                self.connecting = Some(Box::pin(async move {
                    reach::connect(&config, key).await.map_err(|e| reach::one_line(&e))
                }));
            }
            Action::StartCapture => self.start_capture(),
            Action::StopCapture => drop(self.stop_capture()),
            Action::Online => {
                tracing::info!(device = %name, "device online");
                self.context.board.device(name, Ok(()));
                self.set_online(true);
            }
            Action::Offline(reason) => {
                tracing::warn!(device = %name, "device offline: {reason}");
                self.context.board.device(name, Err(&reason));
                self.set_online(false);
            }
        }
    }

    fn set_online(&mut self, online: bool) {
        if std::mem::replace(&mut self.online, online) != online {
            let gauge = metrics::gauge!("fanlight_ingest_devices_online");
            if online { gauge.increment(1.0) } else { gauge.decrement(1.0) }
        }
    }

    fn connected(&mut self, connected: Result<AdbDevice, String>) {
        match connected {
            Ok(device) => {
                metrics::counter!("fanlight_ingest_adb_connects_opened_total").increment(1);
                let watched = device.clone();
                self.gone = Some(Box::pin(async move { reach::gone(&watched).await }));
                self.adb = Some(device);
                self.event(Event::AdbUp);
            }
            Err(reason) => {
                metrics::counter!("fanlight_ingest_adb_connects_failed_total").increment(1);
                self.event(Event::AdbDown(reason));
            }
        }
    }

    fn lost(&mut self, reason: String) {
        metrics::counter!("fanlight_ingest_adb_connects_closed_total").increment(1);
        self.adb = None;
        self.event(Event::AdbDown(reason));
    }

    fn start_capture(&mut self) {
        let (sink, commands) = self.context.shared.start_capture();
        self.capture = self.spawn_source(sink, commands);
    }

    fn spawn_source(
        &self,
        sink: Sink,
        commands: tokio::sync::mpsc::Receiver<Command>,
    ) -> Option<Running> {
        // Life starts a capture only while ADB is up.
        let device = self.adb.clone()?;
        let bitrate_bps = self.context.shared.bitrate_bps();
        let config = DeviceConfig { bitrate_bps, ..self.context.config.clone() };
        let number = sink.number();
        let label = source::label(config.source);
        metrics::counter!("fanlight_ingest_captures_opened_total", "source" => label).increment(1);
        let task: JoinHandle<SourceError> = tokio::spawn(async move {
            let _closed = OnDrop(|| {
                metrics::counter!("fanlight_ingest_captures_closed_total", "source" => label)
                    .increment(1);
            });
            source::run(&config, &device, sink, commands).await
        });
        Some(Running { number, bitrate_bps, task: AbortOnDropHandle::new(task) })
    }

    /// The heir took over, or another bitrate is to be asked for: then a second capture starts.
    fn turned(&mut self) {
        self.adopt();
        let Some(capture) = &self.capture else { return };
        let asked = self.context.shared.bitrate_bps();
        let newest = self.heir.as_ref().map_or(capture.bitrate_bps, |heir| heir.bitrate_bps);
        if asked == newest {
            return;
        }
        tracing::info!(
            device = %self.context.config.device, from = newest, to = asked,
            "another bitrate is asked of the device"
        );
        metrics::counter!("fanlight_ingest_bitrate_changes_total").increment(1);
        let (sink, commands) = self.context.shared.start_heir();
        // An heir that is not needed any more ends with its queue.
        wind_down(self.heir.take());
        self.heir = self.spawn_source(sink, commands);
    }

    /// Makes the heir the capture if it took over.
    fn adopt(&mut self) {
        let shared = &self.context.shared;
        if let Some(heir) = self.heir.take_if(|heir| shared.is_running(heir.number)) {
            wind_down(self.capture.replace(heir));
        }
    }

    fn heir_ended(&mut self, error: &SourceError) {
        let Some(heir) = self.heir.take() else { return };
        if self.context.shared.is_running(heir.number) {
            // It took over and ended before we heard of either.
            wind_down(self.capture.take());
            return self.capture_ended(error);
        }
        let reason = reach::one_line(error);
        tracing::warn!(device = %self.context.config.device, "second capture ended: {reason}");
    }

    /// Ends the source without waiting here; the handle says when it has ended.
    fn stop_capture(&mut self) -> Option<JoinHandle<()>> {
        self.context.shared.stop_capture();
        wind_down(self.heir.take());
        wind_down(self.capture.take())
    }

    fn capture_ended(&mut self, error: &SourceError) {
        self.capture = None;
        // What ended may be the one that the heir has followed already.
        self.adopt();
        if self.capture.is_some() {
            return;
        }
        wind_down(self.heir.take());
        self.context.shared.stop_capture();
        let reason = reach::one_line(error);
        tracing::warn!(device = %self.context.config.device, "capture ended: {reason}");
        self.event(Event::CaptureEnded { reason, lasting: error.is_lasting() });
    }

    /// Starts and ends publishes so that they are those wanted.
    fn reconcile(&mut self) {
        let wanted: HashSet<Wanted> =
            self.context.wanted.borrow_and_update().iter().cloned().collect();
        for want in &wanted {
            if !self.publishes.contains_key(want) {
                let task = self.start_publish(want);
                self.publishes.insert(want.clone(), task);
            }
        }
        self.publishes.retain(|have, _| wanted.contains(have));
        self.event(Event::Wanted(!wanted.is_empty()));
    }

    fn start_publish(&self, want: &Wanted) -> AbortOnDropHandle<()> {
        let uplink = self.context.uplinks.get(&want.router);
        let board = self.context.board.clone();
        let (stream, epoch) = (want.spec.stream.clone(), want.spec.epoch);
        let tell = move |published: Published| match published {
            Published::Live => board.stream(&stream, epoch, StreamState::Live, ""),
            Published::Waiting(reason) => {
                board.stream(&stream, epoch, StreamState::Assigned, &reason);
            }
            Published::Refused { reason } => {
                board.stream(&stream, epoch, StreamState::Assigned, &reason);
            }
        };
        let task = publish(want.spec.clone(), uplink, Arc::clone(&self.context.shared), tell);
        AbortOnDropHandle::new(tokio::spawn(task))
    }

    async fn finish(mut self) {
        self.publishes.clear();
        if let Some(stopping) = self.stop_capture() {
            let _ = stopping.await;
        }
        if let Some(device) = self.adb.take() {
            reach::hang_up(&device);
            metrics::counter!("fanlight_ingest_adb_connects_closed_total").increment(1);
        }
        self.set_online(false);
    }
}

/// Gives a source whose queue has ended time to lift fingers and close its sockets. Beyond the
/// limit the task is aborted by its handle.
fn wind_down(running: Option<Running>) -> Option<JoinHandle<()>> {
    let mut running = running?;
    Some(tokio::spawn(async move {
        let _ = tokio::time::timeout(STOP_TIMEOUT, &mut running.task).await;
    }))
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// The future's value if there is one; it is taken out when done.
async fn maybe<T>(slot: &mut Option<BoxFuture<'static, T>>) -> T {
    match slot {
        Some(future) => {
            let value = future.await;
            *slot = None;
            value
        }
        None => std::future::pending().await,
    }
}

async fn joined(slot: &mut Option<Running>) -> SourceError {
    match slot {
        Some(running) => match (&mut running.task).await {
            Ok(error) => error,
            Err(error) => SourceError::Nonsense(format!("the source panicked: {error}")),
        },
        None => std::future::pending().await,
    }
}
