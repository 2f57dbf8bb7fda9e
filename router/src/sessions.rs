//! The viewers' sessions: which URL is which session on which shard. Not their protocol state.
//! Invariants: a session is in the table from before its join reaches the shard until the shard
//! says that it is gone, so nothing of a viewer can leak; one token id has one live session,
//! unless the token allows many.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use fanlight_proto::{claims::JoinClaims, id::ViewerId};
use fanlight_router_core::{GoneReason, LeaveReason, SessionId};
use parking_lot::Mutex;
use subtle::ConstantTimeEq as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    shard::{Command, ShardHandle},
    stream::{SeatError, Stream},
    streams::ShardLoad,
    token::TokenHash,
};

/// The present ICE session of a session.
#[derive(Debug)]
pub(crate) struct IceSession {
    /// Strong entity tag, quotes included. Another with each restart.
    pub(crate) etag: String,
    /// By which a restart is told from trickled candidates.
    pub(crate) remote_ufrag: String,
}

impl Default for IceSession {
    fn default() -> Self {
        Self { etag: fresh_tag(), remote_ufrag: String::new() }
    }
}

impl IceSession {
    /// Another ICE session begins. Returns its tag.
    pub(crate) fn restarted(&mut self, remote_ufrag: String) -> String {
        *self = Self { etag: fresh_tag(), remote_ufrag };
        self.etag.clone()
    }
}

fn fresh_tag() -> String {
    format!("\"{}\"", Uuid::new_v4().simple())
}

/// One viewer's session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    /// Last part of the session's URL, from the system's random source.
    pub(crate) url_id: String,
    pub(crate) ice: Mutex<IceSession>,
    pub(crate) stream: Arc<Stream>,
    pub(crate) shard: usize,
    pub(crate) viewer: ViewerId,
    /// Viewer of the token; the same as `viewer` unless the token carries many.
    pub(crate) subject: ViewerId,
    pub(crate) token_id: String,
    /// By which the token is known again without checking its signature.
    token_hash: TokenHash,
    pub(crate) token_until_s: u64,
    pub(crate) multi: bool,
    pub(crate) since: Instant,
    connected: AtomicBool,
    /// Where its viewer was told to go. Those who read its events see it end with the session.
    reconnect: watch::Sender<Option<Arc<str>>>,
    /// The one event stream that it may have: its secret, and its end.
    events: Mutex<Option<(String, CancellationToken)>>,
}

impl Session {
    /// Notes where the viewer shall go. False: it was told already.
    pub(crate) fn send_to(&self, url: Arc<str>) -> bool {
        let plain = |u: &str| u.split('?').next().map(str::to_owned);
        self.reconnect.send_if_modified(|told| {
            // Tickets differ with each call.
            let again = told.as_deref().and_then(plain) == plain(&url);
            if !again {
                *told = Some(url);
            }
            !again
        })
    }

    /// Where the viewer shall go, as it changes.
    pub(crate) fn reconnects(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.reconnect.subscribe()
    }

    /// A fresh secret for the event stream; one that was there ends.
    pub(crate) fn new_events(&self) -> String {
        let secret = Uuid::new_v4().simple().to_string();
        let fresh = (secret.clone(), CancellationToken::new());
        if let Some((_, end)) = self.events.lock().replace(fresh) {
            end.cancel();
        }
        secret
    }

    /// Begins to read the event stream of this secret; whoever reads it already is ended.
    pub(crate) fn read_events(&self, secret: &str) -> Option<CancellationToken> {
        let mut events = self.events.lock();
        let (known, end) = events.as_mut()?;
        let same: bool = known.as_bytes().ct_eq(secret.as_bytes()).into();
        same.then(|| {
            std::mem::replace(end, CancellationToken::new()).cancel();
            end.clone()
        })
    }

    /// Ends the event stream of this secret.
    pub(crate) fn end_events(&self, secret: &str) -> bool {
        let end = self.read_events(secret);
        if end.is_some() {
            *self.events.lock() = None;
        }
        end.inspect(CancellationToken::cancel).is_some()
    }

    /// True the first time.
    pub(crate) fn set_connected(&self) -> bool {
        !self.connected.swap(true, Ordering::Relaxed)
    }

    /// Whether this is, byte for byte, the token that opened the session.
    pub(crate) fn was_opened_by(&self, token: TokenHash) -> bool {
        self.token_hash == token
    }

    pub(crate) fn was_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }
}

/// Why a session could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenError {
    /// The router has as many sessions as it may, or no shard runs.
    Full,
    /// The stream cannot seat another viewer.
    Seat(SeatError),
}

/// All sessions of this router.
#[derive(Debug)]
pub(crate) struct Sessions {
    tables: Mutex<Tables>,
    load: ShardLoad,
    shards: Arc<[ShardHandle]>,
    max: usize,
}

#[derive(Debug, Default)]
struct Tables {
    by_id: HashMap<SessionId, Arc<Session>>,
    by_url: HashMap<String, Arc<Session>>,
    by_token: HashMap<String, SessionId>,
    last_id: u64,
}

impl Sessions {
    pub(crate) fn new(shards: Arc<[ShardHandle]>, max: usize) -> Self {
        Self { tables: Mutex::default(), load: ShardLoad::new(shards.len()), shards, max }
    }

    /// Makes a session and seats it on a shard. An older session of the same token is ended.
    pub(crate) fn open(
        &self,
        stream: &Arc<Stream>,
        claims: &JoinClaims,
        token: TokenHash,
    ) -> Result<Arc<Session>, OpenError> {
        if self.len() >= self.max {
            return Err(OpenError::Full);
        }
        let shard = self.load.take(&self.shards).ok_or(OpenError::Full)?;
        if let Err(e) = stream.seat(shard, claims.e) {
            self.load.give_back(shard);
            return Err(OpenError::Seat(e));
        }
        let (session, replaced) = {
            let mut tables = self.tables.lock();
            tables.last_id += 1;
            let session = Arc::new(new_session(tables.last_id, stream, claims, token, shard));
            tables.by_id.insert(session.id, Arc::clone(&session));
            tables.by_url.insert(session.url_id.clone(), Arc::clone(&session));
            let replaced = if claims.multi {
                None
            } else {
                tables.by_token.insert(claims.jti.clone(), session.id)
            };
            let replaced = replaced.and_then(|id| tables.by_id.get(&id).cloned());
            (session, replaced)
        };
        if let Some(old) = replaced {
            tracing::info!(stream = %stream.name(), viewer = %old.viewer, "session replaced");
            self.leave(&old, LeaveReason::Deleted);
        }
        Ok(session)
    }

    /// Asks the shard to end a session. Its URL is unknown from here on; the rest follows when
    /// the shard says that it is gone.
    pub(crate) fn leave(&self, session: &Session, reason: LeaveReason) {
        self.tables.lock().by_url.remove(&session.url_id);
        if let Some(shard) = self.shards.get(session.shard) {
            shard.must(Command::Leave { session: session.id, reason });
        }
    }

    /// Forgets a session: the shard is done with it, or never had it. None when it is not known.
    pub(crate) fn close(&self, id: SessionId) -> Option<Arc<Session>> {
        let session = {
            let mut tables = self.tables.lock();
            let session = tables.by_id.remove(&id)?;
            tables.by_url.remove(&session.url_id);
            if tables.by_token.get(&session.token_id) == Some(&id) {
                tables.by_token.remove(&session.token_id);
            }
            session
        };
        self.load.give_back(session.shard);
        session.stream.leave(session.shard);
        Some(session)
    }

    pub(crate) fn get(&self, id: SessionId) -> Option<Arc<Session>> {
        self.tables.lock().by_id.get(&id).cloned()
    }

    pub(crate) fn by_url(&self, url_id: &str) -> Option<Arc<Session>> {
        self.tables.lock().by_url.get(url_id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        self.tables.lock().by_id.values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.tables.lock().by_id.len()
    }

    /// Sizes of the tables, for tests that look for leaks: by id, by URL, by token.
    pub(crate) fn table_sizes(&self) -> [usize; 3] {
        let tables = self.tables.lock();
        [tables.by_id.len(), tables.by_url.len(), tables.by_token.len()]
    }

    pub(crate) fn shard(&self, session: &Session) -> Option<&ShardHandle> {
        self.shards.get(session.shard)
    }
}

fn new_session(
    number: u64,
    stream: &Arc<Stream>,
    claims: &JoinClaims,
    token_hash: TokenHash,
    shard: usize,
) -> Session {
    let url_id = Uuid::new_v4().simple().to_string();
    let viewer = if claims.multi {
        // Each session of such a token is a viewer of its own; cut so that the name stays an id.
        let base: String = claims.sub.as_str().chars().take(100).collect();
        let own = format!("{base}~{}", &url_id[..8]);
        ViewerId::parse(&own).unwrap_or_else(|_| claims.sub.clone())
    } else {
        claims.sub.clone()
    };
    Session {
        id: SessionId(number),
        ice: Mutex::new(IceSession::default()),
        url_id,
        stream: Arc::clone(stream),
        shard,
        viewer,
        subject: claims.sub.clone(),
        token_id: claims.jti.clone(),
        token_hash,
        token_until_s: claims.exp,
        multi: claims.multi,
        since: Instant::now(),
        connected: AtomicBool::new(false),
        reconnect: watch::Sender::new(None),
        events: Mutex::new(None),
    }
}

/// A word of a closed set for metrics and reports.
pub(crate) fn gone_word(reason: GoneReason) -> &'static str {
    match reason {
        GoneReason::Left(LeaveReason::Deleted) => "LEFT",
        GoneReason::Left(LeaveReason::Kicked) => "KICKED",
        GoneReason::Left(LeaveReason::Expired) => "EXPIRED",
        GoneReason::Left(LeaveReason::Draining) => "DRAINING",
        GoneReason::StreamRemoved(_) => "STREAM_ENDED",
        GoneReason::ClosedByViewer => "CLOSED_BY_VIEWER",
        GoneReason::NeverConnected => "NEVER_CONNECTED",
        GoneReason::ConnectionLost => "CONNECTION_LOST",
        GoneReason::SessionOver => "SESSION_OVER",
        GoneReason::ProtocolError => "PROTOCOL_ERROR",
    }
}
