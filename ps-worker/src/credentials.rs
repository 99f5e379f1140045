//! How a program shows who it is, and whom it trusts, as flags: shared by `ps-worker` and the
//! commands of psctl that call a server.
//!
//! Checks combinations; opens no file. What the files hold is read by `net`.

use std::path::PathBuf;

use clap::Args;
use ps_common::exit::ExitError;
use serde::Serialize;

/// TLS and the token.
#[derive(Args, Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Security")]
pub struct CredentialArgs {
    /// CA that has signed the server's certificate, PEM; needed for https:// URLs
    #[arg(long, env = "PS_TLS_CA", value_name = "FILE.pem")]
    pub tls_ca: Option<PathBuf>,
    /// Own certificate, PEM, for a server that wants one (its --tls-client-ca)
    #[arg(long, env = "PS_TLS_CERT", value_name = "FILE.pem")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert, PEM
    #[arg(long, env = "PS_TLS_KEY", value_name = "FILE.pem")]
    pub tls_key: Option<PathBuf>,
    /// Name that the server's certificate is for [default: the URL's host]
    #[arg(long, env = "PS_TLS_NAME", value_name = "NAME")]
    pub tls_name: Option<String>,
    /// File with the token to present
    #[arg(long, env = "PS_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

impl CredentialArgs {
    /// Checks combinations with the servers' URLs; whether they want TLS.
    ///
    /// # Errors
    /// Configuration, naming the flags.
    pub fn check(&self, urls: &[impl AsRef<str>]) -> Result<bool, ExitError> {
        let mut any = false;
        for url in urls {
            any |= self.check_one(url.as_ref())?;
        }
        Ok(any)
    }

    fn check_one(&self, url: &str) -> Result<bool, ExitError> {
        if !url.starts_with("https://") {
            for (flag, given) in [
                ("--tls-ca", self.tls_ca.is_some()),
                ("--tls-cert", self.tls_cert.is_some()),
                ("--tls-key", self.tls_key.is_some()),
                ("--tls-name", self.tls_name.is_some()),
            ] {
                if given {
                    return Err(ExitError::config(format!(
                        "{flag} has no meaning with --server {url}: TLS needs https://HOST:PORT"
                    )));
                }
            }
            return Ok(false);
        }
        if self.tls_ca.is_none() {
            return Err(ExitError::config(format!(
                "--server {url} needs --tls-ca: the CA that has signed the server's certificate"
            )));
        }
        match (&self.tls_cert, &self.tls_key) {
            (Some(_), None) => Err(ExitError::config("--tls-cert needs its --tls-key")),
            (None, Some(_)) => Err(ExitError::config("--tls-key needs its --tls-cert")),
            _ => Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ps_common::exit::Exit;

    #[test]
    fn flags_and_the_urls_scheme_go_together() {
        let file = || Some(PathBuf::from("f"));
        let ca = CredentialArgs { tls_ca: file(), ..Default::default() };
        let name = CredentialArgs { tls_name: Some("n".to_owned()), ..ca.clone() };
        let half = CredentialArgs { tls_cert: file(), ..ca.clone() };
        let other_half = CredentialArgs { tls_key: file(), ..ca.clone() };
        let token = CredentialArgs { token_file: file(), ..Default::default() };
        let none = CredentialArgs::default();
        for (args, url, says) in [
            (&none, "https://h:1", "--tls-ca"),
            (&token, "https://h:1", "--tls-ca"),
            (&ca, "http://h:1", "https://HOST:PORT"),
            (&name, "h:1", "--tls-ca"),
            (&half, "https://h:1", "--tls-key"),
            (&other_half, "https://h:1", "--tls-cert"),
        ] {
            let error = args.check(&[url]).expect_err(says);
            assert!(error.exit == Exit::Config && error.message.contains(says), "{error}");
        }
        for (args, url, tls) in [
            (&none, "http://h:1", false),
            (&token, "h:1", false),
            (&ca, "https://h:1", true),
            (&name, "https://h:1", true),
        ] {
            assert_eq!(args.check(&[url]).expect("valid"), tls);
        }
        let error = ca.check(&["https://h:1", "http://h:2"]).expect_err("one in the clear");
        assert!(error.message.contains("--server http://h:2"), "{error}");
    }
}
