//! Viewers of a stream that is live on another router: told where to go by both ways, redirected when
//! they come, and let in there though their token's time is over, by a ticket that nobody else can
//! use.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::{
    World, origin_want,
    publisher::live_stream,
    soon,
    viewer::{self, Seen},
};
use fanlight_ops::ticket;
use fanlight_proto::{
    claims::{JoinClaims, LEEWAY_S},
    node::v1::{Apply, Bar, MovedTo, action::Action, want::Role},
};
use fanlight_wire::input::{DeviceBody, DeviceMessage};
use reqwest::{StatusCode, redirect::Policy};

const GOP: u32 = 30;
const THERE: &str = "https://r2.example/whep/pixel";
const KEY: [u8; 32] = [9; 32];

/// The same assignment of `pixel` again, with more said about it.
async fn told(world: &World, ticket_key: &[u8], moved: Option<MovedTo>) {
    let mut want = origin_want("pixel", 5);
    if let Some(Role::Origin(origin)) = &mut want.role {
        origin.ticket_key = ticket_key.to_vec();
        origin.moved = moved;
    }
    let apply = Apply { wants: vec![want], ..Apply::default() };
    assert!(world.router.handler().apply(apply).await.refusals.is_empty());
}

fn moved() -> Option<MovedTo> {
    Some(MovedTo { whep_url: THERE.into(), ticket_key: KEY.to_vec() })
}

fn now_s() -> u64 {
    jsonwebtoken::get_current_timestamp()
}

#[tokio::test]
async fn viewers_are_sent_after_their_stream_by_channel_and_by_event_and_joins_are_redirected() {
    let world = World::new().await;
    let _publisher = live_stream(&world, GOP).await;
    let token = world.token("pixel", "ann");
    let offered = viewer::offer().await;
    let response = world.post("pixel", &token, offered.sdp.clone()).send().await.unwrap();
    let headers = response.headers().clone();
    let location = headers["location"].to_str().unwrap().to_owned();
    let link = headers["link"].to_str().unwrap();
    assert_eq!(
        link,
        format!(
            "<{location}/events>; \
             rel=\"urn:ietf:params:whep:ext:core:server-sent-events\"; events=\"reconnect\""
        )
    );
    let mut ann = offered.start(&response.text().await.unwrap(), world.url(&location));

    // Events: with the session's token, for a list that has the one there is.
    let events = world.url(&format!("{location}/events"));
    let ask = |list: &'static str| {
        world.http.post(&events).header("content-type", "application/json").body(list)
    };
    let refused = ask("[\"reconnect\"]").send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    for nonsense in ["[\"layers\"]", "{}", "", "[1]"] {
        let refused = ask(nonsense).bearer_auth(&token).send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST, "{nonsense}");
    }
    let subscribe = || async {
        let made = ask("[\"layers\", \"reconnect\"]").bearer_auth(&token).send().await.unwrap();
        assert_eq!(made.status(), StatusCode::CREATED);
        world.url(made.headers()["location"].to_str().unwrap())
    };
    let first = subscribe().await;
    let mut replaced = world.http.get(&first).send().await.unwrap();
    assert_eq!(replaced.headers()["content-type"], "text/event-stream");
    let second = subscribe().await;
    // One event stream per session: the first has ended, and its address is of no use any more.
    soon("the end", async { while replaced.chunk().await.unwrap().is_some() {} }).await;
    assert_eq!(world.http.get(&first).send().await.unwrap().status(), StatusCode::NOT_FOUND);
    let mut stream = world.http.get(&second).send().await.unwrap();

    ann.until(&Seen::ChannelOpen("input".into())).await;
    told(&world, &[], moved()).await;
    told(&world, &[], moved()).await;
    let line = soon("the event", stream.chunk()).await.unwrap().unwrap();
    let line = String::from_utf8(line.to_vec()).unwrap();
    let prefix = format!("event: reconnect\ndata: {{\"url\":\"{THERE}?ticket=");
    let rest = line.strip_prefix(&prefix).unwrap_or_else(|| panic!("{line}"));
    let given = rest.split('"').next().unwrap();
    assert!(ticket::is_good(&KEY, "pixel", "ann", given, now_s()), "{given}");
    assert!(!ticket::is_good(&KEY, "pixel", "bob", given, now_s()), "it is hers alone");
    let url = loop {
        if let Seen::ChannelData(bytes) = ann.next().await
            && let DeviceBody::Reconnect(url) = DeviceMessage::decode(&bytes).unwrap().body
        {
            break url;
        }
    };
    assert_eq!(url, format!("{THERE}?ticket={given}"), "told once, and the same by both ways");

    // Whoever comes now is sent there too; no token is looked at for that.
    let client = reqwest::Client::builder().redirect(Policy::none()).build().unwrap();
    let late = client.post(world.url("/whep/pixel")).send().await.unwrap();
    assert_eq!(late.status(), StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(late.headers()["location"], THERE);
    assert_eq!(late.headers()["access-control-allow-origin"], "*");

    // She leaves; her events end with her session.
    let left = world.http.delete(&ann.session_url).bearer_auth(&token).send().await.unwrap();
    assert_eq!(left.status(), StatusCode::OK);
    soon("the end", async { while stream.chunk().await.unwrap().is_some() {} }).await;
    world.end().await;
}

#[tokio::test]
async fn a_ticket_lets_its_holder_in_after_the_tokens_time_and_nobody_else() {
    let world = World::new().await;
    let _publisher = live_stream(&world, GOP).await;
    let expired = |jti: &str| {
        let exp = now_s() - LEEWAY_S - 5;
        world.sign(&JoinClaims { exp, ..world.claims("pixel", jti) })
    };
    let join = |stream: &str, token: String, ticket: String| {
        let url = world.url(&format!("/whep/{stream}?x=y&ticket={ticket}"));
        let offer = viewer::offer();
        let http = world.http.clone();
        async move {
            let sent = http.post(url).bearer_auth(token).header("content-type", "application/sdp");
            sent.body(offer.await.sdp).send().await.unwrap().status().as_u16()
        }
    };
    let good = |jti: &str| ticket::issue(&KEY, "pixel", jti, now_s());
    assert_eq!(join("pixel", expired("ann"), good("ann")).await, 401, "no key: none is taken");
    told(&world, &KEY, None).await;
    assert_eq!(join("pixel", expired("ann"), good("ann")).await, 201);
    assert_eq!(join("pixel", expired("ann"), String::new()).await, 401, "no ticket");
    assert_eq!(join("pixel", expired("bob"), good("ann")).await, 401, "another viewer's");
    let other_key = ticket::issue(&[1; 32], "pixel", "ann", now_s());
    assert_eq!(join("pixel", expired("ann"), other_key).await, 401, "of another router");
    let old = ticket::issue(&KEY, "pixel", "ann", now_s() - 200);
    assert_eq!(join("pixel", expired("ann"), old).await, 401, "its time is over too");
    let foreign = world.sign(&JoinClaims { exp: 1, ..world.claims("tablet", "ann") });
    assert_eq!(join("pixel", foreign, good("ann")).await, 403, "a token for another stream");
    let forged = World::new().await;
    let stranger = forged.sign(&JoinClaims { exp: 1, ..world.claims("pixel", "ann") });
    assert_eq!(join("pixel", stranger, good("ann")).await, 401, "not our token");
    // Whoever was thrown out stays out.
    let bar = Bar { token_ids: vec!["ann".into()], ..Bar::default() };
    world.act(Action::Bar(bar)).await;
    assert_eq!(join("pixel", expired("ann"), good("ann")).await, 403);
    forged.end().await;
    world.end().await;
}
