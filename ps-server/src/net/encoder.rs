//! theta as callers want it written: each chunk of a version is encoded once, however many callers are
//! given it.
//!
//! Owns the encoded chunks of the newest version that was asked for. Knows no messages.

use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use ps_common::codec::Encoding;
use ps_common::dtype::copy_from_le_bytes;
use ps_common::{Dtype, Element, Error, ErrorCode};

use crate::table::Snapshot;

/// One version of theta in each encoding that is asked for: at most half of theta for each, and older
/// ones for as long as an answer reads them.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    newest: Mutex<Vec<Arc<Encoded>>>,
}

/// One version of theta in one encoding.
#[derive(Debug)]
struct Encoded {
    /// Which theta; it does not keep it.
    theta: Weak<Snapshot>,
    encoding: Encoding,
    chunks: Vec<OnceLock<Result<Bytes, Beyond>>>,
}

/// The first element of a chunk that is too large for the encoding.
#[derive(Debug, Clone, Copy)]
struct Beyond {
    /// Counted from the chunk's first.
    place: usize,
    value: f64,
}

/// One version of theta as one caller is given it.
#[derive(Debug, Clone)]
pub(super) struct WireTheta {
    theta: Arc<Snapshot>,
    /// `None`: as it is.
    encoded: Option<Arc<Encoded>>,
}

impl Encoder {
    /// `theta` for a caller that wants it in an encoding that suits it.
    pub(super) fn encode(&self, theta: Arc<Snapshot>, encoding: Encoding) -> WireTheta {
        if encoding == Encoding::Plain {
            return WireTheta { theta, encoded: None };
        }
        let mut newest = self.newest.lock();
        let known = newest.iter().position(|encoded| encoded.encoding == encoding);
        if let Some(known) = known {
            if std::ptr::eq(newest[known].theta.as_ptr(), Arc::as_ptr(&theta)) {
                let encoded = Some(Arc::clone(&newest[known]));
                return WireTheta { theta, encoded };
            }
            newest.swap_remove(known);
        }
        let encoded = Arc::new(Encoded {
            theta: Arc::downgrade(&theta),
            encoding,
            chunks: (0..theta.n_chunks()).map(|_| OnceLock::new()).collect(),
        });
        newest.push(Arc::clone(&encoded));
        WireTheta { theta, encoded: Some(encoded) }
    }
}

impl WireTheta {
    /// What is written.
    pub(super) fn theta(&self) -> &Snapshot {
        &self.theta
    }

    /// How its chunks are written.
    pub(super) fn encoding(&self) -> Encoding {
        self.encoded.as_ref().map_or(Encoding::Plain, |encoded| encoded.encoding)
    }

    /// The bytes of chunk `chunk`, whose first element has `first_key`.
    ///
    /// # Errors
    /// BAD_DTYPE with the first element that the encoding has no number for.
    pub(super) fn chunk(&self, chunk: usize, first_key: u64) -> Result<Bytes, Error> {
        let Some(encoded) = &self.encoded else { return Ok(self.theta.chunk(chunk)) };
        let encoding = encoded.encoding;
        let bytes = encoded.chunks[chunk].get_or_init(|| match self.theta.dtype {
            Dtype::F32 => encode::<f32>(encoding, &self.theta.chunk(chunk)),
            Dtype::F64 => encode::<f64>(encoding, &self.theta.chunk(chunk)),
        });
        bytes.clone().map_err(|Beyond { place, value }| {
            let (key, name) = (first_key + place as u64, encoding.name());
            let what = format!(
                "theta's element {key} is {value}, and {name} ends at {}: pull theta as it is \
                 (--wire-pull f32){}",
                encoding.largest(),
                match encoding {
                    Encoding::F16 => ", or as bf16, which has the range of f32",
                    _ => "",
                }
            );
            Error::new(ErrorCode::BadDtype, what).with("index", key).with("value", value)
        })
    }
}

fn encode<T: Element>(encoding: Encoding, plain: &[u8]) -> Result<Bytes, Beyond> {
    let mut values = vec![T::ZERO; plain.len() / size_of::<T>()];
    copy_from_le_bytes(&mut values, plain);
    let mut bytes = Vec::new();
    match encoding.encode_theta(&values, &mut bytes) {
        Ok(()) => Ok(bytes.into()),
        Err(place) => Err(Beyond { place, value: values[place].to_f64() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn theta(version: u64, chunks: &[&[f32]]) -> Arc<Snapshot> {
        let bytes = |chunk: &&[f32]| Bytes::copy_from_slice(ps_common::dtype::as_le_bytes(chunk));
        let dim = chunks.iter().map(|chunk| chunk.len()).sum();
        let chunks = chunks.iter().map(bytes).collect();
        Arc::new(Snapshot::new(version, Dtype::F32, dim, chunks))
    }

    /// Where the bytes of a chunk lie.
    fn place(theta: &WireTheta, chunk: usize) -> *const u8 {
        theta.chunk(chunk, 0).expect("within the format").as_ptr()
    }

    #[test]
    fn a_chunk_of_a_version_is_encoded_once() {
        let (encoder, first) = (Encoder::default(), theta(1, &[&[1.0, 2.5], &[-0.1]]));
        let of = |theta: &Arc<Snapshot>, encoding| encoder.encode(Arc::clone(theta), encoding);
        let [a, b] = [Encoding::F16; 2].map(|encoding| of(&first, encoding));
        assert_eq!((place(&a, 0), place(&a, 1)), (place(&b, 0), place(&b, 1)));
        assert_eq!(a.chunk(0, 0).expect("finite"), [0x00, 0x3c, 0x00, 0x41][..]);
        // Another encoding is beside it, another version in its place.
        let wide = of(&first, Encoding::Bf16);
        assert_eq!(wide.chunk(0, 0).expect("finite"), [0x80, 0x3f, 0x20, 0x40][..]);
        assert_eq!(place(&of(&first, Encoding::F16), 0), place(&a, 0));
        let second = theta(2, &[&[3.0, 3.0], &[3.0]]);
        assert_eq!(of(&second, Encoding::F16).chunk(1, 2).expect("finite"), [0x00, 0x42][..]);
        assert_eq!(encoder.newest.lock().len(), 2, "one version an encoding");
        assert_eq!(a.chunk(1, 2).expect("kept by its reader").len(), 2);
    }

    #[test]
    fn plain_theta_is_its_own_bytes_and_leaves_nothing_here() {
        let (encoder, theta) = (Encoder::default(), theta(1, &[&[1e30, 2.0]]));
        let plain = encoder.encode(Arc::clone(&theta), Encoding::Plain);
        assert_eq!(place(&plain, 0), theta.chunk(0).as_ptr());
        assert!(encoder.newest.lock().is_empty());
    }

    #[test]
    fn what_the_format_does_not_have_is_refused_by_key_and_value() {
        let (encoder, theta) = (Encoder::default(), theta(1, &[&[65_504.0], &[1.0, -65_505.0]]));
        let narrow = encoder.encode(Arc::clone(&theta), Encoding::F16);
        assert!(narrow.chunk(0, 10).is_ok(), "its largest");
        let error = narrow.chunk(1, 11).expect_err("beyond");
        assert_eq!((error.code, &error.facts["index"][..]), (ErrorCode::BadDtype, "12"), "{error}");
        let says = "element 12 is -65505, and f16 ends at 65504: pull theta as it is (--wire-pull \
                    f32), or as bf16";
        assert!(error.message.contains(says), "{error}");
        assert!(encoder.encode(theta, Encoding::Bf16).chunk(1, 11).is_ok());
    }
}
