//! Logging: tracing's events to standard error, as text for people or as JSON lines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Begins to log what `directives` name (`info`, `blixard_node=debug,warn`). Colours are used on a
/// terminal that does not refuse them by `NO_COLOR`.
///
/// # Errors
/// When the directives cannot be read, or logging has begun before.
pub(crate) fn init(
    directives: &str,
    format: LogFormat,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let filter = EnvFilter::try_new(directives).map_err(|error| {
        format!(
            "--log: `{directives}` cannot be read: {error}; write for example info or blixard_node=debug,warn"
        )
    })?;
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => subscriber.with_ansi(colour).try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    }
}
