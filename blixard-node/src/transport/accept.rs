//! Connections others make: members' become links, strangers' may ask to join, everything else
//! is closed with a reason.

use std::sync::Arc;
use std::time::Duration;

use iroh::endpoint::Incoming;
use tokio::sync::Semaphore;

use super::endpoint::{ALPN_JOIN, remote_key};
use super::hello;
use super::link::{CloseCode, close};
use super::shared::{Shared, not_a_member};
use super::stranger::Strangers;

/// Handshakes under way at once; further ones are refused, and their diallers come again.
const HANDSHAKES_MAX: usize = 128;
/// Handshakes from which on a dialler must first prove its address.
const HANDSHAKES_UNPROVEN_MAX: usize = 32;
/// How long a dialler has to get through the handshake and say hello.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(3);

/// Accepts connections for as long as the transport's tasks run.
pub(super) async fn accept(shared: Arc<Shared>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let strangers = Arc::new(Strangers::default());
    let mut endpoint = shared.listener.endpoint();
    loop {
        let incoming = match &endpoint {
            Some(endpoint) => endpoint.accept().await,
            None => None,
        };
        let Some(incoming) = incoming else {
            tracing::warn!("the endpoint for links ended; binding another");
            drop(endpoint);
            shared.renew_endpoint().await;
            endpoint = shared.listener.endpoint();
            continue;
        };
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let crowded = HANDSHAKES_MAX - handshakes.available_permits() > HANDSHAKES_UNPROVEN_MAX;
        if crowded && !incoming.remote_addr_validated() {
            // An error means that it is validated after all: its next packet gets through.
            let _validated = incoming.retry();
            continue;
        }
        let (shared_, strangers) = (shared.clone(), strangers.clone());
        shared.tasks.spawn(async move {
            if let Err(reason) = welcome(&shared_, &strangers, incoming, permit).await {
                tracing::debug!(reason, "an incoming connection came to nothing");
            }
        });
    }
}

async fn welcome(
    shared: &Arc<Shared>,
    strangers: &Strangers,
    incoming: Incoming,
    permit: tokio::sync::OwnedSemaphorePermit,
) -> Result<(), String> {
    let late = |_| format!("no hello within {HANDSHAKE_DEADLINE:?}");
    let handshake = async {
        incoming.accept().map_err(|error| error.to_string())?.await.map_err(|error| error.to_string())
    };
    let connection = tokio::time::timeout(HANDSHAKE_DEADLINE, handshake).await.map_err(late)??;
    if connection.alpn() == ALPN_JOIN {
        drop(permit);
        return strangers.serve(shared, &connection).await;
    }
    let key = remote_key(&connection);
    if shared.slot_by_key(key).is_none() {
        let reason = not_a_member(key);
        close(&connection, CloseCode::NotMember, &reason);
        return Err(reason);
    }
    let heard = tokio::time::timeout(HANDSHAKE_DEADLINE, hello::hear(&connection));
    let (hello, send) = heard.await.map_err(late)??;
    shared.admit(&connection, &hello).await?;
    let own = shared.hello();
    let answered = hello::answer(&connection, send, &own);
    tokio::time::timeout(HANDSHAKE_DEADLINE, answered).await.map_err(late)??;
    drop(permit);
    shared.linked(connection, false, hello).await
}
