//! How gradients and theta are written on their way: `--wire`, `--wire-pull`.
//!
//! Owns the flags, and a worker's memory of what its codec lost. Knows nothing of messages.

use ps_common::Element;
use ps_common::codec::{Codec, Encoded, Encoding, Feedback};
use ps_common::exit::ExitError;
use serde::Serialize;

/// Elements of a chunk at most: as many as a plain one of f32 has.
const CHUNK_LEN: usize = 1 << 16;

/// What goes over the wire, as typed.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Wire")]
pub struct WireArgs {
    /// How gradients are sent: f32 (as they are), f16, bf16, int8, or topk,ratio=R (the share R of
    /// largest elements). What a codec loses of a gradient is added to the worker's next one
    #[arg(long, env = "PS_WIRE", value_name = "CODEC", default_value = "f32")]
    pub wire: String,
}

impl WireArgs {
    /// Checks the codec.
    ///
    /// # Errors
    /// Configuration, naming the flag.
    pub fn check(&self) -> Result<Codec, ExitError> {
        self.wire.parse().map_err(|what| ExitError::config(format!("--wire: {what}")))
    }
}

/// Writes a worker's gradients.
#[derive(Debug)]
pub struct Coder<T> {
    feedback: Feedback<T>,
    /// The first key of each server's part.
    cuts: Vec<usize>,
}

impl<T: Element> Coder<T> {
    /// Of gradients that are cut at the first keys of all servers; `None`: they are sent as they are.
    pub fn new(codec: Codec, cuts: Vec<usize>) -> Option<Self> {
        (codec != Codec::Dense(Encoding::Plain))
            .then(|| Self { feedback: Feedback::new(codec), cuts })
    }

    /// Writes the next gradient, with what was lost of those before, in order of key.
    pub fn write(&mut self, gradient: &[T]) -> Vec<Encoded> {
        self.feedback.encode(gradient, &self.cuts, CHUNK_LEN)
    }

    /// What is lost so far and goes with the next gradient, by element; empty before the first.
    pub fn lost(&self) -> &[T] {
        self.feedback.lost()
    }
}
