//! `/v1/events`: what happened, resumable on any node.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::Response;
use blixard_core::api::{ErrorBody, GAP_HEADER};
use blixard_core::cluster::{ClusterState, Event, EventId};
use blixard_core::limits;
use bytes::Bytes;
use futures_util::stream;
use http::HeaderValue;
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;

use super::context::{Api, Params, flag};
use super::error::ApiError;
use super::replicas::{self, ndjson};
use super::rights::Caller;

/// How often a quiet stream sends an empty line, so that both ends notice a broken connection.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How many events are sent at once to who follows them.
const EVENTS_AT_ONCE: usize = 64;

#[derive(Debug, Default, Deserialize)]
pub(super) struct EventsQuery {
    follow: Option<String>,
    after: Option<String>,
}

/// What happened, oldest first, one JSON object a line. Empty lines are signs of life.
#[utoipa::path(
    get, path = "/v1/events",
    params(
        ("follow" = Option<bool>, Query, description = "Go on as more happens"),
        ("after" = Option<String>, Query, description = "Only what happened after this position, `INDEX.N`")
    ),
    responses((status = 200, description = "The events", body = Event, content_type = "application/x-ndjson"), (status = 400, description = "No such position", body = ErrorBody), (status = 503, description = "Too many follow already", body = ErrorBody))
)]
pub(super) async fn events(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Params(query): Params<EventsQuery>,
) -> Result<Response, ApiError> {
    let after = query.after.as_deref().map(position).transpose()?;
    let state = api.handle.state();
    let gap = after.is_some_and(|after| forgotten(&state, after));
    let body = if flag(query.follow.as_deref()) {
        let permit = Arc::clone(&api.handle.shared.followers).try_acquire_owned().map_err(|_| {
            let error = format!(
                "{} clients follow the events of this node, and no more do at a time",
                limits::FOLLOWERS_MAX
            );
            ApiError::unavailable(error, "ask another node: `blixard node ls`")
        })?;
        let follow = Follow { api, caller, after, applied: state.applied, _permit: permit };
        Body::from_stream(stream::unfold(follow, async |mut follow| {
            let chunk = follow.next().await?;
            Some((Ok::<_, std::convert::Infallible>(chunk), follow))
        }))
    } else {
        Body::from(lines(&state, after, usize::MAX, &caller).0)
    };
    let mut response = replicas::stream(body);
    if gap {
        response.headers_mut().insert(GAP_HEADER, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// Where a stream of events stands.
struct Follow {
    api: Api,
    caller: Caller,
    after: Option<EventId>,
    applied: u64,
    _permit: OwnedSemaphorePermit,
}

impl Follow {
    /// The next events, or after a quiet while an empty line. However slowly it is taken, it holds few. It
    /// ends when this node's state is found to be wrong.
    async fn next(&mut self) -> Option<Bytes> {
        let mut state = self.api.handle.state();
        if newest(&state, self.after) == self.after {
            state = self.api.handle.state_after(self.applied, HEARTBEAT).await;
        }
        if self.api.handle.differs().is_some() {
            return None;
        }
        let (chunk, last) = lines(&state, self.after, EVENTS_AT_ONCE, &self.caller);
        self.after = last.or(self.after);
        self.applied = state.applied;
        Some(if chunk.is_empty() { Bytes::from_static(b"\n") } else { chunk })
    }
}

fn position(text: &str) -> Result<EventId, ApiError> {
    let parsed = text.split_once('.').and_then(|(index, n)| Some((index.parse().ok()?, n.parse().ok()?)));
    let (index, n) = parsed.ok_or_else(|| {
        ApiError::bad_request(
            format!("`{text}` is not a position in the events"),
            "use the id of an event, INDEX.N, such as 812.0",
        )
    })?;
    Ok(EventId { index, n })
}

/// Of the first `max` events after a position those that the caller may see, and where they end.
fn lines(
    state: &ClusterState,
    after: Option<EventId>,
    max: usize,
    caller: &Caller,
) -> (Bytes, Option<EventId>) {
    let newer = state.events.iter().filter(|event| after.is_none_or(|after| event.id > after)).take(max);
    let last = newer.clone().last().map(|event| event.id);
    let covers =
        |event: &&Arc<Event>| event.service.as_ref().map_or(caller.covers_all(), |name| caller.covers(name));
    (newer.filter(covers).flat_map(|event| ndjson(event).to_vec()).collect(), last)
}

fn newest(state: &ClusterState, after: Option<EventId>) -> Option<EventId> {
    state.events.last().map(|event| event.id).max(after)
}

/// Whether events after `after` may have been dropped from the ring.
fn forgotten(state: &ClusterState, after: EventId) -> bool {
    state.events.len() >= limits::EVENTS_MAX && state.events.front().is_some_and(|oldest| oldest.id > after)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use blixard_core::cluster::{Event, EventId, EventKind};
    use blixard_core::limits;
    use blixard_core::time::UtcMs;

    use super::super::rights::Caller;
    use super::super::views::fixture;
    use super::{forgotten, lines, position};

    fn shared<T: FromIterator<Arc<Event>>>(events: impl IntoIterator<Item = Event>) -> T {
        events.into_iter().map(Arc::new).collect()
    }

    fn event(index: u64, n: u32) -> Event {
        Event {
            id: EventId { index, n },
            at: UtcMs(1),
            kind: EventKind::NodeJoined,
            service: None,
            replica: None,
            node: None,
            message: format!("{index}.{n}"),
            by: None,
        }
    }

    #[test]
    fn a_stream_resumes_after_the_position_given() {
        let mut state = fixture::state();
        state.events = shared([event(3, 0), event(3, 1), event(9, 0)]);
        let caller = Caller::reading(None);
        let check = |after: Option<&str>, expect: &[&str]| {
            let after = after.map(|text| position(text).unwrap());
            let (bytes, last) = lines(&state, after, 2, &caller);
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            let messages: Vec<String> =
                text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap().message).collect();
            assert_eq!(messages, expect, "{after:?}");
            assert_eq!(
                last.map(|last| format!("{}.{}", last.index, last.n)).as_deref(),
                expect.last().copied()
            );
        };
        check(None, &["3.0", "3.1"]);
        check(Some("3.0"), &["3.1", "9.0"]);
        check(Some("5.7"), &["9.0"]);
        check(Some("9.0"), &[]);
        assert!(position("9").is_err());
        assert!(position("a.b").is_err());
    }

    #[test]
    fn a_token_for_some_services_sees_their_events_only() {
        let mut state = fixture::state();
        let about = |n, service: Option<&str>| Event {
            service: service.map(|name| name.parse().unwrap()),
            ..event(3, n)
        };
        state.events = shared([about(0, None), about(1, Some("web-a")), about(2, Some("db"))]);
        let check = |services, expect: &[&str]| {
            let text =
                String::from_utf8(lines(&state, None, usize::MAX, &Caller::reading(services)).0.to_vec())
                    .unwrap();
            let found: Vec<String> =
                text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap().message).collect();
            assert_eq!(found, expect, "{services:?}");
        };
        check(None, &["3.0", "3.1", "3.2"]);
        check(Some("web-"), &["3.1"]);
        check(Some("x"), &[]);
    }

    #[test]
    fn a_position_older_than_the_ring_is_reported() {
        let mut state = fixture::state();
        state.events = shared((10..10 + limits::EVENTS_MAX as u64).map(|index| event(index, 0)));
        assert!(forgotten(&state, EventId { index: 9, n: 0 }));
        assert!(!forgotten(&state, EventId { index: 10, n: 0 }));
        state.events = shared([event(10, 0)]);
        assert!(!forgotten(&state, EventId { index: 9, n: 0 }), "the ring never filled");
    }

    #[test]
    fn positions_survive_every_damage() {
        damage::survives("position in the events", &[b"812.0".to_vec()], |input| {
            let text = String::from_utf8_lossy(input);
            let id = position(&text).map_err(|_| "it is no position")?;
            assert!(position(&format!("{}.{}", id.index, id.n)).is_ok_and(|again| again == id));
            Ok(())
        });
    }
}
