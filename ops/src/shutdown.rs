//! Ordered shutdown: one cancellation token, the tasks that must end after it, and a deadline.
//! Not a supervisor: a task that ends early is not started again. Invariant: [`Shutdown::wait`]
//! returns no later than the deadline after the trigger, and names every task it left behind.

use std::{collections::BTreeMap, fmt, future::Future, sync::Arc, time::Duration};

use futures::FutureExt as _;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Tasks that were still running when the deadline passed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not ended within {deadline:?}: {}", tasks.join(", "))]
pub struct StillRunning {
    /// The deadline that passed.
    pub deadline: Duration,
    /// Names given to [`Shutdown::spawn`], in the order of their start.
    pub tasks: Vec<String>,
}

/// Handle to the end of a process or of a part of it. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Shutdown {
    inner: Arc<Inner>,
}

struct Inner {
    token: CancellationToken,
    /// Cancelled by the signal that asks for a drain before the end.
    drain: CancellationToken,
    /// Cancelled by a second signal: do not even wait for the deadline.
    force: CancellationToken,
    tracker: TaskTracker,
    deadline: Duration,
    tasks: Mutex<Tasks>,
    children: Mutex<Vec<Shutdown>>,
}

#[derive(Default)]
struct Tasks {
    next: u64,
    running: BTreeMap<u64, String>,
}

/// Takes a task off the list when it ends, panics or is dropped with its runtime.
struct Listed {
    inner: Arc<Inner>,
    id: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.inner.tasks.lock().running.remove(&self.id);
    }
}

impl Shutdown {
    /// A new one; `deadline` is the time tasks have after the trigger.
    pub fn new(deadline: Duration) -> Self {
        let fresh = CancellationToken::new;
        Self::with_tokens(deadline, fresh(), fresh(), fresh())
    }

    fn with_tokens(
        deadline: Duration,
        token: CancellationToken,
        drain: CancellationToken,
        force: CancellationToken,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                token,
                drain,
                force,
                tracker: TaskTracker::new(),
                deadline,
                tasks: Mutex::default(),
                children: Mutex::default(),
            }),
        }
    }

    /// A part that can be ended alone, and that ends with the whole. Its tasks count as tasks of
    /// the whole. A child whose work is over is forgotten at the next call.
    pub fn child(&self) -> Self {
        let child = Self::with_tokens(
            self.inner.deadline,
            self.inner.token.child_token(),
            self.inner.drain.clone(),
            self.inner.force.clone(),
        );
        let mut children = self.inner.children.lock();
        children.retain(|c| !(c.is_triggered() && c.inner.tracker.is_empty()));
        children.push(child.clone());
        child
    }

    /// Token that is cancelled when the end begins.
    pub fn token(&self) -> CancellationToken {
        self.inner.token.clone()
    }

    /// Ends when the end begins.
    pub async fn triggered(&self) {
        self.inner.token.cancelled().await;
    }

    /// Whether the end has begun.
    pub fn is_triggered(&self) -> bool {
        self.inner.token.is_cancelled()
    }

    /// Begins the end. Calling it again changes nothing.
    pub fn trigger(&self) {
        self.inner.token.cancel();
    }

    /// Ends when a drain is asked for: whoever can give its work away does so, then ends by itself.
    pub async fn drain_asked(&self) {
        self.inner.drain.cancelled().await;
    }

    /// Asks for a drain. Calling it again changes nothing.
    pub fn ask_drain(&self) {
        self.inner.drain.cancel();
    }

    /// Runs a task that [`Self::wait`] waits for. The task has to watch [`Self::token`] itself. A
    /// panic is logged with the task's name and ends that task alone.
    pub fn spawn<F>(&self, name: impl Into<String>, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let name = name.into();
        let id = {
            let mut tasks = self.inner.tasks.lock();
            let id = tasks.next;
            tasks.next += 1;
            tasks.running.insert(id, name.clone());
            id
        };
        let listed = Listed { inner: Arc::clone(&self.inner), id };
        self.inner.tracker.spawn(async move {
            let _listed = listed;
            // Unwind safety: the future is dropped right after, and nothing of it is looked at.
            if std::panic::AssertUnwindSafe(future).catch_unwind().await.is_err() {
                tracing::error!(task = %name, "task panicked");
            }
        })
    }

    /// As [`Self::listen_signals`], but the first SIGTERM asks for a drain only. The second one, and
    /// SIGINT, begin the end.
    pub fn listen_signals_draining(&self) -> std::io::Result<()> {
        self.listen(true)
    }

    /// Begins the end at SIGINT or SIGTERM. A second signal makes [`Self::wait`] return at once.
    pub fn listen_signals(&self) -> std::io::Result<()> {
        self.listen(false)
    }

    fn listen(&self, drains: bool) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let this = self.clone();
        // Not tracked: it waits for signals for as long as the process lives.
        tokio::spawn(async move {
            loop {
                let name = tokio::select! {
                    _ = interrupt.recv() => "SIGINT",
                    _ = terminate.recv() => "SIGTERM",
                };
                if drains && name == "SIGTERM" && !this.inner.drain.is_cancelled() {
                    tracing::info!(signal = name, "draining; a second one ends at once");
                    this.ask_drain();
                    continue;
                }
                if this.is_triggered() {
                    tracing::warn!(signal = name, "second signal, not waiting any longer");
                    this.inner.force.cancel();
                    return;
                }
                tracing::info!(signal = name, "shutting down");
                this.trigger();
            }
        });
        Ok(())
    }

    /// Waits for the trigger, then for all tasks, at most for the deadline.
    pub async fn wait(&self) -> Result<(), StillRunning> {
        self.triggered().await;
        tokio::select! {
            () = self.tasks_ended() => return Ok(()),
            () = tokio::time::sleep(self.inner.deadline) => {}
            () = self.inner.force.cancelled() => {}
        }
        let tasks = self.running_tasks();
        if tasks.is_empty() {
            return Ok(());
        }
        Err(StillRunning { deadline: self.inner.deadline, tasks })
    }

    /// Names of the tasks that run now, children's included.
    pub fn running_tasks(&self) -> Vec<String> {
        let mut names: Vec<String> = self.inner.tasks.lock().running.values().cloned().collect();
        for child in self.inner.children.lock().iter() {
            names.extend(child.running_tasks());
        }
        names
    }

    async fn tasks_ended(&self) {
        let mut all = Vec::new();
        self.collect(&mut all);
        for part in all {
            part.inner.tracker.close();
            part.inner.tracker.wait().await;
        }
    }

    fn collect(&self, all: &mut Vec<Self>) {
        all.push(self.clone());
        for child in self.inner.children.lock().iter() {
            child.collect(all);
        }
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown")
            .field("triggered", &self.is_triggered())
            .field("running", &self.running_tasks())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn wait_ends_when_all_tasks_have_ended() {
        let shutdown = Shutdown::new(Duration::from_secs(2));
        let token = shutdown.token();
        shutdown.spawn("polite", async move { token.cancelled().await });
        assert_eq!(shutdown.running_tasks(), ["polite"]);
        shutdown.trigger();
        assert_eq!(shutdown.wait().await, Ok(()));
        assert!(shutdown.running_tasks().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_names_what_did_not_end() {
        let shutdown = Shutdown::new(Duration::from_secs(2));
        shutdown.child().spawn("stuck", std::future::pending());
        shutdown.trigger();
        let before = tokio::time::Instant::now();
        let left = shutdown.wait().await.unwrap_err();
        assert_eq!(left.tasks, ["stuck"]);
        assert_eq!(before.elapsed(), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_ends_alone_and_with_its_parent() {
        let parent = Shutdown::new(Duration::from_secs(1));
        let (one, two) = (parent.child(), parent.child());
        one.trigger();
        assert!(one.is_triggered() && !two.is_triggered() && !parent.is_triggered());
        assert_eq!(one.wait().await, Ok(()));
        parent.trigger();
        assert!(two.is_triggered());
        assert_eq!(parent.wait().await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_panicking_task_does_not_hold_up_the_end() {
        let shutdown = Shutdown::new(Duration::from_secs(1));
        shutdown.spawn("falls", async { panic!("on purpose") });
        shutdown.trigger();
        assert_eq!(shutdown.wait().await, Ok(()));
    }
}
