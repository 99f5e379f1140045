//! What `psctl certs` prints: the commands that use its files. Pure text.

use std::net::IpAddr;
use std::path::Path;

/// Commands for server, workers and psctl, as they can be typed where the files are.
pub(super) fn recipe(folder: &Path, hosts: &[String], days: u32) -> String {
    let file = |name: &str| quoted(&folder.join(name).display().to_string());
    let host = hosts.iter().find(|host| !host.starts_with('*')).map_or("HOST", String::as_str);
    let address = host.parse::<IpAddr>().ok();
    let is_loopback = host == "localhost" || address.is_some_and(|ip| ip.is_loopback());
    let listen = match (is_loopback, address) {
        (true, Some(IpAddr::V6(_))) => "[::1]:50051",
        (true, _) => "127.0.0.1:50051",
        (false, _) => "0.0.0.0:50051",
    };
    let url = match address {
        Some(IpAddr::V6(ip)) => format!("https://[{ip}]:50051"),
        _ => format!("https://{host}:50051"),
    };
    let peer = |role: &str| {
        format!(
            "--server {url} --tls-ca {} \\\n    --tls-cert {} --tls-key {} \\\n    --token-file {}",
            file("ca.pem"),
            file(&format!("{role}.pem")),
            file(&format!("{role}-key.pem")),
            file(&format!("{role}.token")),
        )
    };
    format!(
        "\
Made {folder}: a CA, certificates and tokens, valid for {days} days.

# The server: {served}
ps-server --listen {listen} \\
    --tls-cert {cert} --tls-key {key} \\
    --tls-client-ca {ca} \\
    --worker-token-file {worker} --operator-token-file {operator}

# A worker: ca.pem, worker.pem, worker-key.pem, worker.token
ps-worker {as_worker}

# psctl: ca.pem, operator.pem, operator-key.pem, operator.token
psctl status {as_operator}

Take to each machine only the files that its line names. ca-key.pem belongs on none of them.
",
        folder = folder.display(),
        served = "ca.pem, server.pem, server-key.pem, worker.token, operator.token",
        cert = file("server.pem"),
        key = file("server-key.pem"),
        ca = file("ca.pem"),
        worker = file("worker.token"),
        operator = file("operator.token"),
        as_worker = peer("worker"),
        as_operator = peer("operator"),
    )
}

/// As a shell takes it for one word.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_name_the_host_and_every_file() {
        let text =
            |host: &str| recipe(Path::new("certs"), &["*.x".to_owned(), host.to_owned()], 30);
        for (host, listen, url) in [
            ("ps.example", "0.0.0.0:50051", "https://ps.example:50051"),
            ("10.0.0.5", "0.0.0.0:50051", "https://10.0.0.5:50051"),
            ("fe80::1", "0.0.0.0:50051", "https://[fe80::1]:50051"),
            ("localhost", "127.0.0.1:50051", "https://localhost:50051"),
            ("::1", "[::1]:50051", "https://[::1]:50051"),
        ] {
            let text = text(host);
            assert!(text.contains(&format!("--listen {listen} ")), "{text}");
            assert_eq!(text.matches(&format!("--server {url} ")).count(), 2, "{text}");
        }
        let text = text("h");
        for file in ["server-key.pem", "worker.token", "operator.token", "operator-key.pem"] {
            assert!(text.contains(&format!("certs/{file}")), "{file}");
        }
        assert!(!text.contains("certs/ca-key.pem"), "{text}");
    }

    #[test]
    fn a_folder_with_a_space_is_one_word() {
        assert_eq!(quoted("certs/a.pem"), "certs/a.pem");
        assert_eq!(quoted("my certs"), "'my certs'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
