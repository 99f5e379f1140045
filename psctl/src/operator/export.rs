//! `psctl export`: theta of a running job as a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use ps_common::calls::{JoinAnswer, JoinRequest, Leave, PullRequest};
use ps_common::exit::{Exit, ExitError};
use ps_common::export::{Format, check_creatable, write_theta};
use ps_common::job::{Fingerprint, JobState, PROTOCOL_VERSION, Role, WorkerStats};
use ps_common::{Dtype, Element};
use ps_worker::net::Client;

use super::ServerAddress;
use crate::cli::print;

const FORMATS: &str = "\
Formats, by the file's ending:
  .npy          the table's shape where there is one table, else theta flat, in key order
  .csv          a line `table,key,value` for each element
  .safetensors  one tensor a table; metadata: fingerprint, version, state of the job";

/// Writes theta of a running job, all of one version, to a file
#[derive(Args, Debug)]
#[command(after_help = FORMATS)]
pub struct ExportArgs {
    #[command(flatten)]
    address: ServerAddress,
    /// File that gets theta (.npy, .csv or .safetensors)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Joins as an observer, pulls theta once and leaves.
///
/// # Errors
/// Configuration for an unknown ending, cannot-create for the file, unavailable where the server
/// is not reached, failed where there is no theta yet.
pub async fn export(args: ExportArgs) -> Result<(), ExitError> {
    Format::of(&args.out).map_err(|e| ExitError::config(format!("--out {e}")))?;
    check_creatable(&args.out)?;
    let client = args.address.connect_to_all().await?;
    let wish = JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        role: Role::Observer,
        rank: None,
        fingerprint: Fingerprint::new(),
        tables: None,
        dtype: None,
        program: format!("psctl {}", env!("CARGO_PKG_VERSION")),
        acknowledged_clock: None,
        overlap: false,
    };
    let job = client.join(wish).await.map_err(|f| args.address.failed("Join", f))?;
    let written = match job.dtype {
        Dtype::F32 => pull_and_write::<f32>(&args, &client, &job).await,
        Dtype::F64 => pull_and_write::<f64>(&args, &client, &job).await,
    };
    let leave = Leave { caller: job.caller, stats: WorkerStats::default(), final_metrics: None };
    if let Err(failure) = client.leave(leave).await {
        // The lease ends by itself; the file is what was asked for.
        tracing::warn!(%failure, "the server did not take the goodbye");
    }
    print(&mut std::io::stderr(), &written?)
}

async fn pull_and_write<T: Element>(
    args: &ExportArgs,
    client: &Client,
    job: &JoinAnswer,
) -> Result<String, ExitError> {
    let mut theta = allocate::<T>(job.dim)?;
    let request = PullRequest {
        caller: job.caller,
        version_min: 0,
        r#final: false,
        wait_max: None,
        exchange: 0,
    };
    let pulled =
        client.pull(request, &mut theta).await.map_err(|f| args.address.failed("Pull", f))?;
    let metadata = metadata(&job.fingerprint, pulled.version, pulled.state);
    write_theta(&args.out, &job.tables, &theta, &metadata)?;
    Ok(describe(&args.out, job.dim, job.dtype, pulled.version))
}

/// The server names the size: too large a theta is an error and no abort.
fn allocate<T: Element>(dim: usize) -> Result<Vec<T>, ExitError> {
    let mut theta = Vec::new();
    theta.try_reserve_exact(dim).map_err(|e| {
        ExitError::new(Exit::Failed, format!("no memory for theta of {dim} elements")).because(e)
    })?;
    theta.resize(dim, T::ZERO);
    Ok(theta)
}

/// What identifies an exported theta. A field of the fingerprint keeps its name.
fn metadata(fingerprint: &Fingerprint, version: u64, state: JobState) -> BTreeMap<String, String> {
    let mut metadata = fingerprint.clone();
    metadata.insert("format".to_owned(), "ps".to_owned());
    metadata.insert("version".to_owned(), version.to_string());
    metadata.insert("state".to_owned(), state.to_string());
    metadata
}

fn describe(path: &Path, dim: usize, dtype: Dtype, version: u64) -> String {
    format!("wrote {}: {dim} elements of {dtype}, version {version}\n", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_names_the_job_and_the_version() {
        let fingerprint = Fingerprint::from([("model".to_owned(), "linear".to_owned())]);
        let metadata = metadata(&fingerprint, 7, JobState::Running);
        assert_eq!(metadata["model"], "linear");
        assert_eq!((metadata["version"].as_str(), metadata["state"].as_str()), ("7", "running"));
    }

    #[test]
    fn an_absurd_size_is_an_error() {
        assert_eq!(allocate::<f64>(usize::MAX / 4).expect_err("too large").exit, Exit::Failed);
        assert_eq!(allocate::<f32>(3).expect("small"), [0.0; 3]);
    }
}
