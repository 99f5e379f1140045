//! Who may come in, as flags: TLS, tokens, and the limits on what one connection may do.
//!
//! Checks combinations; opens no file. What the files hold is read by `net`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ps_common::exit::ExitError;
use serde::Serialize;

use crate::args::duration;

/// TLS and tokens.
#[derive(Args, Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Security")]
pub struct SecurityArgs {
    /// Certificate of this server, PEM, with those between it and its CA: serve TLS 1.3 only
    #[arg(long, env = "PS_TLS_CERT", value_name = "FILE.pem")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert, PEM
    #[arg(long, env = "PS_TLS_KEY", value_name = "FILE.pem")]
    pub tls_key: Option<PathBuf>,
    /// Serve only peers with a certificate that this CA has signed (mutual TLS)
    #[arg(long, env = "PS_TLS_CLIENT_CA", value_name = "FILE.pem")]
    pub tls_client_ca: Option<PathBuf>,
    /// File with the token of workers: join, push, pull
    #[arg(long, env = "PS_WORKER_TOKEN_FILE", value_name = "FILE")]
    pub worker_token_file: Option<PathBuf>,
    /// File with the token of operators: status, stop, checkpoint, export
    #[arg(long, env = "PS_OPERATOR_TOKEN_FILE", value_name = "FILE")]
    pub operator_token_file: Option<PathBuf>,
    /// Allow --listen addresses that other machines reach, without TLS or tokens
    #[arg(long, env = "PS_INSECURE", value_name = "BOOL", default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub insecure: bool,
}

/// Limits on what one connection may do.
#[derive(Args, Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Connections that may be open at once [default: 4 a worker, and 64]
    #[arg(long, env = "PS_CONNECTIONS_MAX", value_name = "N")]
    pub connections_max: Option<usize>,
    /// A connection that has not begun to speak HTTP/2 (and TLS, if served) by then is closed
    #[arg(long, env = "PS_HANDSHAKE_TIMEOUT", value_name = "TIME", default_value = "10s")]
    pub handshake_timeout: String,
    /// A peer that stops inside a message that it sends, or reads nothing of an answer, for so
    /// long is cut off
    #[arg(long, env = "PS_STALL_TIMEOUT", value_name = "TIME", default_value = "30s")]
    pub stall_timeout: String,
    /// A connection is asked to end at this age; the peer opens another one
    #[arg(long, env = "PS_CONNECTION_AGE_MAX", value_name = "TIME", default_value = "12h")]
    pub connection_age_max: String,
}

/// The files of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Of the server.
    pub cert: PathBuf,
    /// Of the server.
    pub key: PathBuf,
    /// Of the peers, where they must have certificates.
    pub client_ca: Option<PathBuf>,
}

/// The files of the tokens, one a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFiles {
    /// Join, push, pull.
    pub worker: PathBuf,
    /// Everything but pushing.
    pub operator: PathBuf,
}

/// Who may come in, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Security {
    /// None: plaintext.
    pub tls: Option<TlsFiles>,
    /// None: everybody may call everything.
    pub tokens: Option<TokenFiles>,
    /// What an operator should hear at the start: how far the server is open.
    pub warning: Option<String>,
}

/// Limits, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// At once.
    pub connections_max: usize,
    /// Until the first byte of HTTP/2.
    pub handshake: Duration,
    /// Of a peer inside a message or an answer.
    pub stall: Duration,
    /// Of a connection, before it is asked to end.
    pub age: Duration,
}

impl Limits {
    /// After its age a connection has so long for the calls that it carries: until it is cut.
    pub fn grace(&self) -> Duration {
        (self.age / 10).min(Duration::from_secs(300))
    }

    /// Calls that may be under way at once. A worker has two or three, so this stops only those who
    /// open calls for their own sake.
    pub fn calls_max(&self) -> usize {
        self.connections_max.saturating_mul(4)
    }
}

impl SecurityArgs {
    /// Checks combinations with the address to listen on.
    ///
    /// # Errors
    /// Configuration, naming the flags.
    pub fn check(&self, listen: SocketAddr) -> Result<Security, ExitError> {
        let tls = self.tls()?;
        let tokens = self.tokens()?;
        let open = match (&tls, &tokens) {
            (Some(_), Some(_)) => None,
            (None, Some(_)) => Some("without TLS (--tls-cert, --tls-key)"),
            (Some(_), None) => Some("without tokens (--worker-token-file, --operator-token-file)"),
            (None, None) => Some("without TLS and tokens"),
        };
        let open = open.filter(|_| !listen.ip().is_loopback());
        if let (Some(open), false) = (open, self.insecure) {
            return Err(ExitError::config(format!(
                "--listen {listen} is reachable from other machines, {open}; `psctl certs` makes \
                 what is needed; else listen on 127.0.0.1, or add --insecure inside a network you \
                 trust"
            )));
        }
        let warning = open.map(|open| format!("serving other machines {open} (--insecure)"));
        Ok(Security { tls, tokens, warning })
    }

    fn tls(&self) -> Result<Option<TlsFiles>, ExitError> {
        match (&self.tls_cert, &self.tls_key, &self.tls_client_ca) {
            (Some(cert), Some(key), client_ca) => Ok(Some(TlsFiles {
                cert: cert.clone(),
                key: key.clone(),
                client_ca: client_ca.clone(),
            })),
            (None, None, None) => Ok(None),
            (Some(_), None, _) => Err(ExitError::config("--tls-cert needs its --tls-key")),
            (None, Some(_), _) => Err(ExitError::config("--tls-key needs its --tls-cert")),
            (None, None, Some(_)) => {
                Err(ExitError::config("--tls-client-ca needs TLS: --tls-cert and --tls-key"))
            }
        }
    }

    fn tokens(&self) -> Result<Option<TokenFiles>, ExitError> {
        match (&self.worker_token_file, &self.operator_token_file) {
            (Some(worker), Some(operator)) => {
                Ok(Some(TokenFiles { worker: worker.clone(), operator: operator.clone() }))
            }
            (None, None) => Ok(None),
            (Some(_), None) => Err(ExitError::config(
                "--worker-token-file needs --operator-token-file: without it nobody could ask for \
                 the status or stop the job",
            )),
            (None, Some(_)) => Err(ExitError::config(
                "--operator-token-file needs --worker-token-file: without it nobody could join",
            )),
        }
    }
}

impl LimitArgs {
    /// Checks the limits of a server of `n_workers`.
    ///
    /// # Errors
    /// Configuration, naming the flag.
    pub fn check(&self, n_workers: u32) -> Result<Limits, ExitError> {
        let positive = |flag: &str, text: &str| {
            let time = duration(flag, text)?;
            if time.is_zero() {
                return Err(ExitError::config(format!(
                    "{flag} {text}: expected more than nothing"
                )));
            }
            Ok(time)
        };
        Ok(Limits {
            connections_max: self.connections_max.unwrap_or(64 + 4 * n_workers as usize),
            handshake: positive("--handshake-timeout", &self.handshake_timeout)?,
            stall: positive("--stall-timeout", &self.stall_timeout)?,
            age: positive("--connection-age-max", &self.connection_age_max)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::ServerArgs;
    use clap::Parser;
    use ps_common::exit::Exit;

    const TLS: [&str; 2] = ["--tls-cert=c", "--tls-key=k"];
    const TOKENS: [&str; 2] = ["--worker-token-file=w", "--operator-token-file=o"];

    fn check(listen: &str, arguments: &[&str]) -> Result<Security, ExitError> {
        let all = [&["ps-server"], arguments].concat();
        let args = ServerArgs::try_parse_from(all).expect("parses");
        args.serve.security.check(listen.parse().expect("an address"))
    }

    #[test]
    fn beyond_loopback_both_are_needed_or_the_flag_that_says_it() {
        let both = [TLS, TOKENS].concat();
        for listen in ["0.0.0.0:1", "10.1.2.3:1", "[::]:1"] {
            assert_eq!(check(listen, &both).expect("both").warning, None);
            for (arguments, lacks) in
                [(&[][..], "TLS and tokens"), (&TLS, "tokens"), (&TOKENS, "TLS")]
            {
                let error = check(listen, arguments).expect_err(lacks);
                assert!(error.exit == Exit::Config && error.message.contains("--insecure"));
                assert!(error.message.contains(&format!("without {lacks}")), "{error}");
                let insecure = [arguments, &["--insecure"]].concat();
                let warning = check(listen, &insecure).expect("allowed").warning;
                assert!(warning.is_some_and(|w| w.contains(&format!("without {lacks}"))));
            }
        }
        for arguments in [&[][..], &TLS, &TOKENS, &both] {
            assert_eq!(check("127.0.0.1:1", arguments).expect("loopback").warning, None);
        }
    }

    #[test]
    fn halves_are_refused_by_the_name_of_what_is_missing() {
        for (arguments, names) in [
            (["--tls-cert=c"], "--tls-key"),
            (["--tls-key=k"], "--tls-cert"),
            (["--tls-client-ca=a"], "--tls-cert"),
            (["--worker-token-file=w"], "--operator-token-file"),
            (["--operator-token-file=o"], "--worker-token-file"),
        ] {
            let error = check("127.0.0.1:1", &arguments).expect_err(names);
            assert!(error.exit == Exit::Config && error.message.contains(names), "{error}");
        }
    }

    #[test]
    fn limits_follow_from_the_workers_and_name_their_flags() {
        let limits = |arguments: &[&str]| {
            let all = [&["ps-server"], arguments].concat();
            ServerArgs::try_parse_from(all).expect("parses").serve.limits.check(4)
        };
        let defaults = limits(&[]).expect("defaults are valid");
        assert_eq!((defaults.connections_max, defaults.calls_max()), (80, 320));
        assert_eq!(defaults.grace(), Duration::from_secs(300));
        let short = limits(&["--connection-age-max=1s"]).expect("valid");
        assert_eq!(short.grace(), Duration::from_millis(100));
        for flag in ["--handshake-timeout", "--stall-timeout", "--connection-age-max"] {
            for value in ["0s", "soon"] {
                let error = limits(&[&format!("{flag}={value}")]).expect_err(flag);
                assert!(error.exit == Exit::Config && error.message.contains(flag), "{error}");
            }
        }
    }
}
