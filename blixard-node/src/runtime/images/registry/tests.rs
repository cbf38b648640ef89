use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// What a registry that is written down answers to a request's first line; nothing when it closes the
/// connection instead.
type Answers = fn(&str) -> Option<&'static str>;

/// A registry for as long as the test, and the first lines of what it was asked.
async fn registry(answers: Answers) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let host = listener.local_addr().expect("bound").to_string();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && connection.read_buf(&mut request).await.unwrap_or(0) > 0
            {
            }
            let request = String::from_utf8_lossy(&request);
            let line = request.lines().next().unwrap_or_default();
            seen.lock().expect("unpoisoned").push(line.to_owned());
            if let Some(answer) = answers(line) {
                let head = "connection: close\r\ncontent-length: 0\r\n\r\n";
                connection.write_all(format!("HTTP/1.1 {answer}\r\n{head}").as_bytes()).await.expect("sent");
            }
        }
    });
    (host, asked)
}

fn session(host: &str) -> RegistrySession {
    let reference = format!("{host}/team/app:1").parse().expect("a reference");
    RegistrySession::new(&Registries::default(), &reference).expect("usable")
}

#[tokio::test]
async fn what_is_missing_is_told_from_an_image_that_is_not_there() {
    let (host, _) = registry(|_| Some("404 Not Found")).await;
    let session = session(&host);
    let part = format!("sha256:{:064}", 7);
    let said = |error: RuntimeError| match error {
        RuntimeError::NotFound(text) => text,
        other => panic!("{other:?}"),
    };
    let name = said(session.digest().await.expect_err("missing"));
    assert!(name.contains("no image") && name.contains("check the name and tag"), "{name}");
    let parts = [
        session.small_blob(&part).await.map(drop),
        session.blob(&part, 0).await.map(drop),
        session.document(&part).await.map(drop),
    ];
    for error in parts {
        let text = said(error.expect_err("missing"));
        let expected = [format!("{host} lacks a part of image {host}/team/app:1"), part.clone()];
        assert!(
            expected.iter().all(|words| text.contains(words)) && text.contains("push it again"),
            "{text}"
        );
        assert!(!text.contains("check the name"), "{text}");
    }
}

#[tokio::test]
async fn a_registry_that_closes_the_connection_on_head_is_asked_by_get() {
    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let (host, _) = registry(|line| (!line.starts_with("HEAD")).then_some("200 OK")).await;
    assert_eq!(session(&host).digest().await.expect("by GET"), DIGEST);

    let (host, asked) = registry(|_| None).await;
    let error = session(&host).digest().await.expect_err("nothing is answered");
    assert!(matches!(error, RuntimeError::Unavailable(_)), "{error:?}");
    let asked = asked.lock().expect("unpoisoned").clone();
    assert!(asked.iter().any(|line| line.starts_with("GET")), "{asked:?}");
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_asked_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let host = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let fault = session(&host);
    let url = fault.url(&fault.endpoints[0], Asked::Name).expect("a URL");
    let fault = fault.endpoints[0].send(Method::HEAD, &url, None).await.expect_err("nobody is there");
    assert!(matches!(fault, Fault::Unreachable(_)), "{fault:?}");
}

#[tokio::test]
async fn a_busy_registry_is_named_as_what_it_is_and_a_pull_waits_for_it() {
    let check = async |answers: Answers, expect: &[&str], requests: usize| {
        let (host, asked) = registry(answers).await;
        for (session, tries) in [(session(&host), 1), (session(&host).patient(), requests)] {
            asked.lock().expect("unpoisoned").clear();
            let began = Instant::now();
            let error = session.digest().await.expect_err("busy");
            assert!(matches!(error, RuntimeError::Unavailable(_)), "{error:?}");
            let text = error.to_string();
            assert!(expect.iter().all(|words| text.contains(words)), "{text}");
            assert!(!text.contains("check the name"), "{text}");
            assert!(began.elapsed() < BUSY_WAIT_MAX, "{:?}", began.elapsed());
            let heads =
                asked.lock().expect("unpoisoned").iter().filter(|line| line.starts_with("HEAD")).count();
            assert_eq!(heads, tries, "{text}");
        }
    };
    let tried = BUSY_RETRIES_MAX as usize + 1;
    check(|_| Some("429 Too Many Requests\r\nretry-after: 60"), &["limits how often", "wait 60 s"], 1).await;
    check(|_| Some("429 Too Many Requests\r\nretry-after: 1"), &["limits how often", "wait 1 s"], tried)
        .await;
    check(|_| Some("503 Service Unavailable"), &["in trouble itself (503", "try again"], tried).await;
    check(|_| Some("500 Internal Server Error"), &["in trouble itself (500", "try again"], tried).await;
}

#[test]
fn reasons_of_registries_survive_every_damage() {
    let seeds = [
        r#"{"errors": [{"code": "DENIED", "message": "access is denied", "detail": {"a": 1}}, {"code": "B"}]}"#,
        r#"{"errors": [{"message": "no such\n\u001b[31mmanifest"}]}"#,
    ];
    damage::survives("error of a registry", &seeds.map(|text| text.as_bytes().to_vec()), |input| {
        let reason = reason_of(input).ok_or("it gives no reason")?;
        assert!(!reason.contains(char::is_control) && reason.len() <= 2048, "{reason}");
        Ok(())
    });
    let long = format!(r#"{{"errors": [{{"message": "{}"}}]}}"#, "x".repeat(60_000));
    assert!(reason_of(long.as_bytes()).is_some_and(|reason| reason.len() < 2048));
}
