//! Where the answers of a registry may lead: redirects, and addresses of token servers. An image's
//! registry may be hostile; what answers only inside this machine or its link is not for it to ask.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect;

use super::registries::name_of;

/// How often an answer may lead elsewhere.
const REDIRECTS_MAX: usize = 5;

/// Whether an address leads to this machine itself or to its link's own services, where clouds keep
/// their secrets: a registry elsewhere has no business to send us there.
pub(super) fn is_internal(host: &str) -> bool {
    let name = host.trim_start_matches('[').trim_end_matches(']');
    match name.parse::<IpAddr>() {
        Ok(address) => is_internal_address(address),
        Err(_) => {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            name == "localhost" || name.ends_with(".localhost")
        }
    }
}

fn is_internal_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast()
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_internal_address(IpAddr::V4(v4)),
            None => {
                v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast()
            }
        },
    }
}

/// Where a registry's answers may lead: anywhere when it is internal itself, else nowhere internal.
pub(super) fn redirects(host: &str) -> redirect::Policy {
    let internal = is_internal(name_of(host));
    redirect::Policy::custom(move |attempt| {
        let to = attempt.url().host_str().unwrap_or_default().to_owned();
        if attempt.previous().len() > REDIRECTS_MAX {
            return attempt.error("it redirects too often");
        }
        if !internal && is_internal(&to) {
            return attempt.error(format!("it redirects to {to}, which is inside this machine or its link"));
        }
        attempt.follow()
    })
}

/// Resolves names. Those that a registry's answers lead to do not lead to what is internal; the name
/// of the registry itself may, since somebody configured it.
pub(super) struct Names {
    registry: String,
}

impl Names {
    /// For the registry at `host`.
    pub(super) fn of(host: &str) -> Arc<Self> {
        Arc::new(Self { registry: name_of(host).to_owned() })
    }
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let own = name.as_str() == self.registry || is_internal(name.as_str());
        let name = name.as_str().to_owned();
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let allowed: Vec<SocketAddr> =
                found.iter().copied().filter(|address| own || !is_internal_address(address.ip())).collect();
            if allowed.is_empty() && !found.is_empty() {
                return Err(format!("{name} is inside this machine or its link").into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::{is_internal, redirects};

    /// What a request to a registry of that host ends with, when it is redirected to `to`.
    async fn redirected(host: &str, to: &str) -> Result<u16, String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let to = to.replace("PORT", &address.port().to_string());
        let serve = async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("accepts");
                let mut request = [0; 4096];
                let read = stream.read(&mut request).await.expect("reads");
                let answer = if request[..read].starts_with(b"GET /moved") {
                    "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned()
                } else {
                    format!(
                        "HTTP/1.1 307 Moved\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                    )
                };
                stream.write_all(answer.as_bytes()).await.expect("writes");
            }
        };
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .redirect(redirects(host))
            .resolve(host, address)
            .build()
            .expect("a client");
        let ask = http.get(format!("http://{host}:{}/v2/", address.port())).send();
        tokio::select! {
            answer = ask => answer.map(|answer| answer.status().as_u16()).map_err(|err| format!("{err:?}")),
            () = serve => unreachable!("it serves for ever"),
        }
    }

    #[tokio::test]
    async fn a_registry_sends_nobody_inside_the_machine_but_one_that_is_there() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        assert_eq!(redirected("registry.test", "http://registry.test:PORT/moved").await, Ok(200));
        assert_eq!(redirected("127.0.0.1", "http://127.0.0.1:PORT/moved").await, Ok(200));
        for to in
            ["http://127.0.0.1:PORT/moved", "http://localhost:PORT/moved", "http://169.254.169.254/moved"]
        {
            let error = redirected("registry.test", to).await.expect_err(to);
            assert!(error.contains("which is inside this machine or its link"), "{error}");
        }
        let error = redirected("registry.test", "http://registry.test:PORT/").await.expect_err("a circle");
        assert!(error.contains("redirects too often"), "{error}");
    }

    #[test]
    fn what_is_inside_a_machine_or_its_link_is_known() {
        let check = |host: &str, expect: bool| assert_eq!(is_internal(host), expect, "{host}");
        for host in
            ["127.0.0.1", "127.8.0.1", "[::1]", "localhost", "a.LOCALHOST.", "169.254.169.254", "0.0.0.0"]
        {
            check(host, true);
        }
        check("[fe80::1]", true);
        check("[::ffff:127.0.0.1]", true);
        check("[::]", true);
        check("10.0.0.1", false);
        check("registry-1.docker.io", false);
        check("[2001:db8::1]", false);
        check("localhost.example", false);
    }
}
