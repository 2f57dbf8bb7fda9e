//! Cutting a recorded Annex-B byte stream into pictures, for replay.
//!
//! Not a decoder and not hardened for strangers' streams: the file is the operator's own. Written
//! apart from the router's parser on purpose, so that the two can disagree. Invariant: the access
//! units of a stream, joined with its parameter sets, hold every NAL unit of the file but the access
//! unit delimiters, in order.

use h264_reader::nal::sps::SeqParameterSet;
use h264_reader::rbsp::{BitReader, decode_nal};

/// NAL unit types that matter here (H.264 table 7-1).
const SLICE: u8 = 1;
const IDR_SLICE: u8 = 5;
const SPS: u8 = 7;
const PPS: u8 = 8;
const ACCESS_UNIT_DELIMITER: u8 = 9;

/// One picture of a recorded stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Annex-B bytes without parameter sets.
    pub data: Vec<u8>,
    /// Parameter sets that stand before this picture in the stream, if any.
    pub config: Option<Vec<u8>>,
    /// Whether it is an IDR picture.
    pub key: bool,
}

/// The NAL units of an Annex-B stream, without start codes and trailing zeros.
pub fn nal_units(stream: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = skip_to_start(stream);
    std::iter::from_fn(move || {
        loop {
            let current = rest?;
            let end = find_start(current).unwrap_or(current.len());
            rest = skip_to_start(&current[end..]);
            let trimmed = trim_zeros(&current[..end]);
            if !trimmed.is_empty() {
                return Some(trimmed);
            }
        }
    })
}

/// Cuts a stream into pictures. What comes before the first IDR picture is left out: nothing can
/// show it.
#[must_use]
pub fn split_pictures(stream: &[u8]) -> Vec<Picture> {
    let mut pictures: Vec<Picture> = Vec::new();
    let mut config = Vec::new();
    // NAL units such as SEI that belong to the next picture.
    let mut ahead = Vec::new();
    for nal in nal_units(stream) {
        match nal[0] & 0x1F {
            SPS | PPS => push_nal(&mut config, nal),
            ACCESS_UNIT_DELIMITER => {}
            kind @ (SLICE..=IDR_SLICE) => {
                let key = kind == IDR_SLICE;
                if starts_picture(nal) {
                    if pictures.is_empty() && !key {
                        ahead.clear();
                        continue;
                    }
                    let config = (!config.is_empty()).then(|| std::mem::take(&mut config));
                    pictures.push(Picture { data: std::mem::take(&mut ahead), config, key });
                }
                if let Some(picture) = pictures.last_mut() {
                    push_nal(&mut picture.data, nal);
                }
            }
            _ => push_nal(&mut ahead, nal),
        }
    }
    pictures
}

/// Width and height that the first SPS among these parameter sets stands for, after cropping.
#[must_use]
pub fn picture_size(config: &[u8]) -> Option<(u32, u32)> {
    let sps = nal_units(config).find(|nal| nal[0] & 0x1F == SPS)?;
    let rbsp = decode_nal(sps).ok()?;
    SeqParameterSet::from_bits(BitReader::new(&*rbsp)).ok()?.pixel_dimensions().ok()
}

/// A slice starts a picture when its first macroblock is 0, coded as a leading one bit.
fn starts_picture(nal: &[u8]) -> bool {
    nal.get(1).is_some_and(|byte| byte & 0x80 != 0)
}

fn push_nal(to: &mut Vec<u8>, nal: &[u8]) {
    to.extend_from_slice(&[0, 0, 0, 1]);
    to.extend_from_slice(nal);
}

/// Position of the next `00 00 01`.
fn find_start(bytes: &[u8]) -> Option<usize> {
    bytes.windows(3).position(|w| w == [0, 0, 1])
}

fn skip_to_start(bytes: &[u8]) -> Option<&[u8]> {
    find_start(bytes).map(|at| &bytes[at + 3..])
}

fn trim_zeros(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    &bytes[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = &[
        0, 0, 0, 1, 0x09, 0x10, // access unit delimiter
        0, 0, 1, 0x41, 0x9A, 1, // a P slice before any IDR
        0, 0, 0, 1, 0x67, 1, 2, 0, 0, 1, 0x68, 3, // SPS, PPS
        0, 0, 1, 0x06, 5, // SEI
        0, 0, 1, 0x65, 0x88, 1, 0, 0, 1, 0x65, 0x40, 2, // IDR in two slices
        0, 0, 0, 1, 0x41, 0x9A, 9, 0, 0, // P with trailing zeros
    ];

    #[test]
    fn pictures_come_with_their_slices_and_parameter_sets() {
        let pictures = split_pictures(STREAM);
        assert_eq!(pictures.len(), 2);
        let config: &[u8] = &[0, 0, 0, 1, 0x67, 1, 2, 0, 0, 0, 1, 0x68, 3];
        assert_eq!(pictures[0].config.as_deref(), Some(config));
        assert!(pictures[0].key);
        let nals: Vec<_> = nal_units(&pictures[0].data).map(|n| n[0]).collect();
        assert_eq!(nals, [0x06, 0x65, 0x65]);
        assert_eq!(
            pictures[1],
            Picture { data: vec![0, 0, 0, 1, 0x41, 0x9A, 9], config: None, key: false }
        );
    }

    #[test]
    fn nothing_usable_gives_no_picture() {
        assert!(split_pictures(&[]).is_empty());
        assert!(split_pictures(&[0, 0, 1]).is_empty());
        assert!(split_pictures(&[1, 2, 3, 4, 5, 6]).is_empty());
        assert!(split_pictures(&[0, 0, 1, 0x41, 0x9A, 0, 0, 1, 0x68]).is_empty());
        assert_eq!(picture_size(&[0, 0, 1, 0x67]), None);
    }
}
