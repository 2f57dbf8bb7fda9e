//! Software H.264: I420 pictures in, access units out, the way a device's encoder gives them.
//!
//! A thin layer over openh264 that separates parameter sets from pictures (a device sends them once,
//! as a config packet) and knows keyframes. It does not decide when to encode. Invariant: the first
//! access unit of an encoder is a keyframe and comes with its parameter sets.

use openh264::encoder::{
    BitRate, Complexity, Encoder, EncoderConfig, FrameRate, FrameType, IntraFramePeriod, Profile,
    QpRange, RateControlMode, SpsPpsStrategy, UsageType, VuiConfig,
};
use openh264::formats::YUVSource;
use openh264::{OpenH264API, Timestamp};

/// Lowest bitrate the encoder is asked for; openh264 refuses or misbehaves far below.
const MIN_BITRATE_BPS: u32 = 100_000;
/// Highest bitrate the encoder is asked for; a peer may ask for any u32.
const MAX_BITRATE_BPS: u32 = 100_000_000;

/// What is asked of the encoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EncoderSettings {
    /// Pictures per second it should expect.
    pub fps: f32,
    /// Target bitrate.
    pub bitrate_bps: u32,
}

/// One encoded picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessUnit {
    /// Parameter sets (Annex B), when they are new or differ from the last ones.
    pub config: Option<Vec<u8>>,
    /// The picture (Annex B) without parameter sets.
    pub data: Vec<u8>,
    /// Whether decoding can start here.
    pub key: bool,
}

/// An encoder session; a new session starts with new parameter sets and a keyframe.
pub struct VideoEncoder {
    inner: Encoder,
    config: Vec<u8>,
}

impl std::fmt::Debug for VideoEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VideoEncoder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl VideoEncoder {
    /// Starts a session; the picture size is that of the first picture.
    pub fn new(settings: EncoderSettings) -> Result<Self, EncodeError> {
        let config = EncoderConfig::new()
            .usage_type(UsageType::CameraVideoRealTime)
            .profile(Profile::Baseline)
            .complexity(Complexity::Low)
            .num_threads(1)
            .max_frame_rate(FrameRate::from_hz(settings.fps))
            .bitrate(BitRate::from_bps(
                settings.bitrate_bps.clamp(MIN_BITRATE_BPS, MAX_BITRATE_BPS),
            ))
            .rate_control_mode(RateControlMode::Bitrate)
            // Every picture comes out: a test that counts pictures must not depend on the rate
            // control's mood. Quality gives way instead.
            .skip_frames(false)
            .qp(QpRange::new(16, 42))
            .sps_pps_strategy(SpsPpsStrategy::ConstantId)
            .intra_frame_period(IntraFramePeriod::from_num_frames(0))
            .scene_change_detect(false)
            .adaptive_quantization(false)
            .background_detection(true)
            .long_term_reference(false)
            .vui(VuiConfig::bt709());
        let mut inner = Encoder::with_api_config(OpenH264API::from_source(), config)
            .map_err(EncodeError::Start)?;
        silence(&mut inner);
        Ok(Self { inner, config: Vec::new() })
    }

    /// Encodes one picture; `key` makes it a keyframe.
    pub fn encode(
        &mut self,
        picture: &impl YUVSource,
        pts_us: u64,
        key: bool,
    ) -> Result<AccessUnit, EncodeError> {
        // Before the first picture there is no session to ask for a keyframe, and the first one is
        // a keyframe anyway.
        if key && !self.config.is_empty() {
            self.inner.force_intra_frame();
        }
        let stream = self
            .inner
            .encode_at(picture, Timestamp::from_millis(pts_us / 1000))
            .map_err(EncodeError::Picture)?;
        let key = matches!(stream.frame_type(), FrameType::IDR);
        let (mut config, mut data) = (Vec::new(), Vec::new());
        for layer in (0..stream.num_layers()).filter_map(|i| stream.layer(i)) {
            let to = if layer.is_video() { &mut data } else { &mut config };
            for nal in (0..layer.nal_count()).filter_map(|i| layer.nal_unit(i)) {
                to.extend_from_slice(nal);
            }
        }
        let config = (!config.is_empty() && config != self.config).then(|| {
            self.config.clone_from(&config);
            config
        });
        Ok(AccessUnit { config, data, key })
    }
}

/// Keeps openh264 from writing to stderr past our log: it warns once per session that without
/// skipped pictures the bitrate is only a target, which is what we chose.
fn silence(encoder: &mut Encoder) {
    /// `ENCODER_OPTION_TRACE_LEVEL` of openh264's `codec_app_def.h`.
    const TRACE_LEVEL: i32 = 25;
    // `WELS_LOG_ERROR`: what is worth seeing.
    let mut errors_only: i32 = 1;
    // SAFETY: the trace level is the one option that openh264 accepts before its parameters are
    // set; it reads one `int` from the pointer during the call and keeps no reference. The encoder
    // is not encoding, as we hold it exclusively.
    #[allow(unsafe_code, reason = "openh264 has no safe way to set its log level before it starts")]
    unsafe {
        encoder.raw_api().set_option(TRACE_LEVEL, std::ptr::from_mut(&mut errors_only).cast());
    }
}

/// The encoder gave up; a new session may work, the same one will not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The library did not start.
    #[error("openh264 did not start: {0}")]
    Start(#[source] openh264::Error),
    /// A picture was refused.
    #[error("openh264 refused a picture: {0}")]
    Picture(#[source] openh264::Error),
}

#[cfg(test)]
mod tests {
    use super::super::screen::strip::{self, Stamp};
    use super::super::screen::{Moment, Renderer, ScreenModel};
    use super::*;
    use openh264::decoder::Decoder;

    fn moment(n: u32) -> Moment {
        let us = 1_700_000_000_000_000 + u64::from(n) * 33_333;
        let stamp = Stamp::new(n, us / 1000, u8::try_from(n).unwrap());
        Moment { now_us: us, clock_us: us, stamp }
    }

    #[test]
    fn the_strip_survives_encoding_and_decoding() {
        let settings = EncoderSettings { fps: 30.0, bitrate_bps: 1_000_000 };
        for (width, height) in [(720, 1280), (360, 640), (1280, 720)] {
            let model = ScreenModel::new((width, height));
            let mut renderer = Renderer::new(width, height, "Test").unwrap();
            let mut encoder = VideoEncoder::new(settings).unwrap();
            let mut decoder = Decoder::new().unwrap();
            for n in 0..40 {
                renderer.draw(&model, &moment(n));
                let unit = encoder.encode(renderer.i420(), u64::from(n) * 33_333, n == 25).unwrap();
                assert_eq!(unit.key, n == 0 || n == 25, "picture {n}");
                assert_eq!(unit.config.is_some(), n == 0, "parameter sets come once");
                let mut bytes = unit.config.unwrap_or_default();
                bytes.extend_from_slice(&unit.data);
                let picture = decoder.decode(&bytes).unwrap().expect("a picture for every unit");
                let (stride, _, _) = picture.strides();
                let read = strip::read(width, |x, y| picture.y()[y * stride + x]);
                assert_eq!(read, Some(moment(n).stamp), "{width}x{height} picture {n}");
            }
        }
    }

    #[test]
    fn parameter_sets_are_constrained_baseline() {
        let model = ScreenModel::new((720, 1280));
        let mut renderer = Renderer::new(720, 1280, "Test").unwrap();
        renderer.draw(&model, &moment(0));
        let mut encoder =
            VideoEncoder::new(EncoderSettings { fps: 30.0, bitrate_bps: 2_000_000 }).unwrap();
        let config = encoder.encode(renderer.i420(), 0, true).unwrap().config.unwrap();
        assert_eq!(config[..5], [0, 0, 0, 1, 0x67], "an SPS comes first");
        assert_eq!(config[5], 66, "baseline");
        assert_eq!(config[6] & 0x40, 0x40, "constrained");
        let sps = crate::h264::nal_units(&config).next().unwrap();
        let rbsp = h264_reader::rbsp::decode_nal(sps).unwrap();
        let bits = h264_reader::rbsp::BitReader::new(&*rbsp);
        let sps = h264_reader::nal::sps::SeqParameterSet::from_bits(bits).unwrap();
        let restrictions = sps.vui_parameters.unwrap().bitstream_restrictions.unwrap();
        assert_eq!(restrictions.max_num_reorder_frames, 0, "decoders need not wait");
    }
}
