//! A private containerd: started in a session of its own, so that it and the containers outlive
//! the daemon, found again by its pid file, and started again, with back-off, whenever it dies.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};

use super::client::disk;
use super::shims::{comm, every_process};
use crate::platform::RuntimeError;

const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A run this long forgives the deaths before it.
const BACKOFF_RESET_AFTER: Duration = Duration::from_secs(60);
/// containerd writes little; this keeps a noisy one from filling the disk.
const LOG_BYTES_MAX: u64 = 10 << 20;
const LOG_CHECK_EVERY: Duration = Duration::from_secs(60);
/// How long a stopping containerd may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// containerd and what it cannot work without, and the Debian package of each.
const PROGRAMS: [(&str, &str); 3] =
    [("containerd", "containerd"), ("containerd-shim-runc-v2", "containerd"), ("runc", "runc")];
const PROGRAM_DIRECTORIES: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The places of one private containerd.
#[derive(Debug, Clone)]
pub(crate) struct Private {
    /// The program.
    program: PathBuf,
    /// Its images and snapshots, which stay.
    root: PathBuf,
    /// Its running state, which a reboot clears.
    state: PathBuf,
    /// Where it listens. Short, since a socket's path has at most 107 bytes.
    pub(crate) socket: PathBuf,
}

impl Private {
    /// Lays out a containerd for the node with this data directory and run directory.
    ///
    /// # Errors
    /// [`RuntimeError::Invalid`] when a program is missing, naming the package that has it.
    pub(crate) fn new(data: &Path, run: &Path) -> Result<Self, RuntimeError> {
        Ok(Self { program: programs(&search_path())?, ..Self::places(data, run) })
    }

    /// Where it is, when it is only to be ended.
    pub(crate) fn places(data: &Path, run: &Path) -> Self {
        Self {
            program: PathBuf::new(),
            root: data.join("containerd"),
            state: run.join("state"),
            socket: run.join("containerd.sock"),
        }
    }

    fn config_path(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// What it says.
    pub(crate) fn log_path(&self) -> PathBuf {
        self.root.join("containerd.log")
    }

    fn pid_path(&self) -> PathBuf {
        self.root.join("containerd.pid")
    }

    /// The process that runs now, by its pid file; a number that now belongs to another program
    /// does not count. Where the file says nothing of use, by the command lines of all processes.
    pub(crate) fn running(&self) -> Option<Pid> {
        let noted = fs::read_to_string(self.pid_path()).ok().and_then(|text| text.trim().parse().ok());
        let noted = noted.and_then(Pid::from_raw).filter(|pid| self.is(*pid));
        noted.or_else(|| {
            every_process().find(|pid| comm(*pid) == Some("containerd\n".into()) && self.is(*pid))
        })
    }

    /// Whether a process is this containerd.
    fn is(&self, pid: Pid) -> bool {
        let Ok(command_line) = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())) else {
            return false;
        };
        let config = self.config_path();
        let config = config.as_os_str().as_encoded_bytes();
        command_line.split(|byte| *byte == 0).any(|argument| argument == config)
    }

    /// Starts it. Nothing else may be running for the same directories.
    fn start(&self) -> io::Result<Child> {
        fs::create_dir_all(&self.root)?;
        fs::create_dir_all(&self.state)?;
        fs::write(self.config_path(), self.config())?;
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        // setsid(1) leads no process group here, so it becomes containerd without a fork.
        let mut child = Command::new("setsid")
            .arg(&self.program)
            .arg("--config")
            .arg(self.config_path())
            .env("PATH", search_path())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(false)
            .spawn()?;
        if let Some(pid) = child.id() {
            let new = self.pid_path().with_extension("pid.new");
            let written = fs::write(&new, format!("{pid}\n")).and_then(|()| fs::rename(new, self.pid_path()));
            // One that cannot be found again would be in the way of the next.
            if let Err(error) = written {
                child.start_kill()?;
                return Err(error);
            }
        }
        Ok(child)
    }

    fn config(&self) -> String {
        let quote = |path: &Path| {
            let text = path.to_string_lossy();
            format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
        };
        let ttrpc = self.socket.with_extension("sock.ttrpc");
        format!(
            "version = 2\nroot = {}\nstate = {}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\", \
             \"io.containerd.snapshotter.v1.aufs\", \"io.containerd.snapshotter.v1.btrfs\", \
             \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\", \
             \"io.containerd.internal.v1.tracing\", \"io.containerd.tracing.processor.v1.otlp\"]\n\
             [grpc]\n  address = {}\n[ttrpc]\n  address = {}\n",
            quote(&self.root),
            quote(&self.state),
            quote(&self.socket),
            quote(&ttrpc),
        )
    }

    /// Copies a log that grew too long aside and empties it: containerd goes on appending.
    fn rotate_log(&self) -> io::Result<()> {
        let path = self.log_path();
        if fs::metadata(&path)?.len() > LOG_BYTES_MAX {
            fs::copy(&path, path.with_extension("log.1"))?;
            File::options().write(true).open(&path)?.set_len(0)?;
        }
        Ok(())
    }

    /// Keeps one running, for ever. Dropping this leaves it running.
    pub(crate) async fn supervise(self) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let since = Instant::now();
            let ended = match self.running() {
                Some(pid) => {
                    tracing::info!(containerd.pid = pid.as_raw_nonzero().get(), "private containerd found");
                    self.watch(Run::Found(pid)).await
                }
                None => match self.start() {
                    Ok(child) => {
                        tracing::info!(containerd.pid = child.id(), "private containerd started");
                        self.watch(Run::Child(Box::new(child))).await
                    }
                    Err(error) => Err(error),
                },
            };
            if since.elapsed() >= BACKOFF_RESET_AFTER {
                backoff = BACKOFF_MIN;
            }
            tracing::warn!(
                err = ended.err().map(|error| error.to_string()),
                log = %self.log_path().display(),
                retry_ms = backoff.as_millis(),
                "private containerd ended; it is started again"
            );
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Waits until the process ends, and keeps its log short meanwhile.
    async fn watch(&self, mut run: Run) -> io::Result<()> {
        loop {
            tokio::select! {
                biased;
                ended = run.ended() => return ended,
                () = tokio::time::sleep(LOG_CHECK_EVERY) => {
                    if let Err(error) = self.rotate_log() {
                        tracing::warn!(err = %error, "cannot rotate the log of containerd");
                    }
                }
            }
        }
    }

    /// Stops it and waits for its end.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`] when it does not end.
    pub(crate) async fn stop(&self) -> Result<(), RuntimeError> {
        let Some(pid) = self.running() else { return Ok(()) };
        for signal in [Signal::TERM, Signal::KILL] {
            match rustix::process::kill_process(pid, signal) {
                Ok(()) => {}
                Err(rustix::io::Errno::SRCH) => return Ok(()),
                Err(error) => return Err(disk("stop containerd", &error.into())),
            }
            let mut run = Run::Found(pid);
            if let Ok(ended) = tokio::time::timeout(STOP_TIMEOUT, run.ended()).await {
                return ended.map_err(|error| disk("wait for containerd to stop", &error));
            }
        }
        Err(RuntimeError::Unavailable("containerd does not end".to_owned()))
    }
}

/// A containerd process: this daemon's child, or one that an earlier daemon started.
enum Run {
    Child(Box<Child>),
    Found(Pid),
}

impl Run {
    /// Cancel safe.
    async fn ended(&mut self) -> io::Result<()> {
        match self {
            Self::Child(child) => child.wait().await.map(|_| ()),
            Self::Found(pid) => {
                let pidfd: OwnedFd = match rustix::process::pidfd_open(*pid, PidfdFlags::NONBLOCK) {
                    Ok(pidfd) => pidfd,
                    Err(rustix::io::Errno::SRCH) => return Ok(()),
                    Err(error) => return Err(error.into()),
                };
                #[expect(
                    deprecated,
                    reason = "its successor is unsafe to call; an owned pidfd stays open meanwhile"
                )]
                let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE)?;
                let _ready = pidfd.readable().await?;
                Ok(())
            }
        }
    }
}

/// The daemon's PATH and the usual directories.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push(PROGRAM_DIRECTORIES);
    path
}

/// Finds containerd, and what it cannot work without.
fn programs(path: &OsStr) -> Result<PathBuf, RuntimeError> {
    let mut containerd = None;
    for (program, package) in PROGRAMS {
        let found =
            std::env::split_paths(path).map(|directory| directory.join(program)).find(|file| file.is_file());
        let found = found.ok_or_else(|| {
            RuntimeError::Invalid(format!(
                "`{program}` is not installed: install the Debian package `{package}` \
                 (apt-get install containerd runc), or name a running containerd's socket with --containerd"
            ))
        })?;
        containerd.get_or_insert(found);
    }
    Ok(containerd.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::programs;

    #[test]
    fn a_missing_program_is_told_with_its_package() {
        let directory = tempfile::tempdir().expect("directory");
        let check = |expect: &str| {
            let error = programs(directory.path().as_os_str()).expect_err(expect).to_string();
            assert!(error.contains(expect), "{error}");
        };
        check("Debian package `containerd`");
        for program in ["containerd", "containerd-shim-runc-v2"] {
            std::fs::write(directory.path().join(program), "").expect("file");
        }
        check("Debian package `runc`");
        std::fs::write(directory.path().join("runc"), "").expect("file");
        let found = programs(directory.path().as_os_str()).expect("all are there");
        assert_eq!(found, directory.path().join("containerd"));
    }
}
