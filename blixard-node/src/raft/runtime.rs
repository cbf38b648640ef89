//! openraft's view of the node's seams: tasks, time, randomness and channels.
//!
//! One runtime serves production and simulation. Tasks and randomness come from the running task's
//! [`NodeContext`], time is tokio's (paused and advanced by the simulator; `CLOCK_MONOTONIC` in
//! production), the watch is ours, because tokio's wakes in an order that differs from run to run.

use std::convert::Infallible;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use std::{fmt, io};

use openraft_rt::{AsyncRuntime, Instant, OptionalSend, OptionalSync};
use openraft_rt_tokio::{TokioMpsc, TokioMutex, TokioOneshot};
use rand_core::TryRng;
use tokio::sync::oneshot;

use crate::context::NodeContext;
use crate::platform::RandomSource;
use crate::watch;

/// The runtime of every Raft task.
pub(super) struct NodeRuntime {
    /// openraft makes a runtime only to test it; the node's own already runs.
    #[cfg(test)]
    tokio: (tokio::runtime::Runtime, NodeContext),
}

impl fmt::Debug for NodeRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeRuntime")
    }
}

impl AsyncRuntime for NodeRuntime {
    type JoinError = TaskLost;
    type JoinHandle<T: OptionalSend + 'static> = TaskHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = NodeInstant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = NodeRng;
    type Mpsc = TokioMpsc;
    type Watch = NodeWatch;
    type Oneshot = TokioOneshot;
    type Mutex<T: OptionalSend + 'static> = TokioMutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        NodeContext::current().spawn("raft", async move {
            // Nobody waits for most of openraft's tasks.
            let _ = sender.send(future.await);
        });
        TaskHandle(receiver)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        tokio::time::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        tokio::time::sleep_until(deadline.0)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        tokio::time::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        tokio::time::timeout_at(deadline.0, future)
    }

    fn is_panic(_: &Self::JoinError) -> bool {
        // A task that was aborted belongs to a node that is being aborted as a whole, and nobody
        // is left to ask: who asks, asks about a panic.
        true
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        NodeRng(NodeContext::current().rng)
    }

    #[cfg(not(test))]
    fn new(_: usize) -> Self {
        unreachable!("openraft makes a runtime only in its test suites")
    }

    #[cfg(not(test))]
    fn block_on<F, T>(&mut self, _: F) -> T
    where
        F: Future<Output = T>,
    {
        unreachable!("openraft blocks on a runtime only in its test suites")
    }

    #[cfg(test)]
    fn new(threads: usize) -> Self {
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
        Self { tokio: (tokio.expect("threads can be started"), super::testing::context(1)) }
    }

    #[cfg(test)]
    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        let (tokio, context) = &self.tokio;
        tokio.block_on(context.run(future))
    }

    fn spawn_blocking<F, T>(work: F) -> impl Future<Output = Result<T, io::Error>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let context = NodeContext::current();
        async move { Ok(context.blocking(work).await) }
    }
}

/// The outcome of a task that openraft started.
pub(super) struct TaskHandle<T>(oneshot::Receiver<T>);

impl<T> Future for TaskHandle<T> {
    type Output = Result<T, TaskLost>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(ready!(Pin::new(&mut self.0).poll(context)).map_err(|_| TaskLost))
    }
}

/// A task ended without an outcome: it panicked or was aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the task panicked")]
pub(super) struct TaskLost;

/// The node's randomness in the form that openraft takes it.
pub(super) struct NodeRng(Arc<dyn RandomSource>);

impl TryRng for NodeRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.next_u64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.fill(bytes);
        Ok(())
    }
}

/// A reading of tokio's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeInstant(tokio::time::Instant);

impl Instant for NodeInstant {
    fn now() -> Self {
        Self(tokio::time::Instant::now())
    }
}

impl Add<Duration> for NodeInstant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }
}

impl AddAssign<Duration> for NodeInstant {
    fn add_assign(&mut self, duration: Duration) {
        self.0 += duration;
    }
}

impl Sub<Duration> for NodeInstant {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0 - duration)
    }
}

impl Sub for NodeInstant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.0 - earlier.0
    }
}

impl SubAssign<Duration> for NodeInstant {
    fn sub_assign(&mut self, duration: Duration) {
        self.0 -= duration;
    }
}

/// [`crate::watch`] in the form that openraft takes it.
pub(super) struct NodeWatch;

impl openraft_rt::Watch for NodeWatch {
    type Sender<T: OptionalSend + OptionalSync> = watch::Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = watch::Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = watch::Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (Self::Sender<T>, Self::Receiver<T>) {
        watch::channel(init)
    }
}

impl<T: OptionalSend + OptionalSync> openraft_rt::WatchSender<NodeWatch, T> for watch::Sender<T> {
    fn send(&self, value: T) -> Result<(), openraft_rt::watch::SendError<T>> {
        if self.is_closed() {
            return Err(openraft_rt::watch::SendError(value));
        }
        Self::send(self, value);
        Ok(())
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        Self::send_if_modified(self, modify)
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.borrow()
    }

    fn subscribe(&self) -> watch::Receiver<T> {
        Self::subscribe(self)
    }
}

impl<T: OptionalSend + OptionalSync> openraft_rt::WatchReceiver<NodeWatch, T> for watch::Receiver<T> {
    async fn changed(&mut self) -> Result<(), openraft_rt::RecvError> {
        Self::changed(self).await.map_err(|_| openraft_rt::RecvError(()))
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.borrow()
    }

    fn borrow_and_update(&mut self) -> watch::Ref<'_, T> {
        Self::borrow_and_update(self)
    }
}

#[cfg(test)]
mod tests {
    use openraft_rt::testing::Suite;

    use super::NodeRuntime;

    #[test]
    fn openraft_accepts_the_runtime() {
        Suite::<NodeRuntime>::test_all();
    }
}
