//! `/v1/replicas/{id}/logs`: what containers wrote, those that are gone among them, from whichever node
//! they are or were on.
//!
//! A log is read as fast as whoever asked takes it, and no faster: nothing of it is collected here, on the
//! node that is asked, or on the way between the two.

use std::collections::BTreeSet;
use std::convert::Infallible;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use blixard_core::api::replica::LogLine;
use blixard_core::api::{ATTEMPT_HEADER, ATTEMPTS_HEADER, ErrorBody};
use blixard_core::id::ReplicaId;
use blixard_core::time::UtcMs;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderValue, Uri};
use serde::Deserialize;

use super::context::{Api, Params, Segment, Snapshot, flag};
use super::ended;
use super::error::ApiError;
use super::replicas::{ndjson, stream};
use super::{proxy, resolve};
use crate::platform::LogQuery;

/// How many lines are sent at once, when so many are there.
const LINES_AT_ONCE: usize = 16;

#[derive(Debug, Default, Deserialize)]
pub(super) struct LogsQuery {
    follow: Option<String>,
    tail: Option<usize>,
    since: Option<String>,
    until: Option<String>,
    attempt: Option<u32>,
    previous: Option<String>,
}

/// What a container wrote, oldest line first, one JSON object a line, from whichever node it is or was on.
///
/// The logs of a replica's last attempts are there as long as the replica is, and for an hour after it is
/// gone. Without `attempt` and `previous` it is the newest attempt that has a log.
#[utoipa::path(
    get, path = "/v1/replicas/{id}/logs",
    params(
        ("id" = String, Path, description = "Container id or prefix, also of a container that is gone, `web-0`, or a service with one replica"),
        ("follow" = Option<bool>, Query, description = "Go on until the container ends"),
        ("tail" = Option<usize>, Query, description = "Only the last so many lines"),
        ("since" = Option<String>, Query, description = "Only lines begun at this time or later, RFC 3339"),
        ("until" = Option<String>, Query, description = "Only lines begun at this time or earlier, RFC 3339"),
        ("attempt" = Option<u32>, Query, description = "The log of this attempt of the replica"),
        ("previous" = Option<bool>, Query, description = "The log of the attempt before")
    ),
    responses(
        (status = 200, description = "The lines; the headers `blixard-attempt` and `blixard-attempts` say which attempt's they are, and of which attempts there are logs", body = LogLine, content_type = "application/x-ndjson"),
        (status = 400, description = "A time that is none", body = ErrorBody),
        (status = 404, description = "No such container, or no log of that attempt", body = ErrorBody),
        (status = 409, description = "Nothing of it has started yet", body = ErrorBody),
        (status = 503, description = "Its node does not answer, or reads too many logs already", body = ErrorBody)
    )
)]
pub(super) async fn logs(
    State(api): State<Api>,
    Segment(id): Segment,
    Params(query): Params<LogsQuery>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let read = LogQuery {
        tail: query.tail,
        follow: flag(query.follow.as_deref()),
        since: time("since", query.since.as_deref())?,
        until: time("until", query.until.as_deref())?,
    };
    let snapshot = api.read().await;
    match resolve::container(&snapshot.state, api.handle.cluster, &id) {
        Ok((replica, attempt)) => {
            let node = snapshot.state.replicas.get(&replica).map(|replica| replica.node);
            match node.filter(|node| *node != api.handle.id) {
                Some(node) => proxy::forward(&api, node, request).await,
                None => answer(&api, &snapshot, replica, attempt, &query, read).await,
            }
        }
        Err(error) if error.is_not_found() => {
            let Some(found) = ended::find(&api, &id).await? else { return Err(snapshot.missing(error)) };
            let (Some(node), Some(replica), Some(container)) =
                (found.node, found.replica, found.container_id)
            else {
                return Err(snapshot.missing(error));
            };
            if node == api.handle.id {
                return answer(&api, &snapshot, replica, Some(found.attempt), &query, read).await;
            }
            let asked = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
            let path = format!("/v1/replicas/{container}/logs{asked}");
            *request.uri_mut() =
                path.parse::<Uri>().map_err(|error| ApiError::internal(error.to_string()))?;
            proxy::forward(&api, node, request).await
        }
        Err(error) => Err(error),
    }
}

fn time(name: &str, text: Option<&str>) -> Result<Option<UtcMs>, ApiError> {
    let parse = |text: &str| {
        text.parse().map_err(|error| ApiError::bad_request(format!("`{name}`: `{text}` is {error}"), ""))
    };
    text.map(parse).transpose()
}

/// Answers the log of a replica whose logs are on this node; `named` is the attempt that was named, when
/// one was that is not the newest.
async fn answer(
    api: &Api,
    snapshot: &Snapshot,
    replica: ReplicaId,
    named: Option<u32>,
    query: &LogsQuery,
    read: LogQuery,
) -> Result<Response, ApiError> {
    let containers = &api.handle.platform.containers;
    let kept = containers.log_attempts(replica).await?;
    let wanted = Wanted { attempt: query.attempt.or(named), previous: flag(query.previous.as_deref()) };
    let attempt = match wanted.of(&kept) {
        Some(attempt) => attempt,
        None if kept.is_empty() && snapshot.state.replicas.contains_key(&replica) => {
            resolve::with_container(&snapshot.state, replica)?;
            return Err(ApiError::not_found(
                "there is no log of it on its node",
                "`blixard ps -a` lists the containers",
            ));
        }
        None => return Err(no_such_attempt(&kept)),
    };
    let lines = containers.logs(replica, attempt, read).await?;
    let lines = lines.map(|line| {
        ndjson(&match line {
            Ok(line) if line.note => {
                LogLine::note(line.at, String::from_utf8_lossy(&line.bytes).into_owned())
            }
            Ok(line) => LogLine::new(line.at, line.stderr, line.bytes, line.partial),
            Err(error) => LogLine::failed(error.to_string()),
        })
    });
    let chunks =
        lines.ready_chunks(LINES_AT_ONCE).map(|lines| Ok::<_, Infallible>(Bytes::from(lines.concat())));
    let mut response = stream(Body::from_stream(chunks));
    let listed =
        |attempts: &BTreeSet<u32>| attempts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    response.headers_mut().insert(ATTEMPT_HEADER, HeaderValue::from(attempt));
    if let Ok(value) = HeaderValue::from_str(&listed(&kept)) {
        response.headers_mut().insert(ATTEMPTS_HEADER, value);
    }
    Ok(response)
}

fn no_such_attempt(kept: &BTreeSet<u32>) -> ApiError {
    let kept: Vec<String> = kept.iter().map(ToString::to_string).collect();
    let hint = match kept.is_empty() {
        true => "logs are kept for an hour after a container is gone: `blixard ps -a`".to_owned(),
        false if kept.len() == 1 => format!("there is only that of attempt {}", kept.join(", ")),
        false => format!("there are logs of attempts {}", kept.join(", ")),
    };
    ApiError::not_found("there is no log of that attempt", hint)
}

/// Which attempt's log is asked for.
struct Wanted {
    attempt: Option<u32>,
    previous: bool,
}

impl Wanted {
    /// The attempt, of those that are `kept`.
    fn of(&self, kept: &BTreeSet<u32>) -> Option<u32> {
        let meant = self.attempt.or_else(|| kept.last().copied())?;
        if self.previous { kept.range(..meant).next_back().copied() } else { kept.get(&meant).copied() }
    }
}

#[cfg(test)]
mod tests {
    use super::Wanted;

    #[test]
    fn the_newest_log_is_meant_unless_another_attempt_is_asked_for() {
        let check = |attempt, previous, kept: &[u32], expect| {
            let wanted = Wanted { attempt, previous };
            assert_eq!(wanted.of(&kept.iter().copied().collect()), expect, "{attempt:?} {previous} {kept:?}");
        };
        check(None, false, &[], None);
        check(None, false, &[0], Some(0));
        check(None, false, &[2, 3, 9], Some(9));
        check(None, true, &[2, 3, 9], Some(3));
        check(None, true, &[9], None);
        check(Some(3), false, &[2, 3, 9], Some(3));
        check(Some(4), false, &[2, 3, 9], None);
        check(Some(3), true, &[2, 3, 9], Some(2));
    }
}
