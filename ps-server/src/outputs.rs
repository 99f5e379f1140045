//! What a server leaves behind: port file, report, theta. Each is written whole or not at all.

use std::collections::BTreeMap;
use std::path::Path;

use ps_common::Dtype;
use ps_common::calls::JoinAnswer;
use ps_common::exit::ExitError;
use ps_common::export::{Format, check_creatable, write_atomically, write_theta};
use ps_common::report::Report;

use crate::args::ServeArgs;
use crate::table::Snapshot;

/// Finds out before the job what would fail after it.
///
/// # Errors
/// [`ps_common::exit::Exit::CannotCreate`] with the path, or a format that does not exist.
pub(crate) fn check(args: &ServeArgs) -> Result<(), ExitError> {
    let files = [&args.port_file, &args.report, &args.theta_out];
    for path in files.into_iter().flatten() {
        check_creatable(path)?;
    }
    if let Some(path) = &args.theta_out {
        Format::of(path)?;
    }
    Ok(())
}

pub(crate) fn write_port(path: &Path, port: u16) -> Result<(), ExitError> {
    write_atomically(path, |out| writeln!(out, "{port}"))
}

pub(crate) fn write_report(path: &Path, report: &Report) -> Result<(), ExitError> {
    write_atomically(path, |out| {
        serde_json::to_writer(&mut *out, report)?;
        writeln!(out)
    })
}

pub(crate) fn write_snapshot(
    path: &Path,
    job: &JoinAnswer,
    theta: &Snapshot,
) -> Result<(), ExitError> {
    let mut metadata: BTreeMap<String, String> = job.fingerprint.clone();
    metadata.insert("version".to_owned(), theta.version.to_string());
    match theta.dtype {
        Dtype::F32 => write_theta::<f32>(path, &job.tables, &theta.values(), &metadata),
        Dtype::F64 => write_theta::<f64>(path, &job.tables, &theta.values(), &metadata),
    }
}
