//! Where a server is, as a flag says it.

use tonic::codegen::http::Uri;

use crate::exit::ExitError;

/// Reads `http://HOST:PORT`, `https://HOST:PORT` or `HOST:PORT`, the value of `flag`.
///
/// # Errors
/// Configuration, naming `flag` and what is wrong with it.
pub fn parse(flag: &str, text: &str) -> Result<Uri, ExitError> {
    let refuse = |what: &str| {
        let expected = "expected http://HOST:PORT or https://HOST:PORT";
        Err(ExitError::config(format!("{flag} {text}: {what}; {expected}")))
    };
    let whole = match text.split_once("://") {
        None => format!("http://{text}"),
        Some(("http" | "https", _)) => text.to_owned(),
        Some(_) => return refuse("the scheme is neither http nor https"),
    };
    let Ok(uri) = whole.parse::<Uri>() else { return refuse("not a URL") };
    if uri.host().is_none_or(str::is_empty) {
        return refuse("there is no host");
    }
    if uri.port_u16().is_none_or(|port| port == 0) {
        return refuse("there is no port");
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return refuse("there is something after the port");
    }
    Ok(uri)
}

/// Whether what goes there stays on this machine.
pub fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
