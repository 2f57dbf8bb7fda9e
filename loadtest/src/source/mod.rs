//! Where pictures come from: a recorded Annex-B file that is played in a loop, or a synthetic
//! stream whose sizes follow a bit rate. Not their sending. Invariant: an access unit leaves here
//! in the form in which it must come out of a viewer's depacketiser, byte for byte, and its hash
//! is that of these bytes.

mod clip;
mod synthetic;

use std::path::{Path, PathBuf};

pub use clip::Clip;
pub use synthetic::{Shape, Synthetic};

/// Why there are no pictures. The caller's to mend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not H.264 in Annex-B that begins with a keyframe.
    #[error("{path} cannot be played: {why}")]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A size or rate that makes no stream.
    #[error("a synthetic stream cannot be made: {0}")]
    Shape(String),
}

/// One access unit to publish.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Place in the stream, from zero.
    pub number: u64,
    /// Annex-B, start codes of four bytes, no delimiters and no filler.
    pub au: Vec<u8>,
    /// Decoding can start here; holds its parameter sets.
    pub key: bool,
    /// No other picture needs it.
    pub discardable: bool,
    /// [`hash`] of `au`.
    pub hash: u64,
}

/// A stream of pictures without end.
#[derive(Debug)]
pub enum Source {
    /// From a file.
    Clip(Clip),
    /// Made up.
    Synthetic(Synthetic),
}

impl Source {
    /// Opens `synthetic`, or a file by its path. `seed` differs between streams.
    ///
    /// # Errors
    /// A file that cannot be read or played, a shape that makes no stream.
    pub fn open(name: &str, shape: &Shape, seed: u64) -> Result<Self, SourceError> {
        if name == "synthetic" {
            return Ok(Self::Synthetic(Synthetic::new(shape.clone(), seed)?));
        }
        Ok(Self::Clip(Clip::read(Path::new(name))?))
    }

    /// The next picture. `key` asks for a keyframe; a recorded clip cannot give one out of turn.
    pub fn next_picture(&mut self, key: bool) -> Picture {
        match self {
            Self::Clip(clip) => clip.next_picture(),
            Self::Synthetic(synthetic) => synthetic.next_picture(key),
        }
    }

    /// Goes on at another bit rate, where that can be chosen: a recorded clip keeps its own.
    pub fn set_bitrate(&mut self, bitrate_bps: u64) {
        if let Self::Synthetic(synthetic) = self {
            synthetic.set_bitrate(bitrate_bps);
        }
    }

    /// Width and height that the parameter sets state.
    pub fn size(&self) -> (u32, u32) {
        match self {
            Self::Clip(clip) => clip.size(),
            Self::Synthetic(_) => synthetic::SIZE,
        }
    }
}

/// Seeds of the hash: any, but the same at both ends.
const HASH_SEEDS: [u64; 4] =
    [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0x2545_f491_4f6c_dd1d];

/// Hash of an access unit. Equal within one process only, where both ends of a load test are.
/// Not against an adversary: packets are authenticated before.
pub fn hash(au: &[u8]) -> u64 {
    let [a, b, c, d] = HASH_SEEDS;
    ahash::RandomState::with_seeds(a, b, c, d).hash_one(au)
}

/// A small generator for sizes and content: fast, seeded, nothing more.
#[derive(Clone, Debug)]
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// In `0.0..1.0`.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}
