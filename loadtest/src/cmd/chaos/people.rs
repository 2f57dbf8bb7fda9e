//! People who watch and come back as the web player lets them: a heartbeat while nothing comes, the
//! other addresses at once, a pause between rounds, a move when the router says so. Written from what
//! the player does (`web/player/whep.js`), not from its code. Invariant: a person has one connection, and a second
//! only while moving.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use fanlight_wire::input::{InputBody, InputMessage};
use http::{StatusCode, header};
use tokio_util::sync::CancellationToken;

use crate::{
    backend::{Backend, Ticket},
    crowd::Diaries,
    swarm::{Eyes, Farewell, Group, Milestone, Swarm, ViewerId},
};

/// How often a connection is looked at, and asked when it is silent.
const HEARTBEAT: Duration = Duration::from_millis(200);
/// Questions without an answer until a connection is dead: before a pong was seen, and the fewest.
const ASKS_MAX: u32 = 12;
const ASKS_MIN: u32 = 4;
/// POST, ICE and DTLS must be through by then.
const CONNECT: Duration = Duration::from_secs(10);
/// An address that does not answer its POST in this time is not waited for: there are others.
const POST: Duration = Duration::from_secs(2);
/// A connection that held this long starts the back-off over.
const STABLE: Duration = Duration::from_secs(5);
/// People who are sent elsewhere together do not all arrive in the same moment.
const MOVE_SPREAD: Duration = Duration::from_millis(150);
/// Pauses between rounds of tries.
const BACKOFF: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(8);
/// Longest wait for a token.
const TICKET: Duration = Duration::from_secs(5);
/// Redirects followed.
const HOPS_MAX: usize = 4;

/// What everybody shares.
pub(super) struct Square {
    pub(super) swarm: Arc<Swarm>,
    pub(super) diaries: Arc<Diaries>,
    pub(super) http: reqwest::Client,
    pub(super) backends: Vec<Backend>,
    /// Addresses of the control replicas' redirects, `http://host:port`.
    pub(super) redirects: Vec<String>,
    pub(super) names: Vec<String>,
    /// Joins of people who had been there before.
    pub(super) rejoins: AtomicU64,
    /// Moves that a router asked for and that were made.
    pub(super) moves: AtomicU64,
    pub(super) end: CancellationToken,
}

/// Why a join came to nothing.
#[derive(Debug)]
struct NoJoin {
    /// The token is of no use: another one is needed.
    token: bool,
    wait: Duration,
    why: String,
}

impl NoJoin {
    fn new(why: impl std::fmt::Display) -> Self {
        Self { token: false, wait: Duration::ZERO, why: why.to_string() }
    }
}

/// A connection that was answered.
struct Session {
    viewer: ViewerId,
    url: String,
    token: String,
}

/// The player's judgement of a silent connection.
struct Heart {
    packets: u64,
    messages: u64,
    asked: u32,
    asks_max: u32,
}

/// One person.
#[derive(Debug)]
pub(super) struct Person {
    pub(super) stream: usize,
    pub(super) eyes: Arc<Eyes>,
}

impl Square {
    /// HTTP as a page has it: redirects are followed by hand, because the token has to go along.
    pub(super) fn http() -> anyhow::Result<reqwest::Client> {
        let policy = reqwest::redirect::Policy::none();
        Ok(reqwest::Client::builder().redirect(policy).build()?)
    }

    /// A token from any replica.
    pub(super) async fn ticket(&self, stream: usize, first: usize) -> anyhow::Result<Ticket> {
        let name = self.names.get(stream).context("no such stream")?;
        let mut last = anyhow::anyhow!("no control API");
        for n in 0..self.backends.len() {
            let Some(backend) = self.backends.get((first + n) % self.backends.len()) else {
                continue;
            };
            match backend.ticket_now(name, stream, TICKET).await {
                Ok(ticket) => return Ok(ticket),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Where else a token may be used: as CreateViewer said, then wherever a control replica sends
    /// us.
    fn fallbacks(&self, ticket: &Ticket) -> Vec<String> {
        let name = self.names.get(ticket.stream).cloned().unwrap_or_default();
        let redirects = self.redirects.iter().map(|base| format!("{base}/whep/{name}"));
        ticket.fallbacks.iter().cloned().chain(redirects).collect()
    }

    /// A newcomer tries each address of a token once; gives whether a picture came within `limit`.
    /// Leaves again.
    pub(super) async fn newcomer(&self, ticket: &Ticket, limit: Duration) -> bool {
        let eyes = Arc::new(Eyes::new(Instant::now()));
        let comes = async {
            for url in round_of(&ticket.url, &self.fallbacks(ticket), false) {
                let joined = self.join(&url, &ticket.token, ticket.stream, &eyes).await;
                let Ok(session) = joined else { continue };
                let first = Milestone::FirstPicture;
                let seen = self.diaries.wait(session.viewer, first, limit).await.is_some();
                self.leave(session).await;
                if seen {
                    return true;
                }
            }
            false
        };
        tokio::time::timeout(limit, comes).await.unwrap_or(false)
    }

    async fn join(
        &self,
        url: &str,
        token: &str,
        stream: usize,
        eyes: &Arc<Eyes>,
    ) -> Result<Session, NoJoin> {
        let offered = self.swarm.offer_to(stream, Group::Observer, Some(Arc::clone(eyes))).await;
        let (viewer, offer) = offered.map_err(NoJoin::new)?;
        let posted = tokio::time::timeout(POST, self.post(url, token, offer)).await;
        let answered = match posted {
            Ok(Ok((answer, session))) => {
                let taken = self.swarm.answer(viewer, answer).await;
                taken.map(|()| session).map_err(NoJoin::new)
            }
            Ok(Err(why)) => Err(why),
            Err(_) => Err(NoJoin::new("no answer in time")),
        };
        match answered {
            Ok(url) => Ok(Session { viewer, url, token: token.to_owned() }),
            Err(why) => {
                let _ = self.swarm.leave(viewer, Farewell::None).await;
                self.diaries.forget(viewer);
                Err(why)
            }
        }
    }

    /// Posts an offer; gives the answer and the session's address.
    async fn post(
        &self,
        url: &str,
        token: &str,
        offer: String,
    ) -> Result<(String, String), NoJoin> {
        let mut url = reqwest::Url::parse(url).map_err(NoJoin::new)?;
        for _ in 0..HOPS_MAX {
            let request = self.http.post(url.clone()).bearer_auth(token);
            let request = request.header(header::CONTENT_TYPE, "application/sdp");
            let response = request.body(offer.clone()).send().await.map_err(NoJoin::new)?;
            let status = response.status();
            let text = |name| {
                let value = response.headers().get(name)?;
                Some(value.to_str().ok()?.to_owned())
            };
            let location = text(header::LOCATION).map(|l| url.join(&l));
            let wait = text(header::RETRY_AFTER).and_then(|s| s.parse().ok()).unwrap_or(0);
            match (status, location) {
                (StatusCode::CREATED, Some(Ok(session))) => {
                    let answer = response.text().await.map_err(NoJoin::new)?;
                    return Ok((answer, session.to_string()));
                }
                (
                    StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT,
                    Some(Ok(next)),
                ) => {
                    url = next;
                }
                _ => {
                    return Err(NoJoin {
                        token: matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN),
                        wait: Duration::from_secs(wait).min(BACKOFF_MAX),
                        why: format!("{status}: {}", response.text().await.unwrap_or_default()),
                    });
                }
            }
        }
        Err(NoJoin::new("too many redirects"))
    }

    async fn leave(&self, session: Session) {
        let _ = self.swarm.leave(session.viewer, Farewell::Proper).await;
        self.diaries.forget(session.viewer);
        // The page does not wait for it either; a router that is gone takes none.
        let delete = self.http.delete(&session.url).bearer_auth(&session.token).timeout(TICKET);
        tokio::spawn(async move {
            let _ = delete.send().await;
        });
    }
}

impl Person {
    /// Watches until everything ends.
    pub(super) async fn watch(&self, square: &Square, n: usize) {
        tokio::select! {
            () = self.life(square, n) => {}
            () = square.end.cancelled() => {}
        }
    }

    async fn life(&self, square: &Square, n: usize) {
        let mut ticket: Option<Ticket> = None;
        let mut url = String::new();
        // Addresses not tried yet in this round.
        let mut round = VecDeque::new();
        let mut was_there = false;
        let mut attempt = 0;
        loop {
            let Some(good) = &ticket else {
                match square.ticket(self.stream, n).await {
                    Ok(new) => {
                        url.clone_from(&new.url);
                        round.clear();
                        ticket = Some(new);
                    }
                    Err(error) => {
                        tracing::debug!(n, "no token: {error:#}");
                        tokio::time::sleep(pause(attempt, Duration::ZERO)).await;
                        attempt += 1;
                    }
                }
                continue;
            };
            if round.is_empty() {
                round = round_of(&url, &square.fallbacks(good), was_there);
            }
            let next = round.pop_front().unwrap_or_default();
            let mut wait = Duration::ZERO;
            match square.join(&next, &good.token, self.stream, &self.eyes).await {
                Ok(session) => {
                    if was_there {
                        square.rejoins.fetch_add(1, Ordering::Relaxed);
                    }
                    url = next;
                    let begun = Instant::now();
                    let connected = self.stay(square, session, &good.token, &mut url).await;
                    was_there |= connected;
                    if connected && begun.elapsed() > STABLE {
                        attempt = 0;
                    }
                    tracing::debug!(n, url, "lost");
                    round.clear();
                }
                Err(why) => {
                    tracing::debug!(n, url = next, why = why.why, "no join");
                    if why.token {
                        ticket = None;
                    }
                    wait = why.wait;
                }
            }
            // The others of a round at once; a pause between rounds, and after a loss, so that those
            // who lost the same router do not come as one.
            if round.is_empty() {
                tokio::time::sleep(pause(attempt, wait)).await;
                attempt += 1;
            }
        }
    }

    /// Stays until the connection is dead; gives whether it ever was up. `url` follows moves.
    async fn stay(
        &self,
        square: &Square,
        mut session: Session,
        token: &str,
        url: &mut String,
    ) -> bool {
        let begun = Instant::now();
        let mut heart = Heart::new(&self.eyes);
        // What an earlier router said is no news.
        let _ = self.eyes.take_move();
        let mut beat = tokio::time::interval(HEARTBEAT);
        let mut opened = false;
        let connected = loop {
            beat.tick().await;
            let diary = square.diaries.of(session.viewer);
            let connected = diary.at(Milestone::Connected).is_some();
            if diary.at(Milestone::Closed).is_some() || (!connected && begun.elapsed() > CONNECT) {
                break connected;
            }
            if diary.at(Milestone::ChannelOpen).is_none() {
                continue;
            }
            if !std::mem::replace(&mut opened, true) {
                // How long a pong takes is known from the beginning.
                self.ping(square, &session).await;
            }
            if let Some(to) = self.eyes.take_move() {
                let here = session.viewer;
                session = self.go(square, session, &to, token).await;
                if session.viewer != here {
                    *url = to;
                    heart = Heart::new(&self.eyes);
                }
                continue;
            }
            match heart.look(&self.eyes) {
                Look::Fine => {}
                Look::Dead => break connected,
                Look::Ask => heart.asked += u32::from(self.ping(square, &session).await),
            }
        };
        square.leave(session).await;
        connected
    }

    async fn ping(&self, square: &Square, session: &Session) -> bool {
        let body = InputBody::Ping { t_ms: self.eyes.clock_ms(Instant::now()) };
        let mut ping = Vec::new();
        if (InputMessage { seq: 0, lease_epoch: 0, body }).encode(&mut ping).is_err() {
            return false;
        }
        square.swarm.input(session.viewer, ping).await.is_ok_and(|sent| sent.is_some())
    }

    /// Joins where the router says, then leaves here; stays when there is nothing to be seen there.
    async fn go(&self, square: &Square, here: Session, url: &str, token: &str) -> Session {
        tokio::time::sleep(MOVE_SPREAD.mul_f64(rand::random())).await;
        let Ok(there) = square.join(url, token, self.stream, &self.eyes).await else { return here };
        let first = Milestone::FirstPicture;
        if square.diaries.wait(there.viewer, first, CONNECT).await.is_some() {
            square.moves.fetch_add(1, Ordering::Relaxed);
            square.leave(here).await;
            there
        } else {
            square.leave(there).await;
            here
        }
    }
}

/// The addresses of one round, each once. A first join goes where it was invited to; whoever lost a
/// connection asks the others first, because its router is the one that is known to be in trouble.
fn round_of(url: &str, fallbacks: &[String], lost: bool) -> VecDeque<String> {
    let mut round = VecDeque::new();
    for fallback in fallbacks.iter().filter(|f| *f != url) {
        if !round.contains(fallback) {
            round.push_back(fallback.clone());
        }
    }
    if lost {
        round.push_back(url.to_owned());
    } else {
        round.push_front(url.to_owned());
    }
    round
}

/// What a look at a connection says.
enum Look {
    Fine,
    Ask,
    Dead,
}

impl Heart {
    fn new(eyes: &Eyes) -> Self {
        let messages = eyes.messages().0;
        // The first look finds something new, as the player's does.
        Self { packets: u64::MAX, messages, asked: 0, asks_max: ASKS_MAX }
    }

    fn look(&mut self, eyes: &Eyes) -> Look {
        let (messages, round_trip) = eyes.messages();
        if messages != self.messages {
            (self.messages, self.asked) = (messages, 0);
            if let Some(round_trip) = round_trip {
                let trips = (round_trip * 3).as_millis().div_ceil(HEARTBEAT.as_millis());
                let trips = u32::try_from(trips).unwrap_or(ASKS_MAX);
                self.asks_max = trips.clamp(ASKS_MIN, ASKS_MAX);
            }
        }
        let packets = eyes.packets();
        if packets != self.packets {
            (self.packets, self.asked) = (packets, 0);
            return Look::Fine;
        }
        if self.asked >= self.asks_max { Look::Dead } else { Look::Ask }
    }
}

/// The player's pause before a try: doubling up to a cap, the half of it at random, never less than
/// the server asked for.
fn pause(round: u32, asked: Duration) -> Duration {
    let ceiling = BACKOFF.saturating_mul(1 << round.min(10)).min(BACKOFF_MAX);
    asked.max(ceiling.mul_f64(0.5 + rand::random::<f64>() / 2.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_cap_and_are_never_shorter_than_the_server_asked() {
        for round in 0..40 {
            let ceiling = BACKOFF_MAX.min(BACKOFF * (1 << round.min(10)));
            let wait = pause(round, Duration::ZERO);
            assert!(wait <= ceiling && wait >= ceiling / 2, "{round}: {wait:?}");
        }
        assert_eq!(pause(0, Duration::from_secs(3)), Duration::from_secs(3));
    }

    #[test]
    fn whoever_lost_a_router_asks_the_others_first() {
        let others = ["b", "a", "c", "b"].map(str::to_owned);
        assert_eq!(round_of("a", &others, false), ["a", "b", "c"]);
        assert_eq!(round_of("a", &others, true), ["b", "c", "a"]);
    }

    #[test]
    fn a_heart_asks_while_nothing_comes_and_gives_up_after_its_patience() {
        let eyes = Eyes::new(Instant::now());
        let mut heart = Heart::new(&eyes);
        assert!(matches!(heart.look(&eyes), Look::Fine));
        for _ in 0..ASKS_MAX {
            assert!(matches!(heart.look(&eyes), Look::Ask));
            heart.asked += 1;
        }
        assert!(matches!(heart.look(&eyes), Look::Dead));
    }
}
