//! A node's tasks: recorded, so that a crash ends all of them wherever they wait.

use std::sync::{Arc, Mutex, PoisonError};

use blixard_node::platform::Spawner;
use futures_util::future::BoxFuture;
use tokio::task::AbortHandle;

/// The tasks of one life of a node. Cloning shares them.
#[derive(Clone, Default)]
pub struct SimSpawner(Arc<Mutex<Tasks>>);

#[derive(Default)]
struct Tasks {
    crashed: bool,
    handles: Vec<AbortHandle>,
}

impl SimSpawner {
    /// Ends every task at its next await point, and every later one before its first.
    pub fn crash(&self) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.crashed = true;
        for handle in tasks.handles.drain(..) {
            handle.abort();
        }
    }

    /// Whether this life is over.
    pub fn is_crashed(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).crashed
    }
}

impl Spawner for SimSpawner {
    fn spawn(&self, _name: &'static str, task: BoxFuture<'static, ()>) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tasks.crashed {
            return;
        }
        let handle = tokio::spawn(task).abort_handle();
        tasks.handles.push(handle);
        if tasks.handles.len().is_power_of_two() {
            tasks.handles.retain(|handle| !handle.is_finished());
        }
    }

    fn run_blocking(&self, work: Box<dyn FnOnce() + Send + 'static>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            // Others may run first, as they would beside a blocking thread.
            tokio::task::yield_now().await;
            work();
        })
    }
}
