//! A recorded Annex-B file, read once and played in a loop. Not a demultiplexer. Invariant: the
//! loop starts with a keyframe, and every keyframe has its parameter sets in front.

use std::path::Path;

use fanlight_wire::h264::{
    AccessUnitInfo, AnnexBSplitter, NalType, ParameterSets, nal_units, write_nal,
};

use super::{Picture, SourceError, hash};

/// Largest file read: 15 minutes at 8 Mbit/s.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// A clip in memory.
#[derive(Debug)]
pub struct Clip {
    pictures: Vec<Picture>,
    size: (u32, u32),
    number: u64,
}

impl Clip {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or does not begin with a keyframe.
    pub fn read(path: &Path) -> Result<Self, SourceError> {
        let failed = |source| SourceError::Read { path: path.to_owned(), source };
        let length = std::fs::metadata(path).map_err(failed)?.len();
        if length > FILE_BYTES_MAX {
            let why = format!("it has {length} bytes, at most {FILE_BYTES_MAX} are read");
            return Err(SourceError::Unusable { path: path.to_owned(), why });
        }
        let bytes = std::fs::read(path).map_err(failed)?;
        Self::parse(&bytes).map_err(|why| SourceError::Unusable { path: path.to_owned(), why })
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut splitter = AnnexBSplitter::new();
        splitter.push(bytes);
        let mut sets = ParameterSets::new();
        let mut pictures = Vec::new();
        loop {
            let unit = splitter.next().map_err(|e| e.to_string())?;
            let Some(unit) = unit.or_else(|| splitter.flush()) else { break };
            sets.absorb(&unit);
            let unit = canonical(&sets.prepend_if_key(&unit));
            let Ok(info) = AccessUnitInfo::inspect(&unit) else { continue };
            if !info.has_slice || (pictures.is_empty() && !info.key) {
                continue;
            }
            pictures.push(Picture {
                number: 0,
                key: info.key,
                discardable: info.discardable,
                hash: hash(&unit),
                au: unit,
            });
        }
        if pictures.is_empty() {
            return Err("there is no keyframe in it".to_owned());
        }
        let facts = sets.facts().ok_or("there is no SPS in it")?.map_err(|e| e.to_string())?;
        Ok(Self { pictures, size: (facts.width, facts.height), number: 0 })
    }

    pub(super) fn next_picture(&mut self) -> Picture {
        let at = self.number % self.pictures.len() as u64;
        let picture = self.pictures.get(usize::try_from(at).unwrap_or(0)).cloned();
        // `parse` refuses an empty clip, and `at` is below its length.
        let mut picture = picture.unwrap_or_else(|| self.pictures[0].clone());
        picture.number = self.number;
        self.number += 1;
        picture
    }

    /// Its pictures, once through.
    pub fn pictures(&self) -> &[Picture] {
        &self.pictures
    }

    pub(super) fn size(&self) -> (u32, u32) {
        self.size
    }
}

/// As a depacketiser will give it: four-byte start codes, no delimiters, no filler.
fn canonical(unit: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(unit.len() + 16);
    for nal in nal_units(unit) {
        if !matches!(nal.kind, NalType::Aud | NalType::Filler) {
            write_nal(nal.bytes, &mut out);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Shape, Source};

    #[test]
    fn a_file_is_played_in_a_loop_and_comes_out_as_depacketised() {
        let mut source = Source::open("synthetic", &Shape::default(), 1).unwrap();
        let pictures: Vec<Picture> = (0..10).map(|_| source.next_picture(false)).collect();
        let mut file = Vec::new();
        for picture in &pictures {
            // Delimiters, as encoders write them; they are not sent.
            write_nal(&[0x09, 0xf0], &mut file);
            file.extend_from_slice(&picture.au);
        }
        let mut clip = Clip::parse(&file).unwrap();
        assert_eq!(clip.size(), (720, 1280));
        for n in 0..25_u64 {
            let got = clip.next_picture();
            let wanted = &pictures[(n % 10) as usize];
            assert_eq!((got.number, got.hash, got.key), (n, wanted.hash, wanted.key));
        }
    }

    #[test]
    fn what_has_no_keyframe_is_refused() {
        assert!(Clip::parse(b"").is_err());
        assert!(Clip::parse(&[0, 0, 0, 1, 0x41, 0x88, 1, 2, 3]).is_err());
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Source::open("/nowhere/clip.h264", &Shape::default(), 1).unwrap_err();
        assert!(error.to_string().contains("/nowhere/clip.h264"), "{error}");
    }
}
