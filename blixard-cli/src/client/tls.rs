//! TLS to a node's API: who is trusted, and for whom.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::failure::Failure;

/// Makes TLS of a connection to `address`, `HOST:PORT`, whose certificate `ca`'s certificates vouch
/// for; without `ca`, those that this machine trusts.
///
/// # Errors
/// When `ca` cannot be read, or the node is not whom it should be.
pub(super) async fn within(
    stream: TcpStream,
    address: &str,
    ca: Option<&Path>,
) -> anyhow::Result<TlsStream<TcpStream>> {
    let connector = TlsConnector::from(Arc::new(config(ca)?));
    let name = ServerName::try_from(name_of(address).to_owned())
        .map_err(|_| Failure::new(format!("`{address}` is no name or address of a node"), ""))?;
    connector.connect(name, stream).await.map_err(|error| {
        let hint = match ca {
            Some(_) => "name the node as its certificate does, and give its authority's certificate as --ca",
            None => "give the certificate of the authority that made the node's as --ca FILE (BLIXARD_CA)",
        };
        Failure::new(format!("no TLS with the node at {address}: {error}"), hint).into()
    })
}

/// The host of `HOST:PORT`, without the brackets of an IPv6 address.
fn name_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn config(ca: Option<&Path>) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let verifier: Arc<dyn ServerCertVerifier> = match ca {
        Some(path) => {
            rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots(path)?), provider)
                .build()?
        }
        None => Arc::new(rustls_platform_verifier::Verifier::new(provider)?),
    };
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn roots(path: &Path) -> anyhow::Result<RootCertStore> {
    let fail = |why: String| {
        let hint = "give the certificate, PEM, of the authority that made the node's";
        Failure::new(format!("cannot use {} as --ca: {why}", path.display()), hint)
    };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| fail(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| fail(error.to_string()))?;
        roots.add(certificate).map_err(|error| fail(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(fail("it holds no certificate".to_owned()).into());
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::{config, name_of};

    #[test]
    fn a_name_is_what_comes_before_the_port() {
        let check = |address: &str, expect: &str| assert_eq!(name_of(address), expect, "{address}");
        check("node1.lan:8082", "node1.lan");
        check("10.0.0.1:8082", "10.0.0.1");
        check("[::1]:8082", "::1");
    }

    #[test]
    fn an_authority_that_is_none_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "nothing").unwrap();
        for path in [empty, folder.path().join("none.pem")] {
            let error = config(Some(&path)).unwrap_err().to_string();
            assert!(error.contains("--ca") && error.contains(".pem"), "{error}");
        }
    }
}
