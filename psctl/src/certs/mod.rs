//! `psctl certs`: a CA of one's own, certificates and tokens for a cluster, and how to use them.
//!
//! Owns the files and what is printed; `issue` makes what is in them.

mod issue;
mod recipe;

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use ps_common::exit::{Exit, ExitError};

use crate::cli::print;
use issue::Bundle;

const FILES: &str = "\
Files:
  ca.pem                                    trusted by all: --tls-ca, --tls-client-ca
  ca-key.pem                                signs certificates; keep it where no program runs
  server.pem, server-key.pem                for the server
  worker.pem, worker-key.pem, worker.token  for workers
  operator.pem, operator-key.pem, operator.token
                                            for psctl

Keys and tokens can be read by their owner only. No file is ever overwritten.";

/// Makes a CA, certificates and tokens for a server, its workers and its operators
#[derive(Args, Debug)]
#[command(after_help = FILES)]
pub struct CertsArgs {
    /// Folder that gets the files; made if it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Names and addresses by which the server is called; localhost, 127.0.0.1 and ::1 are always
    /// among them
    #[arg(long = "host", value_name = "NAME", value_delimiter = ',', required = true)]
    hosts: Vec<String>,
    /// How long the certificates are valid
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
}

/// Makes the files and prints how to use them.
///
/// # Errors
/// Configuration for a host that is none, cannot-create where a file exists already or cannot come
/// into being, I/O where writing fails.
pub fn certs(args: &CertsArgs) -> Result<(), ExitError> {
    let bundle = Bundle::issue(&args.hosts, args.days)?;
    write_all(&args.out, &bundle.files)?;
    print(&mut std::io::stdout(), &recipe::recipe(&args.out, &args.hosts, args.days))
}

/// One file to be.
struct File {
    name: &'static str,
    content: String,
    is_secret: bool,
}

fn write_all(folder: &Path, files: &[File]) -> Result<(), ExitError> {
    let cannot = |path: &Path, why: &str| {
        ExitError::new(Exit::CannotCreate, format!("cannot create {}: {why}", path.display()))
    };
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(folder).map_err(|e| cannot(folder, "no folder can be there").because(e))?;
    // All or none, as far as can be known beforehand.
    if let Some(there) = files.iter().map(|f| folder.join(f.name)).find(|path| path.exists()) {
        let why = "it is there already and is not overwritten; choose another --out";
        return Err(cannot(&there, why));
    }
    for file in files {
        let path = folder.join(file.name);
        let mode = if file.is_secret { 0o600 } else { 0o644 };
        let mut out = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .map_err(|e| cannot(&path, "the system refuses").because(e))?;
        out.write_all(file.content.as_bytes()).and_then(|()| out.sync_all()).map_err(|e| {
            ExitError::new(Exit::Io, format!("cannot write {}", path.display())).because(e)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn args(out: &Path, host: &str) -> CertsArgs {
        CertsArgs { out: out.to_owned(), hosts: vec![host.to_owned()], days: 30 }
    }

    #[test]
    fn secrets_are_the_owners_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let out = folder.path().join("new/certs");
        let bundle = Bundle::issue(&["ps.example".to_owned()], 30).expect("issued");
        write_all(&out, &bundle.files).expect("written");
        let mut n_secrets = 0;
        for file in &bundle.files {
            let mode = out.join(file.name).metadata().expect("there").permissions().mode() & 0o777;
            assert_eq!(mode, if file.is_secret { 0o600 } else { 0o644 }, "{}", file.name);
            n_secrets += usize::from(file.is_secret);
        }
        assert_eq!((bundle.files.len(), n_secrets), (10, 6));

        let before = std::fs::read(out.join("ca.pem")).expect("readable");
        std::fs::remove_file(out.join("server.pem")).expect("removed");
        let error = certs(&args(&out, "ps.example")).expect_err("files are there");
        assert_eq!(error.exit, Exit::CannotCreate);
        assert!(error.message.contains("not overwritten"), "{error}");
        assert_eq!(std::fs::read(out.join("ca.pem")).expect("readable"), before);
        assert!(!out.join("server.pem").exists(), "all or none");
    }

    #[test]
    fn a_host_that_is_none_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for host in ["", "two words", "http://x", "x:1"] {
            let error = certs(&args(folder.path(), host)).expect_err(host);
            assert!(error.exit == Exit::Config && error.message.contains("--host"), "{error}");
        }
        assert_eq!(folder.path().read_dir().expect("a folder").count(), 0);
    }
}
