//! One published flow: frames that were read from QUIC streams in any order go on to the stream
//! in their own order. The only place where the order of [`crate::arrive`] meets a clock. Not the
//! reading. Invariant: the task ends when its publish is over, and then the stream is told.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use tokio::sync::mpsc;

use crate::{
    arrive::{Arrive, Released},
    frame::{Assembled, Params},
    metrics::NodeMetrics,
    stream::{NewFrame, Publisher, Stream},
};

/// What the readers of a flow's streams tell.
#[derive(Debug)]
pub(crate) enum FlowInput {
    /// The first packet of a frame has arrived.
    Opened { first: u16 },
    /// A frame that was opened will not be completed.
    Abandoned { first: u16 },
    /// A whole frame, with the memory it is charged for.
    Frame { assembled: Assembled, charge: Charge },
}

/// Inputs that may wait. Readers wait when it is full, and with them the sender, by QUIC's flow
/// control.
pub(crate) const FLOW_QUEUE: usize = 256;

/// Bytes of unfinished and held frames of one connection, bounded.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), max })
    }

    pub(crate) fn charge(self: &Arc<Self>) -> Charge {
        Charge { budget: Arc::clone(self), bytes: 0 }
    }

    #[cfg(test)]
    fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// One frame's share of a [`Budget`]; given back when dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Charge {
    /// Takes more; false when the budget is spent.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let before = self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > self.budget.max {
            self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        self.bytes += bytes;
        true
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Runs a flow until its inputs end or another publish takes over.
pub(crate) async fn run(
    stream: Arc<Stream>,
    publisher: Publisher,
    mut inputs: mpsc::Receiver<FlowInput>,
    metrics: NodeMetrics,
) {
    let mut flow = Flow {
        arrive: Arrive::new(),
        params: Params::default(),
        out: Vec::new(),
        stream: &stream,
        id: publisher.id,
        metrics: &metrics,
    };
    loop {
        let due = flow.arrive.next_timeout();
        let timer = async {
            match due {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let goes_on = tokio::select! {
            () = publisher.superseded.cancelled() => false,
            input = inputs.recv() => match input {
                Some(input) => flow.input(Instant::now(), input),
                None => false,
            },
            () = timer => flow.timeout(Instant::now()),
        };
        if !goes_on {
            break;
        }
    }
    stream.unpublish(publisher.id);
    metrics.count("fanlight_router_publishes_closed_total");
}

struct Flow<'a> {
    arrive: Arrive<(NewFrame, Charge)>,
    params: Params,
    out: Vec<Released<(NewFrame, Charge)>>,
    stream: &'a Stream,
    id: u64,
    metrics: &'a NodeMetrics,
}

impl Flow<'_> {
    fn input(&mut self, now: Instant, input: FlowInput) -> bool {
        match input {
            FlowInput::Opened { first } => self.arrive.opened(now, first),
            FlowInput::Abandoned { first } => self.arrive.abandoned(now, first, &mut self.out),
            FlowInput::Frame { assembled, charge } => {
                self.metrics.count("fanlight_router_hop_frames_total");
                self.metrics
                    .add("fanlight_router_hop_bytes_total", assembled.position.bytes as u64);
                let item = (assembled.frame, charge);
                self.arrive.push(now, assembled.position, item, &mut self.out);
            }
        }
        self.release()
    }

    fn timeout(&mut self, now: Instant) -> bool {
        self.arrive.timeout(now, &mut self.out);
        self.release()
    }

    fn release(&mut self) -> bool {
        let counts = self.arrive.take_counts();
        self.metrics.add("fanlight_router_hop_gaps_total", counts.gaps);
        let dropped = "fanlight_router_hop_frames_dropped_total";
        (0..counts.late).for_each(|_| self.metrics.count_reason(dropped, "late"));
        (0..counts.before_key).for_each(|_| self.metrics.count_reason(dropped, "before_key"));
        for Released { frame: (mut frame, _charge), after_gap } in self.out.drain(..) {
            frame.after_gap = after_gap;
            if frame.key {
                frame.params = self.params.of(&frame.payloads);
            }
            if !self.stream.frame(self.id, frame) {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_never_overdrawn_and_is_given_back() {
        let budget = Budget::new(100);
        let mut one = budget.charge();
        assert!(one.grow(60));
        let mut two = budget.charge();
        assert!(two.grow(40));
        assert!(!two.grow(1));
        assert_eq!(budget.used(), 100);
        drop(one);
        assert_eq!(budget.used(), 40);
        assert!(two.grow(60));
        drop(two);
        assert_eq!(budget.used(), 0);
    }
}
