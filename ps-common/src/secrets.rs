//! Secrets in files: bearer tokens, and the certificates and keys of TLS.
//!
//! Reads and checks them; every error names the flag and the file, none shows what is inside. Knows
//! no connection and no role.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::exit::{Exit, ExitError};

/// The protocol inside TLS, as ALPN names it: HTTP/2.
pub const ALPN_HTTP2: &[u8] = b"h2";

/// The header that carries a token, with [`BEARER`] before it.
pub const AUTHORIZATION: &str = "authorization";

/// What stands before the token.
pub const BEARER: &str = "Bearer ";

/// A bearer token. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The token in the file that `flag` names, without the line's end.
    ///
    /// # Errors
    /// I/O where the file cannot be read; configuration where it is empty or holds what cannot
    /// stand in a header. Both name flag and file.
    pub fn read(flag: &str, path: &Path) -> Result<Self, ExitError> {
        let text = read(flag, path)?;
        warn_if_readable_by_all(flag, path);
        let refuse =
            |what: &str| Err(ExitError::config(format!("{flag} {}: {what}", path.display())));
        let Ok(text) = String::from_utf8(text) else { return refuse("the token is not text") };
        let token = text.trim_end_matches(['\r', '\n']);
        if token.is_empty() {
            return refuse("the file is empty; expected a token, as `psctl certs` makes one");
        }
        if !token.bytes().all(|b| b.is_ascii_graphic()) {
            return refuse("the token is not one line of letters, digits and signs without spaces");
        }
        Ok(Self(token.to_owned()))
    }

    /// The value of the header that presents this token.
    pub fn header(&self) -> String {
        format!("{BEARER}{}", self.0)
    }

    /// What the receiving side keeps of it.
    pub fn digest(&self) -> TokenDigest {
        TokenDigest::of(self.0.as_bytes())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The SHA-256 of a token: equal lengths, so that a comparison tells nothing of the token's own.
#[derive(Clone, Copy)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// Of what somebody presents.
    pub fn of(presented: &[u8]) -> Self {
        Self(Sha256::digest(presented).into())
    }

    /// Whether both are of one token; takes the same time whatever the answer.
    pub fn equals(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenDigest(..)")
    }
}

/// The certificates in a PEM file, the holder's own first.
///
/// # Errors
/// I/O where the file cannot be read, configuration where there is none in it.
pub fn read_certificates(
    flag: &str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, ExitError> {
    let pem = read(flag, path)?;
    let refuse = |what: &str| ExitError::config(format!("{flag} {}: {what}", path.display()));
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| refuse("not a PEM file").because(e))?;
    if certificates.is_empty() {
        return Err(refuse("no certificate in it; expected -----BEGIN CERTIFICATE-----"));
    }
    Ok(certificates)
}

/// The certificates of a PEM file as those that are trusted to sign others.
///
/// # Errors
/// As [`read_certificates`], and configuration for a certificate that cannot sign.
pub fn read_authorities(flag: &str, path: &Path) -> Result<RootCertStore, ExitError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(flag, path)? {
        roots.add(certificate).map_err(|e| {
            let what = format!("{flag} {}: not the certificate of a CA", path.display());
            ExitError::config(what).because(e)
        })?;
    }
    Ok(roots)
}

/// The private key in a PEM file.
///
/// # Errors
/// I/O where the file cannot be read, configuration where there is none in it.
pub fn read_key(flag: &str, path: &Path) -> Result<PrivateKeyDer<'static>, ExitError> {
    let pem = read(flag, path)?;
    warn_if_readable_by_all(flag, path);
    PrivateKeyDer::from_pem_slice(&pem).map_err(|e| {
        let what = "no private key in it; expected PEM with -----BEGIN PRIVATE KEY-----";
        ExitError::config(format!("{flag} {}: {what}", path.display())).because(e)
    })
}

/// The cryptography that all connections use.
pub fn cryptography() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn read(flag: &str, path: &Path) -> Result<Vec<u8>, ExitError> {
    std::fs::read(path).map_err(|e| {
        ExitError::new(Exit::Io, format!("{flag}: cannot read {}", path.display())).because(e)
    })
}

fn warn_if_readable_by_all(flag: &str, path: &Path) {
    let mode = std::fs::metadata(path).map_or(0, |m| m.permissions().mode());
    if mode & 0o004 != 0 {
        tracing::warn!(
            file = %path.display(),
            "{flag}: everybody on this machine can read the secret; chmod 600 it"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(content).expect("written");
        file
    }

    #[test]
    fn a_token_is_one_line_without_its_end() {
        for (content, token) in
            [(&b"s3cret"[..], "s3cret"), (b"a.b-c_d\n", "a.b-c_d"), (b"x\r\n", "x")]
        {
            let read = Token::read("--token-file", file(content).path()).expect("a token");
            assert_eq!(read.header(), format!("Bearer {token}"));
            assert!(read.digest().equals(&TokenDigest::of(token.as_bytes())));
            assert!(!read.digest().equals(&TokenDigest::of(b"another")));
            assert!(!format!("{read:?} {:?}", read.digest()).contains(token));
        }
    }

    #[test]
    fn what_is_no_token_is_refused_by_flag_and_file() {
        for content in [&b""[..], b"\n", b"two words", b"two\nlines", b"\xff\xfe", b"tab\t"] {
            let file = file(content);
            let error = Token::read("--token-file", file.path()).expect_err("no token");
            assert_eq!(error.exit, Exit::Config);
            let path = file.path().display().to_string();
            assert!(error.message.contains("--token-file") && error.message.contains(&path));
        }
        let error = Token::read("--token-file", Path::new("/no/such/file")).expect_err("no file");
        assert_eq!(error.exit, Exit::Io);
        assert!(error.message.contains("/no/such/file"), "{error}");
    }

    #[test]
    fn what_is_no_certificate_or_key_is_refused_by_flag_and_file() {
        let broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for content in [&b""[..], b"nothing", b"-----BEGIN CERTIFICATE-----\n!\n"] {
            let file = file(content);
            for error in [
                read_certificates("--tls-cert", file.path()).expect_err("none"),
                read_authorities("--tls-cert", file.path()).expect_err("none"),
                read_key("--tls-cert", file.path()).expect_err("none"),
            ] {
                assert!(error.exit == Exit::Config && error.message.contains("--tls-cert"));
            }
        }
        let error = read_authorities("--tls-ca", file(broken).path()).expect_err("not DER");
        assert!(error.message.contains("not the certificate of a CA"), "{error}");
    }
}
