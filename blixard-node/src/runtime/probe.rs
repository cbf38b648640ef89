//! Health probes: one HTTP GET.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Asks for `path`; true when the answer was 200 to 399 and came within `timeout`. The answer's
/// body is not read.
pub(crate) async fn http(address: SocketAddr, path: &str, timeout: Duration) -> bool {
    let answer = tokio::time::timeout(timeout, status(address, path)).await;
    matches!(answer, Ok(Some(200..=399)))
}

async fn status(address: SocketAddr, path: &str) -> Option<u16> {
    let stream = TcpStream::connect(address).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .header(USER_AGENT, "blixard-health")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .ok()?;
    let response = sender.send_request(request);
    tokio::pin!(response);
    let response = tokio::select! {
        biased;
        response = &mut response => response,
        // The connection may be through before its answer is picked up.
        _ended = connection => response.await,
    };
    Some(response.ok()?.status().as_u16())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::http;

    async fn answers(response: &'static str) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let address = listener.local_addr().expect("address");
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("connection");
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.expect("request");
            assert!(request[..length].starts_with(b"GET /health HTTP/1.1\r\n"));
            stream.write_all(response.as_bytes()).await.expect("response");
            // Stays open: a server that answers nothing must run into the time-out.
            std::future::pending::<()>().await;
        });
        let healthy = http(address, "/health", Duration::from_millis(300)).await;
        server.abort();
        healthy
    }

    #[tokio::test]
    async fn only_a_timely_2xx_or_3xx_is_healthy() {
        assert!(answers("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await);
        assert!(answers("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n").await);
        assert!(!answers("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n").await);
        assert!(!answers("").await);
    }

    #[tokio::test]
    async fn nobody_there_is_unhealthy() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let address = listener.local_addr().expect("address");
        drop(listener);
        assert!(!http(address, "/", Duration::from_secs(1)).await);
    }
}
