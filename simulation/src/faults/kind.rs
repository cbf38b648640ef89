//! The kinds of fault.

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A daemon is killed.
    Kill,
    /// The leader's daemon is killed.
    KillLeader,
    /// A daemon dies inside a disk operation.
    DieWriting,
    /// A machine loses power.
    PowerLoss,
    /// Every machine loses power.
    PowerLossOfAll,
    /// A daemon is stopped and started again.
    Restart,
    /// Every daemon is stopped and started again, one after another.
    RollingRestart,
    /// A daemon is held where it is and goes on later.
    Pause,
    /// A node is drained and activated again.
    Drain,
    /// A node leaves, and another machine joins in its place.
    Leave,
    /// A node is removed by force, and another machine joins in its place.
    Removal,
    /// A machine is cut off from the others.
    Isolation,
    /// The leader's machine is cut off from the others.
    IsolationOfLeader,
    /// One direction between two machines is cut.
    OneWayCut,
    /// The machines fall into two halves.
    Split,
    /// What one machine sends or hears is cut and let through again, over and over.
    Flapping,
    /// Messages are late, and some links fall.
    Weather,
    /// Requests arrive twice.
    Doubling,
    /// A disk is slow.
    SlowDisk,
    /// A disk is full.
    FullDisk,
    /// Some of a disk's reads, writes and flushes fail.
    FailingDisk,
    /// A disk gives back other bytes of a store than it took.
    LyingDisk,
    /// A wall clock jumps.
    ClockJump,
    /// A machine's clocks run fast or slow.
    ClockDrift,
    /// A container's process ends.
    ContainerExit,
    /// The container runtime ends and is started again; containers go on.
    RuntimeRestart,
    /// Pulls fail often.
    PullTrouble,
    /// Starts fail often, having made the container or not.
    StartTrouble,
    /// Removals fail often.
    RemoveTrouble,
    /// Starts and removals fail often.
    RuntimeTrouble,
    /// Calls of the runtime take long, and what they answer may be old.
    SlowRuntime,
    /// Processes end soon after they were started, some before it is said that they run.
    CrashLoop,
    /// A registry file is missing.
    RegistryMissing,
    /// A registry file is what a former member wrote.
    RegistryStale,
    /// A registry file is damaged.
    RegistryMalformed,
    /// A registry file names somebody nobody knows.
    RegistryStranger,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Self; 36] = [
        Self::Kill,
        Self::KillLeader,
        Self::DieWriting,
        Self::PowerLoss,
        Self::PowerLossOfAll,
        Self::Restart,
        Self::RollingRestart,
        Self::Pause,
        Self::Drain,
        Self::Leave,
        Self::Removal,
        Self::Isolation,
        Self::IsolationOfLeader,
        Self::OneWayCut,
        Self::Split,
        Self::Flapping,
        Self::Weather,
        Self::Doubling,
        Self::SlowDisk,
        Self::FullDisk,
        Self::FailingDisk,
        Self::LyingDisk,
        Self::ClockJump,
        Self::ClockDrift,
        Self::ContainerExit,
        Self::RuntimeRestart,
        Self::PullTrouble,
        Self::StartTrouble,
        Self::RemoveTrouble,
        Self::RuntimeTrouble,
        Self::SlowRuntime,
        Self::CrashLoop,
        Self::RegistryMissing,
        Self::RegistryStale,
        Self::RegistryMalformed,
        Self::RegistryStranger,
    ];

    /// Whether a daemon ends without being asked.
    pub fn is_crash(self) -> bool {
        matches!(
            self,
            Self::Kill | Self::KillLeader | Self::DieWriting | Self::PowerLoss | Self::PowerLossOfAll
        )
    }

    /// Whether machines cannot hear each other.
    pub fn is_partition(self) -> bool {
        matches!(
            self,
            Self::Isolation | Self::IsolationOfLeader | Self::OneWayCut | Self::Split | Self::Flapping
        )
    }
}
