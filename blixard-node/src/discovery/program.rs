//! A program that prints members: what a cloud's metadata, an inventory or anything else says.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::discovery::contact::Contact;
use blixard_core::discovery::file::{self, FILE_BYTES_MAX};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::Seams;
use super::source::{Source, SourceError};
use crate::config::SECRET_VARIABLES;

/// How long it may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often it is started at most.
const PAUSE: Duration = Duration::from_secs(5);
/// How much of what it says on its standard error is read.
const ERROR_BYTES_MAX: u64 = 4 << 10;

/// The source.
pub(super) struct Program(pub(super) PathBuf);

impl Program {
    async fn output(&self) -> Result<String, String> {
        let mut command = Command::new(&self.0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // With what it starts: none of it is to outlive the deadline.
        command.process_group(0).kill_on_drop(true);
        for name in SECRET_VARIABLES {
            command.env_remove(name);
        }
        let mut child = command.spawn().map_err(|error| format!("cannot be started: {error}"))?;
        let group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
        let stdout = child.stdout.take().ok_or("has no output")?;
        let stderr = child.stderr.take().ok_or("has no error output")?;
        let reading = async {
            let output = read(stdout, FILE_BYTES_MAX + 1);
            let errors = read(stderr, ERROR_BYTES_MAX);
            let (output, errors) = tokio::join!(output, errors);
            (output, errors, child.wait().await)
        };
        let (output, errors, ended) = tokio::time::timeout(DEADLINE, reading)
            .await
            .map_err(|_| format!("takes longer than {} s", DEADLINE.as_secs()))?;
        drop(group);
        // Before how it ended: nobody read the rest, of which some die.
        if u64::try_from(output.len()).is_ok_and(|length| length > FILE_BYTES_MAX) {
            return Err(format!("prints more than {FILE_BYTES_MAX} bytes"));
        }
        let ended = ended.map_err(|error| error.to_string())?;
        if !ended.success() {
            let said = errors.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
            return Err(format!("ended with {ended}: {}", blixard_core::text::printable(said)));
        }
        Ok(output)
    }
}

/// At most so much of a stream, whose rest is not waited for.
async fn read(stream: impl AsyncRead + Unpin, bytes_max: u64) -> String {
    let mut bytes = Vec::new();
    // What was read before a fault is as good.
    stream.take(bytes_max).read_to_end(&mut bytes).await.ok();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A program and what it started; killed when dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Most often nobody is left.
            kill_process_group(group, Signal::KILL).ok();
        }
    }
}

#[async_trait]
impl Source for Program {
    fn name(&self) -> String {
        format!("exec:{}", self.0.display())
    }

    fn pause(&self) -> Duration {
        PAUSE
    }

    async fn look(&self, _: Seams<'_>) -> Result<Vec<Contact>, SourceError> {
        let name = self.name();
        let output =
            self.output().await.map_err(|reason| SourceError::Silent { name: name.clone(), reason })?;
        Ok(file::parse(&name, &output)?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::{Program, Source};
    use crate::discovery::testing::{World, run};

    #[test]
    fn what_a_program_prints_is_read_and_what_goes_wrong_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inventory");
        let look = |script: &str| {
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
            let looked = run(Program(path.clone()).look(World::default().seams()));
            looked.map(|contacts| contacts.len()).map_err(|error| error.to_string())
        };
        let member =
            format!(r#"{{"iroh_node_id": "{}", "direct_addresses": ["10.0.0.1:1"]}}"#, "08".repeat(32));
        assert_eq!(look(&format!("echo '[{member}, {member}]'")), Ok(2));
        assert_eq!(look(&format!("echo '{member}'")), Ok(1));
        let check = |script: &str, expect: &str| {
            let error = look(script).unwrap_err();
            assert!(error.contains(expect) && error.contains("inventory"), "{error}");
        };
        check("echo no credentials >&2; exit 3", "exit status: 3: no credentials");
        check("echo '[{]'", ":1:");
        check("", "empty");
        check("yes | head -c 3000000", "more than");
        std::fs::remove_file(&path).unwrap();
        let gone = run(Program(path).look(World::default().seams())).unwrap_err().to_string();
        assert!(gone.contains("cannot be started"), "{gone}");
    }
}
