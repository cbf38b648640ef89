//! The API's certificate and key, as files give them.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// Why the API cannot be served within TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file holds no such thing as PEM, or cannot be read.
    #[error("cannot read {what} of {}: {source}", path.display())]
    File {
        /// What was looked for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// The file has no certificate.
    #[error("{} holds no certificate: it is PEM, the node's certificate first", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The two do not go together, or are of a kind that is not served.
    #[error("the certificate of --http-cert and the key of --http-key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// What the API is served with.
#[derive(Clone)]
pub struct Tls {
    pub(super) acceptor: TlsAcceptor,
    /// The node's own certificate.
    pub(super) certificate: CertificateDer<'static>,
}

impl Tls {
    /// Reads a certificate, followed by those that vouch for it, and its key, both PEM.
    ///
    /// # Errors
    /// When a file cannot be read, or the two cannot be used together.
    pub fn read(certificates: &Path, key: &Path) -> Result<Self, TlsError> {
        let fail = |what, path: &Path| {
            let path = path.to_owned();
            move |source| TlsError::File { what, path, source }
        };
        let chain = CertificateDer::pem_file_iter(certificates)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(fail("the certificate", certificates))?;
        let certificate =
            chain.first().cloned().ok_or_else(|| TlsError::Empty { path: certificates.to_owned() })?;
        let private = PrivateKeyDer::from_pem_file(key).map_err(fail("the private key", key))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, private)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), certificate })
    }
}

/// A warning when others than its owner may read the key.
pub fn exposed(key: &Path) -> io::Result<Option<String>> {
    let mode = key.metadata()?.permissions().mode() & 0o777;
    let open = mode & 0o077 != 0;
    Ok(open.then(|| format!("others may read {} (mode {mode:o}): chmod 600 it", key.display())))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Tls, exposed};

    fn file(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
    }

    #[test]
    fn a_certificate_and_its_key_are_read_and_others_refused_by_name() {
        assert!(Tls::read(&file("http-cert.pem"), &file("http-key.pem")).is_ok());
        let check = |certificates: &str, key: &str, expect: &str| {
            let error = Tls::read(&file(certificates), &file(key)).err().expect("it is refused").to_string();
            assert!(error.contains(expect), "{error}");
        };
        check("none.pem", "http-key.pem", "none.pem");
        check("http-key.pem", "http-key.pem", "holds no certificate");
        check("http-cert.pem", "http-cert.pem", "http-cert.pem");
        check("http-ca.pem", "http-key.pem", "cannot be used");
    }

    #[test]
    fn a_key_that_others_may_read_is_told() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key.pem");
        std::fs::write(&key, "").unwrap();
        let with = |mode| {
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
            exposed(&key).unwrap()
        };
        assert_eq!(with(0o600), None);
        assert!(with(0o640).unwrap().contains("640"));
    }

    #[test]
    fn certificates_and_keys_survive_every_damage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("damaged.pem");
        let seed = |name| [std::fs::read(file(name)).unwrap()];
        damage::survives("certificate of the API", &seed("http-cert.pem"), |input| {
            std::fs::write(&path, input).unwrap();
            Tls::read(&path, &file("http-key.pem")).map(drop).map_err(|error| error.to_string())
        });
        damage::survives("key of the API", &seed("http-key.pem"), |input| {
            std::fs::write(&path, input).unwrap();
            Tls::read(&file("http-cert.pem"), &path).map(drop).map_err(|error| error.to_string())
        });
    }
}
