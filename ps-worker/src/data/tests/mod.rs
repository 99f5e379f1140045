//! Tests of the way from flags to samples, through real files. One file a subject.

mod flags;
mod formats;
mod known;
mod malformed;
mod treatment;

use std::io::Write;
use std::path::PathBuf;

use clap::Parser;
use ps_common::exit::{Exit, ExitError};
use tempfile::TempDir;

use crate::samples::{Features, Samples};

use super::{DataArgs, Preprocessing, Rows, Survey, load, survey};

#[derive(Parser, Debug)]
struct Program {
    #[command(flatten)]
    data: DataArgs,
}

/// A folder of files and the flags given for them.
struct Case {
    folder: TempDir,
}

impl Case {
    fn new() -> Self {
        Self { folder: TempDir::new().expect("a temporary folder") }
    }

    fn with(name: &str, bytes: impl AsRef<[u8]>) -> Self {
        let case = Self::new();
        case.write(name, bytes);
        case
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.folder.path().join(name), bytes).expect("written");
    }

    /// Parses flags; a value's `@name` is a file of the folder.
    fn args(&self, flags: &str) -> DataArgs {
        let flags = flags.replace('@', &format!("{}/", self.folder.path().display()));
        let words = std::iter::once("program").chain(flags.split_whitespace());
        Program::try_parse_from(words).expect("flags").data
    }

    fn survey(&self, flags: &str) -> Result<Survey, ExitError> {
        survey(&self.args(flags).check()?)
    }

    /// All rows, as one worker has them.
    fn load(&self, flags: &str) -> Result<Samples<f64>, ExitError> {
        self.shard(flags, 0, 1)
    }

    fn shard(&self, flags: &str, index: u32, of: u32) -> Result<Samples<f64>, ExitError> {
        let spec = self.args(flags).check()?;
        let survey = survey(&spec)?;
        let preprocessing = Preprocessing::new(spec.scale, &survey, None)?;
        load(&spec, &preprocessing, Rows::of_worker(&spec, index, of, survey.n_samples))
    }

    /// The message of a refusal with the exit code of bad data, the folder's name left out.
    fn bad_data(&self, flags: &str) -> String {
        self.refused(flags, Exit::BadData)
    }

    fn config(&self, flags: &str) -> String {
        self.refused(flags, Exit::Config)
    }

    fn refused(&self, flags: &str, exit: Exit) -> String {
        let error = self.load(flags).expect_err(flags);
        assert_eq!(error.exit, exit, "{flags}: {error}");
        error.message.replace(&format!("{}/", self.folder.path().display()), "")
    }
}

fn gzip(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes.as_ref()).expect("in memory");
    encoder.finish().expect("in memory")
}

/// The project's own small data sets.
fn shared(name: &str) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data");
    root.join(name).to_str().expect("UTF-8").to_owned()
}

fn rows(samples: &Samples<f64>) -> Vec<Vec<f64>> {
    match &samples.features {
        Features::Dense(rows) => rows.rows().into_iter().map(|row| row.to_vec()).collect(),
        Features::Sparse(sparse) => (0..samples.len())
            .map(|i| {
                let mut row = vec![0.0; sparse.n_features];
                for at in sparse.starts[i]..sparse.starts[i + 1] {
                    row[sparse.indices[at] as usize] = sparse.values[at];
                }
                row
            })
            .collect(),
    }
}

/// NPY, version 1.
fn npy(descr: &str, shape: &str, body: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    header.push_str(&" ".repeat(63 - (10 + header.len()) % 64));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn idx(kind: u8, dimensions: &[u32], body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, kind, dimensions.len() as u8];
    bytes.extend(dimensions.iter().flat_map(|d| d.to_be_bytes()));
    bytes.extend_from_slice(body);
    bytes
}
