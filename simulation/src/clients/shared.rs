//! Operations on services that all clients share: what each was told goes into the history whose
//! order [`crate::checks::linearizable`] searches. A client may give up on a write, whose fate is
//! then open.

use axum::body::Body;
use blixard_core::id::ServiceName;
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};

use super::{Client, call};
use crate::checks::linearizable::{Answer, Call, Service};

/// How many services all clients share.
const SHARED: u64 = 3;
/// How often a client asks about a write at most, before it gives up.
const TRIES_MAX: u64 = 8;

/// The services that all clients share.
pub(crate) fn names() -> impl Iterator<Item = ServiceName> {
    (0..SHARED).map(|number| format!("shared-{number}").parse().expect("the name is well formed"))
}

impl Client {
    /// Does one thing to a service that others use too.
    pub(super) async fn share(&mut self) {
        let number = self.random.below(SHARED);
        let name: ServiceName = format!("shared-{number}").parse().expect("the name is well formed");
        let path = format!("/v1/services/{name}");
        match self.random.below(100) {
            0..25 => {
                let (spec, mark, min, max) = self.spec(&name, None);
                let body = json!({"spec": spec}).to_string();
                let call = Call::Submit { mark, min, max };
                self.shared_write(&name, call, Method::POST, "/v1/services", &body).await;
            }
            25..40 => {
                let replicas = 1 + u32::try_from(self.random.below(4)).expect("small");
                let body = json!({"replicas": replicas}).to_string();
                let path = format!("{path}/scale");
                self.shared_write(&name, Call::Scale(replicas), Method::POST, &path, &body).await;
            }
            40..55 => {
                let stop = self.random.chance(500);
                let path = format!("{path}/{}", if stop { "stop" } else { "start" });
                self.shared_write(&name, Call::Suspend(stop), Method::POST, &path, "").await;
            }
            55..63 => self.shared_write(&name, Call::Remove, Method::DELETE, &path, "").await,
            _ => self.shared_read(&name).await,
        }
    }

    async fn shared_write(&mut self, name: &ServiceName, call: Call, method: Method, path: &str, body: &str) {
        let submits = matches!(call, Call::Submit { .. });
        let tries = 1 + self.random.below(TRIES_MAX);
        let asked = self.shared.history().ask(name, call);
        let Some(answer) = self.ask(method, path, body, u32::try_from(tries).expect("small")).await else {
            return;
        };
        let told = if answer.status.is_success() {
            self.done.writes += 1;
            if submits {
                Answer::Version(answer.body["version"].as_u64().unwrap_or_default())
            } else {
                Answer::Done
            }
        } else {
            self.done.refused += 1;
            Answer::Refused
        };
        self.shared.history().answer(&asked, told);
    }

    pub(super) async fn shared_read(&mut self, name: &ServiceName) {
        let Some(node) = self.pick() else { return };
        let asked = self.shared.history().ask(name, Call::Read);
        let request = Request::get(format!("/v1/services/{name}")).body(Body::empty());
        let Some(answer) = call(&node, request.expect("it is well formed")).await else { return };
        let told = match answer.status {
            _ if answer.stale => return,
            StatusCode::NOT_FOUND => Answer::Absent,
            StatusCode::OK => match shown(&answer.body) {
                Some(service) => Answer::Found(service),
                None => {
                    return self.shared.world.checks.violated("answers_are_whole", answer.body.to_string());
                }
            },
            _ => return,
        };
        self.done.reads += 1;
        self.shared.history().answer(&asked, told);
    }
}

/// What the API's answer says of a service.
fn shown(body: &Value) -> Option<Service> {
    let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
    let version = body["version"].as_u64()?;
    let current =
        body["versions"].as_array()?.iter().find(|kept| kept["version"].as_u64() == Some(version))?;
    let state = body["state"].as_str()?;
    Some(Service {
        version,
        mark: current["spec"]["environment"]["MARK"].as_str()?.to_owned(),
        bounds: (number(&body["min"])?, number(&body["max"])?),
        desired: number(&body["desired"])?,
        suspended: state == "stopped",
        removing: state == "removing",
    })
}
