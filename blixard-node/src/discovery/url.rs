//! A registry or static file that a web server gives.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::discovery::contact::Contact;
use blixard_core::discovery::file::{self, FILE_BYTES_MAX};
use reqwest::{Client, Url, redirect};

use super::Seams;
use super::source::{Source, SourceError};
use crate::transport::chain;

/// How long a server may take for all of its answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long it may take to be connected to.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// How often it is asked at most.
const PAUSE: Duration = Duration::from_secs(5);
/// How often an answer may lead elsewhere.
const REDIRECTS_MAX: usize = 3;

/// The source.
pub(super) struct Web {
    url: String,
    /// The same without what may be secret in it.
    name: String,
    warned: AtomicBool,
}

impl Web {
    pub(super) fn new(url: String) -> Self {
        let name = match Url::parse(&url) {
            Ok(mut parsed) => {
                // Neither fails for http and https.
                parsed.set_username("").ok();
                parsed.set_password(None).ok();
                parsed.set_query(None);
                parsed.set_fragment(None);
                parsed.to_string()
            }
            Err(_) => url.split(['?', '#']).next().unwrap_or_default().to_owned(),
        };
        Self { url, name, warned: AtomicBool::new(false) }
    }

    async fn text(&self, url: Url) -> Result<String, String> {
        let secure = url.scheme() == "https";
        let policy = redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() > REDIRECTS_MAX {
                return attempt.error("it redirects too often");
            }
            if secure && attempt.url().scheme() != "https" {
                return attempt.error("it redirects from https to plain http");
            }
            attempt.follow()
        });
        // As often as not it is installed already, by what fetches images.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let builder = Client::builder()
            .user_agent(concat!("blixard/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_DEADLINE)
            .timeout(DEADLINE)
            .redirect(policy);
        // Over plain http no certificate is asked for, of which a small machine may have none.
        let builder = if secure { builder } else { builder.tls_certs_only([]) };
        let client = builder.build().map_err(|error| chain(&error))?;
        let failed = |error: reqwest::Error| chain(&error.without_url());
        let mut response = client.get(url).send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(format!("it answers {}: check the URL", response.status()));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            bytes.extend_from_slice(&chunk);
            if u64::try_from(bytes.len()).is_ok_and(|length| length > FILE_BYTES_MAX) {
                return Err(format!("it sends more than {FILE_BYTES_MAX} bytes: that is no registry file"));
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

#[async_trait]
impl Source for Web {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn pause(&self) -> Duration {
        PAUSE
    }

    async fn look(&self, _: Seams<'_>) -> Result<Vec<Contact>, SourceError> {
        let silent = |reason| SourceError::Silent { name: self.name.clone(), reason };
        let url = Url::parse(&self.url).map_err(|error| silent(error.to_string()))?;
        let named = url.scheme() == "https";
        if !named && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                source = self.name,
                "over plain http whoever is on the way can read what the file holds, its join token too, and change it: use https, or give the token by --token-file"
            );
        }
        let text = self.text(url).await.map_err(silent)?;
        let mut contacts = file::parse(&self.name, &text)?;
        // What comes in the clear may be anybody's words.
        contacts.iter_mut().for_each(|contact| contact.named = named);
        Ok(contacts)
    }
}

#[cfg(test)]
mod tests {
    use super::{Source, Web};

    #[test]
    fn what_is_secret_in_a_url_is_in_no_name() {
        let check = |url: &str, expect: &str| assert_eq!(Web::new(url.to_owned()).name(), expect);
        check("https://me:pw@h.example/r.json?sig=secret#x", "https://h.example/r.json");
        check("http://10.0.0.1:8000/r.json", "http://10.0.0.1:8000/r.json");
        check("http://[::1/r?secret", "http://[::1/r");
    }
}
