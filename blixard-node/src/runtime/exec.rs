//! Processes started in running containers, connected through fifos.
//!
//! A fifo's reader sees its end as soon as no writer is left, and cannot be told from one that has
//! had no writer yet; so both ends are held open here until the shim has opened its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use blixard_core::id::ContainerId;
use blixard_core::limits::EXEC_SESSIONS_MAX;
use containerd_client::services::v1::snapshots::MountsRequest;
use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, KillRequest, ResizePtyRequest, StartRequest,
    WaitRequest,
};
use oci_spec::runtime::{BoxBuilder, Process, Spec, User, UserBuilder};
use prost_types::Any;
use rustix::fs::{FileType, Mode};
use tokio::io::AsyncWrite;
use tokio::net::unix::pipe;
use tokio::sync::OwnedSemaphorePermit;

use super::client::{Client, disk, failed, found};
use super::containers::Containers;
use super::images::SNAPSHOTTER;
use super::rootfs::Rootfs;
use super::runc::Unrunnable;
use super::{spec, user};
use crate::platform::{ExecConfig, ExecIo, ExecSession, RuntimeError};

const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const SIGKILL: u32 = 9;

impl Containers {
    /// Starts a process in a running container.
    pub(crate) async fn exec(
        &self,
        id: &ContainerId,
        config: &ExecConfig,
    ) -> Result<Box<dyn ExecSession>, RuntimeError> {
        let program = config
            .command
            .first()
            .ok_or_else(|| RuntimeError::Invalid("name the program to run".to_owned()))?
            .clone();
        let permit = Arc::clone(&self.exec_sessions).try_acquire_owned().map_err(|_| {
            RuntimeError::Unavailable(format!(
                "{EXEC_SESSIONS_MAX} programs are being run in containers of this node, and no more are at a time"
            ))
        })?;
        let process = self.exec_process(id, config).await?;
        let value = serde_json::to_vec(&process)
            .map_err(|error| RuntimeError::Invalid(format!("cannot encode the process: {error}")))?;
        // Random: processes of an earlier daemon's sessions may still be there.
        let number: u64 = rand::random();
        let target = Target { container: id.0.clone(), exec: format!("exec-{number:016x}") };
        let directory = self.files.exec().join(&target.exec);
        let fifos =
            Fifos::create(directory, config).map_err(|error| disk("make the session's fifos", &error))?;
        let request = ExecProcessRequest {
            container_id: target.container.clone(),
            exec_id: target.exec.clone(),
            stdin: fifos.path("stdin", config.stdin),
            stdout: fifos.path("stdout", true),
            stderr: fifos.path("stderr", !config.tty),
            terminal: config.tty,
            spec: Some(Any { type_url: PROCESS_TYPE.to_owned(), value }),
        };
        let mut tasks = self.client.tasks();
        tasks
            .exec(self.client.request(request))
            .await
            .map_err(|status| failed("start a process in the container", &status))?;
        // From here on the session removes the process, also when it is dropped.
        let mut session = Session::new(self.client.clone(), target, fifos, permit);
        let request = StartRequest { container_id: id.0.clone(), exec_id: session.target.exec.clone() };
        if let Err(status) = tasks.start(self.client.request(request)).await {
            return match Unrunnable::of(&program, process.cwd(), status.message()) {
                Some(why) => Ok(Box::new(Unstarted::new(&program, &process, why))),
                None => Err(failed(&format!("run `{program}` in the container"), &status)),
            };
        }
        session.connected();
        Ok(Box::new(session))
    }

    /// The process's specification: the container's own, changed as asked for.
    async fn exec_process(&self, id: &ContainerId, config: &ExecConfig) -> Result<Process, RuntimeError> {
        let container = self.client.container(&id.0).await?;
        let container = container.ok_or_else(|| {
            RuntimeError::NotFound(format!("there is no container {} on this node", id.short()))
        })?;
        let spec: Option<Spec> = container.spec.and_then(|any| serde_json::from_slice(&any.value).ok());
        let mut process = spec
            .and_then(|spec| spec.process().clone())
            .ok_or_else(|| RuntimeError::NotFound(format!("container {} has no process", id.short())))?;
        let terminal = config.tty.then(|| "TERM=xterm".to_owned());
        let own = process.env().clone().unwrap_or_default();
        let env = spec::merge_environment(terminal.into_iter().chain(own).chain(config.environment.clone()));
        process.set_args(Some(config.command.clone())).set_terminal(Some(config.tty)).set_env(Some(env));
        if config.tty && config.columns > 0 && config.rows > 0 {
            let size = BoxBuilder::default().width(config.columns).height(config.rows).build();
            process.set_console_size(Some(size.map_err(|error| RuntimeError::Invalid(error.to_string()))?));
        }
        if let Some(workdir) = &config.workdir {
            process.set_cwd(PathBuf::from(workdir));
        }
        if let Some(wanted) = &config.user {
            let user = self.exec_user(id, wanted).await?;
            let bounding = process.capabilities().as_ref().and_then(|own| own.bounding().clone());
            let capabilities = spec::capabilities(user.uid(), bounding.unwrap_or_default())
                .map_err(|error| RuntimeError::Invalid(error.to_string()))?;
            process.set_user(user).set_capabilities(Some(capabilities));
        }
        Ok(process)
    }

    async fn exec_user(&self, id: &ContainerId, wanted: &str) -> Result<User, RuntimeError> {
        let request = MountsRequest { snapshotter: SNAPSHOTTER.to_owned(), key: id.0.clone() };
        let answer = self.client.snapshots().mounts(self.client.request(request)).await;
        let mounts =
            answer.map_err(|status| failed("find the root file system", &status))?.into_inner().mounts;
        let (rootfs, wanted) = (Rootfs::from_mounts(&mounts), wanted.to_owned());
        super::blocking(move || {
            let user = user::in_rootfs(&wanted, rootfs.as_ref())?;
            UserBuilder::default()
                .uid(user.uid)
                .gid(user.gid)
                .additional_gids(user.groups)
                .build()
                .map_err(|error| RuntimeError::Invalid(error.to_string()))
        })
        .await
    }
}

/// A program that the container cannot run: a session that says so and ends, with the codes that a
/// shell has for it (POSIX, Shell Command Language, section 2.8.2).
struct Unstarted {
    words: String,
    code: u32,
    tty: bool,
}

impl Unstarted {
    const NOT_EXECUTABLE: u32 = 126;
    const NOT_FOUND: u32 = 127;

    fn new(program: &str, process: &Process, why: Unrunnable) -> Self {
        let (words, code) = match why {
            Unrunnable::NotExecutable => {
                (format!("the command `{program}` cannot be executed"), Self::NOT_EXECUTABLE)
            }
            Unrunnable::NotFound => {
                (format!("the command `{program}` is not in the container"), Self::NOT_FOUND)
            }
            Unrunnable::NoDirectory => {
                let directory = process.cwd().display();
                (format!("the container has no directory `{directory}` to start in"), Self::NOT_EXECUTABLE)
            }
        };
        let tty = process.terminal().unwrap_or(false);
        let end = if tty { "\r\n" } else { "\n" };
        Self { words: words + end, code, tty }
    }
}

#[async_trait]
impl ExecSession for Unstarted {
    fn take_io(&mut self) -> ExecIo {
        let words = Box::pin(io::Cursor::new(std::mem::take(&mut self.words).into_bytes()));
        match self.tty {
            true => ExecIo { stdin: None, stdout: words, stderr: None },
            false => ExecIo { stdin: None, stdout: Box::pin(tokio::io::empty()), stderr: Some(words) },
        }
    }

    async fn resize(&mut self, _columns: u16, _rows: u16) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn wait(&mut self) -> Result<u32, RuntimeError> {
        Ok(self.code)
    }
}

/// A process in a container, by containerd's names.
#[derive(Debug, Clone)]
struct Target {
    container: String,
    exec: String,
}

/// The fifos of one session, and our ends of them.
struct Fifos {
    directory: PathBuf,
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    /// Both ends of each, held until the shim has its own.
    keepers: Vec<fs::File>,
}

impl Fifos {
    fn create(directory: PathBuf, config: &ExecConfig) -> io::Result<Self> {
        super::files::absent_is_fine(fs::remove_dir_all(&directory))?;
        fs::create_dir_all(&directory)?;
        let mut fifos = Self { directory, stdin: None, stdout: None, stderr: None, keepers: Vec::new() };
        let options = pipe::OpenOptions::new();
        if config.stdin {
            fifos.stdin = Some(options.open_sender(fifos.make("stdin")?)?);
        }
        fifos.stdout = Some(options.open_receiver(fifos.make("stdout")?)?);
        if !config.tty {
            fifos.stderr = Some(options.open_receiver(fifos.make("stderr")?)?);
        }
        Ok(fifos)
    }

    fn make(&mut self, name: &str) -> io::Result<PathBuf> {
        let path = self.directory.join(name);
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        self.keepers.push(fs::File::options().read(true).write(true).open(&path)?);
        Ok(path)
    }

    fn path(&self, name: &str, used: bool) -> String {
        if used { self.directory.join(name).to_string_lossy().into_owned() } else { String::new() }
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        if let Err(error) = remove_directory(&self.directory) {
            tracing::warn!(path = %self.directory.display(), err = %error, "cannot remove the fifos of a session");
        }
    }
}

fn remove_directory(directory: &Path) -> io::Result<()> {
    super::files::absent_is_fine(fs::remove_dir_all(directory))
}

/// A session: killed and removed when dropped before its end.
struct Session {
    client: Client,
    target: Target,
    fifos: Fifos,
    exit: Option<u32>,
    /// The end of the process; asked for once, so that waiting may be given up and taken up again.
    wait: Option<tokio::task::JoinHandle<Result<u32, RuntimeError>>>,
    _permit: OwnedSemaphorePermit,
}

impl Session {
    fn new(client: Client, target: Target, fifos: Fifos, permit: OwnedSemaphorePermit) -> Self {
        Self { client, target, fifos, exit: None, wait: None, _permit: permit }
    }

    /// The shim has opened its ends: from now on the streams end when it closes them.
    fn connected(&mut self) {
        self.fifos.keepers.clear();
        let (client, target) = (self.client.clone(), self.target.clone());
        self.wait = Some(tokio::spawn(async move {
            let request = WaitRequest { container_id: target.container, exec_id: target.exec };
            let answer = client.tasks().wait(client.unbounded(request)).await;
            let answer = answer.map_err(|status| failed("wait for the process", &status))?;
            Ok(answer.into_inner().exit_status)
        }));
    }
}

#[async_trait]
impl ExecSession for Session {
    fn take_io(&mut self) -> ExecIo {
        let stdin = self.fifos.stdin.take().map(|pipe| {
            let stdin = Stdin { pipe: Some(pipe), client: self.client.clone(), target: self.target.clone() };
            Box::pin(stdin) as Pin<Box<dyn AsyncWrite + Send>>
        });
        let stdout: Pin<Box<dyn tokio::io::AsyncRead + Send>> = match self.fifos.stdout.take() {
            Some(pipe) => Box::pin(pipe),
            None => Box::pin(tokio::io::empty()),
        };
        let stderr =
            self.fifos.stderr.take().map(|pipe| Box::pin(pipe) as Pin<Box<dyn tokio::io::AsyncRead + Send>>);
        ExecIo { stdin, stdout, stderr }
    }

    async fn resize(&mut self, columns: u16, rows: u16) -> Result<(), RuntimeError> {
        let request = ResizePtyRequest {
            container_id: self.target.container.clone(),
            exec_id: self.target.exec.clone(),
            width: columns.into(),
            height: rows.into(),
        };
        let answer = self.client.tasks().resize_pty(self.client.request(request)).await;
        answer.map(|_| ()).map_err(|status| failed("resize the terminal", &status))
    }

    async fn wait(&mut self) -> Result<u32, RuntimeError> {
        if let Some(code) = self.exit {
            return Ok(code);
        }
        let Some(wait) = &mut self.wait else {
            return Err(RuntimeError::NotFound("the process has not started".to_owned()));
        };
        let code = wait.await.map_err(|error| RuntimeError::Unavailable(error.to_string()))??;
        self.exit = Some(code);
        Ok(code)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(wait) = &self.wait {
            wait.abort();
        }
        let (client, target, running) = (self.client.clone(), self.target.clone(), self.exit.is_none());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            if let Err(error) = end(&client, target, running).await {
                tracing::debug!(err = %error, "cannot remove an ended session's process");
            }
        });
    }
}

/// Kills a session's process unless it has ended, and removes it.
async fn end(client: &Client, target: Target, running: bool) -> Result<(), RuntimeError> {
    let Target { container, exec } = target;
    let mut tasks = client.tasks();
    if running {
        let request = KillRequest {
            container_id: container.clone(),
            exec_id: exec.clone(),
            signal: SIGKILL,
            all: false,
        };
        // One that never started cannot be killed, and need not be.
        if tasks.kill(client.request(request)).await.is_ok() {
            let request = WaitRequest { container_id: container.clone(), exec_id: exec.clone() };
            found(tasks.wait(client.request(request)).await, "wait for the process")?;
        }
    }
    let request = DeleteProcessRequest { container_id: container, exec_id: exec };
    found(tasks.delete_process(client.request(request)).await, "remove the process").map(|_| ())
}

/// A session's standard input. The shim holds the fifo open too, so that closing it here is not
/// enough to end the process's input.
struct Stdin {
    pipe: Option<pipe::Sender>,
    client: Client,
    target: Target,
}

impl Stdin {
    fn close(&mut self) {
        if self.pipe.take().is_none() {
            return;
        }
        let (client, target) = (self.client.clone(), self.target.clone());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let request =
                CloseIoRequest { container_id: target.container, exec_id: target.exec, stdin: true };
            if let Err(status) = client.tasks().close_io(client.request(request)).await {
                tracing::debug!(err = status.message(), "cannot close a session's input");
            }
        });
    }
}

impl AsyncWrite for Stdin {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.pipe {
            Some(pipe) => Pin::new(pipe).poll_write(cx, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stdin {
    fn drop(&mut self) {
        self.close();
    }
}
