//! Which node a task belongs to: [`NodeContext`], which travels with every task of a node.
//!
//! openraft asks its runtime for tasks, random numbers and blocking work by static methods, which
//! know of no node. They read the context of the task that runs. A simulator has several nodes on
//! one thread, each with its own seed and its own list of tasks to abort when it crashes, so a task
//! without a context is a mistake and panics rather than escape the crash.
//!
//! The composition root enters the context once; tasks started through it inherit it.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::task::futures::TaskLocalFuture;

use crate::platform::{Clock, Platform, RandomSource, Spawner};

tokio::task_local! {
    static CURRENT: NodeContext;
}

/// The seams that code without a [`Platform`] at hand needs. Cloning shares them.
#[derive(Clone)]
pub struct NodeContext {
    /// The node's clocks.
    pub clock: Arc<dyn Clock>,
    /// The node's randomness.
    pub rng: Arc<dyn RandomSource>,
    /// Who starts the node's tasks.
    pub spawner: Arc<dyn Spawner>,
}

impl NodeContext {
    /// The context of the node on `platform`.
    pub fn new(platform: &Platform) -> Self {
        Self {
            clock: Arc::clone(&platform.clock),
            rng: Arc::clone(&platform.rng),
            spawner: Arc::clone(&platform.spawner),
        }
    }

    /// The context of the running task.
    ///
    /// # Panics
    /// When the task was started by other means than a context's.
    pub fn current() -> Self {
        CURRENT.try_with(Self::clone).expect("every task of a node is started in the node's context")
    }

    /// Runs `future` in this context.
    pub fn run<F: Future>(&self, future: F) -> TaskLocalFuture<Self, F> {
        CURRENT.scope(self.clone(), future)
    }

    /// Calls `function` in this context.
    pub fn enter<T>(&self, function: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self.clone(), function)
    }

    /// Starts a task in this context. It runs until it ends or the node does.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let task: BoxFuture<'static, ()> = Box::pin(self.run(task));
        self.spawner.spawn(name, task);
    }

    /// Starts a task, which serves others, apart from the node's own tasks.
    pub fn spawn_apart(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawner.spawn_apart(name, Box::pin(self.run(task)));
    }

    /// Runs `task`, which serves others, apart from the node's own tasks, and waits for its end. When
    /// this is dropped the task goes on.
    pub async fn apart(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let (done, ended) = oneshot::channel();
        self.spawn_apart(name, async move {
            task.await;
            // Nobody waits any more when whoever did was dropped.
            done.send(()).ok();
        });
        // It ends without a word when the node does.
        ended.await.ok();
    }

    /// Runs `work`, which may block on the disk, off the async threads, and returns its result.
    ///
    /// # Panics
    /// When `work` panics.
    pub async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let slot = Arc::new(Mutex::new(None));
        let filled = Arc::clone(&slot);
        self.spawner
            .run_blocking(Box::new(move || {
                let result = work();
                *filled.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            }))
            .await;
        let result = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.expect("blocking work ends only by a panic without a result")
    }
}
