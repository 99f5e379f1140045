//! What a cell does and what its bytes go over, as the bench tells its own processes.

use std::path::PathBuf;

use ps_common::Dtype;
use ps_common::codec::Codec;
use ps_common::job::Mode;
use serde::{Serialize, Serializer};

use super::sparse::Sparse;

/// What one cell does; both sides of a comparison get the same.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Job {
    /// Elements of theta.
    #[arg(long)]
    pub(super) n: usize,
    /// Worker processes.
    #[arg(long)]
    pub(super) workers: u32,
    /// How pushes are ordered.
    #[arg(long)]
    pub(super) mode: Mode,
    /// Element type.
    #[arg(long)]
    pub(super) dtype: Dtype,
    /// How gradients are written over gRPC; bare sockets have them as they are. Not said where
    /// gRPC has them so, too: a build from before codecs knows no such flag.
    #[arg(long, default_value_t = Codec::PLAIN)]
    #[serde(skip_serializing_if = "is_plain", serialize_with = "as_typed")]
    pub(super) wire: Codec,
    /// Rows that a step pushes and is given, of theta as one table; absent: all of theta.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_typed_if_any")]
    pub(super) sparse: Option<Sparse>,
}

/// What the bytes of a cell go over.
#[derive(Debug, Clone, Default, PartialEq, Serialize, clap::Args)]
pub(super) struct Way {
    /// Congestion control to set on every socket; absent: leave the system's.
    #[arg(long)]
    pub(super) congestion: Option<String>,
    /// Folder with certificates; absent: plaintext.
    #[arg(long)]
    pub(super) tls: Option<PathBuf>,
}

impl Job {
    /// Bytes of theta, and of a gradient as it is.
    pub(super) fn theta_bytes(&self) -> usize {
        self.n * self.dtype.size_bytes()
    }

    /// Elements that a step pushes, and as many that it is given.
    pub(super) fn n_of_step(&self) -> usize {
        self.sparse.map_or(self.n, Sparse::n_elements)
    }

    /// Bytes pushed and pulled by one step of one worker, without headers, codecs, numbers of rows and TLS.
    pub(super) fn payload_bytes_per_step(&self) -> usize {
        2 * self.n_of_step() * self.dtype.size_bytes()
    }

    /// The word for how gradients are written: without a codec their type.
    pub(super) fn wire_name(&self) -> String {
        match self.wire {
            Codec::PLAIN => self.dtype.to_string(),
            codec => codec.to_string(),
        }
    }
}

fn is_plain(wire: &Codec) -> bool {
    *wire == Codec::PLAIN
}

fn as_typed<S: Serializer>(wire: &Codec, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(wire)
}

fn as_typed_if_any<S: Serializer>(
    sparse: &Option<Sparse>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&sparse.expect("skipped without"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Demo {
        #[command(flatten)]
        job: Job,
    }

    #[test]
    fn a_job_survives_the_command_line_of_a_process() {
        let sparse = Some(Sparse { rows: 3, width: 2 });
        for (wire, sparse, n_arguments) in
            [("f32", None, 4), ("int8", None, 5), ("topk,ratio=0.25", None, 5), ("f32", sparse, 5)]
        {
            let wire = wire.parse().expect("a codec");
            let job = Job { n: 7, workers: 3, mode: Mode::Sync, dtype: Dtype::F64, wire, sparse };
            let arguments = ps_common::flags::to_arguments(&job);
            assert_eq!(arguments.len(), n_arguments, "{arguments:?}");
            let read = Demo::parse_from(std::iter::once("job".into()).chain(arguments)).job;
            assert_eq!(read, job);
        }
    }
}
