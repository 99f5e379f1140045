//! Where the other servers are and how one shows them who one is: their URLs, TLS, the token.

use std::sync::Arc;

use ps_common::exit::ExitError;
use ps_common::partition::Partition;
use ps_common::secrets::{
    ALPN_HTTP2, Token, cryptography, read_authorities, read_certificates, read_key,
};
use ps_common::url;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::version::TLS13;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Uri;

use crate::args::PeerSpec;
use crate::security::Security;

/// The ways to all of them, in order of partition.
#[derive(Debug, Clone)]
pub struct Ways(Vec<Way>);

/// The way to one of them.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) url: String,
    pub(super) uri: Uri,
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) token: Option<MetadataValue<Ascii>>,
}

impl Ways {
    /// Reads what `spec` names. The server's own certificate and operators' token, in `security`, are
    /// shown to the others.
    ///
    /// # Errors
    /// Configuration for what is no URL, or for one that wants TLS where nobody is trusted; I/O or
    /// configuration for files, naming the flag.
    pub fn load(spec: &PeerSpec, security: &Security) -> Result<Self, ExitError> {
        let tls = spec.ca.as_deref().map(|ca| tls(ca, security)).transpose()?;
        let token = security.tokens.as_ref().map(|files| {
            Token::read("--operator-token-file", &files.operator).map(|token| {
                let header = token.header();
                let mut value = MetadataValue::try_from(header).expect("a token is visible ASCII");
                value.set_sensitive(true);
                value
            })
        });
        let token = token.transpose()?;
        let way = |url: &String| {
            let uri = url::parse("--peers", url)?;
            let wants_tls = uri.scheme_str() == Some("https");
            if wants_tls && tls.is_none() {
                return Err(ExitError::config(format!("--peers {url} needs --peer-ca")));
            }
            if token.is_some() && !wants_tls && !url::is_loopback(&uri) {
                tracing::warn!(url, "the operators' token goes over the network in the clear");
            }
            let (tls, token) = (tls.clone().filter(|_| wants_tls), token.clone());
            Ok(Way { url: url.clone(), uri, tls, token })
        };
        let ways = spec.urls.iter().map(way).collect::<Result<Vec<_>, _>>()?;
        if spec.ca.is_some() && ways.iter().all(|way| way.tls.is_none()) {
            return Err(ExitError::config(
                "--peer-ca has no meaning without an https:// in --peers",
            ));
        }
        Ok(Self(ways))
    }

    /// Each with the partition that is there.
    pub(super) fn followers(&self) -> impl Iterator<Item = (Partition, &Way)> {
        let count = self.0.len() as u32 + 1;
        (1..).zip(&self.0).map(move |(index, way)| (Partition { index, count }, way))
    }
}

fn tls(ca: &std::path::Path, security: &Security) -> Result<Arc<ClientConfig>, ExitError> {
    let roots = read_authorities("--peer-ca", ca)?;
    let builder = ClientConfig::builder_with_provider(cryptography())
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| ExitError::config("TLS 1.3 is not to be had").because(e))?
        .with_root_certificates(roots);
    let mut config = match &security.tls {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let certificates = read_certificates("--tls-cert", &files.cert)?;
            let key = read_key("--tls-key", &files.key)?;
            builder.with_client_auth_cert(certificates, key).map_err(|e| {
                let what =
                    format!("--tls-cert {} cannot be shown to --peers", files.cert.display());
                ExitError::config(what).because(e)
            })?
        }
    };
    config.alpn_protocols.push(ALPN_HTTP2.to_vec());
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ps_common::exit::Exit;

    #[test]
    fn what_is_no_way_to_a_server_is_refused_by_flag_and_text() {
        for (url, what) in [
            ("ftp://a:1", "neither http nor https"),
            ("http://a", "no port"),
            ("http://a:0", "no port"),
            ("http://:1", "no host"),
            ("a:1/x", "after the port"),
            ("https://a:1", "--peer-ca"),
        ] {
            let security = Security { tls: None, tokens: None, warning: None };
            let spec = PeerSpec { urls: vec![url.to_owned()], ca: None };
            let error = Ways::load(&spec, &security).expect_err(url);
            assert!(error.exit == Exit::Config && error.message.contains(what), "{error}");
            assert!(error.message.contains(&format!("--peers {url}")), "{error}");
        }
        let security = Security { tls: None, tokens: None, warning: None };
        let urls = ["a:1", "http://[::1]:2"].map(str::to_owned).to_vec();
        let ways = Ways::load(&PeerSpec { urls, ca: None }, &security).expect("two");
        let found: Vec<String> =
            ways.followers().map(|(partition, way)| format!("{partition} {}", way.uri)).collect();
        assert_eq!(found, ["1/3 http://a:1/", "2/3 http://[::1]:2/"]);
    }
}
