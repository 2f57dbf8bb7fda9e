//! The viewers' door seen from outside: every method, status, header and problem of WHEP, by an
//! HTTP client that knows nothing of the router.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::{
    World, eventually,
    publisher::live_stream,
    viewer::{self, Seen, Viewer},
};
use fanlight_proto::{
    claims::{JoinClaims, LEEWAY_S},
    node::v1::{Bar, Drain, Kick, action::Action},
};
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;

const GOP: u32 = 30;

/// Checks what every refusal has in common, and gives its members.
async fn problem(response: Response, status: u16, reason: &str) -> Value {
    assert_eq!(response.status().as_u16(), status, "{reason}");
    assert_eq!(response.headers()["content-type"], "application/problem+json", "{reason}");
    cors(&response);
    let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!(body["status"], status);
    assert_eq!(body["reason"], reason, "{body}");
    assert_eq!(body["type"], format!("urn:fanlight:problem:{reason}"));
    assert!(body["title"].is_string() && body["detail"].is_string(), "{body}");
    body
}

fn cors(response: &Response) {
    let headers = response.headers();
    assert_eq!(headers["access-control-allow-origin"], "*");
    let exposed = headers["access-control-expose-headers"].to_str().unwrap();
    for name in ["Location", "ETag", "Link", "Retry-After"] {
        assert!(exposed.contains(name), "{exposed}");
    }
    let methods = headers["access-control-allow-methods"].to_str().unwrap();
    for name in ["POST", "PATCH", "DELETE"] {
        assert!(methods.contains(name), "{methods}");
    }
    let allowed = headers["access-control-allow-headers"].to_str().unwrap();
    for name in ["Authorization", "Content-Type", "If-Match"] {
        assert!(allowed.contains(name), "{allowed}");
    }
}

#[tokio::test]
async fn a_join_is_answered_with_everything_a_player_needs() {
    let world = World::new().await;
    let _publisher = live_stream(&world, GOP).await;
    let offered = viewer::offer().await;
    let token = world.token("pixel", "ann");
    let response = world.post("pixel", &token, offered.sdp.clone()).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
    cors(&response);
    let headers = response.headers().clone();
    assert_eq!(headers["content-type"], "application/sdp");
    let location = headers["location"].to_str().unwrap();
    let id = location.strip_prefix("/whep/pixel/").unwrap();
    assert!(id.len() >= 32 && id.chars().all(|c| c.is_ascii_hexdigit()), "{id}");
    let etag = headers["etag"].to_str().unwrap();
    assert!(etag.starts_with('"') && etag.ends_with('"') && etag.len() > 2, "strong: {etag}");
    let link = headers["link"].to_str().unwrap();
    assert!(link.contains("server-sent-events"), "the one extension there is: {link}");
    let answer = response.text().await.unwrap();
    assert!(answer.contains("a=sendonly"), "{answer}");
    assert!(answer.contains("a=ice-lite"), "{answer}");
    assert!(answer.contains("a=candidate"), "{answer}");
    // The parameter sets of the live stream say constrained baseline 3.1.
    assert!(answer.to_lowercase().contains("profile-level-id=42e01f"), "{answer}");

    let mut viewer = offered.start(&answer, world.url(location));
    viewer.until(&Seen::Connected).await;
    let url = viewer.session_url.clone();

    // The session's own token ends it; nothing else does.
    let nobody = world.http.delete(&url).send().await.unwrap();
    assert_eq!(nobody.headers()["www-authenticate"], "Bearer");
    problem(nobody, 401, "TOKEN_MISSING").await;
    let other = world.token("pixel", "bob");
    let other = world.http.delete(&url).bearer_auth(other).send().await.unwrap();
    problem(other, 403, "TOKEN_FOREIGN").await;
    let wrong_stream = url.replace("/pixel/", "/other/");
    let foreign = world.http.delete(wrong_stream).bearer_auth(&token).send().await.unwrap();
    problem(foreign, 403, "TOKEN_FOREIGN").await;

    let ended = world.http.delete(&url).bearer_auth(&token).send().await.unwrap();
    assert_eq!(ended.status(), StatusCode::OK);
    cors(&ended);
    viewer.until(&Seen::Closed).await;
    let again = world.http.delete(&url).bearer_auth(&token).send().await.unwrap();
    problem(again, 404, "SESSION_NOT_FOUND").await;
    eventually("the session is forgotten", || world.router.census().sessions == [0; 3]).await;
    world.end().await;
}

#[tokio::test]
async fn the_endpoint_answers_options_get_head_and_nothing_else() {
    let world = World::new().await;
    let url = world.url("/whep/anything");
    let ask = |method: Method| world.http.request(method, &url).send();

    let options = ask(Method::OPTIONS).await.unwrap();
    assert_eq!(options.status(), StatusCode::OK);
    assert_eq!(options.headers()["accept-post"], "application/sdp");
    cors(&options);
    for method in [Method::GET, Method::HEAD] {
        let response = ask(method).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "application/sdp");
        cors(&response);
        assert_eq!(response.text().await.unwrap(), "");
    }
    for method in [Method::PUT, Method::DELETE, Method::PATCH] {
        let response = ask(method).await.unwrap();
        assert_eq!(response.headers()["allow"], "POST, GET, HEAD, OPTIONS");
        problem(response, 405, "UNSUPPORTED").await;
    }
    let nowhere = world.http.get(world.url("/nowhere")).send().await.unwrap();
    problem(nowhere, 404, "STREAM_NOT_FOUND").await;
    world.end().await;
}

#[tokio::test]
async fn a_session_answers_get_head_options_and_takes_trickle() {
    let world = World::new().await;
    let _publisher = live_stream(&world, GOP).await;
    let token = world.token("pixel", "ann");
    let viewer = Viewer::join(&world, "pixel", &token).await;
    let url = &viewer.session_url;
    for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
        let response = world.http.request(method, url).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        cors(&response);
    }
    let unknown = world.http.get(world.url("/whep/pixel/0123")).send().await.unwrap();
    problem(unknown, 404, "SESSION_NOT_FOUND").await;
    let put = world.http.put(url).send().await.unwrap();
    assert_eq!(put.headers()["allow"], "DELETE, PATCH, GET, HEAD, OPTIONS");
    problem(put, 405, "UNSUPPORTED").await;

    let patch = || world.http.patch(url).body("a=end-of-candidates\r\n");
    let fragment = || patch().header("content-type", "application/trickle-ice-sdpfrag");
    problem(fragment().send().await.unwrap(), 401, "TOKEN_MISSING").await;
    let sdp = patch().bearer_auth(&token).header("content-type", "application/sdp");
    problem(sdp.send().await.unwrap(), 415, "UNSUPPORTED_MEDIA_TYPE").await;
    let bare = fragment().bearer_auth(&token);
    problem(bare.send().await.unwrap(), 428, "INVALID_ARGUMENT").await;
    let stale = fragment().bearer_auth(&token).header("if-match", "\"old\"");
    problem(stale.send().await.unwrap(), 412, "ETAG_MISMATCH").await;
    for any in ["*", "\"*\""] {
        let trickle = fragment().bearer_auth(&token).header("if-match", any);
        assert_eq!(trickle.send().await.unwrap().status(), StatusCode::NO_CONTENT);
    }
    world.end().await;
}

#[tokio::test]
async fn an_ice_restart_gives_new_credentials_and_a_new_tag() {
    let world = World::new().await;
    let _publisher = live_stream(&world, GOP).await;
    let token = world.token("pixel", "ann");
    let viewer = Viewer::join(&world, "pixel", &token).await;
    let url = viewer.session_url.clone();
    let any = "*".to_owned();
    let patch = |tag: &str, body: &str| {
        let request = world.http.patch(&url).bearer_auth(&token).header("if-match", tag);
        request.header("content-type", "application/trickle-ice-sdpfrag").body(body.to_owned())
    };
    let half = patch(&any, "a=ice-ufrag:abcd\r\n").send().await.unwrap();
    problem(half, 400, "BAD_SDP").await;
    let long = patch(&any, &"a=x\r\n".repeat(4_000)).send().await.unwrap();
    problem(long, 413, "TOO_LARGE").await;

    let fresh = "a=ice-ufrag:fresh\r\na=ice-pwd:0123456789012345678901\r\n";
    let restarted = patch(&any, fresh).send().await.unwrap();
    assert_eq!(restarted.status(), StatusCode::OK);
    let tag = restarted.headers()["etag"].to_str().unwrap().to_owned();
    let body = restarted.text().await.unwrap();
    assert!(body.contains("a=ice-lite\r\n") && body.contains("a=ice-ufrag:"), "{body}");
    // The same again is no restart; another changes the tag.
    let again = patch(&tag, fresh).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::NO_CONTENT);
    let other = fresh.replace("fresh", "other");
    assert_ne!(patch(&any, &other).send().await.unwrap().headers()["etag"], tag.as_str());
    problem(patch(&tag, fresh).send().await.unwrap(), 412, "ETAG_MISMATCH").await;
    world.end().await;
}

#[tokio::test]
async fn each_token_that_is_not_right_is_refused_with_its_reason() {
    let world = World::new().await;
    let _publisher = live_stream(&world, GOP).await;
    let url = world.url("/whep/pixel");
    let sdp = || world.http.post(&url).header("content-type", "application/sdp").body("x");
    let with = |claims: &JoinClaims| world.post("pixel", &world.sign(claims), "x").send();
    let good = world.claims("pixel", "ann");

    let none = sdp().send().await.unwrap();
    assert_eq!(none.headers()["www-authenticate"], "Bearer");
    problem(none, 401, "TOKEN_MISSING").await;
    problem(sdp().bearer_auth("junk").send().await.unwrap(), 401, "TOKEN_MISSING").await;
    let basic = sdp().basic_auth("ann", Some("secret")).send().await.unwrap();
    problem(basic, 401, "TOKEN_MISSING").await;
    let signed = world.sign(&good);
    let (body, _) = signed.rsplit_once('.').unwrap();
    let forged = sdp().bearer_auth(format!("{body}.{}", "A".repeat(86))).send().await.unwrap();
    problem(forged, 401, "TOKEN_INVALID").await;
    let old = JoinClaims { exp: good.exp - 60 - LEEWAY_S - 5, ..good.clone() };
    let old = with(&old).await.unwrap();
    assert!(old.headers()["www-authenticate"].to_str().unwrap().contains("invalid_token"));
    problem(old, 401, "TOKEN_EXPIRED").await;
    let audience = JoinClaims { aud: "elsewhere".into(), ..good.clone() };
    problem(with(&audience).await.unwrap(), 401, "TOKEN_INVALID").await;
    let foreign = world.claims("other", "ann");
    problem(with(&foreign).await.unwrap(), 403, "TOKEN_FOREIGN").await;
    let later = JoinClaims { e: 6, ..good.clone() };
    let later = world.post("pixel", &world.sign(&later), viewer::offer().await.sdp);
    let later = later.send().await.unwrap();
    assert_eq!(later.headers()["retry-after"], "1");
    problem(later, 409, "STALE_EPOCH").await;
    // And the right one gets as far as its body.
    problem(with(&good).await.unwrap(), 400, "BAD_SDP").await;

    let bar = Bar { token_ids: vec!["ann".into()], ..Bar::default() };
    world.act(Action::Bar(bar)).await;
    problem(with(&good).await.unwrap(), 403, "VIEWER_BARRED").await;
    world.end().await;
}

#[tokio::test]
async fn each_body_that_is_not_right_is_refused_with_its_reason() {
    let world = World::new().await;
    let _publisher = live_stream(&world, GOP).await;
    let token = world.token("pixel", "ann");
    let offer = viewer::offer().await.sdp;

    let json = world.http.post(world.url("/whep/pixel")).bearer_auth(&token);
    let json = json.header("content-type", "application/json").body("{}").send().await.unwrap();
    assert_eq!(json.headers()["accept-post"], "application/sdp");
    problem(json, 415, "UNSUPPORTED_MEDIA_TYPE").await;
    let post = |body: Vec<u8>| {
        let request = world.http.post(world.url("/whep/pixel")).bearer_auth(&token);
        request.header("content-type", "Application/SDP; charset=utf-8").body(body).send()
    };
    let garbage: &[&[u8]] = &[b"", b"\0", b"\xff\xfe", b"v=0", b"v=0\r\no=- 1 1 IN IP4 0\r\n"];
    for body in garbage {
        problem(post(body.to_vec()).await.unwrap(), 400, "BAD_SDP").await;
    }
    // Cut anywhere, an offer is refused or (where only its tail is lost) answered; never worse.
    for cut in (0..offer.len()).step_by(offer.len() / 40) {
        let status = post(offer.as_bytes()[..cut].to_vec()).await.unwrap().status().as_u16();
        assert!(matches!(status, 201 | 400 | 406), "cut at {cut}: {status}");
    }
    problem(post(vec![b'a'; (32 << 10) + 1]).await.unwrap(), 413, "TOO_LARGE").await;

    // H.264 renamed to what no browser knows.
    let other = offer.replace("H264/90000", "X264/90000");
    let body = problem(post(other.into()).await.unwrap(), 406, "NO_COMMON_CODEC").await;
    assert!(body["offered"].is_array(), "{body}");
    assert!(body["needed"].is_string(), "{body}");
    world.end().await;
}

#[tokio::test]
async fn streams_that_cannot_be_shown_say_why_and_when_to_retry() {
    let world = World::new().await;
    let post = |stream: &'static str, jti: &'static str| {
        world.post(stream, &world.token(stream, jti), "v=0").send()
    };
    problem(post("pixel", "a").await.unwrap(), 404, "STREAM_NOT_FOUND").await;
    world.want("pixel", 5).await;
    let assigned = post("pixel", "a").await.unwrap();
    assert_eq!(assigned.headers()["retry-after"], "0", "its picture is on its way");
    problem(assigned, 409, "DEVICE_OFFLINE").await;

    let publisher = live_stream(&world, GOP).await;
    problem(post("pixel", "a").await.unwrap(), 400, "BAD_SDP").await;
    publisher.vanish();
    eventually("the stream is offline", || {
        let running = world.router.handler().running();
        running[0].state() == fanlight_proto::types::v1::StreamState::Assigned
    })
    .await;
    problem(post("pixel", "a").await.unwrap(), 409, "DEVICE_OFFLINE").await;

    world.apply(true, &[]).await;
    problem(post("pixel", "a").await.unwrap(), 404, "STREAM_NOT_FOUND").await;
    // A name that cannot be a stream's is one that is not served.
    let odd = world.http.post(world.url("/whep/a%2Fb")).bearer_auth("x").send().await.unwrap();
    problem(odd, 404, "STREAM_NOT_FOUND").await;
    world.end().await;
}

#[tokio::test]
async fn a_full_or_draining_router_answers_503_with_retry_after() {
    let world = World::with(|cfg| cfg.limits.sessions_per_stream_max = 1).await;
    let _publisher = live_stream(&world, GOP).await;
    let mut first = Viewer::join(&world, "pixel", &world.token("pixel", "ann")).await;
    let offer = viewer::offer().await.sdp;
    let second = world.post("pixel", &world.token("pixel", "bob"), offer.clone());
    let second = second.send().await.unwrap();
    assert_eq!(second.headers()["retry-after"], "5");
    problem(second, 503, "STREAM_LIMIT").await;

    world.act(Action::Drain(Drain { on: true, deadline: None })).await;
    let third = world.post("pixel", &world.token("pixel", "eve"), offer).send().await.unwrap();
    assert!(third.headers().contains_key("retry-after"));
    problem(third, 503, "DRAINING").await;
    first.until(&Seen::Connected).await;
    world.end().await;
}

#[tokio::test]
async fn joins_beyond_the_rate_get_503() {
    let world = World::with(|cfg| cfg.limits.joins_per_second_max = 1).await;
    // Its probes spend the rate.
    let _publisher = live_stream(&world, GOP).await;
    let token = world.token("pixel", "ann");
    let mut busy = None;
    for _ in 0..20 {
        let response = world.post("pixel", &token, "x").send().await.unwrap();
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            busy = Some(response);
            break;
        }
    }
    problem(busy.unwrap(), 503, "OVERLOADED").await;
    world.end().await;
}

#[tokio::test]
async fn a_kick_closes_the_viewer_and_bars_its_token() {
    let world = World::new().await;
    let _publisher = live_stream(&world, GOP).await;
    let token = world.token("pixel", "ann");
    let mut viewer = Viewer::join(&world, "pixel", &token).await;
    viewer.until(&Seen::Connected).await;
    let kick = || Kick { viewer: "streams/pixel/viewers/ann".into(), reason: "test".into() };
    let done = world.act(Action::Kick(kick())).await;
    assert_eq!(done.status.unwrap().code, 0);
    viewer.until(&Seen::Closed).await;
    let again = world.post("pixel", &token, viewer::offer().await.sdp).send().await.unwrap();
    problem(again, 403, "VIEWER_BARRED").await;
    let unknown = Kick { viewer: "streams/pixel/viewers/nobody".into(), reason: String::new() };
    let unknown = world.act(Action::Kick(unknown)).await;
    assert_eq!(unknown.status.unwrap().reason, "VIEWER_NOT_FOUND");
    world.end().await;
}

#[tokio::test]
async fn one_token_has_one_session_unless_it_allows_many() {
    let world = World::new().await;
    let _publisher = live_stream(&world, GOP).await;
    let token = world.token("pixel", "ann");
    let mut first = Viewer::join(&world, "pixel", &token).await;
    first.until(&Seen::Connected).await;
    let mut second = Viewer::join(&world, "pixel", &token).await;
    first.until(&Seen::Closed).await;
    second.until(&Seen::Connected).await;
    eventually("one session", || world.router.census().sessions == [1; 3]).await;

    let many = world.sign(&JoinClaims { multi: true, ..world.claims("pixel", "demo") });
    let mut one = Viewer::join(&world, "pixel", &many).await;
    let mut two = Viewer::join(&world, "pixel", &many).await;
    one.until(&Seen::Connected).await;
    two.until(&Seen::Connected).await;
    assert_eq!(world.router.census().sessions[0], 3);
    let running = world.router.handler().running();
    let names = &running[0].viewer_names;
    assert_eq!(names.iter().filter(|n| n.starts_with("demo~")).count(), 2, "{names:?}");
    world.end().await;
}

#[tokio::test]
async fn a_session_ends_with_its_time() {
    let world = World::new().await;
    let _publisher = live_stream(&world, GOP).await;
    let token = world.sign(&JoinClaims { ms: 1, ..world.claims("pixel", "ann") });
    let mut viewer = Viewer::join(&world, "pixel", &token).await;
    viewer.until(&Seen::Connected).await;
    viewer.until(&Seen::Closed).await;
    world.end().await;
}
