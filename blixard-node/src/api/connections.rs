//! How many connections a listener holds, and which one gives way when there are too many.
//!
//! A connection of a stranger gives way to a newer one, the oldest first: whoever holds connections
//! open and says nothing keeps nobody out, because who has a token is known after one request.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// What a connection has shown itself to be.
#[derive(Debug, Clone, Default)]
pub(super) struct Standing(Arc<State>);

#[derive(Debug, Default)]
struct State {
    admitted: AtomicBool,
    session: AtomicBool,
}

impl Standing {
    /// Its caller is known: it gives way to nobody.
    pub(super) fn admit(&self) {
        self.0.admitted.store(true, Ordering::Relaxed);
    }

    fn is_admitted(&self) -> bool {
        self.0.admitted.load(Ordering::Relaxed)
    }

    /// It is no longer HTTP, and may be silent for as long as the program at its other end.
    pub(super) fn become_session(&self) {
        self.0.session.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_session(&self) -> bool {
        self.0.session.load(Ordering::Relaxed)
    }
}

/// The connections of one listener.
#[derive(Debug)]
pub(super) struct Connections {
    max: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    /// By age, the oldest first.
    places: BTreeMap<u64, (Standing, oneshot::Sender<()>)>,
}

/// A connection's place among those of its listener; free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    connections: Arc<Connections>,
    number: u64,
}

/// A place that was taken.
pub(super) struct Taken {
    pub(super) place: Place,
    pub(super) standing: Standing,
    /// Ends when the connection is to give way.
    pub(super) given_away: oneshot::Receiver<()>,
}

impl Connections {
    /// At most `max` at a time.
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, held: Mutex::default() })
    }

    /// Takes a place, a stranger's if none is free; none when all are held by admitted callers.
    pub(super) fn take(self: &Arc<Self>) -> Option<Taken> {
        let mut held = self.lock();
        if held.places.len() >= self.max {
            let stranger = held.places.iter().find(|(_, (standing, _))| !standing.is_admitted());
            let number = stranger.map(|(number, _)| *number)?;
            // Dropping the sender tells the connection.
            held.places.remove(&number);
        }
        let number = held.next;
        held.next += 1;
        let (sender, given_away) = oneshot::channel();
        let standing = Standing::default();
        held.places.insert(number, (standing.clone(), sender));
        let place = Place { connections: Arc::clone(self), number };
        Some(Taken { place, standing, given_away })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.lock().places.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::{Connections, Taken};

    fn gave_way(taken: &mut Taken) -> bool {
        matches!(taken.given_away.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Closed))
    }

    #[test]
    fn the_oldest_stranger_gives_way_and_nobody_who_is_admitted() {
        let connections = Connections::new(3);
        let mut taken: Vec<Taken> = (0..3).map(|_| connections.take().unwrap()).collect();
        taken[0].standing.admit();
        let fourth = connections.take().unwrap();
        assert_eq!(taken.iter_mut().map(gave_way).collect::<Vec<_>>(), [false, true, false]);
        fourth.standing.admit();
        taken[2].standing.admit();
        assert!(connections.take().is_none(), "all are admitted");
        drop(fourth);
        let mut fifth = connections.take().unwrap();
        assert!(!gave_way(&mut fifth));
    }

    #[test]
    fn a_place_that_was_given_away_frees_no_second_one() {
        let connections = Connections::new(1);
        let first = connections.take().unwrap();
        let second = connections.take().unwrap();
        second.standing.admit();
        drop(first);
        assert!(connections.take().is_none());
        drop(second);
        assert!(connections.take().is_some());
    }
}
