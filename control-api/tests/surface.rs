//! What the backend-facing listener shows beside the services: health, reflection, deadlines,
//! limits, plain HTTP; and how a replica starts, or says why not.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::{Replica, config, create, fields, reason};
use fanlight_control::ControlApi;
use fanlight_ops::shutdown::Shutdown;
use fanlight_proto::control::v1::{GetStreamRequest, ListStreamsRequest};
use tonic::{Code, Request};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

#[tokio::test]
async fn health_says_serving_for_the_whole_and_each_service() {
    let replica = Replica::start().await;
    let mut health = HealthClient::new(replica.channel().await);
    for service in ["", "fanlight.control.v1.StreamService", "fanlight.control.v1.ViewerService"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let status = health.check(request).await.unwrap().into_inner().status;
        assert_eq!(status, 1, "{service}");
    }
    let unknown = HealthCheckRequest { service: "fanlight.node.v1.NodeLinkService".to_owned() };
    assert_eq!(health.check(unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn reflection_lists_what_can_be_called_here() {
    let replica = Replica::start().await;
    let mut reflection = ServerReflectionClient::new(replica.channel().await);
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers =
        reflection.server_reflection_info(tokio_stream::once(ask)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = list.service.into_iter().map(|s| s.name).collect();
    assert!(names.contains(&"fanlight.control.v1.StreamService".to_owned()), "{names:?}");
    assert!(!names.iter().any(|n| n.contains("NodeLink")), "{names:?}");
}

#[tokio::test]
async fn deadlines_above_thirty_seconds_are_refused() {
    let replica = Replica::start().await;
    let mut streams = replica.streams().await;
    let mut request = Request::new(ListStreamsRequest::default());
    request.set_timeout(Duration::from_secs(31));
    let refused = streams.list_streams(request).await.unwrap_err();
    assert_eq!(
        (refused.code(), fields(&refused)),
        (Code::InvalidArgument, ["grpc-timeout".to_owned()].into())
    );
    let mut request = Request::new(ListStreamsRequest::default());
    request.set_timeout(Duration::from_secs(30));
    streams.list_streams(request).await.unwrap();
}

#[tokio::test]
async fn calls_beyond_the_bound_are_shed_with_a_reason() {
    let replica = Replica::with(|cfg| cfg.max_calls = 1).await;
    let router = replica.router("r1").await;
    let _worker = replica.worker("w1", &["a"]).await;
    router.manners.send_replace(common::Manners { acks: false, ..Default::default() });
    let mut streams = replica.streams().await;
    let mut events = replica.api.store().subscribe();
    let slow = tokio::spawn({
        let mut streams = streams.clone();
        async move { streams.create_stream(create("a")).await }
    });
    let begun = async {
        while !matches!(events.recv().await.unwrap(), fanlight_control::store::Event::Stream(_)) {}
    };
    tokio::time::timeout(common::SOON, begun).await.unwrap();
    let shed = streams.list_streams(ListStreamsRequest::default()).await.unwrap_err();
    assert_eq!((shed.code(), reason(&shed).as_str()), (Code::ResourceExhausted, "OVERLOADED"));
    slow.abort();
}

#[tokio::test]
async fn a_request_that_is_too_large_or_not_protobuf_is_refused_and_the_next_one_works() {
    let replica = Replica::start().await;
    let mut streams = replica.streams().await;
    let huge = ListStreamsRequest { filter: "x".repeat(300 * 1024), ..Default::default() };
    let refused = streams.list_streams(huge).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    streams.list_streams(ListStreamsRequest::default()).await.unwrap();

    let mut raw = tonic::client::Grpc::new(replica.channel().await);
    raw.ready().await.unwrap();
    let path = "/fanlight.control.v1.StreamService/GetStream".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<prost_types::Value, GetStreamRequest>::default();
    // Field 1 as a varint where a string is due.
    let wrong = prost_types::Value { kind: Some(prost_types::value::Kind::NullValue(7)) };
    let refused = raw.unary(Request::new(wrong), path, codec).await.unwrap_err();
    assert_ne!(refused.code(), Code::Ok);
    streams.list_streams(ListStreamsRequest::default()).await.unwrap();
}

#[tokio::test]
async fn random_bytes_on_either_port_do_no_harm() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let replica = Replica::start().await;
    for addr in [replica.api.grpc_addr(), replica.api.node_addr()] {
        for seed in 0u8..8 {
            let bytes: Vec<u8> =
                (0..16).flat_map(|_| 0..=u8::MAX).map(|i| i.wrapping_mul(31) ^ seed).collect();
            let mut tcp = tokio::net::TcpStream::connect(addr).await.unwrap();
            // The other side may close while we write.
            let _ = tcp.write_all(&bytes).await;
            let _ = tcp.shutdown().await;
            let mut answer = Vec::new();
            let read = tcp.read_to_end(&mut answer);
            let _ = tokio::time::timeout(common::SOON, read).await.expect("closed");
        }
    }
    let _router = replica.router("r1").await;
    replica.streams().await.list_streams(ListStreamsRequest::default()).await.unwrap();
}

#[tokio::test]
async fn whep_is_redirected_to_the_router_that_carries_the_stream() {
    let replica = Replica::start().await;
    let unknown = replica.http("POST /whep/a HTTP/1.1").await;
    assert!(unknown.starts_with("HTTP/1.1 404"), "{unknown}");
    assert!(unknown.contains("application/problem+json") && unknown.contains("STREAM_NOT_FOUND"));
    let mut pending = create("a");
    pending.allow_pending = true;
    replica.streams().await.create_stream(pending).await.unwrap();
    let early = replica.http("POST /whep/a HTTP/1.1").await;
    assert!(early.starts_with("HTTP/1.1 409") && early.contains("retry-after: 1"), "{early}");

    let mut router = replica.router("r1").await;
    let mut worker = replica.worker("w1", &["a"]).await;
    router.want("a", 0).await;
    worker.want("a", 0).await;
    let there = replica.http("POST /whep/a HTTP/1.1").await;
    assert!(there.starts_with("HTTP/1.1 307"), "{there}");
    assert!(there.contains("location: http://r1.example:8080/whep/a"), "{there}");
    let preflight = replica.http("OPTIONS /whep/a HTTP/1.1").await;
    assert!(preflight.starts_with("HTTP/1.1 204"), "{preflight}");
    assert!(preflight.contains("access-control-allow-headers: authorization"), "{preflight}");
    let wrong = replica.http("GET /whep/a HTTP/1.1").await;
    assert!(wrong.starts_with("HTTP/1.1 405"), "{wrong}");
    let odd = replica.http("POST /whep/a%2Fb HTTP/1.1").await;
    assert!(odd.starts_with("HTTP/1.1 404"), "{odd}");
    let live = replica.http("GET /livez HTTP/1.1").await;
    assert!(live.starts_with("HTTP/1.1 200") && live.ends_with("ok\n"), "{live}");
}

#[tokio::test]
async fn a_port_in_use_and_a_wrong_configuration_are_one_clear_line_each() {
    let replica = Replica::start().await;
    let dir = tempfile::tempdir().unwrap();
    let shutdown = Shutdown::new(Duration::from_secs(1));
    let mut cfg = config(dir.path());
    cfg.grpc_listen = replica.api.grpc_addr();
    let error = ControlApi::start(cfg, &shutdown).await.unwrap_err().to_string();
    assert!(error.starts_with("port in use: ") && !error.contains('\n'), "{error}");
    let mut cfg = config(&dir.path().join("fresh"));
    cfg.store = "redis://x".to_owned();
    let error = ControlApi::start(cfg, &shutdown).await.unwrap_err().to_string();
    assert!(error.contains("store") && !error.contains('\n'), "{error}");
    assert!(!dir.path().join("fresh").exists(), "a wrong configuration makes no files");
}

#[tokio::test]
async fn keys_and_ca_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let shutdown = Shutdown::new(Duration::from_secs(2));
    let one = ControlApi::start(config(dir.path()), &shutdown).await.unwrap();
    let ca = one.ca().unwrap().cert_pem().to_owned();
    let key = std::fs::read(dir.path().join("token.pem")).unwrap();
    one.stop().await.unwrap();
    let two = ControlApi::start(config(dir.path()), &shutdown).await.unwrap();
    assert_eq!(two.ca().unwrap().cert_pem(), ca);
    assert_eq!(std::fs::read(dir.path().join("token.pem")).unwrap(), key);
}
