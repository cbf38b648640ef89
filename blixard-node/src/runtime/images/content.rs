//! containerd's content store: blobs by digest, written in pieces, verified when committed.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use blixard_core::limits::IMAGE_DOCUMENT_BYTES_MAX;
use bytes::{Bytes, BytesMut};
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::{
    AbortRequest, Info, InfoRequest, ListStatusesRequest, ReadContentRequest, ReadContentResponse,
    UpdateRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::compression::{Compression, MAGIC_BYTES};
use super::containerd::{Containerd, fault, reason};
use super::digest_of;
use crate::platform::RuntimeError;

/// The most bytes in one message to containerd, which takes 16 MiB at most.
pub(super) const FRAME_BYTES_MAX: usize = 512 << 10;
/// How long one step of a write may take; the last one syncs the whole blob to disk.
const STEP_DEADLINE: Duration = Duration::from_secs(300);
/// How often, and how many times, to try again to write what another writer holds.
const LOCKED_RETRY: Duration = Duration::from_millis(200);
const LOCKED_RETRIES: u32 = 150;
/// How often, and how many times, to try again to remove a write that containerd is still closing.
const ABORT_RETRY: Duration = Duration::from_millis(50);
const ABORT_RETRIES: u32 = 20;

/// What opening a blob for writing found.
pub(super) enum Opened {
    /// The blob is here in full and kept by the lease.
    Present,
    /// The blob is to be written from the ingest's offset on.
    Writing(Box<Ingest>),
}

/// A blob being written. What is not committed stays, to be resumed under the same reference, as
/// long as the lease.
pub(super) struct Ingest {
    containerd: Containerd,
    reference: String,
    expected: String,
    size: u64,
    offset: u64,
    frames: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
}

impl Containerd {
    fn content(&self) -> ContentClient<tonic::transport::Channel> {
        ContentClient::new(self.channel.clone())
    }

    /// A blob's size and labels; none when it is not here.
    pub(super) async fn blob(&self, digest: &str) -> Result<Option<Info>, RuntimeError> {
        match self.content().info(self.request(InfoRequest { digest: digest.to_owned() })).await {
            Ok(answer) => Ok(answer.into_inner().info),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(fault("look up a blob", &status)),
        }
    }

    /// A blob's bytes from `offset` on, `size` of them or all when 0.
    pub(super) async fn read_blob(
        &self,
        digest: &str,
        offset: i64,
        size: i64,
    ) -> Result<Streaming<ReadContentResponse>, RuntimeError> {
        let request = ReadContentRequest { digest: digest.to_owned(), offset, size };
        match self.content().read(self.stream_request(request)).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(fault(&format!("read blob {digest}"), &status)),
        }
    }

    /// A small blob, its digest checked.
    ///
    /// # Errors
    /// `NotFound` when it is not here, `Invalid` when it is larger than a document may be.
    pub(super) async fn read_document(&self, digest: &str) -> Result<Bytes, RuntimeError> {
        let mut stream = self.read_blob(digest, 0, 0).await?;
        let mut bytes = BytesMut::new();
        loop {
            let frame = tokio::time::timeout(STEP_DEADLINE, stream.message()).await;
            let frame =
                frame.map_err(|_| RuntimeError::Unavailable(format!("no answer reading blob {digest}")))?;
            let Some(frame) = frame.map_err(|status| fault(&format!("read blob {digest}"), &status))? else {
                break;
            };
            if bytes.len() + frame.data.len() > IMAGE_DOCUMENT_BYTES_MAX {
                return Err(RuntimeError::Invalid(format!(
                    "document {digest} is longer than {IMAGE_DOCUMENT_BYTES_MAX} bytes"
                )));
            }
            bytes.extend_from_slice(&frame.data);
        }
        let found = digest_of(&bytes);
        if found != digest {
            return Err(RuntimeError::Unavailable(format!(
                "blob {digest} is damaged on disk: it reads as {found}"
            )));
        }
        Ok(bytes.freeze())
    }

    /// How a blob is compressed.
    pub(super) async fn compression(&self, digest: &str) -> Result<Compression, RuntimeError> {
        let size = self.blob(digest).await?.map_or(0, |info| info.size);
        let mut start = Vec::new();
        let wanted = size.min(i64::try_from(MAGIC_BYTES).unwrap_or(0));
        if wanted > 0 {
            let mut stream = self.read_blob(digest, 0, wanted).await?;
            while let Some(frame) =
                stream.message().await.map_err(|status| fault(&format!("read blob {digest}"), &status))?
            {
                start.extend_from_slice(&frame.data);
            }
        }
        Ok(Compression::of(&start))
    }

    /// Writes a small blob whole.
    pub(super) async fn write_document(&self, bytes: &[u8]) -> Result<String, RuntimeError> {
        let digest = digest_of(bytes);
        let reference = format!("blixard-{digest}");
        if let Opened::Writing(mut ingest) = self.open_blob(&reference, &digest, bytes.len() as u64).await? {
            let rest = usize::try_from(ingest.offset())
                .ok()
                .and_then(|offset| bytes.get(offset..))
                .unwrap_or_default();
            for frame in rest.chunks(FRAME_BYTES_MAX) {
                ingest.write(Bytes::copy_from_slice(frame)).await?;
            }
            ingest.commit().await?;
        }
        Ok(digest)
    }

    /// Adds labels to a blob.
    pub(super) async fn label_blob(
        &self,
        digest: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<(), RuntimeError> {
        let there = self.blob(digest).await?.map(|info| info.labels).unwrap_or_default();
        let missing: HashMap<_, _> =
            labels.into_iter().filter(|(key, value)| there.get(key) != Some(value)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let paths = missing.keys().map(|key| format!("labels.{key}")).collect();
        let request = UpdateRequest {
            info: Some(Info { digest: digest.to_owned(), labels: missing, ..Info::default() }),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        self.content()
            .update(self.request(request))
            .await
            .map_err(|status| fault(&format!("label blob {digest}"), &status))?;
        Ok(())
    }

    /// Opens a blob for writing under `reference`. `expected` is its digest, or empty when unknown.
    pub(super) async fn open_blob(
        &self,
        reference: &str,
        expected: &str,
        size: u64,
    ) -> Result<Opened, RuntimeError> {
        let mut retries = 0;
        loop {
            let (frames, queue) = mpsc::channel(1);
            let stat = WriteContentRequest {
                action: WriteAction::Stat.into(),
                r#ref: reference.to_owned(),
                total: i64::try_from(size).unwrap_or(i64::MAX),
                expected: expected.to_owned(),
                ..WriteContentRequest::default()
            };
            frames.try_send(stat).expect("the queue is empty and its receiver is held");
            let open = async {
                let mut answers =
                    self.content().write(self.stream_request(ReceiverStream::new(queue))).await?.into_inner();
                Ok::<_, tonic::Status>((answers.message().await?, answers))
            };
            let opened = tokio::time::timeout(STEP_DEADLINE, open).await;
            match opened.map_err(|_| RuntimeError::Unavailable("no answer opening a blob".into()))? {
                Ok((Some(answer), answers)) => {
                    return Ok(Opened::Writing(Box::new(Ingest {
                        containerd: self.clone(),
                        reference: reference.to_owned(),
                        expected: expected.to_owned(),
                        size,
                        offset: u64::try_from(answer.offset).unwrap_or(0),
                        frames,
                        answers,
                    })));
                }
                Ok((None, _)) => {
                    return Err(RuntimeError::Unavailable("containerd ended a write early".into()));
                }
                Err(status) if status.code() == Code::AlreadyExists => return Ok(Opened::Present),
                Err(status) if status.message().contains("locked") && retries < LOCKED_RETRIES => {
                    retries += 1;
                    tokio::time::sleep(LOCKED_RETRY).await;
                }
                Err(status) => return Err(fault("write a blob", &status)),
            }
        }
    }

    /// Removes every unfinished write of the namespace.
    pub(super) async fn abort_all(&self) -> Result<(), RuntimeError> {
        let request = self.request(ListStatusesRequest { filters: Vec::new() });
        let answer = self.content().list_statuses(request).await;
        for status in answer.map_err(|status| fault("list unfinished writes", &status))?.into_inner().statuses
        {
            self.abort(&status.r#ref).await?;
        }
        Ok(())
    }

    /// Removes an unfinished write. Its stream may have ended a moment ago: containerd then needs
    /// a moment to let go of it.
    pub(super) async fn abort(&self, reference: &str) -> Result<(), RuntimeError> {
        let mut retries = 0;
        loop {
            let request = self.request(AbortRequest { r#ref: reference.to_owned() });
            match self.content().abort(request).await {
                Ok(_) => return Ok(()),
                Err(status) if status.code() == Code::NotFound => return Ok(()),
                Err(_) if retries < ABORT_RETRIES => {
                    retries += 1;
                    tokio::time::sleep(ABORT_RETRY).await;
                }
                Err(status) => return Err(fault("abort a write", &status)),
            }
        }
    }
}

impl Ingest {
    /// How many bytes are there already.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Starts over: the next write is the blob's first.
    pub(super) fn rewind(&mut self) {
        self.offset = 0;
    }

    /// Appends bytes, at most [`FRAME_BYTES_MAX`].
    pub(super) async fn write(&mut self, data: Bytes) -> Result<(), RuntimeError> {
        let length = data.len() as u64;
        self.step(WriteAction::Write, data).await.map_err(|status| fault("write a blob", &status))?;
        self.offset += length;
        Ok(())
    }

    /// Ends the blob.
    ///
    /// # Errors
    /// `Invalid` when what was written is not the expected content; nothing of it stays.
    pub(super) async fn commit(mut self) -> Result<(), RuntimeError> {
        match self.step(WriteAction::Commit, Bytes::new()).await {
            Ok(()) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) if status.code() == Code::FailedPrecondition => {
                let (containerd, reference) = (self.containerd.clone(), self.reference.clone());
                let text = format!("the content is not what its digest says: {}", reason(&status));
                drop(self);
                containerd.abort(&reference).await?;
                Err(RuntimeError::Invalid(text))
            }
            Err(status) => Err(fault("commit a blob", &status)),
        }
    }

    async fn step(&mut self, action: WriteAction, data: Bytes) -> Result<(), tonic::Status> {
        let frame = WriteContentRequest {
            action: action.into(),
            r#ref: self.reference.clone(),
            total: i64::try_from(self.size).unwrap_or(i64::MAX),
            expected: if action == WriteAction::Commit { self.expected.clone() } else { String::new() },
            offset: i64::try_from(self.offset).unwrap_or(i64::MAX),
            data: data.to_vec(),
            labels: HashMap::new(),
        };
        let step = async {
            // A closed queue shows as the stream's error below.
            let _ = self.frames.send(frame).await;
            self.answers.message().await
        };
        match tokio::time::timeout(STEP_DEADLINE, step).await {
            Ok(Ok(Some(_))) => Ok(()),
            Ok(Ok(None)) => Err(tonic::Status::unavailable("containerd ended the write early")),
            Ok(Err(status)) => Err(status),
            Err(_) => Err(tonic::Status::deadline_exceeded("no answer in time")),
        }
    }
}
