//! Relays on virtual time, with endpoints that fail as told: a sleep here moves that time on, and ends
//! only when everybody else rests.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::VecDeque;

use fanlight_proto::control::v1::Stream;
use futures::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;

use super::*;
use crate::{
    clock::Clock,
    lease::Timing,
    store::{
        CreateStream, DeleteStream,
        memory::{Limits, MemoryStore},
    },
    webhook::Delivery,
};

/// An endpoint: what it was sent and when, and what it answers next (then 200).
#[derive(Clone, Debug, Default)]
struct Endpoint(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    heard: Vec<(Instant, String, String)>,
    answers: VecDeque<Result<u16, String>>,
    /// Answers to whatever is about this subject.
    bad: Option<(String, u16)>,
}

impl Post for Endpoint {
    fn post(&self, delivery: Delivery) -> BoxFuture<'_, Result<u16, String>> {
        let event: serde_json::Value = serde_json::from_slice(&delivery.body).unwrap();
        let word = |key: &str| event[key].as_str().unwrap().to_owned();
        let (id, subject) = (word("id"), word("subject"));
        let mut inner = self.0.lock();
        inner.heard.push((Instant::now(), id, subject.clone()));
        let bad = inner.bad.clone().filter(|(s, _)| *s == subject).map(|(_, status)| Ok(status));
        let answer = bad.or_else(|| inner.answers.pop_front()).unwrap_or(Ok(200));
        async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            answer
        }
        .boxed()
    }
}

impl Endpoint {
    fn heard(&self) -> Vec<(String, String)> {
        self.0.lock().heard.iter().map(|(_, id, subject)| (id.clone(), subject.clone())).collect()
    }

    async fn until(&self, n: usize) {
        while self.0.lock().heard.len() < n {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn store(events: usize) -> Arc<dyn Store> {
    let limits = Limits { events, ..Limits::default() };
    Arc::new(MemoryStore::new(limits, Timing::default(), Clock::start()))
}

async fn create(store: &Arc<dyn Store>, name: &str) {
    let intent = CreateStream {
        id: name.parse().unwrap(),
        device: name.parse().unwrap(),
        spec: Arc::new(Stream::default()),
        request: None,
    };
    store.create_stream(intent).await.unwrap();
}

async fn delete(store: &Arc<dyn Store>, name: &str) {
    let (id, request) = (name.parse().unwrap(), None);
    let intent = DeleteStream { id, version: None, allow_missing: false, request };
    store.delete_stream(intent).await.unwrap();
}

fn relay(store: &Arc<dyn Store>, holder: &str, endpoint: &Endpoint) -> CancellationToken {
    let end = CancellationToken::new();
    let relay = Relay::new(
        "hook".to_owned(),
        holder.to_owned(),
        Arc::clone(store),
        Interest::new(None, Vec::new()),
        Signer::new(b"0123456789abcdef"),
        endpoint.clone(),
    );
    tokio::spawn(relay.run(end.clone()));
    end
}

/// The relay has claimed, so that what happens from now on is sent.
async fn claimed(store: &Arc<dyn Store>) {
    let other = || store.claim_relay("hook".to_owned(), "nobody".to_owned(), Duration::ZERO);
    while other().await.unwrap().is_some() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn events_arrive_once_each_and_in_order_per_stream() {
    let (store, endpoint) = (store(10_000), Endpoint::default());
    let end = relay(&store, "c1", &endpoint);
    claimed(&store).await;
    for n in 0..100 {
        create(&store, &format!("s{n}")).await;
        delete(&store, &format!("s{n}")).await;
    }
    endpoint.until(200).await;
    let heard = endpoint.heard();
    assert_eq!(heard.len(), 200);
    for n in 0..100 {
        let subject = format!("streams/s{n}");
        let ids: Vec<u64> = heard
            .iter()
            .filter(|(_, s)| *s == subject)
            .map(|(id, _)| id.parse().unwrap())
            .collect();
        assert!(ids.len() == 2 && ids[0] < ids[1], "{subject}: {ids:?}");
    }
    end.cancel();
}

#[tokio::test(start_paused = true)]
async fn one_bad_event_holds_up_its_stream_and_no_other() {
    let (store, endpoint) = (store(10_000), Endpoint::default());
    endpoint.0.lock().bad = Some(("streams/bad".to_owned(), 500));
    let end = relay(&store, "c1", &endpoint);
    claimed(&store).await;
    create(&store, "bad").await;
    delete(&store, "bad").await;
    for n in 0..20 {
        create(&store, &format!("s{n}")).await;
    }
    let good = || endpoint.heard().iter().filter(|(_, s)| s != "streams/bad").count();
    while good() < 20 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let ids: BTreeSet<_> = endpoint
        .heard()
        .into_iter()
        .filter(|(_, s)| s == "streams/bad")
        .map(|(id, _)| id)
        .collect();
    assert_eq!(ids.len(), 1, "the second event waits for the first");
    endpoint.0.lock().bad = None;
    endpoint.until(endpoint.heard().len() + 2).await;
    end.cancel();
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_never_taken_is_given_up_after_a_day_and_can_be_replayed() {
    let (store, endpoint) = (store(10_000), Endpoint::default());
    endpoint.0.lock().bad = Some(("streams/a".to_owned(), 503));
    let begun = Instant::now();
    let end = relay(&store, "c1", &endpoint);
    claimed(&store).await;
    create(&store, "a").await;
    let dead = async {
        loop {
            let letters = store.dead_letters("hook".to_owned()).await.unwrap();
            if !letters.rows.is_empty() {
                return letters.rows;
            }
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
    };
    let dead = dead.await;
    let lasted = begun.elapsed();
    let day = Duration::from_secs(24 * 3600);
    assert!(lasted > day - Duration::from_secs(3700) && lasted <= day + Duration::from_secs(120));
    assert_eq!((dead.len(), dead[0].error.as_str()), (1, "HTTP status 503"));
    // Half a second to an hour, doubling: about 13 steps up and a day of hours.
    assert!((20..=80).contains(&dead[0].attempts), "{}", dead[0].attempts);

    endpoint.0.lock().bad = None;
    let n = endpoint.heard().len();
    assert_eq!(store.replay_dead("hook".to_owned(), Vec::new()).await.unwrap(), 1);
    endpoint.until(n + 1).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(endpoint.heard().len(), n + 1, "sent once");
    assert!(store.dead_letters("hook".to_owned()).await.unwrap().rows.is_empty());
    end.cancel();
}

#[tokio::test(start_paused = true)]
async fn an_answer_about_the_event_itself_is_final_at_once() {
    let (store, endpoint) = (store(10_000), Endpoint::default());
    endpoint.0.lock().answers.push_back(Ok(422));
    let end = relay(&store, "c1", &endpoint);
    claimed(&store).await;
    create(&store, "a").await;
    create(&store, "b").await;
    endpoint.until(2).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(endpoint.heard().len(), 2);
    assert_eq!(store.dead_letters("hook".to_owned()).await.unwrap().rows.len(), 1);
    end.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_dead_endpoint_is_asked_ever_more_rarely_and_heard_when_it_is_back() {
    let (store, endpoint) = (store(10_000), Endpoint::default());
    let down = (0..100_000).map(|_| Err("connection refused".to_owned()));
    endpoint.0.lock().answers = down.collect();
    let end = relay(&store, "c1", &endpoint);
    claimed(&store).await;
    for n in 0..50 {
        create(&store, &format!("s{n}")).await;
    }
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let asked = endpoint.heard().len();
    assert!(asked < 60, "{asked} deliveries in an hour to an endpoint that is down");
    endpoint.0.lock().answers.clear();
    let back = Instant::now();
    endpoint.until(asked + 50).await;
    // Its rest, then all that waits: an event's own wait has grown to at most the age it has.
    assert!(back.elapsed() < Duration::from_secs(3700), "{:?}", back.elapsed());
    end.cancel();
}

#[tokio::test(start_paused = true)]
async fn another_replica_goes_on_where_the_first_one_died() {
    let (store, endpoint) = (store(10_000), Endpoint::default());
    let first = relay(&store, "c1", &endpoint);
    claimed(&store).await;
    create(&store, "a").await;
    endpoint.until(1).await;
    let second = relay(&store, "c2", &endpoint);
    create(&store, "b").await;
    endpoint.until(2).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(endpoint.heard().len(), 2, "only the one that claims sends");
    first.cancel();
    // Virtual time moves once everybody rests: the first one has ended. (One that ends while a
    // delivery is under way may have that one sent twice; the promise is at least once.)
    tokio::time::sleep(Duration::from_millis(1)).await;
    create(&store, "c").await;
    endpoint.until(3).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let subjects: Vec<_> = endpoint.heard().into_iter().map(|(_, s)| s).collect();
    assert_eq!(subjects, ["streams/a", "streams/b", "streams/c"]);
    second.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_webhook_that_is_too_far_behind_goes_on_with_what_is_kept() {
    let (store, endpoint) = (store(300), Endpoint::default());
    endpoint.0.lock().answers = (0..10_000).map(|_| Ok(500)).collect();
    let end = relay(&store, "c1", &endpoint);
    claimed(&store).await;
    for n in 0..1000 {
        create(&store, &format!("s{n:04}")).await;
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    endpoint.0.lock().answers.clear();
    // The newest of all is heard in the end.
    let newest = || endpoint.heard().iter().any(|(_, s)| s == "streams/s0999");
    while !newest() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    end.cancel();
}
