//! What runc says of a program that it cannot run.

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
    /// What a message of runc says of `program`; `None` when something else is to blame.
    pub(crate) fn of(program: &str, message: &str) -> Option<Self> {
        if message.contains("chdir to cwd") {
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
    use super::Unrunnable;

    #[test]
    fn a_missing_program_is_told_from_one_that_is_none() {
        let of = |why: &str| {
            let message = format!(
                "failed to create shim task: OCI runtime create failed: runc create failed: unable to start \
                 container process: exec: \"nope\": {why}: unknown"
            );
            (Unrunnable::of("nope", &message), Unrunnable::of("other", &message))
        };
        assert_eq!(of("executable file not found in $PATH"), (Some(Unrunnable::NotFound), None));
        assert_eq!(of("stat /bin/nope: no such file or directory"), (Some(Unrunnable::NotFound), None));
        assert_eq!(of("permission denied"), (Some(Unrunnable::NotExecutable), None));
        let nowhere = "chdir to cwd (\"/nope\") set in config.json failed: no such file or directory";
        assert_eq!(Unrunnable::of("sh", nowhere), Some(Unrunnable::NoDirectory));
        assert_eq!(Unrunnable::of("nope", "no space left on device"), None);
    }
}
