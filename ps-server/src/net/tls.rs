//! The server's side of TLS: its certificate, and the CA of its peers. Accepts nothing itself.

use std::sync::Arc;

use ps_common::exit::ExitError;
use ps_common::secrets::{ALPN_HTTP2, cryptography, read_authorities, read_certificates, read_key};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, ServerConfig};

use crate::security::TlsFiles;

/// What accepts TLS connections with the certificate in `files`.
///
/// # Errors
/// I/O for a file that cannot be read; configuration for one that does not hold what it should, or
/// for a key of another certificate. All name the flag.
pub(super) fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, ExitError> {
    let certificates = read_certificates("--tls-cert", &files.cert)?;
    let key = read_key("--tls-key", &files.key)?;
    let builder = ServerConfig::builder_with_provider(cryptography())
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| unusable("--tls-cert", "TLS 1.3 is not to be had", e))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(read_authorities("--tls-client-ca", path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, cryptography())
                .build()
                .map_err(|e| {
                    let what = format!("--tls-client-ca {}: of no use", path.display());
                    ExitError::config(what).because(e)
                })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(certificates, key).map_err(|e| {
        let what = format!(
            "--tls-cert {} and --tls-key {} do not go together",
            files.cert.display(),
            files.key.display()
        );
        ExitError::config(what).because(e)
    })?;
    config.alpn_protocols.push(ALPN_HTTP2.to_vec());
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn unusable(flag: &str, what: &str, error: rustls::Error) -> ExitError {
    ExitError::config(format!("{flag}: {what}")).because(error)
}
