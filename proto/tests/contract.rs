//! The parts of the contract that have no schema of their own: claims as JSON, reasons as words.
//! A change here breaks routers or backends in the field.

use fanlight_proto::{
    claims::{JoinClaims, Role},
    reason::Reason,
};
use serde_json::json;

#[test]
fn claims_keep_their_names() {
    let claims = JoinClaims {
        iss: "fanlight-control".to_owned(),
        aud: "fanlight-router".to_owned(),
        jti: "j".to_owned(),
        sub: "v".parse().unwrap(),
        s: "s".parse().unwrap(),
        n: Some("r1".parse().unwrap()),
        e: 7,
        r: Role::Controller,
        br: 1,
        exp: 2,
        ms: 3,
        multi: true,
    };
    let golden = json!({
        "iss": "fanlight-control", "aud": "fanlight-router", "jti": "j", "sub": "v", "s": "s",
        "n": "r1", "e": 7, "r": "controller", "br": 1, "exp": 2, "ms": 3, "multi": true,
    });
    assert_eq!(serde_json::to_value(&claims).unwrap(), golden);
    assert_eq!(serde_json::from_value::<JoinClaims>(golden).unwrap(), claims);
}

#[test]
fn claims_of_an_older_control_plane_are_read() {
    let least = json!({
        "iss": "fanlight-control", "aud": "fanlight-router", "jti": "j", "sub": "v", "s": "s",
        "r": "observer", "exp": 2,
    });
    let claims: JoinClaims = serde_json::from_value(least).unwrap();
    assert_eq!((claims.e, claims.br, claims.ms, claims.multi, claims.n), (0, 0, 0, false, None));
}

#[test]
fn released_reasons_are_still_there() {
    let released = [
        "INVALID_ARGUMENT",
        "STREAM_NOT_FOUND",
        "VIEWER_NOT_FOUND",
        "NODE_NOT_FOUND",
        "STREAM_EXISTS",
        "VIEWER_EXISTS",
        "REQUEST_ID_REUSED",
        "ETAG_MISMATCH",
        "DEVICE_UNKNOWN",
        "DEVICE_OFFLINE",
        "NODE_AT_CAPACITY",
        "STREAM_LIMIT",
        "STALE_EPOCH",
        "STALE_INCARNATION",
        "PUBLISH_DENIED",
        "TOKEN_MISSING",
        "TOKEN_INVALID",
        "TOKEN_EXPIRED",
        "TOKEN_FOREIGN",
        "VIEWER_BARRED",
        "UNSUPPORTED_MEDIA_TYPE",
        "BAD_SDP",
        "NO_COMMON_CODEC",
        "TOO_LARGE",
        "SESSION_NOT_FOUND",
        "DRAINING",
        "OVERLOADED",
        "UNSUPPORTED",
        "DEADLINE_EXCEEDED",
        "NODE_IDENTITY",
        "TABLE_FULL",
        "STORE_UNAVAILABLE",
        "ORIGIN_LOST",
        "ORIGIN_RESTARTED",
        "PUSH_BROKEN",
        "INTERNAL",
    ];
    for word in released {
        assert!(Reason::parse(word).is_some(), "{word}");
    }
}

#[test]
fn equal_messages_with_maps_encode_to_equal_bytes() {
    use prost::Message as _;
    let keys: Vec<String> = (0..32).map(|n| format!("k{n}")).collect();
    let with = |keys: &mut dyn Iterator<Item = &String>| fanlight_proto::control::v1::Stream {
        labels: keys.map(|k| (k.clone(), String::new())).collect(),
        ..Default::default()
    };
    let forward = with(&mut keys.iter()).encode_to_vec();
    assert_eq!(forward, with(&mut keys.iter().rev()).encode_to_vec());
}
