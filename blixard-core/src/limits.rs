//! Every bound and default timing of the system, in one place. A bound that is hit is reported
//! by name, never silently clipped.

use std::time::Duration;

/// Raft: the leader's heartbeat. Elections start at [`RAFT_ELECTION_MAX`] plus a random time, so
/// this must be several times smaller; shorter costs an idle cluster CPU.
pub const RAFT_HEARTBEAT: Duration = Duration::from_millis(80);
/// Raft: the lower bound of the election timeout.
pub const RAFT_ELECTION_MIN: Duration = Duration::from_millis(200);
/// Raft: the upper bound of the election timeout.
pub const RAFT_ELECTION_MAX: Duration = Duration::from_millis(400);

/// Raft: entries applied since the last snapshot before the next is taken. More make a restart
/// replay longer; fewer make a busy cluster write its whole state more often.
pub const RAFT_SNAPSHOT_ENTRIES: u64 = 5_000;
/// Raft: bytes of commands applied since the last snapshot before the next is taken.
pub const RAFT_SNAPSHOT_BYTES: u64 = 64 << 20;
/// Raft: entries kept behind a snapshot, for followers that are a little behind.
pub const RAFT_LOG_KEEP: u64 = 500;
/// In how much of log time the members make one digest of their states, to compare them. A digest reads
/// all of the state: of 5,000 services it takes some 30 ms of one processor.
pub const DIGEST_SPACING: Duration = Duration::from_secs(10);
/// A digest is made of every state of an index that this divides, too: log time may stand still.
pub const DIGEST_ENTRIES: u64 = 4_096;
/// How long nothing is applied until a digest is made of the state as it then is.
pub const DIGEST_QUIET: Duration = Duration::from_secs(5);
/// How often it is made again while nothing is applied: memory may be damaged in rest, too.
pub const DIGEST_QUIET_AGAIN: Duration = Duration::from_secs(60);
/// How many digests a member tells the leader: its newest.
pub const DIGESTS_TOLD_MAX: usize = 4;
/// How many of the states that its newest digests are of a member keeps, for one that differs. They
/// share what they have in common with each other.
pub const DIGEST_STATES_KEPT: usize = 3;
/// How long a member that was given the majority's state, and differs again, waits until it is given it
/// once more.
pub const REBUILD_PAUSE: Duration = Duration::from_secs(60);
/// Raft: the most entries of one message to a follower.
pub const RAFT_BATCH_ENTRIES_MAX: u64 = 1_024;
/// The largest encoded log entry, in bytes; a message holds one of these and a batch besides.
pub const ENTRY_BYTES_MAX: usize = 16 << 20;
/// The longest text of others that is kept, in bytes: a status's message, a reason, an event. Longer
/// ones are cut. Statuses are many, and each is in the log, in events and in every answer about it.
pub const TEXT_BYTES_MAX: usize = 1 << 10;
/// The most steps of one plan; what they leave is planned next.
pub const PLAN_STEPS_MAX: usize = 4_096;
/// The most services that wait of which one plan words the reasons anew because a node changed: each takes
/// some 10 us of the leader, which commits wait for.
pub const PLAN_REWORDED_MAX: usize = 256;
/// The most statuses of one report; an agent with more sends several.
pub const REPORT_STATUSES_MAX: usize = 1_024;
/// The most a node tells of itself, in encoded bytes.
pub const FACTS_BYTES_MAX: usize = 12 << 10;
/// The largest command of a client or joiner, in encoded bytes.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;
/// How large the commands of one entry may grow, in bytes, before the plan joins them.
pub const BATCH_BYTES_MAX: usize = ENTRY_BYTES_MAX / 4;
/// What a status or a step takes besides its text, in encoded bytes, at most.
const ROW_BYTES: usize = 512;

// A batch, the input that filled it, what all members tell of themselves and a plan are one entry.
const _: () = assert!(
    BATCH_BYTES_MAX
        + REPORT_STATUSES_MAX * (TEXT_BYTES_MAX + ROW_BYTES)
        + NODES_MAX * FACTS_BYTES_MAX
        + PLAN_STEPS_MAX * (TEXT_BYTES_MAX + ROW_BYTES)
        < ENTRY_BYTES_MAX
);
const _: () = assert!(COMMAND_BYTES_MAX < REPORT_STATUSES_MAX * (TEXT_BYTES_MAX + ROW_BYTES));
/// The largest snapshot taken from another member, in bytes.
pub const SNAPSHOT_BYTES_MAX: u64 = 1 << 30;

const _: () = assert!(ENTRY_BYTES_MAX * 2 < MESSAGE_BYTES_MAX);

/// How often an agent tells the leader that it lives.
pub const NODE_HEARTBEAT: Duration = Duration::from_millis(500);
/// Silence after which a node is Unknown: routes to it drop, nothing moves.
pub const NODE_UNKNOWN_AFTER: Duration = Duration::from_millis(1500);
/// Silence, by the node's own clock, after which it must have stopped writing to volumes.
pub const FENCE_AFTER: Duration = Duration::from_millis(2500);
/// Silence after which a node is Down and its replicas are replaced.
pub const NODE_DOWN_AFTER: Duration = Duration::from_millis(3500);
/// How long a planned stop of a daemon keeps its replicas from being replaced.
pub const NODE_HOLD: Duration = Duration::from_secs(60);

const _: () = assert!(NODE_UNKNOWN_AFTER.as_millis() < FENCE_AFTER.as_millis());
const _: () = assert!(FENCE_AFTER.as_millis() < NODE_DOWN_AFTER.as_millis());
const _: () = assert!(RAFT_HEARTBEAT.as_millis() * 2 < RAFT_ELECTION_MIN.as_millis());

/// The first delay before a failed container starts again; doubled on each failure.
pub const RESTART_BACKOFF_MIN: Duration = Duration::from_secs(1);
/// The longest delay before a failed container starts again.
pub const RESTART_BACKOFF_MAX: Duration = Duration::from_secs(300);
/// How long a node on which a replica failed before it was proven is tried last for its slot: two of the longest back-offs.
pub const FAILED_NODE_AVOIDED: Duration = Duration::from_secs(600);
/// A run this long forgives the failures before it.
pub const RESTART_RESET_AFTER: Duration = Duration::from_secs(10);

/// The longest time that a bundle may have a replica be ready at a stretch to be proven.
pub const MIN_HEALTHY_TIME_MAX: Duration = Duration::from_secs(3_600);

/// Images that one node downloads at a time; more would only slow each other down.
pub const PULLS_MAX: usize = 3;
/// A download without progress for this long has failed. Unpacking a large layer reports none.
pub const PULL_STALL: Duration = Duration::from_secs(300);
/// Containers that one node starts at a time: most of a start is the runtime's CPU time.
pub const STARTS_MAX: usize = 4;
/// Failed starts in a row after which a replica has failed, so that its slot can go elsewhere.
pub const START_FAILURES_MAX: u32 = 5;
/// A container that does not start within this time is given up, and what there is of it removed.
pub const START_DEADLINE: Duration = Duration::from_secs(120);
/// How long the container runtime has for an answer that takes no work.
pub const RUNTIME_DEADLINE: Duration = Duration::from_secs(10);
/// The shortest time between two probes of a container, whatever its bundle says.
pub const PROBE_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// The longest wait for the first probe of a container after its start.
pub const PROBE_FIRST_MAX: Duration = Duration::from_secs(1);

/// Connections that one node leads to another's containers at a time. Links have streams for twice as many,
/// so that none waits for the others.
pub const ROUTED_CONNECTIONS_MAX: usize = 512;
/// How many endpoints are tried for a connection.
pub const ROUTE_TRIES: usize = 3;
/// How long an endpoint has to take a connection.
pub const ROUTE_DEADLINE: Duration = Duration::from_secs(3);

/// Logs that one node reads at a time, followed or not. Each holds a chunk of the log and what its
/// connection buffers, about half a megabyte, when whoever asked does not take it.
pub const LOG_READERS_MAX: usize = 256;
/// Containers that ended, of those whose logs it keeps, that one node tells of.
pub const ENDED_CONTAINERS_MAX: usize = 1_000;
/// Processes that one node runs in its containers at a time for `exec`.
pub const EXEC_SESSIONS_MAX: usize = 128;
/// How long a ticket admits that is printed for somebody to use.
pub const TICKET_LIFE: Duration = Duration::from_secs(24 * 3_600);
/// The most containers that one node announces on the local network: each takes packets of all who listen.
pub const ANNOUNCED_CONTAINERS_MAX: usize = 256;
/// The longest text taken from an announcement, in bytes.
pub const ANNOUNCED_TEXT_BYTES_MAX: usize = 255;
/// The most nodes that are heard of by announcements at a time: anybody can announce any number.
pub const HEARD_NODES_MAX: usize = 256;
/// The most containers that one `chirp` shows.
pub const CHIRP_CONTAINERS_MAX: usize = 4_096;
/// How many clients may follow the events of one node.
pub const FOLLOWERS_MAX: usize = 256;
/// How many connections the API's Unix socket holds. Apart from those over TCP, so that strangers keep
/// no command of the node's own user waiting.
pub const HTTP_SOCKET_CONNECTIONS_MAX: usize = 1_024;
/// How many connections the API holds over TCP. Each costs a descriptor and at most about 128 KiB.
pub const HTTP_TCP_CONNECTIONS_MAX: usize = 2_048;
/// How often a request over TCP is answered that shows no token, when such come without end: 200 a second
/// for all together, which take some hundredths of a processor.
pub const HTTP_STRANGERS_INTERVAL: Duration = Duration::from_millis(5);
/// How many of them are answered at once after a pause.
pub const HTTP_STRANGERS_AT_ONCE: u32 = 100;
/// How long a client of the API has for a TLS handshake, and for the head of a request from the moment
/// the last one was answered: also how long a connection may be idle.
pub const HTTP_HEAD_WAIT: Duration = Duration::from_secs(15);
/// How much of a request's head is read, in bytes.
pub const HTTP_HEAD_BYTES_MAX: usize = 64 << 10;
/// How many headers a request has at most.
pub const HTTP_HEADERS_MAX: usize = 64;
/// How long a client over TCP may keep the API waiting for 16 KiB of a body.
pub const HTTP_BODY_WAIT: Duration = Duration::from_secs(30);
/// The same on the Unix socket, where a pipe may wait for its source.
pub const HTTP_LOCAL_BODY_WAIT: Duration = Duration::from_secs(600);
/// How long a client over TCP may keep the API waiting until it takes 16 KiB of an answer. A person who
/// pages through a log for longer uses the socket.
pub const HTTP_TAKING_WAIT: Duration = Duration::from_secs(120);

/// How long a request id is remembered, in log time; an older one is refused.
pub const REQUEST_MEMORY: Duration = Duration::from_secs(600);
/// How many request ids are remembered at most.
pub const REQUESTS_MAX: usize = 65_536;
/// How many writes the state keeps with who made them.
pub const AUDIT_MAX: usize = 1_024;
/// How many events the state keeps.
pub const EVENTS_MAX: usize = 1_024;
/// How many versions of a service's specification are kept for rollback.
pub const SERVICE_VERSIONS_MAX: usize = 5;
/// The most services a cluster holds.
pub const SERVICES_MAX: usize = 10_000;
/// The most replicas one service may ask for.
pub const REPLICAS_PER_SERVICE_MAX: u32 = 1_000;
/// The most volumes a cluster holds.
pub const VOLUMES_MAX: usize = 10_000;
/// The most names in a volume: files, directories and links. Each takes about 200 bytes of memory on a node
/// that holds it.
pub const VOLUME_FILES_MAX: u64 = 1_000_000;
/// The most bytes of all files of a volume, holes too: of each 4 KiB a node that holds it keeps a hash of
/// 16 bytes in memory while it compares.
pub const VOLUME_BYTES_MAX: u64 = 64 << 30;
/// The largest index of a volume's content written down or sent, in bytes.
pub const VOLUME_INDEX_BYTES_MAX: usize = 512 << 20;
/// The most volumes of one report; a node with more sends several.
pub const REPORT_VOLUMES_MAX: usize = 256;
/// How long a copy that follows may take to answer or send the next piece before it is given up.
pub const VOLUME_STALL: Duration = Duration::from_secs(60);
/// How often a primary copy is looked through for changes.
pub const VOLUME_SCAN: Duration = Duration::from_secs(2);
/// The most members, voters and learners together.
pub const NODES_MAX: usize = 250;
/// The containers that a node has addresses for: those of its /24 without the network's own, the bridge's
/// and the one for all.
pub const NODE_ADDRESSES: u32 = 253;
/// The most tokens kept; expired and used-up ones make room.
pub const TOKENS_MAX: usize = 1_024;
/// The most voters the leader promotes.
pub const VOTERS_TARGET: usize = 5;
/// The largest bundle read, in bytes.
pub const BUNDLE_BYTES_MAX: usize = 1 << 20;
/// How deep the values of a bundle may be nested; its keys need 4.
pub const BUNDLE_DEPTH_MAX: usize = 16;
/// The most values of a bundle, counted with every alias written out.
pub const BUNDLE_NODES_MAX: usize = 20_000;
/// The most faults of one bundle that are reported; those after them are only counted.
pub const BUNDLE_FAULTS_MAX: usize = 100;
/// The longest path of a specification, in bytes: the kernel's bound without its end.
pub const PATH_BYTES_MAX: usize = 4_095;
/// The largest specification stored, in encoded bytes.
pub const SPEC_BYTES_MAX: usize = 256 << 10;
/// The largest peer message, in bytes. Snapshots and images travel in streams.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// The most writes that share one log entry.
pub const WRITES_PER_ENTRY_MAX: usize = 1_024;

/// How long a write waits for the cluster before it fails, naming what is missing.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a stopping container has before SIGKILL when its bundle does not say, in seconds.
pub const STOP_TIMEOUT_S: u32 = 10;
/// The longest time a bundle may give a container to stop, in seconds.
pub const STOP_TIMEOUT_S_MAX: u32 = 3_600;
/// The longest interval and timeout of a health check; the shortest interval is
/// [`PROBE_INTERVAL_MIN`].
pub const PROBE_MAX: Duration = Duration::from_secs(86_400);
/// Between two probes when the bundle does not say.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(10);
/// What a probe may take when the bundle does not say.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Failed probes in a row that make a container unhealthy when the bundle does not say.
pub const PROBE_RETRIES: u32 = 3;
/// The most failed probes in a row a bundle may allow.
pub const PROBE_RETRIES_MAX: u32 = 1_000;
/// The least memory a container may be limited to, in bytes: with less, its start fails.
pub const MEMORY_LIMIT_MIN: u64 = 6 << 20;

/// The largest manifest, index or configuration of an image read, in bytes: what registries take.
pub const IMAGE_DOCUMENT_BYTES_MAX: usize = 4 << 20;
/// The most entries of an index of an image.
pub const IMAGE_INDEX_ENTRIES_MAX: usize = 1_000;
/// The largest layers and configuration of an image together, compressed, in bytes; also the largest
/// archive of images, unpacked.
pub const IMAGE_BYTES_MAX: u64 = 128 << 30;
/// The largest root file system of an image, in bytes.
pub const IMAGE_UNPACKED_BYTES_MAX: u64 = 128 << 30;
/// The most files of a root file system of an image.
pub const IMAGE_UNPACKED_FILES_MAX: u64 = 4_000_000;
/// A layer that unpacks to more than this, in bytes, and [`IMAGE_RATIO_MAX`] times its size, is
/// refused: what has content does not compress so well, what is made to fill disks does.
pub const IMAGE_RATIO_FREE_BYTES: u64 = 1 << 30;
/// See [`IMAGE_RATIO_FREE_BYTES`].
pub const IMAGE_RATIO_MAX: u64 = 200;
/// The longest USER, STOPSIGNAL, operating system and architecture of an image, in bytes.
pub const IMAGE_USER_BYTES_MAX: usize = 1 << 10;
/// The longest WORKDIR of an image, in bytes: the kernel's bound of a path.
pub const IMAGE_PATH_BYTES_MAX: usize = 4 << 10;
/// The most entries of each of an image's ENV, ENTRYPOINT and CMD.
pub const IMAGE_LIST_ENTRIES_MAX: usize = 4_096;
/// The most bytes of each of an image's ENV, ENTRYPOINT and CMD: half of what a program can be given.
pub const IMAGE_LIST_BYTES_MAX: usize = 1 << 20;
/// The largest `/etc/passwd` or `/etc/group` of an image read, in bytes.
pub const IMAGE_ACCOUNTS_BYTES_MAX: u64 = 4 << 20;
/// How long a member may take to say whether it has an image before a registry is asked.
pub const IMAGE_ASK_DEADLINE: Duration = Duration::from_secs(1);
/// How long a submission waits for the registry of an image that some member has already.
pub const RESOLVE_KNOWN_DEADLINE: Duration = Duration::from_secs(1);
/// How long a submission waits for the registry of an image that no member has.
pub const RESOLVE_DEADLINE: Duration = Duration::from_secs(2);
/// The most moves that one rebalancing proposes: each takes seconds, and people wait for it.
pub const MOVES_MAX: usize = 100;
/// Processes and threads of a container whose bundle does not say: enough for what is honest, too few
/// for what forks without end to take the machine along.
pub const PIDS_LIMIT: i64 = 4_096;
