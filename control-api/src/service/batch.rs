//! Batches: many calls in one, each with its own result. Not the calls. Invariant: results come in
//! the order of the requests, one each, and a batch is either refused as a whole before anything is
//! done, or every item is tried.

use std::time::Duration;

use fanlight_proto::types::v1::ItemStatus;
use futures::{Stream, StreamExt as _};
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::{
    clock::{timestamp, us},
    error::ControlError,
};

/// Items of one batch.
const MAX_ITEMS: usize = 500;
/// Items worked on at once.
const AT_ONCE: usize = 16;

/// Checks the number of items.
pub(super) fn check(n: usize) -> Result<(), ControlError> {
    let fits = (1..=MAX_ITEMS).contains(&n);
    if fits { Ok(()) } else { Err(ControlError::field("requests", "1 to 500 are allowed")) }
}

/// Runs the items, a few at once, in order of their results.
pub(super) async fn run<R: Send>(
    items: impl Stream<Item = impl Future<Output = R> + Send> + Send,
) -> Vec<R> {
    items.buffered(AT_ONCE).collect().await
}

/// An item's refusal; `now_us` is the store's clock.
pub(super) fn item_status(status: &Status, now_us: u64) -> ItemStatus {
    let details = status.get_error_details();
    let retry = details.retry_info().and_then(|r| r.retry_delay);
    let at = |after: Duration| timestamp(now_us.saturating_add(us(after)));
    ItemStatus {
        code: status.code().into(),
        message: status.message().to_owned(),
        reason: details.error_info().map(|i| i.reason.clone()).unwrap_or_default(),
        retry_after: retry.map(at),
    }
}
