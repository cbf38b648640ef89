//! The ends of containers and the names of images, as containerd publishes them.
//!
//! The subscription says nothing when it begins: a server that streams sends its headers with its
//! first message. So the subscriber publishes marks itself until it sees one; whatever happens
//! from then on is seen, and whatever happened before is for the caller to list.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use blixard_core::id::ContainerId;
use containerd_client::events::{TaskExit, TaskOom};
use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use containerd_client::tonic::{Status, Streaming};
use containerd_client::types::Envelope;
use futures_util::{Stream, StreamExt};
use prost::Message;
use prost_types::Any;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::client::Client;
use super::containers::Containers;
use super::record::Record;
use crate::platform::RuntimeEvent;

const EXIT_TOPIC: &str = "/tasks/exit";
const OOM_TOPIC: &str = "/tasks/oom";
const IMAGE_TOPICS: [&str; 2] = ["/images/create", "/images/update"];
const MARK_TOPIC: &str = "/blixard/subscribed";
const MARK_EVERY: Duration = Duration::from_millis(50);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Events not taken yet; a subscriber that lags further makes containerd wait, not this node lose.
const QUEUE: usize = 256;

/// Everything that happens from here on. Ends when dropped, or when the runtime is.
pub(crate) fn subscribe(containers: Arc<Containers>) -> Pin<Box<dyn Stream<Item = RuntimeEvent> + Send>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = sender.closed() => {}
            () = forward(&containers, &sender) => {}
        }
    });
    ReceiverStream::new(receiver).boxed()
}

/// Sends events until nobody takes them, over as many subscriptions as that takes.
async fn forward(containers: &Arc<Containers>, sender: &mpsc::Sender<RuntimeEvent>) {
    let mut retry = RETRY_MIN;
    loop {
        match begin(&containers.client).await {
            Err(status) => {
                tracing::debug!(err = status.message(), "cannot subscribe to containerd's events");
            }
            Ok(mut stream) => {
                retry = RETRY_MIN;
                if sender.send(RuntimeEvent::Resync).await.is_err() {
                    return;
                }
                while let Ok(Some(envelope)) = stream.message().await {
                    if let Some(event) = read(containers, &envelope).await
                        && sender.send(event).await.is_err()
                    {
                        return;
                    }
                }
                tracing::warn!("the event stream of containerd broke; subscribing again");
            }
        }
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(RETRY_MAX);
    }
}

/// Subscribes, and returns when the subscription is known to be in effect.
async fn begin(client: &Client) -> Result<Streaming<Envelope>, Status> {
    let namespace = client.namespace();
    let filter = |topic: &str| format!("namespace==\"{namespace}\",topic==\"{topic}\"");
    let topics = [EXIT_TOPIC, OOM_TOPIC, MARK_TOPIC].into_iter().chain(IMAGE_TOPICS);
    let request = SubscribeRequest { filters: topics.map(filter).collect() };
    let mut events = client.events();
    let subscribing = async {
        let mut stream = events.subscribe(client.unbounded(request)).await?.into_inner();
        while let Some(envelope) = stream.message().await? {
            if envelope.topic == MARK_TOPIC {
                return Ok(stream);
            }
        }
        Err(Status::unavailable("the stream ended"))
    };
    let marking = async {
        loop {
            let mark = Any { type_url: "blixard/mark".to_owned(), value: Vec::new() };
            let request = PublishRequest { topic: MARK_TOPIC.to_owned(), event: Some(mark) };
            if let Err(status) = client.events().publish(client.request(request)).await {
                return status;
            }
            tokio::time::sleep(MARK_EVERY).await;
        }
    };
    tokio::select! {
        biased;
        stream = subscribing => stream,
        status = marking => Err(status),
    }
}

async fn read(containers: &Arc<Containers>, envelope: &Envelope) -> Option<RuntimeEvent> {
    let value = envelope.event.as_ref()?.value.as_slice();
    if envelope.topic == OOM_TOPIC {
        let oom = TaskOom::decode(value).ok()?;
        containers.survives_oom(ContainerId(oom.container_id));
        return None;
    }
    if IMAGE_TOPICS.contains(&envelope.topic.as_str()) {
        return Some(RuntimeEvent::ImageNamed);
    }
    if envelope.topic != EXIT_TOPIC {
        return None;
    }
    let exit = TaskExit::decode(value).ok()?;
    // An exec session's end carries its own id.
    if exit.id != exit.container_id {
        return None;
    }
    match containers.client.container(&exit.container_id).await {
        // A container removed meanwhile is no news; one of somebody else's neither.
        Ok(container) => {
            let record = Record::read(&container?)?;
            Some(RuntimeEvent::Exited {
                replica: record.replica,
                attempt: record.attempt,
                code: exit.exit_status,
                oom_killed: containers.oom_killed(&record.id).await,
            })
        }
        Err(error) => {
            tracing::warn!(container = exit.container_id, err = %error, "cannot tell whose container ended");
            Some(RuntimeEvent::Resync)
        }
    }
}
