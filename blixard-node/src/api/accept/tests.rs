use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Extension;
use axum::routing::{get, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::super::connections::Standing;
use super::{Accept, Bounds, FULL, serve};

/// Longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(20);

/// A listener of two connections, whose `/known` makes its caller known.
async fn listen() -> (std::net::SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let known = async |Extension(standing): Extension<Standing>| {
        standing.admit();
        "known"
    };
    let router = Router::new()
        .route("/open", get(async || "open"))
        .route("/known", get(known))
        .route("/body", post(async |body: Bytes| body.len().to_string()));
    let bounds = Bounds { connections: 2, body: Duration::from_millis(300), taking: None };
    let serving = serve(listener, None, router, bounds, std::future::pending());
    let mut tasks = JoinSet::new();
    tasks.spawn(serving);
    (address, tasks)
}

async fn connect(address: std::net::SocketAddr, words: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(words.as_bytes()).await.unwrap();
    stream
}

/// What comes until `expect` does, or the end.
async fn heard(stream: &mut TcpStream, expect: &str) -> String {
    let mut text = Vec::new();
    let reading = async {
        let mut piece = [0; 4096];
        while !String::from_utf8_lossy(&text).contains(expect) {
            match stream.read(&mut piece).await {
                Ok(0) | Err(_) => break,
                Ok(read) => text.extend_from_slice(&piece[..read]),
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("an answer or an end");
    String::from_utf8_lossy(&text).into_owned()
}

fn ask(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")
}

#[test]
fn the_words_for_who_is_turned_away_are_http() {
    let (head, body) = FULL.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
    let body: blixard_core::api::ErrorBody = serde_json::from_str(body).unwrap();
    assert!(!body.error.is_empty() && !body.hint.is_empty());
}

#[tokio::test]
async fn silent_strangers_give_way_and_known_callers_stay() {
    let (address, _serving) = listen().await;
    let mut first = connect(address, "GET /op").await;
    let mut second = connect(address, &ask("/known")).await;
    assert!(heard(&mut second, "known").await.contains("known"));
    let mut third = connect(address, &ask("/open")).await;
    assert!(heard(&mut third, "open").await.ends_with("open"), "a newer caller is served");
    assert_eq!(heard(&mut first, "200").await, "", "the silent one is cut off");
    third.write_all(ask("/known").as_bytes()).await.unwrap();
    assert!(heard(&mut third, "known").await.ends_with("known"));
    let mut fourth = connect(address, &ask("/open")).await;
    assert!(heard(&mut fourth, "socket").await.contains("503"), "all places are held by known callers");
    second.write_all(ask("/open").as_bytes()).await.unwrap();
    assert!(heard(&mut second, "open").await.ends_with("open"), "they are served on");
}

#[tokio::test]
async fn a_body_that_trickles_in_is_given_up() {
    let (address, _serving) = listen().await;
    let mut stream = connect(address, "POST /body HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n").await;
    for _ in 0..2 {
        stream.write_all(b"x").await.unwrap();
    }
    let answer = heard(&mut stream, "slow").await;
    assert!(answer.starts_with("HTTP/1.1 400") || answer.is_empty(), "{answer}");
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_given_little() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let taken = Accept::next(&listener).await.unwrap();
    let mut given = 0;
    // Until it takes no more: what a client that reads nothing is on its way to is taken at once.
    while let Ok(Ok(())) = tokio::time::timeout(Duration::from_millis(500), taken.writable()).await {
        match taken.try_write(&[0; 64 << 10]) {
            Ok(bytes) => given += bytes,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        assert!(given < 1 << 20, "it was given {given} bytes");
    }
    assert!(given > 0);
    drop(client);
}
