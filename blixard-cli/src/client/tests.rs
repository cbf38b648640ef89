//! The client against a server of canned answers on a Unix socket.

use std::path::PathBuf;

use blixard_core::api::WriteAnswer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::{Client, segment};
use crate::args::Connection;

/// What a canned server answers a connection with.
enum Canned {
    Answer(&'static str),
    Hangup,
}

/// Serves one answer a connection, then collects what was asked.
async fn serve(socket: PathBuf, answers: Vec<Canned>) -> Vec<String> {
    let listener = UnixListener::bind(&socket).unwrap();
    let mut asked = Vec::new();
    for answer in answers {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.windows(4).any(|window| window == b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
        }
        asked.push(String::from_utf8_lossy(&request).into_owned());
        if let Canned::Answer(text) = answer {
            stream.write_all(text.as_bytes()).await.unwrap();
        }
    }
    std::fs::remove_file(socket).unwrap();
    asked
}

fn client(socket: &std::path::Path) -> Client {
    let host = Some(format!("unix://{}", socket.display()));
    Client::new(&Connection { host, ..Connection::default() }).unwrap()
}

fn request_id(request: &str) -> &str {
    request.lines().find_map(|line| line.strip_prefix("blixard-request-id: ")).unwrap()
}

const HEALTH: &str = "HTTP/1.1 200 OK\r\ncontent-length: 57\r\n\r\n{\"node\":1,\"leader\":1,\"applied\":4,\"version\":\"1\",\"time\":77}";
const DONE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{\"index\":5}";
const UNAVAILABLE: &str =
    "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 23\r\n\r\n{\"error\":\"no quorum\"}  ";
const REFUSED: &str =
    "HTTP/1.1 422 Unprocessable Entity\r\ncontent-length: 30\r\n\r\n{\"error\":\"max 5\",\"try\":\"less\"}";

#[tokio::test]
async fn a_write_is_repeated_under_the_same_id_until_it_is_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blixard.sock");
    let answers = [
        Canned::Hangup,
        Canned::Answer(HEALTH),
        Canned::Answer(UNAVAILABLE),
        Canned::Hangup,
        Canned::Answer(DONE),
    ];
    let answers = answers.into();
    let server = serve(path.clone(), answers);
    let write = async {
        let client = client(&path);
        client.post_empty::<WriteAnswer>("/v1/services/web/stop").await
    };
    let (asked, answer) = tokio::join!(server, write);
    assert_eq!(answer.unwrap().index, 5);
    let (questions, tries) = asked.split_at(2);
    assert!(questions.iter().all(|question| question.starts_with("GET /v1/health ")), "{questions:?}");
    assert_eq!(tries.len(), 3);
    for request in tries {
        assert_eq!(request_id(request), request_id(&tries[0]));
        assert!(request.contains("blixard-made-at: 77\r\n"), "{request}");
    }
}

#[tokio::test]
async fn a_refusal_is_final_and_says_what_to_try() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blixard.sock");
    let server = serve(path.clone(), [HEALTH, REFUSED].map(Canned::Answer).into());
    let write = async {
        let client = client(&path);
        client.post_empty::<WriteAnswer>("/v1/services/web/scale").await
    };
    let (_, answer) = tokio::join!(server, write);
    let text = crate::failure::text(&answer.unwrap_err(), crate::render::color::Paint::Plain);
    assert_eq!(text, "error: max 5\ntry: less\n");
}

#[tokio::test]
async fn without_a_node_the_first_try_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blixard.sock");
    let error = client(&path).post_empty::<WriteAnswer>("/v1/services/web/stop").await.unwrap_err();
    let text = crate::failure::text(&error, crate::render::color::Paint::Plain);
    assert!(text.contains("no node answers at"), "{text}");
    assert!(text.contains("blixard node"), "{text}");
}

#[test]
fn path_segments_are_escaped() {
    let check = |text: &str, expect: &str| assert_eq!(segment(text), expect);
    check("web-0", "web-0");
    check("a/b?c", "a%2Fb%3Fc");
    check("ü", "%C3%BC");
}
