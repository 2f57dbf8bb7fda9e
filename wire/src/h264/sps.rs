//! What the sequence parameter set says, read by the `h264-reader` crate. Not a bit reader of our
//! own. Invariant: an SPS longer than [`MAX_SPS_LEN`] is refused before it is parsed.

use h264_reader::nal::sps::{
    ChromaInfo, ConstraintFlags, FrameCropping, FrameMbsFlags, PicOrderCntType, ProfileIdc,
    SeqParamSetId, SeqParameterSet, SpsError as ReaderError,
};
use h264_reader::rbsp::{BitRead, BitReader, ByteReader};

use super::NalType;

/// Greatest SPS. A real one has 15 to 60 bytes; one with all scaling lists and HRD under 600.
pub const MAX_SPS_LEN: usize = 1024;

/// Greatest width or height: input messages carry coordinates in 16 bits, encoders stop at 8,192.
const MAX_SIDE: u32 = 16_384;

/// Why an SPS was refused. The source is to blame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpsError {
    /// The NAL unit is not an SPS, or empty.
    #[error("not an SPS: header byte {header:?}")]
    NotSps {
        /// The header byte, if there is one.
        header: Option<u8>,
    },
    /// Longer than [`MAX_SPS_LEN`].
    #[error("SPS of {len} bytes is over the limit of {MAX_SPS_LEN}")]
    TooLarge {
        /// Its length.
        len: usize,
    },
    /// A field is cut short or out of range; the text names it.
    #[error("malformed SPS: {detail}")]
    Malformed {
        /// What the parser said.
        detail: String,
    },
    /// The picture has no area or is larger than input can address.
    #[error("SPS declares a picture of {width}x{height}")]
    BadSize {
        /// Its width after cropping.
        width: u32,
        /// Its height after cropping.
        height: u32,
    },
}

/// The facts of an SPS that somebody outside the decoder needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpsFacts {
    /// Width in pixels after cropping.
    pub width: u32,
    /// Height in pixels after cropping.
    pub height: u32,
    /// `profile_idc`.
    pub profile_idc: u8,
    /// The byte of constraint flags, flag 0 in the top bit.
    pub constraint_flags: u8,
    /// `level_idc`.
    pub level_idc: u8,
    /// Pictures that may be shown later than ones decoded after them. `Some(0)` also where the
    /// profile or the picture order type rules reordering out; `None` when the SPS does not say,
    /// and a decoder may then hold pictures back.
    pub max_num_reorder_frames: Option<u32>,
}

impl SpsFacts {
    /// Reads an SPS NAL unit: header byte included, start code not.
    pub fn parse(sps_nal: &[u8]) -> Result<Self, SpsError> {
        let header = sps_nal.first().copied();
        if header.map(NalType::of_header) != Some(NalType::Sps) {
            return Err(SpsError::NotSps { header });
        }
        if sps_nal.len() > MAX_SPS_LEN {
            return Err(SpsError::TooLarge { len: sps_nal.len() });
        }
        let malformed = |e| SpsError::Malformed { detail: format!("{e:?}") };
        let bits = || BitReader::new(ByteReader::skipping_h264_header(sps_nal));
        let sps = SeqParameterSet::from_bits(bits())
            .or_else(|e| without_vui(bits()).map_err(|()| e))
            .map_err(malformed)?;
        let (width, height) = sps.pixel_dimensions().map_err(malformed)?;
        if !(1..=MAX_SIDE).contains(&width) || !(1..=MAX_SIDE).contains(&height) {
            return Err(SpsError::BadSize { width, height });
        }
        let stated = sps
            .vui_parameters
            .as_ref()
            .and_then(|vui| vui.bitstream_restrictions.as_ref())
            .map(|r| r.max_num_reorder_frames);
        let in_order = sps.pic_order_cnt == PicOrderCntType::TypeTwo
            || u8::from(sps.profile_idc) == PROFILE_BASELINE;
        Ok(Self {
            width,
            height,
            profile_idc: sps.profile_idc.into(),
            constraint_flags: sps.constraint_flags.into(),
            level_idc: sps.level_idc,
            max_num_reorder_frames: if in_order { Some(0) } else { stated },
        })
    }

    /// The three bytes that SDP's `profile-level-id` writes in hexadecimal.
    pub const fn profile_level_id(&self) -> [u8; 3] {
        [self.profile_idc, self.constraint_flags, self.level_idc]
    }
}

/// Reads an SPS up to its VUI, and only if it has one. Encoders of real devices are careless in
/// there (`max_dec_frame_buffering` beyond the level's limit, for one), decoders play their streams
/// all the same, and the size that we need stands in front of it.
fn without_vui<R: BitRead>(mut r: R) -> Result<SeqParameterSet, ()> {
    let sps = before_vui(&mut r).map_err(|_| ())?;
    let has_vui = r.read_bit("vui_parameters_present_flag").map_err(|_| ())?;
    if has_vui { Ok(sps) } else { Err(()) }
}

fn before_vui<R: BitRead>(r: &mut R) -> Result<SeqParameterSet, ReaderError> {
    let profile_idc = ProfileIdc::from(r.read::<8, u8>("profile_idc")?);
    Ok(SeqParameterSet {
        profile_idc,
        constraint_flags: ConstraintFlags::from(r.read::<8, u8>("constraint_flags")?),
        level_idc: r.read::<8, u8>("level_idc")?,
        seq_parameter_set_id: SeqParamSetId::from_u32(r.read_ue("seq_parameter_set_id")?)
            .map_err(ReaderError::BadSeqParamSetId)?,
        chroma_info: ChromaInfo::read(r, profile_idc)?,
        log2_max_frame_num_minus4: {
            // Not used here; read to get past it.
            r.read_ue("log2_max_frame_num_minus4")?;
            0
        },
        pic_order_cnt: pic_order_cnt(r)?,
        max_num_ref_frames: r.read_ue("max_num_ref_frames")?,
        gaps_in_frame_num_value_allowed_flag: r.read_bit("gaps_in_frame_num_value_allowed_flag")?,
        pic_width_in_mbs_minus1: r.read_ue("pic_width_in_mbs_minus1")?,
        pic_height_in_map_units_minus1: r.read_ue("pic_height_in_map_units_minus1")?,
        frame_mbs_flags: match r.read_bit("frame_mbs_only_flag")? {
            true => FrameMbsFlags::Frames,
            false => FrameMbsFlags::Fields {
                mb_adaptive_frame_field_flag: r.read_bit("mb_adaptive_frame_field_flag")?,
            },
        },
        direct_8x8_inference_flag: r.read_bit("direct_8x8_inference_flag")?,
        frame_cropping: match r.read_bit("frame_cropping_flag")? {
            false => None,
            true => Some(FrameCropping {
                left_offset: r.read_ue("left_offset")?,
                right_offset: r.read_ue("right_offset")?,
                top_offset: r.read_ue("top_offset")?,
                bottom_offset: r.read_ue("bottom_offset")?,
            }),
        },
        vui_parameters: None,
    })
}

/// The picture order type. Type 1 is refused: no encoder of a screen uses it.
fn pic_order_cnt<R: BitRead>(r: &mut R) -> Result<PicOrderCntType, ReaderError> {
    match r.read_ue("pic_order_cnt_type")? {
        0 => {
            r.read_ue("log2_max_pic_order_cnt_lsb_minus4")?;
            Ok(PicOrderCntType::TypeZero { log2_max_pic_order_cnt_lsb_minus4: 0 })
        }
        2 => Ok(PicOrderCntType::TypeTwo),
        value => Err(ReaderError::FieldValueTooLarge { name: "pic_order_cnt_type", value }),
    }
}

/// Baseline has no B slices.
const PROFILE_BASELINE: u8 = 66;
