//! `blixard exec`

use std::ffi::OsString;
use std::io::{self, Write};
use std::pin::pin;
use std::process::ExitCode;

use anyhow::Context;
use blixard_core::api::exec::{ExecRequest, Frame};
use bytes::BytesMut;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};

use crate::client::{Client, segment};
use crate::failure::{self, Failure};
use crate::render::terminal::{self, RawMode};

/// How much input is read at once, in bytes.
const CHUNK_BYTES: usize = 16 << 10;

/// Run a program in a container, on whichever node it is
///
/// Exits with the program's exit code: with 127 when there is no such program, with 126 when it cannot
/// be executed.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  blixard exec web-0 cat /etc/hostname\n  blixard exec -it 3f2a9c sh\n  blixard exec -i db psql < dump.sql"
)]
pub(crate) struct Args {
    /// Connect the program's standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    tty: bool,
    /// An environment variable, or the name of one to hand on as it is here (repeatable)
    #[arg(short, long = "env", value_name = "K=V|K")]
    environment: Vec<String>,
    /// The user to run as
    #[arg(short, long, value_name = "UID[:GID]")]
    user: Option<String>,
    /// The directory to start in
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// A replica such as web-0, a service with one replica, or a container id or prefix
    #[arg(value_name = "NAME|ID")]
    target: String,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<String>,
}

pub(crate) async fn exec(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    if args.tty && args.interactive && !terminal::stdin_is_terminal() {
        let hint = "leave out -t";
        return Err(Failure::new("the input is not a terminal", hint).into());
    }
    let (columns, rows) = terminal::size().filter(|_| args.tty).unwrap_or_default();
    let request = ExecRequest {
        command: args.command,
        tty: args.tty,
        stdin: args.interactive,
        columns,
        rows,
        environment: environment(args.environment, |name| std::env::var_os(name))?,
        workdir: args.workdir,
        user: args.user,
    };
    let stream = client.exec(&format!("/v1/replicas/{}/exec", segment(&args.target)), &request).await?;
    // Dropped, and so restored, however the session ends.
    let _raw = (args.tty && args.interactive).then(RawMode::enter).transpose()?;
    session(TokioIo::new(stream), args.interactive, args.tty).await
}

/// The settings as `K=V`: a name alone takes the value it has here, and is left out where it has none.
fn environment(
    settings: Vec<String>,
    value: impl Fn(&str) -> Option<OsString>,
) -> anyhow::Result<Vec<String>> {
    let mut complete = Vec::new();
    for setting in settings {
        match setting.find('=') {
            Some(0) => {
                return Err(Failure::new(format!("-e {setting} names no variable"), "-e NAME=VALUE").into());
            }
            Some(_) => complete.push(setting),
            None if setting.is_empty() => {
                return Err(Failure::new("-e names no variable", "-e NAME=VALUE").into());
            }
            None => match value(&setting).map(OsString::into_string) {
                Some(Ok(value)) => complete.push(format!("{setting}={value}")),
                Some(Err(_)) => {
                    let hint = format!("set it here: -e {setting}=VALUE");
                    return Err(Failure::new(format!("the value of {setting} is not UTF-8"), hint).into());
                }
                None => {}
            },
        }
    }
    Ok(complete)
}

/// Runs the session to its end, or until a signal that ends this command.
async fn session(
    stream: impl AsyncRead + AsyncWrite,
    interactive: bool,
    tty: bool,
) -> anyhow::Result<ExitCode> {
    let (reader, writer) = tokio::io::split(stream);
    let mut terminated = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    let mut input = pin!(send_input(writer, interactive, tty));
    let mut output = pin!(receive_output(reader));
    let mut sending = true;
    loop {
        // Cancel safe: both pumps are pinned outside the loop, and signals keep what they have.
        tokio::select! {
            biased;
            code = &mut output => return code,
            _ = terminated.recv() => return Ok(ExitCode::from(128 + 15)),
            _ = hung_up.recv() => return Ok(ExitCode::from(128 + 1)),
            // A failed write is not reported: what the other side says last says more.
            _ = &mut input, if sending => sending = false,
        }
    }
}

/// Sends what is typed, and the terminal's size whenever it changes.
async fn send_input(writer: impl AsyncWrite, interactive: bool, tty: bool) -> anyhow::Result<()> {
    let mut writer = pin!(writer);
    let mut resized = signal(SignalKind::window_change())?;
    if tty {
        send_size(&mut writer).await?;
    }
    let mut stdin = interactive.then(tokio::io::stdin);
    let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
    loop {
        // Cancel safe: a read leaves its bytes in the buffer, a signal stays pending.
        tokio::select! {
            biased;
            _ = resized.recv(), if tty => send_size(&mut writer).await?,
            read = read_some(&mut stdin, &mut buffer) => {
                if read? == 0 {
                    stdin = None;
                    send(&mut writer, &Frame::Eof).await?;
                } else {
                    send(&mut writer, &Frame::Stdin(buffer.split().to_vec())).await?;
                }
            }
        }
    }
}

/// Reads some input; never ready once there is none.
async fn read_some(stdin: &mut Option<tokio::io::Stdin>, buffer: &mut BytesMut) -> io::Result<usize> {
    let Some(stdin) = stdin else { return std::future::pending().await };
    buffer.reserve(CHUNK_BYTES);
    stdin.read_buf(buffer).await
}

async fn send_size(writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    match terminal::size() {
        Some((columns, rows)) => send(writer, &Frame::Resize { columns, rows }).await,
        None => Ok(()),
    }
}

async fn send(writer: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    writer.write_all(&frame.encode()).await?;
    writer.flush().await
}

/// Writes what the program writes, until its exit code comes.
async fn receive_output(reader: impl AsyncRead) -> anyhow::Result<ExitCode> {
    let mut reader = pin!(reader);
    let mut buffer = BytesMut::new();
    loop {
        while let Some((frame, taken)) = Frame::decode(&buffer)? {
            drop(buffer.split_to(taken));
            match frame {
                Some(Frame::Stdout(bytes)) => write(&mut io::stdout().lock(), &bytes)?,
                Some(Frame::Stderr(bytes)) => write(&mut io::stderr().lock(), &bytes)?,
                Some(Frame::Exit(code)) => return Ok(exit_code(code)),
                Some(Frame::Error(error)) => {
                    return Err(Failure::new(error, "`blixard ps` shows whether the container runs").into());
                }
                _ => {}
            }
        }
        if reader.read_buf(&mut buffer).await.context("the connection to the node broke")? == 0 {
            let error = "the connection ended before the program did";
            return Err(Failure::new(error, "`blixard node ls` shows which nodes are up").into());
        }
    }
}

fn write(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    failure::output(to.write_all(bytes).and_then(|()| to.flush()))
}

/// The program's code as ours; what does not fit is 255.
fn exit_code(code: u32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use blixard_core::api::exec::Frame;

    use super::{environment, receive_output};

    #[test]
    fn a_name_takes_the_value_it_has_here() {
        let here = |name: &str| (name == "HOME").then(|| "/root".into());
        let check = |settings: &[&str], expect: Option<&[&str]>| {
            let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
            let complete = environment(settings, here).ok();
            let expect = expect.map(|list| list.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>());
            assert_eq!(complete, expect);
        };
        check(&["A=b", "HOME", "C="], Some(&["A=b", "HOME=/root", "C="]));
        check(&["NOBODY"], Some(&[]));
        check(&["HOME="], Some(&["HOME="]));
        check(&["=b"], None);
        check(&[""], None);
    }

    #[tokio::test]
    async fn a_session_ends_with_the_programs_code_or_says_why_not() {
        let check = async |frames: &[Frame], expect: Result<u8, &str>| {
            let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
            let ended = receive_output(bytes.as_slice()).await;
            match expect {
                Ok(code) => assert_eq!(
                    format!("{:?}", ended.unwrap()),
                    format!("{:?}", std::process::ExitCode::from(code))
                ),
                Err(text) => assert_eq!(ended.unwrap_err().to_string(), text),
            }
        };
        check(&[Frame::Stdout(Vec::new()), Frame::Exit(7)], Ok(7)).await;
        check(&[Frame::Exit(300)], Ok(255)).await;
        check(&[Frame::Error("no such program".into())], Err("no such program")).await;
        check(&[], Err("the connection ended before the program did")).await;
    }
}
