//! A reader of SDP offers: text from a stranger in, a handful of checked facts out.
//!
//! Not a general SDP parser. It keeps what a viewer needs and forgets the rest. Invariant: no byte
//! of a client's offer reaches an answer or the protocol library but tokens whose alphabet and
//! length were checked here. Linear in the offer's size.

use std::fmt::Write as _;

use crate::codec::OfferedH264;
use crate::error::JoinError;
use crate::limits::{OFFER_CODECS_MAX, OFFER_SECTIONS_MAX};

pub(crate) const URI_MID: &str = "urn:ietf:params:rtp-hdrext:sdes:mid";
pub(crate) const URI_PLAYOUT: &str = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay";
pub(crate) const URI_TWCC: &str =
    "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01";
pub(crate) const URI_CAPTURE: &str =
    "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time";

/// What a media section is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// The video that we send.
    Video,
    /// The data channels.
    Data,
    /// Audio that is answered as inactive, inside the bundle: there is no audio yet, and some
    /// clients fail on a refused section.
    InactiveAudio,
    /// Refused with port 0.
    Refuse,
}

/// One media section of the offer.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    /// First word of the `m=` line.
    pub(crate) media: String,
    /// Transport of the `m=` line.
    pub(crate) proto: String,
    /// First format of the `m=` line, repeated in a refusal.
    pub(crate) first_format: String,
    /// `a=mid`.
    pub(crate) mid: String,
    /// Payload type of Opus, in an audio section.
    pub(crate) opus: Option<u8>,
    /// What the answer does with it.
    pub(crate) plan: Plan,
}

/// Header extensions that we use, with the ids of the offer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Extensions {
    /// Media identification.
    pub(crate) mid: Option<u8>,
    /// Transport-wide sequence number.
    pub(crate) twcc: Option<u8>,
    /// Playout delay.
    pub(crate) playout_delay: Option<u8>,
    /// Absolute capture time.
    pub(crate) capture_time: Option<u8>,
}

/// What the offer says, as far as it concerns us.
#[derive(Debug, Clone)]
pub(crate) struct OfferFacts {
    pub(crate) ufrag: String,
    pub(crate) pwd: String,
    /// SHA-256 of the client's certificate.
    pub(crate) fingerprint: [u8; 32],
    pub(crate) setup: &'static str,
    pub(crate) sections: Vec<Section>,
    /// Video formats in packetization mode 1, in the order of the offer.
    pub(crate) h264: Vec<OfferedH264>,
    /// The client can be told the round trip (RFC 3611).
    pub(crate) round_trip: bool,
    /// A line per offered video format, for a refusal.
    pub(crate) offered: Vec<String>,
    pub(crate) extensions: Extensions,
}

impl OfferFacts {
    /// Whether we begin the DTLS handshake, because the client will not.
    pub(crate) fn we_begin(&self) -> bool {
        self.setup == "passive"
    }

    /// The section with this plan. Video always exists, data may.
    pub(crate) fn section(&self, plan: Plan) -> Option<&Section> {
        self.sections.iter().find(|s| s.plan == plan)
    }
}

fn bad(why: impl Into<String>) -> JoinError {
    JoinError::BadOffer(why.into())
}

/// One section's lines, still text.
#[derive(Default)]
struct Raw<'a> {
    m: &'a str,
    attrs: Vec<(&'a str, &'a str)>,
}

impl<'a> Raw<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        self.attrs.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
    }
    fn all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'a str> + 's {
        self.attrs.iter().filter(move |(n, _)| *n == name).map(|(_, v)| *v)
    }
}

/// Reads an offer. The caller has checked its size.
pub(crate) fn read_offer(text: &str) -> Result<OfferFacts, JoinError> {
    let (session, raws) = split(text)?;
    let bundle: Vec<&str> = session
        .all("group")
        .find_map(|g| g.strip_prefix("BUNDLE"))
        .map(|mids| mids.split_ascii_whitespace().collect())
        .unwrap_or_default();

    let mut sections = Vec::with_capacity(raws.len());
    for (index, raw) in raws.iter().enumerate() {
        sections.push(read_section(raw, index)?);
    }
    plan_sections(&mut sections, &raws, &bundle)?;

    let video = sections.iter().position(|s| s.plan == Plan::Video).ok_or_else(|| {
        bad("it has no video section that could be received (recvonly or sendrecv, port not 0)")
    })?;
    let raw = &raws[video];
    if raw.get("rtcp-mux").is_none() {
        return Err(bad("the video section lacks a=rtcp-mux"));
    }
    let transport = |name: &str| raw.get(name).or_else(|| session.get(name));
    let ufrag = transport("ice-ufrag").ok_or_else(|| bad("a=ice-ufrag is missing"))?;
    let pwd = transport("ice-pwd").ok_or_else(|| bad("a=ice-pwd is missing"))?;
    check_ice(ufrag, 4, "a=ice-ufrag")?;
    check_ice(pwd, 22, "a=ice-pwd")?;
    let setup = match transport("setup") {
        None | Some("actpass") => "actpass",
        Some("active") => "active",
        Some("passive") => "passive",
        Some(_) => return Err(bad("a=setup is none of actpass, active, passive")),
    };
    if session.get("ice-lite").is_some() {
        return Err(bad("both sides are ICE-lite"));
    }
    let fingerprint = read_fingerprint(raw.all("fingerprint").chain(session.all("fingerprint")))?;
    let (h264, offered) = read_codecs(raw)?;
    Ok(OfferFacts {
        ufrag: ufrag.to_owned(),
        pwd: pwd.to_owned(),
        fingerprint,
        setup,
        sections,
        h264,
        offered,
        extensions: read_extensions(raw),
        round_trip: raw.all("rtcp-xr").any(|line| line.contains("rcvr-rtt")),
    })
}

/// Splits the text into the session part and the media sections.
fn split(text: &str) -> Result<(Raw<'_>, Vec<Raw<'_>>), JoinError> {
    let mut session = Raw::default();
    let mut raws: Vec<Raw<'_>> = Vec::new();
    let mut lines = text.lines().map(|l| l.trim_end_matches('\r'));
    if lines.next() != Some("v=0") {
        return Err(bad("it does not begin with v=0"));
    }
    for line in lines {
        if let Some(m) = line.strip_prefix("m=") {
            if raws.len() == OFFER_SECTIONS_MAX {
                return Err(bad(format!("it has more than {OFFER_SECTIONS_MAX} media sections")));
            }
            raws.push(Raw { m, attrs: Vec::new() });
        } else if let Some(attr) = line.strip_prefix("a=") {
            let pair = attr.split_once(':').unwrap_or((attr, ""));
            raws.last_mut().unwrap_or(&mut session).attrs.push((pair.0.trim(), pair.1.trim()));
        }
    }
    if raws.is_empty() {
        return Err(bad("it has no media section"));
    }
    Ok((session, raws))
}

/// Whether every character may stand in an SDP token, and it is not too long.
fn is_token(text: &str, max: usize) -> bool {
    !text.is_empty()
        && text.len() <= max
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-./^_`{|}~".contains(&b))
}

fn read_section(raw: &Raw<'_>, index: usize) -> Result<Section, JoinError> {
    let mut words = raw.m.split_ascii_whitespace();
    let (media, port, proto) = (words.next(), words.next(), words.next());
    let (Some(media), Some(port), Some(proto), Some(first)) = (media, port, proto, words.next())
    else {
        return Err(bad(format!("media section {index} has a short m= line")));
    };
    let Some(mid) = raw.get("mid") else {
        return Err(bad(format!("media section {index} has no a=mid")));
    };
    let port: u16 = port
        .split('/')
        .next()
        .and_then(|p| p.parse().ok())
        .ok_or_else(|| bad(format!("media section {index} has no valid port")))?;
    if !is_token(media, 32) || !is_token(proto, 64) || !is_token(first, 64) || !is_token(mid, 64) {
        return Err(bad(format!("media section {index} has a malformed m= or a=mid line")));
    }
    let opus = raw.all("rtpmap").find_map(|map| {
        let (pt, codec) = map.split_once(' ')?;
        codec.trim().eq_ignore_ascii_case("opus/48000/2").then(|| read_pt(pt))?
    });
    // What a section is for is decided when all are known; a port of 0 says "not at all", unless
    // the section rides in the bundle.
    let plan =
        if port == 0 && raw.get("bundle-only").is_none() { Plan::Refuse } else { Plan::Data };
    Ok(Section {
        media: media.to_owned(),
        proto: proto.to_owned(),
        first_format: first.to_owned(),
        mid: mid.to_owned(),
        opus,
        plan,
    })
}

/// Decides what the answer does with each section.
fn plan_sections(
    sections: &mut [Section],
    raws: &[Raw<'_>],
    bundle: &[&str],
) -> Result<(), JoinError> {
    let (mut video, mut data, mut audio) = (false, false, false);
    for index in 0..sections.len() {
        if sections[..index].iter().any(|s| s.mid == sections[index].mid) {
            return Err(bad("two media sections have the same a=mid"));
        }
        let section = &mut sections[index];
        if section.plan == Plan::Refuse {
            continue;
        }
        let raw = &raws[index];
        let receives = raw.get("sendonly").is_none() && raw.get("inactive").is_none();
        let bundled = bundle.contains(&section.mid.as_str());
        section.plan = match section.media.as_str() {
            "video" if receives && !video && (bundled || sections_alone(raws)) => {
                video = true;
                Plan::Video
            }
            "application" if !data && bundled && section.first_format == "webrtc-datachannel" => {
                data = true;
                Plan::Data
            }
            "audio" if !audio && bundled && section.opus.is_some() => {
                audio = true;
                Plan::InactiveAudio
            }
            _ => Plan::Refuse,
        };
    }
    Ok(())
}

/// A lone section needs no bundle group.
fn sections_alone(raws: &[Raw<'_>]) -> bool {
    raws.len() == 1
}

/// RFC 8839: ICE credentials are letters, digits, `+` and `/`, up to 256 of them.
fn check_ice(text: &str, min: usize, what: &str) -> Result<(), JoinError> {
    let clean = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/');
    if clean && (min..=256).contains(&text.len()) {
        Ok(())
    } else {
        Err(bad(format!("{what} is malformed")))
    }
}

/// The SHA-256 fingerprint. Other hashes are not verifiable here.
fn read_fingerprint<'a>(lines: impl Iterator<Item = &'a str>) -> Result<[u8; 32], JoinError> {
    let mut any = false;
    for line in lines {
        any = true;
        let Some((hash, value)) = line.split_once(' ') else { continue };
        if !hash.eq_ignore_ascii_case("sha-256") {
            continue;
        }
        return hex_pairs(value.trim()).ok_or_else(|| bad("a=fingerprint is malformed"));
    }
    Err(bad(if any { "a=fingerprint is not sha-256" } else { "a=fingerprint is missing" }))
}

/// Bytes as pairs of hexadecimal digits with colons between them, exactly as many as fit.
fn hex_pairs<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let mut pairs = text.split(':');
    for byte in &mut bytes {
        let pair = pairs.next()?;
        let clean = pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit());
        *byte = u8::from_str_radix(pair, 16).ok().filter(|_| clean)?;
    }
    pairs.next().is_none().then_some(bytes)
}

fn read_pt(text: &str) -> Option<u8> {
    text.trim().parse().ok().filter(|pt| *pt < 128)
}

/// Reads the video formats: H.264 in packetization mode 1 with its repair format, and a line
/// about each format for a refusal.
fn read_codecs(raw: &Raw<'_>) -> Result<(Vec<OfferedH264>, Vec<String>), JoinError> {
    // What each of the 128 payload types was said to be.
    let mut codec: [Option<&str>; 128] = [None; 128];
    let mut format: [Option<&str>; 128] = [None; 128];
    let mut repairs: [Option<u8>; 128] = [None; 128];
    for map in raw.all("rtpmap") {
        let Some((pt, name)) = map.split_once(' ') else { continue };
        let pt = read_pt(pt).ok_or_else(|| bad("an a=rtpmap has no valid payload type"))?;
        let slot = &mut codec[usize::from(pt)];
        if slot.is_some_and(|old| old != name) {
            return Err(bad(format!("payload type {pt} is mapped twice")));
        }
        *slot = Some(name);
    }
    for line in raw.all("fmtp") {
        let Some((pt, params)) = line.split_once(' ') else { continue };
        let pt = read_pt(pt).ok_or_else(|| bad("an a=fmtp has no valid payload type"))?;
        if let Some(apt) = param(params, "apt") {
            let apt = read_pt(apt).ok_or_else(|| bad("an apt is no valid payload type"))?;
            let slot = &mut repairs[usize::from(pt)];
            // Which of the two a repair is of could not be told.
            if slot.is_some_and(|old| old != apt) {
                return Err(bad(format!("payload type {pt} repairs two others")));
            }
            *slot = Some(apt);
        } else {
            format[usize::from(pt)].get_or_insert(params);
        }
    }
    let mut h264: Vec<OfferedH264> = Vec::new();
    let mut offered = Vec::new();
    let formats = raw.m.split_ascii_whitespace().skip(3);
    for pt in formats.take(128).filter_map(read_pt) {
        let Some(name) = codec[usize::from(pt)] else { continue };
        let short = name.split('/').next().unwrap_or(name);
        if ["rtx", "red", "ulpfec", "flexfec-03"].contains(&short) {
            continue;
        }
        let params = format[usize::from(pt)].unwrap_or("");
        if offered.len() < OFFER_CODECS_MAX {
            offered.push(describe(short, params));
        }
        if !name.eq_ignore_ascii_case("H264/90000")
            || param(params, "packetization-mode") != Some("1")
        {
            continue;
        }
        let Some(id) = read_profile_level_id(params) else { continue };
        // One payload type per profile and level is enough, and a repeated one says nothing new.
        if h264.len() < OFFER_CODECS_MAX && !h264.iter().any(|o| o.pt == pt || o.id == id) {
            h264.push(OfferedH264 {
                pt,
                rtx: find_rtx(pt, &codec, &repairs),
                id,
                level_asymmetry: param(params, "level-asymmetry-allowed") == Some("1"),
                nack: feedback(raw, pt, "nack"),
                pli: feedback(raw, pt, "nack pli"),
                fir: feedback(raw, pt, "ccm fir"),
                twcc: feedback(raw, pt, "transport-cc"),
            });
        }
    }
    Ok((h264, offered))
}

/// The first repair format of a payload type.
fn find_rtx(pt: u8, codec: &[Option<&str>; 128], repairs: &[Option<u8>; 128]) -> Option<u8> {
    (0..128u8).find(|rtx| {
        *rtx != pt
            && repairs[usize::from(*rtx)] == Some(pt)
            && codec[usize::from(*rtx)].is_some_and(|c| c.eq_ignore_ascii_case("rtx/90000"))
    })
}

/// A parameter of an `a=fmtp` line.
fn param<'a>(params: &'a str, name: &str) -> Option<&'a str> {
    params.split(';').find_map(|p| {
        let (key, value) = p.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// RFC 6184: without the parameter, Baseline at level 1; browsers mean level 3.1.
fn read_profile_level_id(params: &str) -> Option<[u8; 3]> {
    let Some(text) = param(params, "profile-level-id") else { return Some([0x42, 0x00, 0x1f]) };
    if text.len() != 6 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let value = u32::from_str_radix(text, 16).ok()?;
    let [_, a, b, c] = value.to_be_bytes();
    Some([a, b, c])
}

fn feedback(raw: &Raw<'_>, pt: u8, what: &str) -> bool {
    raw.all("rtcp-fb").any(|line| {
        line.split_once(' ')
            .is_some_and(|(on, name)| name.trim() == what && (on == "*" || read_pt(on) == Some(pt)))
    })
}

/// One offered format in words. Only printable, and short: it goes back into a refusal.
fn describe(name: &str, params: &str) -> String {
    let mut text: String = name.chars().filter(char::is_ascii_graphic).take(16).collect();
    for key in ["profile-level-id", "packetization-mode", "profile-id"] {
        if let Some(value) = param(params, key) {
            let value: String = value.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
            let _ = write!(text, " {key}={value}");
        }
    }
    text
}

fn read_extensions(raw: &Raw<'_>) -> Extensions {
    let mut found = Extensions::default();
    let mut taken = [false; 15];
    for line in raw.all("extmap") {
        let Some((id, uri)) = line.split_once(' ') else { continue };
        let Some(id) = id.split('/').next().and_then(|id| id.parse::<u8>().ok()) else { continue };
        // Above 14 the two-byte form is needed; nobody offers ours there.
        if !(1..=14).contains(&id) || taken[usize::from(id)] {
            continue;
        }
        let slot = match uri.split_ascii_whitespace().next() {
            Some(URI_MID) => &mut found.mid,
            Some(URI_TWCC) => &mut found.twcc,
            Some(URI_PLAYOUT) => &mut found.playout_delay,
            Some(URI_CAPTURE) => &mut found.capture_time,
            _ => continue,
        };
        if slot.is_none() {
            *slot = Some(id);
            taken[usize::from(id)] = true;
        }
    }
    found
}
