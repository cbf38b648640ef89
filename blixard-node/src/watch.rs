//! A value that many may read and wait on: [`channel`].
//!
//! Like `tokio::sync::watch`, but waiters are woken in the order in which they began to wait, which
//! makes a run of the simulator repeat exactly. Only the latest value is kept: a slow receiver
//! skips values, it never queues them. openraft runs on it too (`raft::runtime`).

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::task::{Context, Poll, Waker};

/// A read of the value. Keep it short and never across an `await`: senders wait for it.
pub type Ref<'a, T> = RwLockReadGuard<'a, T>;

/// The last sender is gone: no more values will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nothing changes any more: every sender is gone")]
pub struct Closed;

/// Makes a value and the two ends it is written and read by.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let ends = Ends { senders: 1, receivers: 1, next_waiter: 0, waiters: VecDeque::new() };
    let shared =
        Arc::new(Shared { value: RwLock::new(value), version: AtomicU64::new(0), ends: Mutex::new(ends) });
    (Sender { shared: Arc::clone(&shared) }, Receiver { shared, seen: 0 })
}

#[derive(Debug)]
struct Shared<T> {
    value: RwLock<T>,
    /// Counts the changes of `value`; written only while `value` is locked for writing.
    version: AtomicU64,
    ends: Mutex<Ends>,
}

#[derive(Debug)]
struct Ends {
    senders: usize,
    receivers: usize,
    next_waiter: u64,
    /// Who waits, in the order in which they began to.
    waiters: VecDeque<(u64, Waker)>,
}

impl<T> Shared<T> {
    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> Ref<'_, T> {
        self.value.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    fn modify(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let changed = {
            let mut value = self.value.write().unwrap_or_else(PoisonError::into_inner);
            let changed = change(&mut value);
            if changed {
                self.version.fetch_add(1, Ordering::Release);
            }
            changed
        };
        if changed {
            self.wake_all();
        }
        changed
    }

    fn wake_all(&self) {
        let waiters = std::mem::take(&mut self.ends().waiters);
        for (_, waker) in waiters {
            waker.wake();
        }
    }
}

/// The end that writes. Clones write the same value.
#[derive(Debug)]
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Sender<T> {
    /// Replaces the value and wakes every waiting receiver, in the order in which they began to
    /// wait.
    pub fn send(&self, value: T) {
        self.shared.modify(|current| {
            *current = value;
            true
        });
    }

    /// Changes the value in place; receivers learn of it when `change` returns true. Returns what
    /// `change` returned.
    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        self.shared.modify(change)
    }

    /// Whether every receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.shared.ends().receivers == 0
    }

    /// The value.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.read()
    }

    /// A new receiver, which has seen the current value.
    pub fn subscribe(&self) -> Receiver<T> {
        self.shared.ends().receivers += 1;
        Receiver { seen: self.shared.version(), shared: Arc::clone(&self.shared) }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.ends().senders += 1;
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let last = {
            let mut ends = self.shared.ends();
            ends.senders -= 1;
            ends.senders == 0
        };
        if last {
            self.shared.wake_all();
        }
    }
}

/// The end that reads. Clones have seen what the original had.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

impl<T> Receiver<T> {
    /// The value, without marking it as seen.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.read()
    }

    /// The value, marked as seen.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let value = self.shared.read();
        self.seen = self.shared.version();
        value
    }

    /// Waits for a value this receiver has not seen and marks it as seen. Cancel safe.
    ///
    /// # Errors
    /// When the value is seen and no sender is left to change it.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        Changed { receiver: self, waiter: None }.await
    }

    /// Waits until `holds` is true of the value, marks it as seen and returns it. Cancel safe.
    ///
    /// # Errors
    /// When no sender is left and `holds` is not true of the last value.
    pub async fn wait_for(&mut self, mut holds: impl FnMut(&T) -> bool) -> Result<Ref<'_, T>, Closed> {
        while !holds(&self.borrow_and_update()) {
            self.changed().await?;
            // `changed` marked a value as seen that `holds` has not looked at: the loop does.
        }
        Ok(self.shared.read())
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.shared.ends().receivers += 1;
        Self { shared: Arc::clone(&self.shared), seen: self.seen }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.ends().receivers -= 1;
    }
}

struct Changed<'a, T> {
    receiver: &'a mut Receiver<T>,
    /// This future's place in the queue of waiters, once it has one.
    waiter: Option<u64>,
}

impl<T> Future for Changed<'_, T> {
    type Output = Result<(), Closed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let shared = Arc::clone(&self.receiver.shared);
        // A sender changes the version before it locks `ends` to wake, so no change is missed
        // between the check and the wait.
        let mut ends = shared.ends();
        let version = shared.version();
        if version != self.receiver.seen {
            self.receiver.seen = version;
            return Poll::Ready(Ok(()));
        }
        if ends.senders == 0 {
            return Poll::Ready(Err(Closed));
        }
        let place = self.waiter.and_then(|id| ends.waiters.iter().position(|(waiter, _)| *waiter == id));
        match place {
            Some(place) => ends.waiters[place].1.clone_from(context.waker()),
            None => {
                let id = ends.next_waiter;
                ends.next_waiter += 1;
                ends.waiters.push_back((id, context.waker().clone()));
                self.waiter = Some(id);
            }
        }
        Poll::Pending
    }
}

impl<T> Drop for Changed<'_, T> {
    fn drop(&mut self) {
        if let Some(id) = self.waiter {
            self.receiver.shared.ends().waiters.retain(|(waiter, _)| *waiter != id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::FutureExt;

    use super::{Closed, channel};

    #[test]
    fn a_value_is_seen_once() {
        let (sender, mut receiver) = channel(1);
        assert_eq!(receiver.changed().now_or_never(), None);
        sender.send(2);
        sender.send(3);
        assert_eq!(*receiver.borrow(), 3);
        assert_eq!(receiver.changed().now_or_never(), Some(Ok(())));
        assert_eq!(receiver.changed().now_or_never(), None);
        sender.send(4);
        assert_eq!(*receiver.borrow_and_update(), 4);
        assert_eq!(receiver.changed().now_or_never(), None);
        assert_eq!(sender.subscribe().changed().now_or_never(), None);
    }

    #[test]
    fn an_unseen_value_comes_before_the_end() {
        let (sender, mut receiver) = channel(1);
        sender.send(2);
        drop(sender.clone());
        drop(sender);
        assert_eq!(receiver.changed().now_or_never(), Some(Ok(())));
        assert_eq!(receiver.changed().now_or_never(), Some(Err(Closed)));
        assert!(receiver.wait_for(|value| *value == 2).now_or_never().is_some_and(|end| end.is_ok()));
    }

    #[test]
    fn a_silent_change_wakes_nobody() {
        let (sender, mut receiver) = channel(1);
        assert!(!sender.send_if_modified(|value| {
            *value = 2;
            false
        }));
        assert_eq!(receiver.changed().now_or_never(), None);
        assert_eq!(*receiver.borrow(), 2);
    }

    #[tokio::test]
    async fn waiters_run_in_the_order_in_which_they_began_to_wait() {
        let (sender, receiver) = channel(0);
        let order = Arc::new(Mutex::new(Vec::new()));
        let waiting = (0..50).map(|name| {
            let (mut receiver, order) = (receiver.clone(), Arc::clone(&order));
            async move {
                receiver.changed().await.expect("the sender lives");
                order.lock().expect("no panic").push(name);
            }
        });
        let sending = async {
            tokio::task::yield_now().await;
            sender.send(1);
        };
        tokio::join!(futures_util::future::join_all(waiting), sending);
        assert_eq!(*order.lock().expect("no panic"), (0..50).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_waiter_that_gave_up_is_forgotten() {
        let (sender, mut receiver) = channel(0);
        for _ in 0..3 {
            let mut waiting = Box::pin(receiver.changed());
            assert!(futures_util::poll!(&mut waiting).is_pending());
        }
        assert!(sender.shared.ends().waiters.is_empty());
        assert!(!sender.is_closed());
        drop(receiver);
        assert!(sender.is_closed());
    }
}
