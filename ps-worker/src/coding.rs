//! How gradients and theta are written on their way: `--wire`, `--wire-pull`.
//!
//! Owns the flags, and a worker's memory of what its codec lost of gradients. Knows nothing of messages.

use ps_common::Element;
use ps_common::codec::{Codec, Encoded, Encoding, Feedback};
use ps_common::dtype::CHUNK_BYTES;
use ps_common::exit::ExitError;
use serde::Serialize;

/// Elements of a chunk at most: as many as a plain one of f32 has.
const CHUNK_LEN: usize = CHUNK_BYTES / 4;

/// What goes over the wire, as typed.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Wire")]
pub struct WireArgs {
    /// How gradients are sent: f32 (as they are), f16, bf16, int8, or topk,ratio=R (the share R of
    /// largest elements). What a codec loses of a gradient is added to the worker's next one
    #[arg(long, env = "PS_WIRE", value_name = "CODEC", default_value = "f32")]
    pub wire: String,
    /// How theta is received: f32 (as it is), f16 or bf16: each element rounded to the nearest that the
    /// format has. Gradients are computed at that; theta at the server stays exact
    #[arg(long, env = "PS_WIRE_PULL", value_name = "CODEC", default_value = "f32")]
    pub wire_pull: String,
}

/// What goes over the wire, checked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wire {
    /// How gradients are sent.
    pub push: Codec,
    /// How theta is sent for a gradient to be computed at it; suits it.
    pub pull: Encoding,
}

impl Wire {
    /// As they are.
    pub const PLAIN: Self = Self { push: Codec::PLAIN, pull: Encoding::Plain };
}

impl WireArgs {
    /// Checks both codecs.
    ///
    /// # Errors
    /// Configuration, naming the flag.
    pub fn check(&self) -> Result<Wire, ExitError> {
        let config = |flag: &str, what| ExitError::config(format!("{flag}: {what}"));
        Ok(Wire {
            push: self.wire.parse().map_err(|what| config("--wire", what))?,
            pull: pull_encoding(&self.wire_pull).map_err(|what| config("--wire-pull", what))?,
        })
    }
}

fn pull_encoding(text: &str) -> Result<Encoding, String> {
    match text.parse().map(Codec::encoding) {
        Ok(encoding) if encoding.suits_theta() => Ok(encoding),
        Err(_) if !text.starts_with("topk") && !text.starts_with("int8") => {
            Err(format!("`{text}` is not f32, f16 or bf16"))
        }
        _ => Err(format!(
            "`{text}` is for gradients alone: what it leaves out of one is sent with the next, what it \
             leaves out of theta would never arrive; take f16 or bf16"
        )),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn theta_is_received_by_codecs_that_write_every_element() {
        let wire =
            |pull: &str| WireArgs { wire: "int8".to_owned(), wire_pull: pull.to_owned() }.check();
        for (text, encoding) in
            [("f32", Encoding::Plain), ("f16", Encoding::F16), ("bf16", Encoding::Bf16)]
        {
            let push = Codec::Dense(Encoding::Int8);
            assert_eq!(wire(text).expect("valid"), Wire { push, pull: encoding });
        }
        for (text, says) in [
            ("int8", "--wire-pull: `int8` is for gradients alone"),
            ("topk", "`topk` is for gradients alone"),
            ("topk,ratio=0.1", "would never arrive; take f16 or bf16"),
            ("f8", "--wire-pull: `f8` is not f32, f16 or bf16"),
            ("f16,ratio=1", "`f16,ratio=1` is not"),
            ("", "`` is not"),
        ] {
            let error = wire(text).expect_err(text);
            assert!(error.message.contains(says), "{error}");
        }
    }
}
