//! What runc says of a program that it cannot run.

use std::path::Path;

/// Why a program cannot be run in a container, where the program is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unrunnable {
    /// It is not there.
    NotFound,
    /// It is there and is no program, or not this user's to run.
    NotExecutable,
    /// The directory it is to start in is not there, or none, or not this user's to enter.
    NoDirectory,
}

impl Unrunnable {
    /// What a message of runc says of `program`, which is to start in `directory`; `None` when something
    /// else is to blame.
    pub(crate) fn of(program: &str, directory: &Path, message: &str) -> Option<Self> {
        // A container's directory that is not there is made before its program starts.
        let unmade = |path: &Path| {
            let made = format!("mkdir {}: ", path.display());
            ["not a directory", "file exists"].iter().any(|why| message.contains(&format!("{made}{why}")))
        };
        if message.contains("chdir to cwd") || directory.ancestors().any(unmade) {
            return Some(Self::NoDirectory);
        }
        if !message.contains(&format!("exec: \"{program}\"")) {
            return None;
        }
        let denied = message.contains("permission denied") || message.contains("is a directory");
        Some(if denied { Self::NotExecutable } else { Self::NotFound })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Unrunnable;

    #[test]
    fn a_missing_program_is_told_from_one_that_is_none() {
        let of = |why: &str| {
            let message = format!(
                "failed to create shim task: OCI runtime create failed: runc create failed: unable to start \
                 container process: exec: \"nope\": {why}: unknown"
            );
            let of = |program| Unrunnable::of(program, Path::new("/"), &message);
            (of("nope"), of("other"))
        };
        assert_eq!(of("executable file not found in $PATH"), (Some(Unrunnable::NotFound), None));
        assert_eq!(of("stat /bin/nope: no such file or directory"), (Some(Unrunnable::NotFound), None));
        assert_eq!(of("permission denied"), (Some(Unrunnable::NotExecutable), None));
        let nowhere = "chdir to cwd (\"/nope\") set in config.json failed: no such file or directory";
        assert_eq!(Unrunnable::of("sh", Path::new("/nope"), nowhere), Some(Unrunnable::NoDirectory));
        assert_eq!(Unrunnable::of("nope", Path::new("/"), "no space left on device"), None);
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_told_from_others() {
        let check = |directory: &str, why: &str, expect: Option<Unrunnable>| {
            let message = format!(
                "runc create failed: unable to start container process: error during container init: {why}: unknown"
            );
            assert_eq!(Unrunnable::of("sh", Path::new(directory), &message), expect, "{directory}: {why}");
        };
        let file = "mkdir /etc/passwd: not a directory";
        check("/etc/passwd", file, Some(Unrunnable::NoDirectory));
        check("/etc/passwd/below/it", file, Some(Unrunnable::NoDirectory));
        check("/dangling", "mkdir /dangling: file exists", Some(Unrunnable::NoDirectory));
        check("/srv", file, None);
        check("/srv", "mkdir /srv: no space left on device", None);
    }
}
