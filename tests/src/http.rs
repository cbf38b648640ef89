//! HTTP and TCP from inside a network namespace.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How long a server may take to accept, and between two pieces of its answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Runs `work` on a thread that stands in network namespace `name`.
///
/// # Errors
/// When there is no such namespace, and whatever `work` gives.
pub fn inside<T: Send>(name: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let path = format!("/run/netns/{name}");
            let namespace = File::open(&path).with_context(|| format!("cannot open {path}"))?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        });
        thread.join().map_err(|_| anyhow!("the thread in namespace {name} panicked"))?
    })
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// Its status, such as 200.
    pub status: u16,
    head: String,
    /// Its body.
    pub body: String,
}

impl Response {
    /// The value of a header; `name` is in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }
}

/// Asks `address` from namespace `name`, with `headers` as whole lines.
///
/// # Errors
/// When nobody answers within five seconds, or not in HTTP.
pub fn request(
    name: &str,
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[String],
    body: &[u8],
) -> Result<Response> {
    let lines: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    let mut question = format!(
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n{lines}\r\n"
    )
    .into_bytes();
    question.extend_from_slice(body);
    let answer = inside(name, || {
        let mut stream = connect(address)?;
        stream.write_all(&question)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    })?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of headers")?;
    let status = head.split_whitespace().nth(1).context("the answer has no status")?.parse()?;
    Ok(Response { status, head: head.to_owned(), body: body.to_owned() })
}

/// The status and body of `GET path` at `address`, asked from namespace `name`.
///
/// # Errors
/// When nobody answers within five seconds, or not in HTTP.
pub fn get(name: &str, address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let response = request(name, address, "GET", path, &[], &[])?;
    Ok((response.status, response.body))
}

/// Sends `question` to `address` from namespace `name` and reads at most `bytes_max` of what comes
/// back first.
///
/// # Errors
/// When nobody answers within five seconds.
pub fn converse(name: &str, address: SocketAddr, question: &[u8], bytes_max: usize) -> Result<Vec<u8>> {
    inside(name, || {
        let mut stream = connect(address)?;
        stream.write_all(question)?;
        let mut answer = vec![0; bytes_max];
        let length = stream.read(&mut answer)?;
        answer.truncate(length);
        Ok(answer)
    })
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}
