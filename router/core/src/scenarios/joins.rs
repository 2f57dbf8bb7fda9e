//! Promises about offers and answers.

use std::time::{Duration, Instant};

use crate::limits::OFFER_BYTES_MAX;
use crate::world::{SERVER, STREAM};
use crate::{
    Answer, Core, CoreConfig, JoinError, JoinRequest, Role, SessionId, SpsFacts, StreamInfo,
    parse_offer,
};

const VIDEO_DATA: &str = include_str!("../../testdata/chromium-156-video-data.sdp");
const AUDIO_VIDEO: &str = include_str!("../../testdata/chromium-156-audio-video.sdp");
/// Firefox as it comes: no H.264 before it has downloaded its plugin.
const FIREFOX: &str = include_str!("../../testdata/firefox-153-video-data.sdp");
/// Firefox with the OpenH264 plugin.
const FIREFOX_OPENH264: &str = include_str!("../../testdata/firefox-153-openh264-video-data.sdp");

fn sps(profile_idc: u8, constraint_flags: u8, level_idc: u8) -> SpsFacts {
    SpsFacts {
        width: 1080,
        height: 1920,
        profile_idc,
        constraint_flags,
        level_idc,
        max_num_reorder_frames: None,
    }
}

/// Joins a stream with these parameters by this offer.
fn answer(offer: &str, params: Option<SpsFacts>) -> Result<Answer, JoinError> {
    #[allow(clippy::disallowed_methods, reason = "a test's epoch")]
    let now = Instant::now();
    let candidates = vec![SERVER.parse().unwrap(), "[2001:db8::1]:5000".parse().unwrap()];
    let mut core = Core::new(CoreConfig::new(candidates), now, 1);
    let mut info = StreamInfo::new("streams/test", 1);
    info.params = params.map(std::sync::Arc::new);
    core.stream_up(now, STREAM, info);
    core.join(
        now,
        JoinRequest {
            id: SessionId(1),
            stream: STREAM,
            offer: parse_offer(offer)?,
            viewer: "viewer".into(),
            role: Role::Observer,
            max_session: Some(Duration::from_secs(60)),
            user_agent: None,
        },
    )
}

fn section<'a>(sdp: &'a str, media: &str) -> Vec<&'a str> {
    let start = format!("m={media} ");
    let mut lines = sdp.lines().skip_while(|l| !l.starts_with(&start));
    let first = lines.next();
    first.into_iter().chain(lines.take_while(|l| !l.starts_with("m="))).collect()
}

#[test]
fn chromium_gets_a_complete_answer() {
    let answer = answer(VIDEO_DATA, Some(sps(66, 0xc0, 31))).unwrap();
    let sdp = &answer.sdp;
    let video = section(sdp, "video");
    assert_eq!(video[0], "m=video 9 UDP/TLS/RTP/SAVPF 108 109", "one format and its repair");
    for needed in [
        "a=sendonly",
        "a=mid:0",
        "a=rtcp-mux",
        "a=setup:passive",
        "a=rtpmap:108 H264/90000",
        "a=rtcp-fb:108 nack",
        "a=rtcp-fb:108 nack pli",
        "a=fmtp:108 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f",
        "a=fmtp:109 apt=108",
        "a=extmap:5 http://www.webrtc.org/experiments/rtp-hdrext/playout-delay",
        "a=rtcp-xr:rcvr-rtt=all",
        "a=extmap:9 urn:ietf:params:rtp-hdrext:sdes:mid",
        "a=end-of-candidates",
    ] {
        assert!(video.contains(&needed), "{needed} is missing in\n{sdp}");
    }
    assert_eq!(video.iter().filter(|l| l.starts_with("a=msid:")).count(), 1);
    assert_eq!(video.iter().filter(|l| l.starts_with("a=candidate:")).count(), 2);
    let data = section(sdp, "application");
    assert_eq!(data[0], "m=application 9 UDP/DTLS/SCTP webrtc-datachannel");
    assert!(data.contains(&"a=mid:1") && data.contains(&"a=sctp-port:5000"));
    let session: Vec<&str> = sdp.lines().take_while(|l| !l.starts_with("m=")).collect();
    assert!(session.contains(&"a=group:BUNDLE 0 1") && session.contains(&"a=ice-lite"), "{sdp}");
    assert!(video.contains(&"a=rtcp-fb:108 transport-cc"), "{sdp}");
    assert!(!sdp.contains("goog-remb"), "the old kind of estimate is not asked for: {sdp}");
    assert!(sdp.ends_with("\r\n") && !sdp.contains("\n\n"));
}

#[test]
fn firefox_with_its_plugin_gets_a_complete_answer() {
    let answer = answer(FIREFOX_OPENH264, Some(sps(66, 0xc0, 31))).unwrap();
    let sdp = &answer.sdp;
    assert_eq!(answer.profile_level_id, [0x42, 0xe0, 0x1f]);
    let video = section(sdp, "video");
    assert_eq!(video[0], "m=video 9 UDP/TLS/RTP/SAVPF 126 127", "mode 1, not the first in mode 0");
    for needed in [
        "a=sendonly",
        "a=mid:0",
        "a=rtcp-mux",
        "a=setup:passive",
        "a=rtcp-fb:126 nack",
        "a=rtcp-fb:126 nack pli",
        "a=rtcp-fb:126 transport-cc",
        "a=fmtp:126 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f",
        "a=fmtp:127 apt=126",
        "a=extmap:3 urn:ietf:params:rtp-hdrext:sdes:mid",
        "a=extmap:6 http://www.webrtc.org/experiments/rtp-hdrext/playout-delay",
    ] {
        assert!(video.contains(&needed), "{needed} is missing in\n{sdp}");
    }
    // Offered with port 0 and bundle-only, which is no refusal.
    let data = section(sdp, "application");
    assert_eq!(data[0], "m=application 9 UDP/DTLS/SCTP webrtc-datachannel");
    assert!(data.contains(&"a=mid:1") && data.contains(&"a=sctp-port:5000"), "{sdp}");
    assert!(sdp.contains("a=group:BUNDLE 0 1\r\n"), "{sdp}");
}

#[test]
fn firefox_without_its_plugin_is_refused_in_words() {
    let refused = answer(FIREFOX, Some(sps(66, 0xc0, 31))).unwrap_err();
    let JoinError::NoCommonCodec { offered, needed } = refused else { panic!("{refused:?}") };
    assert_eq!(offered, ["VP8", "VP9", "AV1"]);
    assert_eq!(needed, "H264 packetization-mode=1");
}

#[test]
fn audio_is_answered_as_inactive_in_its_place() {
    let answer = answer(AUDIO_VIDEO, None).unwrap();
    let sdp = &answer.sdp;
    let audio = section(sdp, "audio");
    assert_eq!(audio[0], "m=audio 9 UDP/TLS/RTP/SAVPF 111");
    assert!(audio.contains(&"a=inactive") && audio.contains(&"a=mid:0"), "{sdp}");
    assert!(audio.iter().any(|l| l.starts_with("a=candidate:")), "the first section has them");
    let video = section(sdp, "video");
    assert!(video.contains(&"a=sendonly") && video.contains(&"a=mid:1"), "{sdp}");
    assert!(!video.iter().any(|l| l.starts_with("a=candidate:")), "and only the first");
    assert!(sdp.contains("a=group:BUNDLE 0 1\r\n"));
    assert_eq!(sdp.lines().filter(|l| l.starts_with("a=msid:")).count(), 1);
}

#[test]
fn high_profile_stream_is_offered_to_chromium_as_constrained_baseline() {
    let answer = answer(VIDEO_DATA, Some(sps(100, 0, 42))).unwrap();
    assert_eq!(answer.profile_level_id, [0x42, 0xe0, 0x1f]);
    assert!(answer.sdp.contains("profile-level-id=42e01f"));
}

#[test]
fn a_stream_above_level_3_1_is_not_refused() {
    let answer = answer(VIDEO_DATA, Some(sps(66, 0xc0, 51))).unwrap();
    assert_eq!(answer.profile_level_id, [0x42, 0xe0, 0x1f]);
    // Ids that the protocol library's own table does not know are taken as they are.
    for id in ["4d401f", "4d4033", "640c34", "64002a"] {
        let offer = VIDEO_DATA.replace("42e01f", id);
        let profile = if id.starts_with("4d") { 77 } else { 100 };
        let constraints = if id == "640c34" { 0x0c } else { 0 };
        let offer = offer.replace("4d001f", "f4001f");
        let answer = super::joins::answer(&offer, Some(sps(profile, constraints, 40))).unwrap();
        assert!(answer.sdp.contains(&format!("profile-level-id={id}")), "{id}\n{}", answer.sdp);
    }
}

#[test]
fn no_common_codec_says_what_was_offered_and_what_is_needed() {
    // Only Constrained Baseline is left, and the stream is High.
    let offer = VIDEO_DATA
        .replace("profile-level-id=4d001f", "profile-level-id=42e01f")
        .replace("profile-level-id=f4001f", "profile-level-id=42e01f");
    let refused = answer(&offer, Some(sps(100, 0, 42))).unwrap_err();
    let JoinError::NoCommonCodec { offered, needed } = refused else { panic!("{refused:?}") };
    assert!(offered.contains(&"VP8".to_owned()));
    assert!(
        offered.contains(&"H264 profile-level-id=42e01f packetization-mode=1".to_owned()),
        "{offered:?}"
    );
    assert_eq!(needed, "H264 packetization-mode=1 profile-level-id=64002a (High)");
    // No H.264 in mode 1 at all.
    let offer = VIDEO_DATA.replace("packetization-mode=1", "packetization-mode=0");
    assert!(matches!(parse_offer(&offer).unwrap_err(), JoinError::NoCommonCodec { .. }));
    let offer = VIDEO_DATA.replace("H264/90000", "H265/90000");
    assert!(matches!(parse_offer(&offer).unwrap_err(), JoinError::NoCommonCodec { .. }));
}

#[test]
fn offer_that_panicked_str0m_is_refused() {
    // One repair format for two others made version 0.24 of the library panic ("Pt locked multiple
    // times"). No offer reaches it any more; what a repair is of could still not be told.
    let offer = VIDEO_DATA
        .replace("a=fmtp:109 apt=108\r\n", "a=fmtp:109 apt=108\r\na=fmtp:109 apt=102\r\n");
    assert_ne!(offer, VIDEO_DATA);
    let refused = parse_offer(&offer).unwrap_err();
    assert_eq!(refused, JoinError::BadOffer("payload type 109 repairs two others".into()));
}

#[test]
fn who_will_not_begin_the_handshake_is_answered_by_one_who_does() {
    for (offered, answered) in [("passive", "active"), ("active", "passive")] {
        let offer = VIDEO_DATA.replace("a=setup:actpass", &format!("a=setup:{offered}"));
        let sdp = answer(&offer, None).unwrap().sdp;
        let setups: Vec<_> = sdp.lines().filter(|l| l.starts_with("a=setup:")).collect();
        assert_eq!(setups, [format!("a=setup:{answered}"), format!("a=setup:{answered}")]);
    }
}

#[test]
fn candidates_are_told_in_the_order_of_preference() {
    #[allow(clippy::disallowed_methods, reason = "a test's epoch")]
    let now = Instant::now();
    let candidates = ["192.0.2.1:5000", "192.0.2.2:5000", "192.0.2.3:5000"];
    let config = CoreConfig::new(candidates.map(|c| c.parse().unwrap()).to_vec());
    let mut core = Core::new(config, now, 1);
    core.stream_up(now, STREAM, StreamInfo::new("streams/test", 1));
    let offer = parse_offer(VIDEO_DATA).unwrap();
    let request = JoinRequest {
        id: SessionId(1),
        stream: STREAM,
        offer,
        viewer: "viewer".into(),
        role: Role::Observer,
        max_session: None,
        user_agent: None,
    };
    let sdp = core.join(now, request).unwrap().sdp;
    let told: Vec<(&str, u32)> = sdp
        .lines()
        .filter_map(|l| l.strip_prefix("a=candidate:"))
        .map(|l| l.split(' ').collect::<Vec<_>>())
        .map(|words| (words[4], words[3].parse().unwrap()))
        .collect();
    assert_eq!(
        told.iter().map(|t| t.0).collect::<Vec<_>>(),
        ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    );
    assert!(told.windows(2).all(|pair| pair[0].1 > pair[1].1), "{told:?}");
}

#[test]
fn a_fingerprint_is_thirty_two_pairs_of_hexadecimal_digits() {
    let start = VIDEO_DATA.find("sha-256 ").unwrap() + 8;
    let end = start + VIDEO_DATA[start..].find('\r').unwrap();
    let value = &VIDEO_DATA[start..end];
    assert!(parse_offer(&VIDEO_DATA.replace(value, &value.to_ascii_lowercase())).is_ok());
    for wrong in [
        value[3..].to_owned(),
        format!("{value}:00"),
        format!("+1{}", &value[2..]),
        format!("1{}", &value[2..]),
        format!("é{}", &value[2..]),
        String::new(),
    ] {
        let refused = parse_offer(&VIDEO_DATA.replace(value, &wrong)).unwrap_err();
        let JoinError::BadOffer(why) = refused else { panic!("{wrong}: {refused:?}") };
        assert!(why.contains("fingerprint"), "{wrong}: {why}");
    }
}

#[test]
fn offers_that_cannot_be_answered_are_refused_in_words() {
    let without = |line: &str| {
        VIDEO_DATA.lines().filter(|l| !l.starts_with(line)).map(|l| format!("{l}\r\n")).collect()
    };
    let cases: [(&str, String, &str); 16] = [
        ("empty", String::new(), "v=0"),
        ("html", "<html></html>".into(), "v=0"),
        ("no media", "v=0\r\ns=-\r\n".into(), "media section"),
        ("no ufrag", without("a=ice-ufrag"), "ice-ufrag"),
        ("no pwd", without("a=ice-pwd"), "ice-pwd"),
        ("no fingerprint", without("a=fingerprint"), "fingerprint is missing"),
        ("no mid", without("a=mid"), "a=mid"),
        ("no mux", without("a=rtcp-mux"), "rtcp-mux"),
        ("sendonly", VIDEO_DATA.replace("a=recvonly", "a=sendonly"), "recvonly"),
        ("no video", VIDEO_DATA.replace("m=video", "m=text"), "video section"),
        ("not bundled", VIDEO_DATA.replace("BUNDLE 0 1", "BUNDLE 1"), "video section"),
        ("sha-1", VIDEO_DATA.replace("sha-256", "sha-1"), "not sha-256"),
        ("holdconn", VIDEO_DATA.replace("actpass", "holdconn"), "a=setup"),
        ("twice the same mid", VIDEO_DATA.replace("a=mid:1", "a=mid:0"), "same a=mid"),
        ("lite", VIDEO_DATA.replace("a=extmap-allow-mixed", "a=ice-lite"), "ICE-lite"),
        ("mapped twice", VIDEO_DATA.replace("a=rtpmap:96 VP8", "a=rtpmap:102 VP8"), "mapped twice"),
    ];
    for (name, offer, expected) in cases {
        match parse_offer(&offer) {
            Err(JoinError::BadOffer(why)) => assert!(why.contains(expected), "{name}: {why}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    let large = format!("{VIDEO_DATA}{}", "a=x\r\n".repeat(OFFER_BYTES_MAX / 5));
    assert!(matches!(parse_offer(&large), Err(JoinError::OfferTooLarge { .. })));
    let many = format!("{VIDEO_DATA}{}", "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:7\r\n".repeat(40));
    assert!(matches!(parse_offer(&many), Err(JoinError::BadOffer(_))));
}

#[test]
fn refusals_do_not_repeat_the_clients_bytes_at_length() {
    let offer = VIDEO_DATA.replace("VP8/90000", &format!("{}/90000", "X<script>".repeat(300)));
    let offer = offer.replace("packetization-mode=1", "packetization-mode=0");
    let JoinError::NoCommonCodec { offered, .. } = parse_offer(&offer).unwrap_err() else {
        panic!("refused for its codecs")
    };
    assert!(offered.iter().all(|o| o.len() < 100), "{offered:?}");
}

#[test]
fn unusual_but_valid_offers_are_answered() {
    // A mid that the header extension cannot carry, LF line ends, an extra refused section.
    let offer = VIDEO_DATA
        .replace("a=mid:0", "a=mid:video-of-seventeen")
        .replace("BUNDLE 0 1", "BUNDLE video-of-seventeen 1 2")
        .replace("\r\n", "\n");
    let extra = "m=video 9 UDP/TLS/RTP/SAVPF 96\na=mid:2\na=recvonly\na=rtpmap:96 VP8/90000\n";
    let answer = answer(&format!("{offer}{extra}"), None).unwrap();
    let sdp = &answer.sdp;
    assert!(sdp.contains("a=group:BUNDLE video-of-seventeen 1\r\n"), "{sdp}");
    assert!(sdp.contains("a=mid:video-of-seventeen\r\n"), "{sdp}");
    assert!(!sdp.contains("sdes:mid"), "the header extension cannot carry this mid: {sdp}");
    assert!(sdp.contains("m=video 0 UDP/TLS/RTP/SAVPF 96\r\n"), "{sdp}");
    assert_eq!(sdp.lines().filter(|l| l.starts_with("m=")).count(), 3);
    // An offer of video alone, without a group.
    let alone = VIDEO_DATA.split("m=application").next().unwrap();
    let alone = alone.replace("a=group:BUNDLE 0 1\r\n", "");
    assert!(super::joins::answer(&alone, None).is_ok());
}
