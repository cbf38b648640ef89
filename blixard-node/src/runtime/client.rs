//! Calls to containerd: one connection, one namespace, a deadline on every call, and its errors in
//! the seam's words.

use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    Container, CreateNamespaceRequest, GetContainerRequest, GetRequest, ListContainersRequest,
    ListNamespacesRequest, ListTasksRequest, Namespace,
};
use containerd_client::tonic::metadata::AsciiMetadataValue;
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Code, Request, Status};
use containerd_client::types::v1::Process;

use crate::platform::RuntimeError;

/// How long containerd may take for one call. Starting many containers at once on a loaded
/// machine takes it many seconds; a hung one must still be noticed.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest answer taken, in bytes: a list of some thousand containers with their specifications.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// A connection to containerd, used in one of its namespaces. Cloning shares the connection.
#[derive(Clone)]
pub(crate) struct Client {
    channel: Channel,
    namespace: String,
    header: AsciiMetadataValue,
}

impl Client {
    /// Uses `channel` in `namespace`.
    ///
    /// # Errors
    /// [`RuntimeError::Invalid`] when the name cannot be a namespace's.
    pub(crate) fn new(channel: Channel, namespace: &str) -> Result<Self, RuntimeError> {
        let header = namespace.parse().map_err(|_| {
            RuntimeError::Invalid(format!("`{namespace}` cannot name a containerd namespace"))
        })?;
        Ok(Self { channel, namespace: namespace.to_owned(), header })
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(crate) fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(crate) fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(crate) fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel())
    }

    pub(crate) fn events(&self) -> EventsClient<Channel> {
        EventsClient::new(self.channel())
    }

    pub(crate) fn namespaces(&self) -> NamespacesClient<Channel> {
        NamespacesClient::new(self.channel())
    }

    /// A request in the namespace, with a deadline.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.unbounded(message);
        request.set_timeout(CALL_TIMEOUT);
        request
    }

    /// A request in the namespace whose answer may take for ever.
    pub(crate) fn unbounded<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.header.clone());
        request
    }

    /// Makes the namespace, unless it is there.
    pub(crate) async fn create_namespace(&self) -> Result<(), RuntimeError> {
        let namespace = Namespace { name: self.namespace.clone(), ..Default::default() };
        let request = self.request(CreateNamespaceRequest { namespace: Some(namespace) });
        match self.namespaces().create(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) => Err(failed("create the namespace", &status)),
        }
    }

    /// The names of all namespaces.
    pub(crate) async fn all_namespaces(&self) -> Result<Vec<String>, RuntimeError> {
        let answer = self.namespaces().list(self.request(ListNamespacesRequest::default())).await;
        let namespaces = answer.map_err(|status| failed("list namespaces", &status))?.into_inner().namespaces;
        Ok(namespaces.into_iter().map(|namespace| namespace.name).collect())
    }

    /// A container; nothing when there is none of this id.
    pub(crate) async fn container(&self, id: &str) -> Result<Option<Container>, RuntimeError> {
        let request = self.request(GetContainerRequest { id: id.to_owned() });
        let answer = found(self.containers().get(request).await, "read the container")?;
        Ok(answer.and_then(|answer| answer.container))
    }

    /// Every container of the namespace.
    pub(crate) async fn all_containers(&self) -> Result<Vec<Container>, RuntimeError> {
        let request = self.request(ListContainersRequest::default());
        let answer = self.containers().list(request).await;
        Ok(answer.map_err(|status| failed("list containers", &status))?.into_inner().containers)
    }

    /// A container's process; nothing when it has none.
    pub(crate) async fn process(&self, id: &str) -> Result<Option<Process>, RuntimeError> {
        let request = self.request(GetRequest { container_id: id.to_owned(), ..Default::default() });
        let answer = found(self.tasks().get(request).await, "read the container's process")?;
        Ok(answer.and_then(|answer| answer.process))
    }

    /// The process of every container that has one.
    pub(crate) async fn all_processes(&self) -> Result<Vec<Process>, RuntimeError> {
        let answer = self.tasks().list(self.request(ListTasksRequest::default())).await;
        Ok(answer.map_err(|status| failed("list processes", &status))?.into_inner().tasks)
    }
}

/// The answer to a call; nothing when containerd knows of no such thing.
pub(crate) fn found<T>(
    answer: Result<containerd_client::tonic::Response<T>, Status>,
    doing: &str,
) -> Result<Option<T>, RuntimeError> {
    match answer {
        Ok(answer) => Ok(Some(answer.into_inner())),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(failed(doing, &status)),
    }
}

/// An error of containerd in the seam's words: `doing` completes "cannot …".
pub(crate) fn failed(doing: &str, status: &Status) -> RuntimeError {
    let text = format!("cannot {doing}: {}", status.message());
    match status.code() {
        Code::NotFound => RuntimeError::NotFound(text),
        Code::InvalidArgument => RuntimeError::Invalid(text),
        _ => RuntimeError::Unavailable(text),
    }
}

/// An error of the disk in the seam's words.
pub(crate) fn disk(doing: &str, error: &std::io::Error) -> RuntimeError {
    RuntimeError::Unavailable(format!("cannot {doing}: {error}"))
}
