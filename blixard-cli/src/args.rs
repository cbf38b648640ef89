//! Options that several commands share: which node is asked, how long is waited, how is printed.
//! Knows no command.

use std::path::{Path, PathBuf};
use std::time::Duration;

use blixard_core::bundle::parse_duration;
use blixard_core::time::UtcMs;
use clap::ValueEnum;

/// Which node is asked.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Which node")]
pub(crate) struct Connection {
    /// The node's API: unix:///path/to/blixard.sock, http://127.0.0.1:8082 or https://NAME:8082
    #[arg(long, global = true, env = "BLIXARD_HOST", value_name = "URL")]
    pub(crate) host: Option<String>,
    /// The node's data directory [default: /var/lib/blixard, else the one ./data/node*]
    #[arg(long, global = true, env = "BLIXARD_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// An API token, needed over http:// and https://
    #[arg(long, global = true, env = "BLIXARD_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Who vouches for the node's certificate over https://, PEM [default: whom this machine trusts]
    #[arg(long, global = true, env = "BLIXARD_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
}

impl Connection {
    /// The data directory, when one is named; an empty variable names none.
    pub(crate) fn data_dir(&self) -> Option<&Path> {
        self.data_dir.as_deref().filter(|dir| !dir.as_os_str().is_empty())
    }
}

/// Whether and how long to wait until containers are gone.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct WaitArgs {
    /// Do not wait until the containers are gone
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// How long it may take in all, in seconds or as 1m30s
    #[arg(long, default_value = "120s", value_name = "TIME", value_parser = time)]
    pub(crate) timeout: Duration,
}

/// Reads a time: `90` seconds, or with units, `1m30s`.
///
/// # Errors
/// Why it is none.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    parse_duration(text).map_err(|why| format!("{why}; for example 90 (seconds), 90s or 1m30s"))
}

/// From this number on a bare number is a Unix time: as seconds ago it would be before Unix.
const UNIX_TIME_MIN: u64 = 1_000_000_000;

/// Reads a moment: a time such as `2026-11-21T08:30:00Z`, a Unix time in seconds, or how long ago, `10m`.
///
/// # Errors
/// Why it is none.
pub(crate) fn moment(text: &str) -> Result<UtcMs, String> {
    moment_told_at(crate::render::text::now(), text)
}

fn moment_told_at(now: UtcMs, text: &str) -> Result<UtcMs, String> {
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    if let Some(seconds) = text.parse().ok().filter(|seconds: &u64| *seconds >= UNIX_TIME_MIN) {
        return Ok(UtcMs(seconds.saturating_mul(1000)));
    }
    let ago = time(text)
        .map_err(|_| "give a time such as 2026-11-21T08:30:00Z, or how long ago: 10m".to_owned())?;
    let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
    Ok(UtcMs(now.0.saturating_sub(ago)))
}

/// How a command prints what it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Output {
    /// For people
    #[default]
    Table,
    /// The API's JSON, whose fields are only ever added to
    Json,
}

/// The option for [`Output`].
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct OutputArgs {
    /// How to print: for people, or the API's JSON (see docs/reference; fields are only ever added)
    #[arg(short, long, visible_alias = "format", value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Output,
}

#[cfg(test)]
mod tests {
    use blixard_core::time::UtcMs;

    use super::moment_told_at;

    #[test]
    fn a_moment_is_a_time_a_unix_time_or_how_long_ago() {
        let now = UtcMs(1_795_905_000_123);
        let moment = |text: &str| moment_told_at(now, text);
        assert_eq!(moment("1970-01-01T00:00:05Z"), Ok(UtcMs(5_000)));
        assert_eq!(moment("1970-01-01T02:00:05+02:00"), Ok(UtcMs(5_000)));
        assert_eq!(moment("1795869558"), Ok(UtcMs(1_795_869_558_000)));
        for (ago, milliseconds) in [("90", 90_000), ("10m", 600_000), ("1h30m", 5_400_000), ("0", 0)] {
            assert_eq!(moment(ago), Ok(UtcMs(now.0 - milliseconds)), "{ago}");
        }
        for wrong in ["", "yesterday", "2026-11-28", "12:00", "-5m", "99999999999999999999"] {
            assert!(moment(wrong).unwrap_err().contains("2026-11-21T08:30:00Z"), "{wrong}");
        }
    }
}
