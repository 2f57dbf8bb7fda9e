//! People who join: offers are posted, answers given to the viewers, milestones written down. Not
//! the viewers' protocol. Invariant: the clock of a join starts when its POST is given to the HTTP
//! client, with token and offer ready before.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::{
    backend::Ticket,
    swarm::{Farewell, Group, Milestone, Note, Swarm, ViewerId, ViewerReport},
    viewer::with_candidates,
};

/// Longest wait for a POST's answer.
const POST: Duration = Duration::from_secs(10);
/// Joins under way at once, beyond which the next one waits. Such a wait is seen as a rate that is
/// not reached, never as a fast join.
const UNDER_WAY: usize = 512;

/// When things happened to a viewer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Diary {
    /// Each milestone's moment.
    at: [Option<Instant>; 5],
}

impl Diary {
    /// When, if yet.
    pub fn at(&self, what: Milestone) -> Option<Instant> {
        self.at[place(what)]
    }
}

fn place(what: Milestone) -> usize {
    match what {
        Milestone::Connected => 0,
        Milestone::FirstPicture => 1,
        Milestone::Current => 2,
        Milestone::ChannelOpen => 3,
        Milestone::Closed => 4,
    }
}

/// Diaries of all viewers.
#[derive(Debug)]
pub struct Diaries {
    inner: Mutex<HashMap<ViewerId, Diary>>,
    changed: watch::Sender<u64>,
}

impl Diaries {
    /// Writes down what the swarm notes, until it ends.
    pub fn keep(mut notes: mpsc::UnboundedReceiver<Note>) -> Arc<Self> {
        let this = Arc::new(Self { inner: Mutex::default(), changed: watch::Sender::new(0) });
        let diaries = Arc::clone(&this);
        tokio::spawn(async move {
            let mut batch = Vec::new();
            while notes.recv_many(&mut batch, 256).await > 0 {
                let mut inner = diaries.inner.lock();
                for note in batch.drain(..) {
                    let diary = inner.entry(note.viewer).or_default();
                    diary.at[place(note.what)].get_or_insert(note.at);
                }
                drop(inner);
                diaries.changed.send_modify(|n| *n += 1);
            }
        });
        this
    }

    /// One viewer's.
    pub fn of(&self, viewer: ViewerId) -> Diary {
        self.inner.lock().get(&viewer).copied().unwrap_or_default()
    }

    /// Waits for a milestone; `None`: not within `limit`, or the viewer's end came first.
    pub async fn wait(
        &self,
        viewer: ViewerId,
        what: Milestone,
        limit: Duration,
    ) -> Option<Instant> {
        let mut changed = self.changed.subscribe();
        let found = async {
            loop {
                changed.borrow_and_update();
                let diary = self.of(viewer);
                if let Some(at) = diary.at(what) {
                    return Some(at);
                }
                if diary.at(Milestone::Closed).is_some() || changed.changed().await.is_err() {
                    return None;
                }
            }
        };
        tokio::time::timeout(limit, found).await.ok().flatten()
    }

    /// Viewers whose connection ended.
    pub fn closed(&self) -> usize {
        self.inner.lock().values().filter(|d| d.at(Milestone::Closed).is_some()).count()
    }

    /// Forgets a viewer that left.
    pub fn forget(&self, viewer: ViewerId) {
        self.inner.lock().remove(&viewer);
    }
}

/// Changes the address of the router's candidates for one viewer.
pub type Path = Arc<dyn Fn(SocketAddr) -> SocketAddr + Send + Sync>;

/// A viewer that was answered.
#[derive(Clone, Debug)]
pub struct Joined {
    /// Which.
    pub viewer: ViewerId,
    /// When its POST was given to the HTTP client.
    pub posted: Instant,
    /// When the answer was there.
    pub answered: Instant,
    session: String,
    token: String,
}

/// Joins and leaves by WHEP.
#[derive(Clone, Debug)]
pub struct Crowd {
    swarm: Arc<Swarm>,
    diaries: Arc<Diaries>,
    http: reqwest::Client,
}

impl Crowd {
    /// For these viewers.
    pub fn new(swarm: Arc<Swarm>, diaries: Arc<Diaries>) -> Self {
        Self { swarm, diaries, http: reqwest::Client::new() }
    }

    /// Milestones.
    pub fn diaries(&self) -> &Diaries {
        &self.diaries
    }

    /// The viewers.
    pub fn swarm(&self) -> &Swarm {
        &self.swarm
    }

    /// Joins with a token.
    ///
    /// # Errors
    /// A refusal, with its problem document, or an answer that is of no use.
    pub async fn join(
        &self,
        ticket: &Ticket,
        group: Group,
        path: Option<&Path>,
    ) -> anyhow::Result<Joined> {
        let (viewer, offer) = self.swarm.offer(ticket.stream, group).await?;
        match self.post(ticket, viewer, offer, path).await {
            Ok(joined) => Ok(joined),
            Err(error) => {
                let _ = self.swarm.leave(viewer, Farewell::Proper).await;
                Err(error)
            }
        }
    }

    async fn post(
        &self,
        ticket: &Ticket,
        viewer: ViewerId,
        offer: String,
        path: Option<&Path>,
    ) -> anyhow::Result<Joined> {
        let posted = Instant::now();
        let response = self
            .http
            .post(&ticket.url)
            .bearer_auth(&ticket.token)
            .header(http::header::CONTENT_TYPE, "application/sdp")
            .timeout(POST)
            .body(offer)
            .send()
            .await
            .context("POST")?;
        let status = response.status();
        let location = response.headers().get(http::header::LOCATION).cloned();
        let body = response.text().await.context("the answer")?;
        let answered = Instant::now();
        anyhow::ensure!(status == http::StatusCode::CREATED, "the join got {status}: {body}");
        let location = location.as_ref().and_then(|l| l.to_str().ok()).context("no Location")?;
        let base = reqwest::Url::parse(&ticket.url)?;
        let session = base.join(location)?.to_string();
        let answer = path.map_or_else(|| body.clone(), |path| with_candidates(&body, &**path));
        self.swarm.answer(viewer, answer).await?;
        Ok(Joined { viewer, posted, answered, session, token: ticket.token.clone() })
    }

    /// Joins with all of these tokens, `per_second` of them. A failed join is an entry of its own.
    pub async fn join_all(
        &self,
        tickets: &[(Ticket, Group, Option<Path>)],
        per_second: f64,
    ) -> Vec<anyhow::Result<Joined>> {
        let start = tokio::time::Instant::now();
        let joins = (0_u32..).zip(tickets).map(|(n, (ticket, group, path))| async move {
            let due = Duration::from_secs_f64(f64::from(n) / per_second.max(0.001));
            tokio::time::sleep_until(start + due).await;
            self.join(ticket, *group, path.as_ref()).await
        });
        futures::stream::iter(joins).buffered(UNDER_WAY).collect().await
    }

    /// Leaves properly: DTLS is told, then DELETE. Gives what the viewer came to.
    ///
    /// # Errors
    /// The viewers' thread has ended.
    pub async fn leave(&self, joined: &Joined) -> anyhow::Result<Option<ViewerReport>> {
        let report = self.swarm.leave(joined.viewer, Farewell::Proper).await?;
        let delete = self.http.delete(&joined.session).bearer_auth(&joined.token).timeout(POST);
        // The router may have forgotten it by the end of DTLS already.
        let _ = delete.send().await;
        self.diaries.forget(joined.viewer);
        Ok(report)
    }

    /// Vanishes without a word, as a closed laptop does.
    ///
    /// # Errors
    /// The viewers' thread has ended.
    pub async fn vanish(&self, joined: &Joined) -> anyhow::Result<Option<ViewerReport>> {
        let report = self.swarm.leave(joined.viewer, Farewell::None).await?;
        self.diaries.forget(joined.viewer);
        Ok(report)
    }
}
