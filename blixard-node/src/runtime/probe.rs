//! Health probes: one HTTP GET.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The most header fields of an answer.
const HEADERS_MAX: usize = 1000;

/// Asks for `path`: the answer is to be 200 to 399 and to come within `timeout`. Its body is not read.
///
/// # Errors
/// What came instead, for people.
pub(crate) async fn http(address: SocketAddr, path: &str, timeout: Duration) -> Result<(), String> {
    let asked = format!("GET http://{address}{path}");
    match tokio::time::timeout(timeout, status(address, path)).await {
        Ok(Ok(200..=399)) => Ok(()),
        Ok(Ok(status)) => Err(format!("{asked} is answered with status {status}")),
        Ok(Err(error)) => Err(format!("{asked}: {error}")),
        Err(_) => Err(format!("{asked} is not answered within {} s", timeout.as_secs_f64())),
    }
}

async fn status(address: SocketAddr, path: &str) -> Result<u16, Box<dyn Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.kind().to_string())?;
    // How well it speaks HTTP is not what is asked.
    let (mut sender, connection) = http1::Builder::new()
        .max_headers(HEADERS_MAX)
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .ignore_invalid_headers_in_responses(true)
        .handshake(TokioIo::new(stream))
        .await?;
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .header(USER_AGENT, "blixard-health")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request);
    tokio::pin!(response);
    let response = tokio::select! {
        biased;
        response = &mut response => response,
        // The connection may be through before its answer is picked up.
        _ended = connection => response.await,
    };
    Ok(response?.status().as_u16())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::http;

    /// What comes of a probe that is answered with this.
    async fn told(response: String) -> Result<(), String> {
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
        let told = http(address, "/health", Duration::from_millis(500)).await;
        server.abort();
        told.map_err(|why| why.replace(&address.to_string(), "HERE"))
    }

    #[tokio::test]
    async fn only_a_timely_2xx_or_3xx_is_healthy_and_it_is_said_what_came_instead() {
        let check = async |response: &str, expect: Result<(), &str>| {
            assert_eq!(told(response.to_owned()).await, expect.map_err(str::to_owned), "{response}");
        };
        check("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Ok(())).await;
        check("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n", Ok(())).await;
        let refused = Err("GET http://HERE/health is answered with status 500");
        check("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", refused).await;
        check("", Err("GET http://HERE/health is not answered within 0.5 s")).await;
    }

    #[tokio::test]
    async fn headers_that_are_many_or_odd_do_not_make_it_unhealthy() {
        let many = "x: y\r\n".repeat(500);
        for odd in [&*many, "X Y: z\r\n", "x : y\r\n", "x: y\r\n z\r\n", "x: \u{fc}\r\n"] {
            let told = told(format!("HTTP/1.1 200 OK\r\n{odd}content-length: 0\r\n\r\n")).await;
            assert_eq!(told, Ok(()), "{odd:?}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_unhealthy() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let address = listener.local_addr().expect("address");
        drop(listener);
        let told = http(address, "/", Duration::from_secs(1)).await;
        assert_eq!(told, Err(format!("GET http://{address}/: connection refused")));
    }
}
