//! How registries ask for a log-in, and the headers that answer: the challenges of RFC 9110
//! section 11.6.1 and the token protocol of the distribution project. Pure; `registry.rs` sends.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;

use super::registries::Credentials;

/// One challenge of a `WWW-Authenticate` header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    pub(super) scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// Reads the first challenge of a header.
    pub(super) fn parse(header: &str) -> Option<Self> {
        let (scheme, mut rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.is_empty() {
            return None;
        }
        let mut parameters = Vec::new();
        while let Some((key, value)) = rest.split_once('=') {
            let (value, after) = match value.trim_start().strip_prefix('"') {
                Some(quoted) => unquote(quoted)?,
                None => {
                    let (value, after) = value.split_once(',').unwrap_or((value, ""));
                    (value.trim().to_owned(), after)
                }
            };
            parameters.push((key.trim().trim_start_matches([',', ' ']).to_ascii_lowercase(), value));
            rest = after;
        }
        Some(Self { scheme: scheme.to_owned(), parameters })
    }

    /// Where a token is to be had, with what it must be good for.
    pub(super) fn token_url(&self) -> Option<Url> {
        let mut url = Url::parse(self.parameter("realm")?).ok()?;
        if !matches!(url.scheme(), "http" | "https") {
            return None;
        }
        for key in ["service", "scope"] {
            if let Some(value) = self.parameter(key) {
                url.query_pairs_mut().append_pair(key, value);
            }
        }
        Some(url)
    }

    fn parameter(&self, key: &str) -> Option<&str> {
        self.parameters.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

/// The header that logs in by name and password.
pub(super) fn basic(credentials: &Credentials) -> String {
    format!("Basic {}", STANDARD.encode(format!("{}:{}", credentials.username, credentials.password)))
}

/// The header that logs in by the token of a token server's answer.
pub(super) fn bearer_of(answer: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    let token = answer.token.or(answer.access_token)?;
    let fits = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
    fits.then(|| format!("Bearer {token}"))
}

/// Reads a quoted string after its first quote, and what follows it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_lead_to_the_token_server() {
        let check = |header: &str, expect: Option<&str>| {
            let url = Challenge::parse(header).and_then(|c| c.token_url());
            assert_eq!(url.as_ref().map(Url::as_str), expect, "{header}");
        };
        check(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
            Some(
                "https://auth.docker.io/token?service=registry.docker.io&scope=repository%3Aa%2Fb%3Apull%2Cpush",
            ),
        );
        check(r#"Bearer realm="http://t/?a=b", service=x"#, Some("http://t/?a=b&service=x"));
        check(r#"Basic realm="x""#, None);
        check(r#"Bearer realm="file:///etc/passwd""#, None);
        check(r#"Bearer realm="https://open"#, None);
        check("Bearer", None);
        check("", None);
    }

    #[test]
    fn tokens_are_taken_only_when_they_fit_a_header() {
        let check = |answer: &str, expect: Option<&str>| {
            assert_eq!(bearer_of(answer.as_bytes()).as_deref(), expect, "{answer}");
        };
        check(r#"{"token": "abc"}"#, Some("Bearer abc"));
        check(r#"{"access_token": "abc", "expires_in": 60}"#, Some("Bearer abc"));
        check(r#"{"token": "a\nb"}"#, None);
        check(r#"{"token": ""}"#, None);
        check("{}", None);
        check("nonsense", None);
    }

    #[test]
    fn challenges_and_tokens_survive_every_damage() {
        let challenges = [
            r#"Bearer realm="https://auth.lan/token",service="reg.lan",scope="repository:a/b:pull,push""#,
            r#"Basic realm="a \"quoted\" one""#,
        ];
        damage::survives(
            "challenge of a registry",
            &challenges.map(|text| text.as_bytes().to_vec()),
            |input| {
                let challenge = Challenge::parse(&String::from_utf8_lossy(input)).ok_or("it is none")?;
                assert!(!challenge.scheme.is_empty());
                if let Some(url) = challenge.token_url() {
                    assert!(matches!(url.scheme(), "http" | "https"), "{url}");
                }
                Ok(())
            },
        );
        let answers = [r#"{"token": "abc.def"}"#, r#"{"access_token": "abc", "expires_in": 60}"#];
        damage::survives(
            "answer of a token server",
            &answers.map(|text| text.as_bytes().to_vec()),
            |input| {
                let header = bearer_of(input).ok_or("it has no token")?;
                assert!(header.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{header}");
                Ok(())
            },
        );
    }
}
