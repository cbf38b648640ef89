//! A node of canned answers, for the tests of commands.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::Client;
use crate::args::Connection;

/// What is answered: to requests whose path begins so, with this status and body. 0 never answers; 1
/// answers 200 and the body, and then never ends.
pub(crate) type Answer = (&'static str, u16, String);

/// Answers until it is dropped; what it knows nothing of, with 404.
pub(crate) struct Canned {
    pub(crate) client: Client,
    asked: Arc<Mutex<Vec<String>>>,
    _directory: tempfile::TempDir,
}

impl Canned {
    /// A node with these answers, the first that fits. Takes a runtime.
    pub(crate) fn new(answers: Vec<Answer>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("blixard.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, answers) = (Arc::clone(&asked), Arc::new(answers));
        drop(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                drop(tokio::spawn(answer(stream, Arc::clone(&answers), Arc::clone(&seen))));
            }
        }));
        let host = Some(format!("unix://{}", socket.display()));
        let client = Client::new(&Connection { host, ..Connection::default() }).unwrap();
        Self { client, asked, _directory: directory }
    }

    /// The paths it was asked for.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn answer(mut stream: UnixStream, answers: Arc<Vec<Answer>>, seen: Arc<Mutex<Vec<String>>>) {
    let mut request = Vec::new();
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let unknown = ("", 404, r#"{"error":"there is no such thing","try":"look elsewhere"}"#.to_owned());
    let (_, status, body) =
        answers.iter().find(|(known, _, _)| path.starts_with(known)).cloned().unwrap_or(unknown);
    seen.lock().unwrap().push(path);
    if status == 0 {
        return std::future::pending().await;
    }
    let (code, bytes) = if status == 1 { (200, body.len() + 1) } else { (status, body.len()) };
    let head = format!("HTTP/1.1 {code} Canned\r\ncontent-length: {bytes}\r\n\r\n");
    drop(stream.write_all((head + &body).as_bytes()).await);
    if status == 1 {
        std::future::pending().await
    }
}
