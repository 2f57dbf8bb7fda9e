//! Drives one multiplexer over one established byte stream: a reader task, a writer task, and the
//! lock between them and the application's streams.
//!
//! Not here: the handshake before it, services on top of it. The reader never waits for the writer
//! or for an application: acknowledgements are owed as numbers, so it can always read on, and two
//! ends can never wait for each other's reading.
//! Invariant: the lock is held for arithmetic and copies only, never over an await.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

use crate::{
    counters::{Counters, add},
    error::{AdbError, Disconnect},
    mux::{End, Event, Mux, MuxConfig, OpenError, Status, StreamId},
    packet::{ChecksumRule, MAX_PAYLOAD, PacketDecoder},
    stream::MuxStream,
};

mod tasks;

/// What the handshake agreed on, with what it read too far.
#[derive(Debug)]
pub(crate) struct Agreed {
    pub(crate) rule: ChecksumRule,
    pub(crate) mux: MuxConfig,
    pub(crate) leftover: BytesMut,
}

/// One connection, shared by its tasks, its handle and its streams.
pub(crate) struct Link {
    state: Mutex<State>,
    output: Notify,
    incoming: Notify,
    /// Over for good; `State::over` says why.
    over: CancellationToken,
    /// The last handle is gone; what is left to send gets a moment.
    draining: CancellationToken,
    counters: Arc<Counters>,
}

struct State {
    mux: Mux,
    wakers: HashMap<StreamId, Wakers>,
    /// Bounded by the multiplexer's stream limit.
    incoming: VecDeque<(StreamId, String)>,
    over: Option<Disconnect>,
}

/// Who waits for a stream.
#[derive(Default)]
struct Wakers {
    read: Option<Waker>,
    write: Option<Waker>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("over", &self.over.is_cancelled()).finish_non_exhaustive()
    }
}

/// Keeps a link alive; the connection ends when the last clone and the last stream are gone.
#[derive(Debug)]
pub(crate) struct LinkHandle(Arc<Link>);

impl LinkHandle {
    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.0
    }
}

impl Drop for LinkHandle {
    fn drop(&mut self) {
        self.0.draining.cancel();
        self.0.output.notify_one();
    }
}

impl Link {
    /// Starts the two tasks over an established byte stream.
    pub(crate) fn spawn<R, W>(
        reader: R,
        writer: W,
        agreed: Agreed,
        counters: Arc<Counters>,
    ) -> LinkHandle
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        add(&counters.connections_opened, 1);
        let link = Arc::new(Self {
            state: Mutex::new(State {
                mux: Mux::new(agreed.mux, Arc::clone(&counters)),
                wakers: HashMap::new(),
                incoming: VecDeque::new(),
                over: None,
            }),
            output: Notify::new(),
            incoming: Notify::new(),
            over: CancellationToken::new(),
            draining: CancellationToken::new(),
            counters,
        });
        let decoder = PacketDecoder::new(MAX_PAYLOAD, agreed.rule);
        tokio::spawn(tasks::read(Arc::clone(&link), reader, decoder, agreed.leftover));
        tokio::spawn(tasks::write(Arc::clone(&link), writer, agreed.rule));
        LinkHandle(link)
    }

    /// Opens a stream and waits for the peer's answer.
    pub(crate) async fn open(
        self: &Arc<Self>,
        handle: &Arc<LinkHandle>,
        service: &str,
    ) -> Result<MuxStream, AdbError> {
        let id = {
            let mut state = self.lock();
            if let Some(reason) = &state.over {
                return Err(reason.clone().into());
            }
            state.mux.open(service).map_err(|error| match error {
                OpenError::TooMany(max) => AdbError::TooManyStreams(max),
                OpenError::BadName(why) => AdbError::BadServiceName(why),
            })?
        };
        self.output.notify_one();
        // From here on dropping the future lets go of the stream.
        let stream = MuxStream::new(Arc::clone(handle), id);
        let end = poll_fn(|cx| {
            let mut state = self.lock();
            match state.mux.status(id) {
                Status::Opening => {
                    state.wakers.entry(id).or_default().read = Some(cx.waker().clone());
                    Poll::Pending
                }
                Status::Over(End::Refused) => Poll::Ready(Some(End::Refused)),
                Status::Over(End::Disconnected) => Poll::Ready(Some(End::Disconnected)),
                // Opened and closed again already: the reader will see what came and the end.
                _ => Poll::Ready(None),
            }
        })
        .await;
        match end {
            None => Ok(stream),
            Some(End::Disconnected) => Err(self.reason().into()),
            Some(_) => Err(AdbError::Refused { service: service.to_owned() }),
        }
    }

    /// The next stream the peer wants; `None` when the connection is over. For one consumer.
    pub(crate) async fn next_incoming(&self) -> Option<(StreamId, String)> {
        loop {
            {
                let mut state = self.lock();
                if let Some(next) = state.incoming.pop_front() {
                    return Some(next);
                }
                if state.over.is_some() {
                    return None;
                }
            }
            self.incoming.notified().await;
        }
    }

    /// Accepts a stream the peer wants; `None` when it is gone again.
    pub(crate) fn accept(&self, handle: &Arc<LinkHandle>, id: StreamId) -> Option<MuxStream> {
        let accepted = self.lock().mux.accept(id);
        self.output.notify_one();
        if accepted {
            return Some(MuxStream::new(Arc::clone(handle), id));
        }
        self.release(id);
        None
    }

    /// Refuses a stream the peer wants.
    pub(crate) fn refuse(&self, id: StreamId) {
        {
            let mut state = self.lock();
            state.mux.refuse(id);
            state.mux.release(id);
        }
        self.output.notify_one();
    }

    /// Reads into `put`, which is given the unread bytes and says how many it took.
    pub(crate) fn poll_read(
        &self,
        cx: &Context<'_>,
        id: StreamId,
        put: impl FnOnce(&[u8]) -> usize,
    ) -> Poll<std::io::Result<()>> {
        let mut state = self.lock();
        let unread = state.mux.peek(id);
        if !unread.is_empty() {
            let taken = put(unread);
            state.mux.consume(id, taken);
            self.after(&mut state);
            return Poll::Ready(Ok(()));
        }
        match state.mux.status(id) {
            Status::Over(End::Disconnected) => Poll::Ready(Err(state.reason().into())),
            Status::Over(End::Failed(failure)) => Poll::Ready(Err(failure.into())),
            Status::Over(_) => Poll::Ready(Ok(())),
            _ => {
                state.wakers.entry(id).or_default().read = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Queues bytes for the peer.
    pub(crate) fn poll_write(
        &self,
        cx: &Context<'_>,
        id: StreamId,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut state = self.lock();
        match state.mux.write(id, data) {
            Ok(0) => {
                state.wakers.entry(id).or_default().write = Some(cx.waker().clone());
                Poll::Pending
            }
            Ok(n) => {
                self.after(&mut state);
                Poll::Ready(Ok(n))
            }
            Err(End::Disconnected) => Poll::Ready(Err(state.reason().into())),
            Err(End::Failed(failure)) => Poll::Ready(Err(failure.into())),
            Err(_) => Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Closes in order and waits until the CLSE is handed to the socket.
    pub(crate) fn poll_close(&self, cx: &Context<'_>, id: StreamId) -> Poll<std::io::Result<()>> {
        let mut state = self.lock();
        state.mux.close(id);
        self.after(&mut state);
        match state.mux.status(id) {
            Status::Over(End::Disconnected) => Poll::Ready(Err(state.reason().into())),
            Status::Over(_) => Poll::Ready(Ok(())),
            _ => {
                state.wakers.entry(id).or_default().write = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The application's handle of a stream is gone.
    pub(crate) fn release(&self, id: StreamId) {
        let mut state = self.lock();
        state.wakers.remove(&id);
        state.mux.release(id);
        self.after(&mut state);
    }

    /// Waits for the end of the connection and says why.
    pub(crate) async fn closed(&self) -> Disconnect {
        self.over.cancelled().await;
        self.reason()
    }

    /// Whether the connection is over.
    pub(crate) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Ends the connection now; every stream fails.
    pub(crate) fn finish(&self, reason: Disconnect) {
        let wakers = {
            let mut state = self.lock();
            if state.over.is_some() {
                return;
            }
            tracing::debug!(%reason, "adb connection over");
            if matches!(reason, Disconnect::Protocol(_)) {
                add(&self.counters.protocol_errors, 1);
            }
            add(&self.counters.connections_closed, 1);
            state.over = Some(reason);
            state.mux.disconnect();
            while state.mux.poll_event().is_some() {}
            state.incoming.clear();
            std::mem::take(&mut state.wakers)
        };
        self.over.cancel();
        self.incoming.notify_one();
        for waker in wakers.into_values() {
            waker.read.into_iter().chain(waker.write).for_each(Waker::wake);
        }
    }

    /// Unread and unsent bytes held, for tests and statistics.
    pub(crate) fn buffered(&self) -> (usize, usize) {
        self.lock().mux.buffered()
    }

    /// Streams known, in whatever state.
    pub(crate) fn streams(&self) -> usize {
        self.lock().mux.streams()
    }

    fn reason(&self) -> Disconnect {
        self.lock().reason()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while holding it can only come from a bug in the multiplexer; going on with
        // whatever state it left is better than panicking in every stream.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called after any use of the multiplexer that may have made events or output.
    fn after(&self, state: &mut State) {
        state.dispatch(&self.incoming);
        if state.mux.has_output() || self.draining.is_cancelled() {
            self.output.notify_one();
        }
    }
}

impl State {
    fn reason(&self) -> Disconnect {
        self.over.clone().unwrap_or(Disconnect::ByUs)
    }

    /// Turns events into wake-ups.
    fn dispatch(&mut self, incoming: &Notify) {
        while let Some(event) = self.mux.poll_event() {
            match event {
                Event::Incoming { id, service } => {
                    self.incoming.push_back((id, service));
                    incoming.notify_one();
                }
                Event::Opened(id) | Event::Refused(id) | Event::Readable(id) => {
                    self.wake(id, |wakers| wakers.read.take());
                }
                Event::Writable(id) => self.wake(id, |wakers| wakers.write.take()),
                Event::Closed(id) => {
                    self.wake(id, |wakers| wakers.read.take());
                    self.wake(id, |wakers| wakers.write.take());
                }
            }
        }
    }

    fn wake(&mut self, id: StreamId, which: impl FnOnce(&mut Wakers) -> Option<Waker>) {
        if let Some(waker) = self.wakers.get_mut(&id).and_then(which) {
            waker.wake();
        }
    }
}
