//! Which digest an image's reference stands for when a service is submitted.
//!
//! What somebody imported under a name is what the name stands for, in the whole cluster, and no
//! registry is asked. Else the registry says it; while it does not answer, what the service ran
//! before, or what a member pulled under the name, is taken.

use std::collections::BTreeMap;

use blixard_core::api::image::{ImageList, ImageRow};
use blixard_core::cluster::NodeStatus;
use blixard_core::image_reference::ImageReference;
use blixard_core::limits::{RESOLVE_DEADLINE, RESOLVE_KNOWN_DEADLINE, RUNTIME_DEADLINE};
use futures_util::future::{Either, join_all, select};

use super::context::Api;
use super::{images, proxy};
use crate::platform::{ImageInfo, RuntimeError};

/// What a reference stands for.
pub(super) enum Resolved {
    /// What it stands for now.
    Now(String),
    /// What it stood for last, when that is known; and why it is not known what it stands for now.
    Before { digest: Option<String>, reason: String },
}

/// Resolves a reference; `known` is the digest that the service has for it already.
pub(super) async fn resolve(api: &Api, reference: &str, known: Option<String>) -> Resolved {
    if let Ok(parsed) = reference.parse::<ImageReference>()
        && let Some(digest) = parsed.digest()
    {
        return Resolved::Now(digest.to_owned());
    }
    let containers = &api.handle.platform.containers;
    let own = api.within(RUNTIME_DEADLINE, containers.image(reference)).await;
    let own: Option<ImageInfo> = own.and_then(Result::ok).flatten();
    if let Some(imported) = own.as_ref().filter(|own| own.imported) {
        return Resolved::Now(imported.digest.clone());
    }
    let clock = &api.handle.platform.clock;
    let began = clock.now();
    let asked = std::pin::pin!(containers.resolve(reference));
    // Cancel safe: what is not done yet goes on below.
    let (members, asked) = match select(std::pin::pin!(members(api, reference)), asked).await {
        Either::Left((members, asked)) => (members, Either::Left(asked)),
        Either::Right((answer, members)) => (members.await, Either::Right(answer)),
    };
    if let Some(imported) = most_common(members.iter().filter(|row| row.imported)) {
        return Resolved::Now(imported);
    }
    let known = known.or(own.map(|own| own.digest)).or_else(|| most_common(members.iter()));
    let limit = if known.is_some() { RESOLVE_KNOWN_DEADLINE } else { RESOLVE_DEADLINE };
    let answer: Option<Result<String, RuntimeError>> = match asked {
        Either::Right(answer) => Some(answer),
        Either::Left(asked) => {
            let left = limit.saturating_sub(clock.now().since(began));
            api.within(left, asked).await
        }
    };
    let reason = match answer {
        Some(Ok(digest)) => return Resolved::Now(digest),
        Some(Err(error)) => error.to_string(),
        None => format!("no answer within {} s", limit.as_secs()),
    };
    Resolved::Before { digest: known, reason }
}

/// What the other members have under the name. One that does not answer is left out.
async fn members(api: &Api, reference: &str) -> Vec<ImageRow> {
    let state = api.handle.state();
    let mut others = images::others(api);
    others.retain(|node| state.nodes.get(node).is_some_and(|node| node.status == NodeStatus::Up));
    let path = images::of_reference(reference);
    let asked = others.iter().map(|&node| proxy::ask::<ImageList>(api, node, &path));
    let rows: Vec<ImageRow> =
        join_all(asked).await.into_iter().flatten().flat_map(|list| list.items).collect();
    // A member of an older version answers with all its images.
    let name = reference.parse::<ImageReference>().map(|name| name.to_string()).unwrap_or_default();
    let filtered = rows.len() <= others.len();
    rows.into_iter().filter(|row| filtered || row.reference == name).collect()
}

/// The digest that most rows have; of several the least, so that every node says the same.
fn most_common<'a>(rows: impl Iterator<Item = &'a ImageRow>) -> Option<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for row in rows {
        *counts.entry(&row.digest).or_default() += row.nodes.len().max(1);
    }
    let most = counts.values().max().copied()?;
    counts.into_iter().find(|(_, count)| *count == most).map(|(digest, _)| digest.to_owned())
}

#[cfg(test)]
mod tests {
    use blixard_core::api::image::ImageRow;
    use blixard_core::id::NodeId;

    use super::most_common;

    #[test]
    fn members_that_differ_are_counted() {
        let rows = |digests: &[&str]| -> Vec<ImageRow> {
            let row = |digest: &&str| ImageRow {
                reference: "a".into(),
                digest: (*digest).into(),
                bytes: 1,
                nodes: vec![NodeId(1)],
                imported: true,
            };
            digests.iter().map(row).collect()
        };
        let check = |digests: &[&str], expect: Option<&str>| {
            assert_eq!(most_common(rows(digests).iter()).as_deref(), expect, "{digests:?}");
        };
        check(&[], None);
        check(&["1"], Some("1"));
        check(&["2", "1", "2"], Some("2"));
        check(&["2", "1"], Some("1"));
    }
}
