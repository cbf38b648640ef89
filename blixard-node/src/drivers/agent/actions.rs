//! Runs the agent's actions against the runtime, each as a task that ends with one answer.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use blixard_core::agent::{Action, Event, MountedVolume, Prerequisite, probe_port};
use blixard_core::id::ReplicaId;
use blixard_core::limits::{PULLS_MAX, RUNTIME_DEADLINE, START_DEADLINE};
use blixard_core::spec::ServiceSpec;
use tokio::sync::mpsc;

use super::Pulls;
use super::images::{ImageSource, Images};
use crate::context::NodeContext;
use crate::platform::{Clock, ContainerConfig, Platform, RuntimeError};

/// How much longer than its grace a stop may take: the kill, the network, the snapshot.
const REMOVE_MARGIN: Duration = Duration::from_secs(60);

/// What came of an action.
pub(super) enum Answer {
    /// What the agent is told.
    Event(Event),
    /// What the agent is told, and that it may not be all: the runtime is to be asked what is there.
    Unsure(Event),
}

/// Runs actions and sends their answers.
pub(super) struct Actions {
    doing: Arc<Doing>,
    answers: mpsc::Sender<Answer>,
}

struct Doing {
    platform: Platform,
    images: Images,
}

impl Actions {
    pub(super) fn new(
        platform: Platform,
        members: Arc<dyn ImageSource>,
        pulls: Pulls,
        answers: mpsc::Sender<Answer>,
    ) -> Self {
        let images = Images::new(platform.clone(), members, pulls, PULLS_MAX);
        Self { doing: Arc::new(Doing { platform, images }), answers }
    }

    /// Starts a task for `action`.
    pub(super) fn begin(&self, action: Action) {
        let (doing, answers) = (self.doing.clone(), self.answers.clone());
        let task = async move {
            if let Some(answer) = doing.run(action).await {
                // Nobody listens any more when the node is shutting down.
                answers.send(answer).await.ok();
            }
        };
        self.doing.platform.spawner.spawn("agent action", Box::pin(task));
    }
}

impl Doing {
    async fn run(&self, action: Action) -> Option<Answer> {
        Some(Answer::Event(match action {
            Action::Prepare { replica, need } => match self.prepare(replica, need).await {
                Ok(()) => Event::Prepared { replica },
                Err(error) => Event::PrepareFailed { replica, error },
            },
            Action::Start { replica, attempt, slot, version, spec, volumes } => {
                let config = ContainerConfig { replica, attempt, slot, version, spec, volumes };
                return Some(self.start(config).await);
            }
            Action::Remove { replica, attempt, timeout } => {
                match self.remove(replica, attempt, timeout).await {
                    Ok(()) => Event::Removed { replica, attempt },
                    Err(error) => Event::RemoveFailed { replica, attempt, error },
                }
            }
            Action::Kill { replica, attempt } => {
                if let Err(error) = self.platform.containers.kill(replica, attempt, "SIGKILL").await {
                    tracing::debug!(replica.id = replica.0, attempt, err = %error, "cannot kill what is to stop");
                }
                return None;
            }
            Action::Probe { replica, attempt, address, spec } => {
                let failed = self.probe(address, &spec).await.err();
                Event::Probed { replica, attempt, failed }
            }
            Action::Publish(_) | Action::Report { .. } | Action::WakeAt(_) => return None,
        }))
    }

    async fn prepare(&self, replica: ReplicaId, need: Prerequisite) -> Result<(), String> {
        match need {
            Prerequisite::Image { reference, digest } => {
                self.images.ensure(replica, &reference, digest.as_deref()).await
            }
            Prerequisite::Volume { name: _, volume } => {
                let store = Arc::clone(&self.platform.volumes);
                let MountedVolume { id, epoch, fresh } = volume;
                let preparing = move || store.prepare(id, epoch, fresh);
                NodeContext::new(&self.platform).blocking(preparing).await.map_err(|error| error.to_string())
            }
        }
    }

    async fn start(&self, config: ContainerConfig) -> Answer {
        let (replica, attempt) = (config.replica, config.attempt);
        let starting = self.platform.containers.start(&config);
        let error = match within(&*self.platform.clock, START_DEADLINE, starting).await {
            Some(Ok(started)) => {
                return Answer::Event(Event::Started { replica, attempt, address: started.address });
            }
            Some(Err(error)) => error.to_string(),
            None => format!("it did not start within {} s", START_DEADLINE.as_secs()),
        };
        let failed = Event::StartFailed { replica, attempt, error };
        // A failed start leaves nothing, by contract with the agent. What cannot be removed now
        // the next start of this attempt finds, or the list that is asked for, so that it is not
        // left behind when there is no next start.
        if let Err(left) = self.remove(replica, attempt, Duration::ZERO).await {
            tracing::warn!(
                replica.id = replica.0,
                attempt,
                err = left,
                "cannot clean up after a failed start"
            );
            return Answer::Unsure(failed);
        }
        Answer::Event(failed)
    }

    async fn remove(&self, replica: ReplicaId, attempt: u32, timeout: Duration) -> Result<(), String> {
        let removing = self.platform.containers.remove(replica, attempt, timeout);
        match within(&*self.platform.clock, timeout + REMOVE_MARGIN, removing).await {
            Some(removed) => removed.map_err(|error| error.to_string()),
            None => Err(silent().to_string()),
        }
    }

    async fn probe(&self, address: Ipv4Addr, spec: &ServiceSpec) -> Result<(), String> {
        let (Some(health), Some(port)) = (&spec.healthcheck, probe_port(spec)) else {
            return Err("there is nothing to probe".to_owned());
        };
        let timeout = Duration::from_millis(health.timeout_ms);
        let address = SocketAddr::from((address, port));
        let probing = self.platform.containers.probe(address, &health.path, timeout);
        let probed = within(&*self.platform.clock, timeout + RUNTIME_DEADLINE, probing).await;
        probed.unwrap_or_else(|| Err(silent().to_string()))
    }
}

/// What a question gives that costs the runtime no work; it has [`RUNTIME_DEADLINE`] for it.
pub(super) async fn answer<T>(
    clock: &dyn Clock,
    question: impl Future<Output = Result<T, RuntimeError>>,
) -> Result<T, RuntimeError> {
    within(clock, RUNTIME_DEADLINE, question).await.unwrap_or_else(|| Err(silent()))
}

fn silent() -> RuntimeError {
    RuntimeError::Unavailable("the container runtime does not answer".to_owned())
}

/// What `work` gives, unless it takes longer than `limit`.
pub(super) async fn within<T>(
    clock: &dyn Clock,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    let deadline = clock.now() + limit;
    // Both arms end the select; the work is dropped when it lost.
    tokio::select! {
        biased;
        done = work => Some(done),
        () = clock.sleep_until(deadline) => None,
    }
}
