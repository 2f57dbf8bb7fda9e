//! Abstract socket names on the device: who listens, who connects, which are tunnelled back.
//!
//! Stands for Linux's abstract namespace and adbd's reverse list. Invariants: a name has at most one
//! listener; it is free again as soon as the listener is gone; both tables are bounded.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::input::lock;

/// Names that may be listened on at a time; a device runs a handful of servers.
const MAX_NAMES: usize = 64;
/// Connections that may wait to be accepted, as in a listen backlog.
const BACKLOG: usize = 8;
/// Reverse tunnels at a time.
const MAX_REVERSES: usize = 64;

/// A connected byte stream.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connected byte stream of any kind.
pub type Socket = Box<dyn Duplex>;

/// Opens one connection of a reverse tunnel.
pub type Dial = Arc<dyn Fn() -> BoxFuture<'static, std::io::Result<Socket>> + Send + Sync>;

/// The device's names.
#[derive(Clone, Default)]
pub struct Sockets {
    listeners: Arc<Mutex<HashMap<String, mpsc::Sender<Socket>>>>,
    reverses: Arc<Mutex<HashMap<String, Reverse>>>,
}

#[derive(Clone)]
struct Reverse {
    to: String,
    dial: Dial,
}

impl std::fmt::Debug for Sockets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sockets")
            .field("listeners", &lock(&self.listeners).len())
            .field("reverses", &lock(&self.reverses).len())
            .finish()
    }
}

impl Sockets {
    /// Listens on a name; `None` when it is taken or there are too many.
    #[must_use]
    pub fn listen(&self, name: &str) -> Option<Listener> {
        let mut listeners = lock(&self.listeners);
        if listeners.contains_key(name) || listeners.len() >= MAX_NAMES {
            return None;
        }
        let (send, incoming) = mpsc::channel(BACKLOG);
        listeners.insert(name.to_owned(), send);
        Some(Listener { name: name.to_owned(), incoming, sockets: self.clone() })
    }

    /// Whether a connection to this name would be taken.
    #[must_use]
    pub fn accepts(&self, name: &str) -> bool {
        lock(&self.listeners).get(name).is_some_and(|l| l.capacity() > 0 && !l.is_closed())
    }

    /// Hands a connection to the listener of a name; dropped (and so closed) when there is none.
    pub fn connect(&self, name: &str, socket: Socket) -> bool {
        lock(&self.listeners).get(name).is_some_and(|l| l.try_send(socket).is_ok())
    }

    /// Makes connections to `name` go out through `dial`; `to` is only for listing.
    pub fn add_reverse(&self, name: &str, to: &str, dial: Dial) -> bool {
        let mut reverses = lock(&self.reverses);
        if !reverses.contains_key(name) && reverses.len() >= MAX_REVERSES {
            return false;
        }
        reverses.insert(name.to_owned(), Reverse { to: to.to_owned(), dial });
        true
    }

    /// Removes a reverse tunnel.
    pub fn remove_reverse(&self, name: &str) -> bool {
        lock(&self.reverses).remove(name).is_some()
    }

    /// Removes all reverse tunnels.
    pub fn clear_reverses(&self) {
        lock(&self.reverses).clear();
    }

    /// Names and targets of the reverse tunnels, sorted.
    #[must_use]
    pub fn reverses(&self) -> Vec<(String, String)> {
        let mut all: Vec<_> =
            lock(&self.reverses).iter().map(|(name, r)| (name.clone(), r.to.clone())).collect();
        all.sort();
        all
    }

    /// Connects to a name as a program on the device does: to a local listener or through a
    /// reverse tunnel.
    pub async fn dial(&self, name: &str) -> std::io::Result<Socket> {
        let reverse = lock(&self.reverses).get(name).cloned();
        match reverse {
            Some(reverse) => (reverse.dial)().await,
            None => {
                Err(std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "nobody listens"))
            }
        }
    }
}

/// A name that is listened on; free again when dropped.
pub struct Listener {
    name: String,
    incoming: mpsc::Receiver<Socket>,
    sockets: Sockets,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Listener {
    /// The next connection.
    pub async fn accept(&mut self) -> Option<Socket> {
        self.incoming.recv().await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        lock(&self.sockets.listeners).remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_free_again_when_its_listener_is_gone() {
        let sockets = Sockets::default();
        let mut listener = sockets.listen("scrcpy").unwrap();
        assert!(sockets.listen("scrcpy").is_none());
        assert!(sockets.accepts("scrcpy"));
        assert!(sockets.connect("scrcpy", Box::new(tokio::io::duplex(1).0)));
        assert!(listener.accept().await.is_some());
        drop(listener);
        assert!(!sockets.accepts("scrcpy"));
        assert!(!sockets.connect("scrcpy", Box::new(tokio::io::duplex(1).0)));
        assert!(sockets.listen("scrcpy").is_some());
    }

    #[tokio::test]
    async fn a_full_backlog_refuses() {
        let sockets = Sockets::default();
        let _listener = sockets.listen("x").unwrap();
        for _ in 0..BACKLOG {
            assert!(sockets.connect("x", Box::new(tokio::io::duplex(1).0)));
        }
        assert!(!sockets.accepts("x"));
        assert!(!sockets.connect("x", Box::new(tokio::io::duplex(1).0)));
    }
}
