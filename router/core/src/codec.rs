//! Which of a viewer's offered H.264 formats carries this stream, if any.
//!
//! Pure. What is decided here comes from the live parameter set on one side and the offer on the
//! other, plus evidence, written down in [`decodes_beyond_offer`], about clients that decode more
//! than they say. Invariant: a client that cannot decode the stream is told so, with what it
//! offered and what is needed; it never gets a black picture.

use fanlight_wire::h264::SpsFacts;

use crate::error::JoinError;

/// One offered H.264 format in packetization mode 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OfferedH264 {
    pub(crate) pt: u8,
    pub(crate) rtx: Option<u8>,
    /// `profile-level-id`.
    pub(crate) id: [u8; 3],
    pub(crate) level_asymmetry: bool,
    pub(crate) nack: bool,
    pub(crate) pli: bool,
    pub(crate) fir: bool,
    /// Feedback on every packet's arrival.
    pub(crate) twcc: bool,
}

/// H.264 profiles as far as they matter for who decodes what (RFC 6184, table 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Profile {
    ConstrainedBaseline,
    Baseline,
    Main,
    ConstrainedHigh,
    High,
    /// Decodes 4:2:0 High streams too.
    High444,
    Other,
}

impl Profile {
    fn of(profile_idc: u8, constraints: u8) -> Self {
        match profile_idc {
            66 if constraints & 0x40 != 0 => Self::ConstrainedBaseline,
            66 => Self::Baseline,
            77 if constraints & 0x80 != 0 => Self::ConstrainedBaseline,
            77 => Self::Main,
            88 if constraints & 0xc0 == 0xc0 => Self::ConstrainedBaseline,
            100 if constraints & 0x0c == 0x0c => Self::ConstrainedHigh,
            100 => Self::High,
            244 => Self::High444,
            _ => Self::Other,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::ConstrainedBaseline => "Constrained Baseline",
            Self::Baseline => "Baseline",
            Self::Main => "Main",
            Self::ConstrainedHigh => "Constrained High",
            Self::High => "High",
            Self::High444 => "High 4:4:4 Predictive",
            Self::Other => "another profile",
        }
    }

    /// Offered profiles whose decoders decode a stream of this profile, best first.
    ///
    /// Baseline streams count as Constrained Baseline: what Baseline has on top (flexible
    /// macroblock order, redundant slices) no device encoder in use produces.
    fn decoders(self) -> &'static [Self] {
        use Profile::{Baseline, ConstrainedBaseline, ConstrainedHigh, High, High444, Main};
        match self {
            ConstrainedBaseline | Baseline => {
                &[ConstrainedBaseline, Baseline, Main, ConstrainedHigh, High, High444]
            }
            Main => &[Main, High, High444],
            ConstrainedHigh => &[ConstrainedHigh, High, High444],
            High => &[High, ConstrainedHigh],
            High444 => &[High444],
            Self::Other => &[],
        }
    }
}

/// Whether this client decodes 4:2:0 Main and High though it does not offer them, and so takes
/// them signalled as Constrained Baseline.
///
/// | client | offers (mode 1) | decodes High signalled as 42e01f | how we know |
/// |---|---|---|---|
/// | Debian Chromium 156 | 42001f, 42e01f, 4d001f, f4001f | yes | tried: High and Main from files played |
/// | Debian Firefox ESR 153, as it comes | none: VP8, VP9, AV1 | no | its offer is refused; neither libavcodec beside it nor `media.webrtc.hw.h264.enabled` changes the offer |
/// | the same with its OpenH264 plugin (2.6.0), which it downloads by itself | 42e01f, 42001f | yes | tried: High and Main from files played |
/// | aiortc 1.16 | 42001f, 42e01f | yes, but refused | tried: High and Main from files played; nothing in its request says that it is aiortc |
/// | a client that offers Main or High 4:4:4 | 4d…, f4… | taken as yes | its decoder has CABAC, and libavcodec is behind it in all known cases |
/// | a client that offers Constrained Baseline only | 42e01f | no | nothing tried; refused |
///
/// The files: 720x1280, 30 pictures a second, progressive, 4:2:0, no B-frames, with CABAC, High
/// with the 8x8 transform. Played: every picture shown had a readable strip.
fn decodes_beyond_offer(offered: &[OfferedH264], user_agent: Option<&str>) -> bool {
    let says_more = offered
        .iter()
        .any(|o| matches!(Profile::of(o.id[0], o.id[1]), Profile::Main | Profile::High444));
    says_more || user_agent.is_some_and(|ua| ua.contains("Chrome/") || ua.contains("Firefox/"))
}

/// Chooses the offered format for a stream. Without `stream` (no keyframe seen yet) the choice is
/// as for Constrained Baseline.
pub(crate) fn choose<'a>(
    offered: &'a [OfferedH264],
    descriptions: &[String],
    stream: Option<&SpsFacts>,
    user_agent: Option<&str>,
) -> Result<&'a OfferedH264, JoinError> {
    let profile = stream
        .map_or(Profile::ConstrainedBaseline, |s| Profile::of(s.profile_idc, s.constraint_flags));
    let best_of = |wanted: Profile| {
        offered.iter().filter(|o| Profile::of(o.id[0], o.id[1]) == wanted).max_by_key(|o| o.id[2])
    };
    if let Some(found) = profile.decoders().iter().find_map(|p| best_of(*p)) {
        return Ok(found);
    }
    let understated = matches!(profile, Profile::Main | Profile::High | Profile::ConstrainedHigh)
        && decodes_beyond_offer(offered, user_agent);
    if understated {
        let stand_in = best_of(Profile::ConstrainedBaseline).or_else(|| best_of(Profile::Baseline));
        if let Some(found) = stand_in.or_else(|| best_of(Profile::Main)) {
            return Ok(found);
        }
    }
    Err(JoinError::NoCommonCodec {
        offered: descriptions.to_vec(),
        needed: needed(profile, stream),
    })
}

fn needed(profile: Profile, stream: Option<&SpsFacts>) -> String {
    match stream {
        Some(s) => format!(
            "H264 packetization-mode=1 profile-level-id={:02x}{:02x}{:02x} ({})",
            s.profile_idc,
            s.constraint_flags,
            s.level_idc,
            profile.name()
        ),
        None => "H264 packetization-mode=1 profile-level-id=42e01f (Constrained Baseline)".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(ids: &[u32]) -> Vec<OfferedH264> {
        ids.iter()
            .zip(96..)
            .map(|(id, pt)| {
                let [_, a, b, c] = id.to_be_bytes();
                OfferedH264 {
                    pt,
                    rtx: None,
                    id: [a, b, c],
                    level_asymmetry: true,
                    nack: true,
                    pli: true,
                    fir: true,
                    twcc: true,
                }
            })
            .collect()
    }

    fn sps(profile_idc: u8, constraint_flags: u8, level_idc: u8) -> SpsFacts {
        SpsFacts {
            width: 720,
            height: 1280,
            profile_idc,
            constraint_flags,
            level_idc,
            max_num_reorder_frames: None,
        }
    }

    fn chosen(offered: &[u32], stream: &SpsFacts) -> Option<u32> {
        let offered = offer(offered);
        let found = choose(&offered, &[], Some(stream), None).ok()?;
        let [a, b, c] = found.id;
        Some(u32::from_be_bytes([0, a, b, c]))
    }

    const CHROMIUM: &[u32] = &[0x42_001f, 0x42_e01f, 0x4d_001f, 0xf4_001f];

    #[test]
    fn each_profile_gets_the_closest_decoder() {
        assert_eq!(chosen(CHROMIUM, &sps(66, 0xc0, 31)), Some(0x42_e01f));
        assert_eq!(chosen(CHROMIUM, &sps(66, 0x00, 31)), Some(0x42_e01f));
        assert_eq!(chosen(CHROMIUM, &sps(77, 0x00, 31)), Some(0x4d_001f));
        assert_eq!(chosen(&[0x42_e01f, 0x64_001f], &sps(77, 0x40, 40)), Some(0x64_001f));
        assert_eq!(chosen(&[0x42_e01f, 0x64_0c1f], &sps(100, 0x0c, 40)), Some(0x64_0c1f));
        assert_eq!(chosen(&[0x42_001f], &sps(66, 0xc0, 31)), Some(0x42_001f));
    }

    #[test]
    fn high_is_signalled_as_constrained_baseline_to_clients_that_understate() {
        assert_eq!(chosen(CHROMIUM, &sps(100, 0, 40)), Some(0x42_e01f));
        assert_eq!(chosen(&[0x42_e01f, 0x64_001f], &sps(100, 0, 40)), Some(0x64_001f));
        assert_eq!(chosen(&[0x42_e01f], &sps(100, 0, 40)), None, "no evidence, no guess");
        // What Firefox offers with its plugin.
        let offered = offer(&[0x42_e01f, 0x42_001f]);
        let firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:153.0) Gecko/20100101 Firefox/153.0";
        let found = |profile, ua| choose(&offered, &[], Some(&sps(profile, 0, 31)), ua).ok();
        assert_eq!(found(100, Some(firefox)).map(|o| o.id), Some([0x42, 0xe0, 0x1f]));
        assert_eq!(found(77, Some(firefox)).map(|o| o.id), Some([0x42, 0xe0, 0x1f]));
        assert_eq!(found(100, Some("Python/3.11 aiohttp/3.14.5")), None, "says nothing of itself");
        assert_eq!(found(110, Some(firefox)), None, "High 10 is another decoder");
    }

    #[test]
    fn the_highest_level_of_a_profile_wins() {
        assert_eq!(chosen(&[0x42_e01f, 0x42_e034], &sps(66, 0xc0, 50)), Some(0x42_e034));
    }

    #[test]
    fn a_refusal_says_what_is_needed() {
        let offered = offer(&[0x42_e01f]);
        let words = vec!["H264 profile-level-id=42e01f".to_owned()];
        let refused = choose(&offered, &words, Some(&sps(110, 0, 40)), Some("Chrome/156"));
        let Err(JoinError::NoCommonCodec { offered, needed }) = refused else {
            panic!("High 10 must be refused")
        };
        assert_eq!(offered, words);
        assert!(needed.contains("6e0028"), "{needed}");
    }
}
