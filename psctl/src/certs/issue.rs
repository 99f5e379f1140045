//! Certificates and tokens in memory: a CA of its own, and what it signs. Knows no files.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ps_common::exit::{Exit, ExitError};
use ps_common::secrets::cryptography;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};

use super::File;

/// Clocks of the machines may differ by so much.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Always among the server's names, for what runs beside it.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Random bytes of a token: not to be guessed.
const TOKEN_BYTES: usize = 32;

/// All files of a cluster.
pub(super) struct Bundle {
    pub(super) files: Vec<File>,
}

impl Bundle {
    /// A new CA, certificates by it that are valid for `days`, new tokens.
    ///
    /// # Errors
    /// Configuration for a host that is none.
    pub(super) fn issue(hosts: &[String], days: u32) -> Result<Self, ExitError> {
        let names = names_of(hosts)?;
        let valid = Validity::from_now(days)?;
        let ca = authority(&valid)?;
        let mut files = vec![
            File { name: "ca.pem", content: ca.pem(), is_secret: false },
            File { name: "ca-key.pem", content: ca.key().serialize_pem(), is_secret: true },
        ];
        let (serves, calls) =
            (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
        // The first of several servers calls the others.
        let server = ("ps server", vec![serves, calls.clone()], names);
        let worker = ("ps worker", vec![calls.clone()], Vec::new());
        let operator = ("ps operator", vec![calls], Vec::new());
        for (holder, [cert, key]) in [
            (server, ["server.pem", "server-key.pem"]),
            (worker, ["worker.pem", "worker-key.pem"]),
            (operator, ["operator.pem", "operator-key.pem"]),
        ] {
            let (cert_pem, key_pem) = leaf(holder, &valid, &ca)?;
            files.push(File { name: cert, content: cert_pem, is_secret: false });
            files.push(File { name: key, content: key_pem, is_secret: true });
        }
        for name in ["worker.token", "operator.token"] {
            let content = format!("{}\n", random_hex(TOKEN_BYTES)?);
            files.push(File { name, content, is_secret: true });
        }
        Ok(Self { files })
    }
}

/// The names of the server's certificate.
fn names_of(hosts: &[String]) -> Result<Vec<String>, ExitError> {
    let mut names = Vec::new();
    for host in hosts.iter().map(String::as_str).chain(LOOPBACK) {
        if !is_host(host) {
            return Err(ExitError::config(format!(
                "--host {host}: neither a name nor an address; expected such as ps.example.org \
                 or 10.0.0.5, without a scheme or a port"
            )));
        }
        if !names.iter().any(|name| name == host) {
            names.push(host.to_owned());
        }
    }
    Ok(names)
}

fn is_host(host: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = host.strip_prefix("*.").unwrap_or(host);
    host.parse::<IpAddr>().is_ok() || (host.len() <= 253 && name.split('.').all(is_label))
}

/// From when to when, as times since 1970.
struct Validity {
    from: Duration,
    to: Duration,
}

impl Validity {
    fn from_now(days: u32) -> Result<Self, ExitError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|e| {
            ExitError::new(Exit::Failed, "this machine's clock stands before 1970").because(e)
        })?;
        Ok(Self { from: now.saturating_sub(CLOCK_SKEW), to: now + DAY * days })
    }

    fn apply(&self, params: &mut CertificateParams) {
        params.not_before = date_time_ymd(1970, 1, 1) + self.from;
        params.not_after = date_time_ymd(1970, 1, 1) + self.to;
    }
}

fn authority(valid: &Validity) -> Result<CertifiedIssuer<'static, KeyPair>, ExitError> {
    let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
    // Two CAs of one name would be told apart by their signatures only, and errors would say so.
    params.distinguished_name.push(DnType::CommonName, format!("ps CA {}", random_hex(8)?));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid.apply(&mut params);
    CertifiedIssuer::self_signed(params, KeyPair::generate().map_err(failed)?).map_err(failed)
}

/// Certificate and key of one holder (name, uses, names to be called by), as PEM.
fn leaf(
    (name, uses, names): (&str, Vec<ExtendedKeyUsagePurpose>, Vec<String>),
    valid: &Validity,
    ca: &CertifiedIssuer<'static, KeyPair>,
) -> Result<(String, String), ExitError> {
    let mut params = CertificateParams::new(names).map_err(failed)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = uses;
    params.use_authority_key_identifier_extension = true;
    valid.apply(&mut params);
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.signed_by(&key, ca).map_err(failed)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn failed(error: rcgen::Error) -> ExitError {
    ExitError::new(Exit::Bug, "a certificate cannot be made").because(error)
}

fn random_hex(n_bytes: usize) -> Result<String, ExitError> {
    let mut bytes = vec![0; n_bytes];
    cryptography()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| ExitError::new(Exit::Io, "the system gives no random numbers"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bundle_is_its_own() {
        let bundle = || Bundle::issue(&["ps.example".to_owned()], 1).expect("issued").files;
        for (one, other) in bundle().iter().zip(bundle()) {
            assert_eq!(one.name, other.name);
            assert_ne!(one.content, other.content, "{}", one.name);
        }
        let token = bundle().pop().expect("files").content;
        assert_eq!(token.trim_end().len(), 2 * TOKEN_BYTES);
    }

    #[test]
    fn names_are_names_or_addresses() {
        for host in ["a", "ps-0.ps.default.svc", "10.0.0.5", "::1", "fe80::1", "*.ps.example"] {
            assert!(is_host(host), "{host}");
        }
        for host in ["", ".", "a..b", "-a", "a-", "a b", "a:1", "http://a", "*", "ä", "a.*"] {
            assert!(!is_host(host), "{host}");
        }
        let names = names_of(&["localhost".to_owned(), "h".to_owned()]).expect("names");
        assert_eq!(names, ["localhost", "h", "127.0.0.1", "::1"]);
    }
}
