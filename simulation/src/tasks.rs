//! A node's tasks: recorded, so that a crash ends all of them wherever they wait, and behind one
//! gate, so that a pause holds all of them.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use blixard_node::platform::Spawner;
use futures_util::future::BoxFuture;
use tokio::task::AbortHandle;

/// How many tasks are held before those that have ended are first let go of.
const SWEEP_MIN: usize = 64;

/// The tasks of one life of a node. Cloning shares them.
#[derive(Clone, Default)]
pub struct SimSpawner(Arc<Mutex<Tasks>>);

#[derive(Default)]
struct Tasks {
    crashed: bool,
    paused: bool,
    /// Whom to wake when the pause ends, in the order in which they came to the gate.
    waiting: Vec<Waker>,
    handles: Vec<AbortHandle>,
    sweep_at: usize,
}

impl SimSpawner {
    fn lock(&self) -> std::sync::MutexGuard<'_, Tasks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends every task at its next await point, and every later one before its first.
    pub fn crash(&self) {
        let handles = {
            let mut tasks = self.lock();
            tasks.crashed = true;
            std::mem::take(&mut tasks.handles)
        };
        handles.iter().for_each(AbortHandle::abort);
    }

    /// Holds every task where it is, as SIGSTOP does, or lets them go on.
    pub fn set_paused(&self, paused: bool) {
        let waiting = {
            let mut tasks = self.lock();
            tasks.paused = paused;
            if paused { Vec::new() } else { std::mem::take(&mut tasks.waiting) }
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Whether the tasks are held.
    pub fn is_paused(&self) -> bool {
        self.lock().paused
    }

    /// Whether this life is over.
    pub fn is_crashed(&self) -> bool {
        self.lock().crashed
    }
}

/// A task that stops at the gate while its node is paused.
struct Gated {
    task: BoxFuture<'static, ()>,
    gate: SimSpawner,
}

impl Future for Gated {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        {
            let mut tasks = self.gate.lock();
            if tasks.paused && !tasks.crashed {
                tasks.waiting.push(context.waker().clone());
                return Poll::Pending;
            }
        }
        self.task.as_mut().poll(context)
    }
}

impl Spawner for SimSpawner {
    fn spawn(&self, _name: &'static str, task: BoxFuture<'static, ()>) {
        if self.is_crashed() {
            return;
        }
        let gated = Gated { task, gate: self.clone() };
        let handle = tokio::spawn(gated).abort_handle();
        let mut tasks = self.lock();
        tasks.handles.push(handle);
        if tasks.handles.len() >= tasks.sweep_at.max(SWEEP_MIN) {
            tasks.handles.retain(|handle| !handle.is_finished());
            tasks.sweep_at = tasks.handles.len() * 2;
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
