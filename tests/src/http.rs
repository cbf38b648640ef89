//! HTTP from inside a network namespace.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `work` on a thread that stands in namespace `name`.
///
/// # Errors
/// When there is no such namespace, and whatever `work` gives.
pub fn inside<T: Send>(name: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let path = format!("/run/netns/{name}");
            let namespace = File::open(&path).with_context(|| format!("cannot open {path}"))?;
            move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&namespace),
                Some(LinkNameSpaceType::Network),
            )?;
            work()
        });
        thread.join().map_err(|_| anyhow!("the thread in namespace {name} panicked"))?
    })
}

/// The status and body of `GET path` at `address`, asked from namespace `name`.
///
/// # Errors
/// When nobody answers within two seconds, or not in HTTP.
pub fn get(name: &str, address: SocketAddr, path: &str) -> Result<(u16, String)> {
    inside(name, || {
        let limit = Duration::from_secs(2);
        let mut stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of headers")?;
        let status = head.split_whitespace().nth(1).context("the answer has no status")?.parse()?;
        Ok((status, body.to_owned()))
    })
}
