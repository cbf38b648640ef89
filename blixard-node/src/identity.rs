//! Who this node is: its key, the cluster and id it was admitted under, and how often it started.
//!
//! Kept in a database of its own on the [`Disk`] seam, apart from the log, so that a store that is
//! dropped and reopened never changes who the node is. What is here decides whether a start joins,
//! founds or returns; the daemon asks. Every method blocks on the disk.

use std::collections::BTreeMap;
use std::io;

use blixard_core::api::token::Secret;
use blixard_core::cluster::SubnetRange;
use blixard_core::id::{ClusterId, NodeId, NodeKey, TokenId};
use blixard_core::wire::{self, Peer};
use redb::{Database, ReadableTable as _, ReadableTableMetadata as _, Table, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::database::{self, Mark, Opened, Values, damaged, guarded, io_error};
use crate::node::{Founding, Membership};
use crate::platform::{Disk, RandomSource};

/// The database's file.
pub const IDENTITY_FILE: &str = "node.redb";
/// The format of what is in it; another is refused.
const FORMAT: u64 = 1;
/// The database's cache, in bytes: it holds a handful of values.
const CACHE_BYTES: usize = 64 << 10;

/// The file that says how many commits the database has.
const MARK_FILE: &str = "node.mark";

const VALUES: Values = TableDefinition::new("identity");

/// Why the identity cannot be had or changed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another process has it open.
    #[error("{IDENTITY_FILE} is in use: a daemon runs on this data directory already")]
    InUse,
    /// The disk refuses: try again when it works.
    #[error("cannot use {IDENTITY_FILE}")]
    Disk(#[source] io::Error),
    /// What is there is not an identity. Nothing is overwritten.
    #[error(
        "{IDENTITY_FILE} is damaged ({reason}), and with it who this node is: give it up: `blixard node rm ID --force` on another member, move the data directory away here, then join anew; containers go on until then"
    )]
    Damaged {
        /// What is wrong.
        reason: String,
    },
    /// It already belongs elsewhere.
    #[error(
        "this data directory belongs to node {node} of cluster {cluster}, not to node {node_asked} of cluster {cluster_asked}: use another --data-dir"
    )]
    Other {
        /// The cluster it belongs to.
        cluster: ClusterId,
        /// The node it is.
        node: NodeId,
        /// The cluster it was to belong to.
        cluster_asked: ClusterId,
        /// The node it was to be.
        node_asked: NodeId,
    },
}

impl From<io::Error> for IdentityError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock => Self::InUse,
            io::ErrorKind::InvalidData | io::ErrorKind::NotFound => {
                Self::Damaged { reason: error.to_string() }
            }
            _ => Self::Disk(error),
        }
    }
}

/// A node's identity, open.
pub struct Identity {
    database: Database,
    commits: u64,
    mark: Mark,
    secret_key: [u8; 32],
    boots: u64,
    admission: Option<Admission>,
    has_log: bool,
    own_token: Option<Secret>,
}

/// How the node came to its membership, as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Admission {
    cluster: ClusterId,
    node: NodeId,
    /// The token others join by, in the registry file this node writes.
    token: (TokenId, [u8; 32]),
    /// Present on the founder: where container networks are cut from.
    founding: Option<SubnetRange>,
    /// Members to link to until their rows arrive.
    peers: BTreeMap<NodeId, Peer>,
}

impl Identity {
    /// Opens the identity, counting this start, or makes a new one with a key of its own when
    /// there is none.
    ///
    /// # Errors
    /// When the disk refuses, another process has it, or what is there is damaged.
    pub fn load_or_create(disk: &dyn Disk, rng: &dyn RandomSource) -> Result<Self, IdentityError> {
        let Opened { database, commits, mark } =
            database::open(disk, IDENTITY_FILE, MARK_FILE, VALUES, CACHE_BYTES)?;
        let mut identity = Self {
            database,
            commits,
            mark,
            secret_key: [0; 32],
            boots: 0,
            admission: None,
            has_log: false,
            own_token: None,
        };
        let (secret_key, boots, admission, has_log, own_token) =
            identity.commit(|table| start(table, rng))?;
        Ok(Self { secret_key, boots, admission, has_log, own_token, ..identity })
    }

    /// Changes what is stored, durably.
    fn commit<T>(&mut self, change: impl FnOnce(&mut Stored<'_>) -> io::Result<T>) -> io::Result<T> {
        let (database, commits) = (&self.database, self.commits);
        let (changed, commits) = guarded(|| {
            let transaction = database.begin_write().map_err(io_error)?;
            let mut table = transaction.open_table(VALUES).map_err(io_error)?;
            let changed = change(&mut table)?;
            let commits = database::count_in(&mut table, commits).map_err(io_error)?;
            drop(table);
            transaction.commit().map_err(io_error)?;
            Ok((changed, commits))
        })?;
        self.commits = commits;
        self.mark.write(commits);
        Ok(changed)
    }

    /// The secret key. Only the transport needs it.
    pub fn secret_key(&self) -> [u8; 32] {
        self.secret_key
    }

    /// The public key.
    pub fn key(&self) -> NodeKey {
        crate::transport::public_key(&self.secret_key)
    }

    /// How often the node has started, this time included.
    pub fn boots(&self) -> u64 {
        self.boots
    }

    /// What it was admitted as, if it was.
    pub fn membership(&self) -> Option<Membership> {
        self.admission.as_ref().map(|admission| Membership {
            cluster: admission.cluster,
            node: admission.node,
            founding: admission.founding.map(|subnets| Founding {
                subnets,
                token: admission.token.0,
                secret: admission.token.1,
            }),
            peers: admission.peers.clone(),
        })
    }

    /// Whether the node has made its log: a start that does not find it must not make another.
    pub fn has_log(&self) -> bool {
        self.has_log
    }

    /// Records durably that the node has made its log.
    ///
    /// # Errors
    /// When the disk refuses; then nothing changed.
    pub fn set_has_log(&mut self) -> Result<(), IdentityError> {
        if !self.has_log {
            self.commit(|table| put(table, "has_log", &[]))?;
            self.has_log = true;
        }
        Ok(())
    }

    /// The token others join by, for this node's registry file: its own, or until it has one the one
    /// that it joined by.
    pub fn token(&self) -> Option<Secret> {
        self.own_token.clone().or_else(|| self.admission_token())
    }

    /// The token of this node's own, which it made for its registry file and told nobody else.
    pub fn own_token(&self) -> Option<&Secret> {
        self.own_token.as_ref()
    }

    /// On a founder, the token that it founded its cluster with.
    pub fn founding_token(&self) -> Option<Secret> {
        self.admission_token().filter(|_| self.admission.as_ref().is_some_and(|held| held.founding.is_some()))
    }

    fn admission_token(&self) -> Option<Secret> {
        let (id, secret) = self.admission.as_ref()?.token;
        Some(Secret { id, secret })
    }

    /// Records durably the token of this node's own.
    ///
    /// # Errors
    /// When the disk refuses; then nothing changed.
    pub fn set_own_token(&mut self, token: &Secret) -> Result<(), IdentityError> {
        let bytes = [&token.id.0[..], &token.secret[..]].concat();
        self.commit(|table| put(table, "own_token", &bytes))?;
        self.own_token = Some(token.clone());
        Ok(())
    }

    /// Records durably what this node was admitted as, and the token it was admitted by or founded
    /// its cluster with. Repeating it changes at most the peers.
    ///
    /// # Errors
    /// When it was admitted as someone else before, or the disk refuses; then nothing changed.
    pub fn set_membership(&mut self, membership: &Membership, token: &Secret) -> Result<(), IdentityError> {
        if let Some(held) = &self.admission
            && (held.cluster, held.node) != (membership.cluster, membership.node)
        {
            return Err(IdentityError::Other {
                cluster: held.cluster,
                node: held.node,
                cluster_asked: membership.cluster,
                node_asked: membership.node,
            });
        }
        let admission = Admission {
            cluster: membership.cluster,
            node: membership.node,
            token: (token.id, token.secret),
            founding: membership.founding.as_ref().map(|founding| founding.subnets),
            peers: membership.peers.clone(),
        };
        self.commit(|table| put(table, "admission", &wire::encode(&admission)))?;
        self.admission = Some(admission);
        Ok(())
    }
}

type Stored<'a> = Table<'a, &'static str, &'static [u8]>;
type Read = ([u8; 32], u64, Option<Admission>, bool, Option<Secret>);

/// Counts this start; makes what a new identity has.
fn start(table: &mut Stored<'_>, rng: &dyn RandomSource) -> io::Result<Read> {
    if table.is_empty().map_err(io_error)? {
        let mut secret_key = [0; 32];
        rng.fill(&mut secret_key);
        put(table, "format", &FORMAT.to_be_bytes())?;
        put(table, "secret_key", &secret_key)?;
        put(table, "boots", &0_u64.to_be_bytes())?;
    }
    let format = u64::from_be_bytes(required(table, "format")?);
    if format != FORMAT {
        return Err(damaged(format!("its format is {format}, this version reads {FORMAT}")));
    }
    let secret_key = required(table, "secret_key")?;
    let boots = u64::from_be_bytes(required(table, "boots")?).saturating_add(1);
    put(table, "boots", &boots.to_be_bytes())?;
    let admission = match get(table, "admission")? {
        Some(bytes) => Some(wire::decode(&bytes).map_err(|error| damaged(error.to_string()))?),
        None => None,
    };
    let has_log = get(table, "has_log")?.is_some();
    let own_token = match get(table, "own_token")? {
        Some(bytes) => Some(secret_of(&bytes).ok_or_else(|| damaged("`own_token` is no token".to_owned()))?),
        None => None,
    };
    Ok((secret_key, boots, admission, has_log, own_token))
}

/// A token as it is stored: its public half, then its secret one.
fn secret_of(bytes: &[u8]) -> Option<Secret> {
    let (id, secret) = bytes.split_first_chunk()?;
    Some(Secret { id: TokenId(*id), secret: secret.try_into().ok()? })
}

fn put(table: &mut Stored<'_>, name: &'static str, value: &[u8]) -> io::Result<()> {
    table.insert(name, value).map_err(io_error)?;
    Ok(())
}

fn get(table: &Stored<'_>, name: &'static str) -> io::Result<Option<Vec<u8>>> {
    Ok(table.get(name).map_err(io_error)?.map(|value| value.value().to_vec()))
}

fn required<const N: usize>(table: &Stored<'_>, name: &'static str) -> io::Result<[u8; N]> {
    let value = get(table, name)?.ok_or_else(|| damaged(format!("`{name}` is missing")))?;
    let len = value.len();
    value.try_into().map_err(|_| damaged(format!("`{name}` has {len} bytes instead of {N}")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Admission, IDENTITY_FILE, Identity, IdentityError, secret_of};
    use crate::disk::LinuxDisk;
    use crate::node::{Founding, Membership};
    use crate::platform::RandomSource;
    use blixard_core::api::token::Secret;
    use blixard_core::cluster::SubnetRange;
    use blixard_core::id::{ClusterId, NodeId, NodeKey, TokenId};
    use blixard_core::wire::{self, Peer};

    struct Fixed(u8);

    impl RandomSource for Fixed {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(self.0);
        }
    }

    fn open(dir: &tempfile::TempDir, random: u8) -> Result<Identity, IdentityError> {
        Identity::load_or_create(&LinuxDisk::new(dir.path()), &Fixed(random))
    }

    #[test]
    fn a_node_stays_who_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let token = Secret { id: TokenId([5; 8]), secret: [6; 32] };
        let founding = Founding { subnets: SubnetRange::default(), token: token.id, secret: token.secret };
        let peer = Peer {
            key: NodeKey([3; 32]),
            addresses: vec!["10.0.0.1:7001".parse().unwrap()],
            relay_url: None,
        };
        let mut membership = Membership {
            cluster: ClusterId([1; 16]),
            node: NodeId(2),
            founding: Some(founding),
            peers: [(NodeId(3), peer)].into(),
        };
        let mut first = open(&dir, 7).unwrap();
        assert_eq!((first.boots(), first.membership(), first.token()), (1, None, None));
        assert_eq!(first.secret_key(), [7; 32]);
        assert!(matches!(open(&dir, 8), Err(IdentityError::InUse)));
        first.set_membership(&membership, &token).unwrap();
        let key = first.key();
        drop(first);

        let mut second = open(&dir, 8).unwrap();
        assert_eq!((second.boots(), second.key()), (2, key));
        assert_eq!((second.membership(), second.token()), (Some(membership.clone()), Some(token.clone())));
        second.set_membership(&membership, &token).unwrap();
        membership.node = NodeId(9);
        let error = second.set_membership(&membership, &token).unwrap_err();
        assert!(error.to_string().contains("belongs to node 2 of cluster 0101"), "{error}");
        assert_eq!(second.membership().unwrap().node, NodeId(2));
        assert!(!second.has_log());
        second.set_has_log().unwrap();
        assert_eq!((second.own_token(), second.founding_token()), (None, Some(token.clone())));
        let own = Secret { id: TokenId([7; 8]), secret: [8; 32] };
        second.set_own_token(&own).unwrap();
        drop(second);
        let third = open(&dir, 8).unwrap();
        assert!(third.has_log());
        assert_eq!((third.own_token(), third.token()), (Some(&own), Some(own.clone())));
        assert_eq!(third.founding_token(), Some(token));
    }

    #[test]
    fn a_damaged_identity_opens_as_it_was_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let token = Secret { id: TokenId([5; 8]), secret: [6; 32] };
        let cluster = ClusterId([1; 16]);
        let membership = Membership { cluster, node: NodeId(2), founding: None, peers: BTreeMap::new() };
        let path = |name| dir.path().join(name);
        for _ in 0..5 {
            let mut identity = open(&dir, 7).unwrap();
            identity.set_membership(&membership, &token).unwrap();
            identity.set_has_log().unwrap();
        }
        let image = [IDENTITY_FILE, super::MARK_FILE].map(|name| (name, std::fs::read(path(name)).unwrap()));
        let mut random = damage::Random::new(3);
        let mut refused = 0;
        for _ in 0..200 {
            image.iter().for_each(|(name, bytes)| std::fs::write(path(*name), bytes).unwrap());
            let mut bytes = image[0].1.clone();
            let how = damage::file(&mut bytes, &mut random);
            std::fs::write(path(IDENTITY_FILE), bytes).unwrap();
            match open(&dir, 8) {
                Ok(found) => {
                    assert_eq!((found.secret_key(), found.boots()), ([7; 32], 6), "{how}");
                    assert_eq!(
                        (found.membership(), found.has_log()),
                        (Some(membership.clone()), true),
                        "{how}"
                    );
                }
                Err(error) => {
                    assert!(matches!(error, IdentityError::Damaged { .. }), "{how}: {error}");
                    let words = error.to_string();
                    assert!(!words.contains('\n') && words.contains("node rm ID --force"), "{how}: {words}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 20, "only {refused} damages were found");
    }

    #[test]
    fn a_damaged_file_is_reported_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(IDENTITY_FILE);
        drop(open(&dir, 7).unwrap());
        let good = std::fs::read(&path).unwrap();
        let check = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let error = open(&dir, 8).err().expect("damaged");
            assert!(matches!(error, IdentityError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains("node.redb is damaged"), "{error}");
        };
        check(b"this is no database");
        check(&[0xff; 8192]);
        check(&good[..good.len() / 2]);
        check(&[&[0; 512], &good[512..]].concat());
        check(&[&[1; 512], &good[512..]].concat());
    }

    #[test]
    fn values_of_an_identity_survive_every_damage() {
        let peer = Peer {
            key: NodeKey([3; 32]),
            addresses: vec!["10.0.0.1:7001".parse().unwrap()],
            relay_url: Some("https://relay.example/".to_owned()),
        };
        let admission = Admission {
            cluster: ClusterId([1; 16]),
            node: NodeId(2),
            token: (TokenId([5; 8]), [6; 32]),
            founding: Some(SubnetRange::default()),
            peers: [(NodeId(3), peer)].into(),
        };
        damage::survives("identity: admission", &[wire::encode(&admission)], |input| {
            let read: Admission = wire::decode(input).map_err(|error| error.to_string())?;
            assert_eq!(wire::decode(&wire::encode(&read)), Ok(read));
            Ok(())
        });
        damage::survives("identity: token", &[vec![9; 40]], |input| {
            let token = secret_of(input).ok_or("`own_token` is no token")?;
            assert_eq!([&token.id.0[..], &token.secret[..]].concat(), input);
            Ok(())
        });
    }
}
