//! One push out of its chunks: header first, then elements in order of key, whole and valid.
//!
//! Every refusal of a malformed gradient is made here; what comes out needs no further check.

use std::time::Duration;

use bytes::Buf;
use ps_common::calls::{Caller, PushHeader};
use ps_common::codec::Encoding;
use ps_common::wire::frames::{Arrived, Pieces};
use ps_common::wire::parameters::encoding_from;
use ps_common::wire::{PARAMETERS_MESSAGE_BYTES_MAX, pb};
use ps_common::{Dtype, Error, ErrorCode};
use tonic::Status;

use super::hot::Incoming;
use super::shell::Shell;
use crate::core::Input;
use crate::driver::Driver;
use crate::table::Gradient;

/// A push as the core and the table take it.
#[derive(Debug)]
pub struct Push {
    /// Its name and facts.
    pub header: PushHeader,
    /// As long as theta, every element finite.
    pub gradient: Gradient,
    /// CRC-32 of the gradient's bytes.
    pub digest: u32,
}

/// A push on its way in: which messages make one, without the stream that they come by.
#[derive(Debug)]
pub struct Assembly<'a> {
    driver: &'a Driver,
    header: PushHeader,
    gradient: Gradient,
    digest: crc32fast::Hasher,
    dim: usize,
    dtype: Dtype,
}

/// What a message made of a push.
#[derive(Debug)]
pub enum Progress<'a> {
    /// More has to come.
    More(Assembly<'a>),
    /// It is whole and valid.
    Whole(Push),
}

impl<'a> Assembly<'a> {
    /// Begins with the header of a push's first message, which then goes to [`Assembly::take`].
    ///
    /// # Errors
    /// The refusal of the header, or as [`Driver::admit`].
    pub fn begin(driver: &'a Driver, header: PushHeader) -> Result<Self, Error> {
        let (dim, dtype) = driver.admit(header.caller)?;
        let (gradient, digest) = (driver.empty_gradient(dtype), crc32fast::Hasher::new());
        Ok(Self { driver, header, gradient, digest, dim, dtype })
    }

    /// The next message, its header taken out if it is the first, and its data apart.
    ///
    /// # Errors
    /// The refusal of the push, of which nothing is left.
    pub fn take(mut self, fields: &pb::PushRequest, data: Pieces) -> Result<Progress<'a>, Error> {
        data.iter().for_each(|piece| self.digest.update(piece));
        if let Err(error) = append(fields, data, &mut self.gradient, self.dim, self.dtype) {
            self.driver.recycle(self.gradient);
            return Err(error);
        }
        if !fields.last {
            return Ok(Progress::More(self));
        }
        let (header, gradient) = (self.header, self.gradient);
        Ok(Progress::Whole(Push { header, gradient, digest: self.digest.finalize() }))
    }
}

/// Why no push came out.
#[derive(Debug)]
pub(super) enum Failure {
    /// The sender's mistake.
    Refused(Error),
    /// The stream broke.
    Broken(Status),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// One message of a push.
type Chunk = Arrived<pb::PushRequest>;

/// Reads one push, in which the sender may be silent for `stall`; `None` where the stream ends instead of beginning one.
///
/// A refused push is read to its end (as far as theta is long) before the refusal is told, so that
/// the sender is listening by then.
pub(super) async fn read_push(
    shell: &Shell,
    stream: &mut Incoming,
    stall: Duration,
) -> Result<Option<Push>, Failure> {
    let first: Chunk = match stream.chunk().await {
        Ok(Some(first)) => first,
        Ok(None) => return Ok(None),
        Err(status) => return Err(Failure::Broken(status)),
    };
    let mut caller = None;
    let mut ended = first.fields.last;
    let mut rest = Chunks { stream, stall };
    let result = assemble(shell, &mut rest, first, &mut caller, &mut ended).await;
    if let Err(Failure::Refused(error)) = &result {
        if !ended {
            drain(shell, &mut rest).await;
        }
        shell.tell(Input::Rejected { caller, code: error.code });
    }
    result.map(Some)
}

/// What follows the first chunk of a push.
struct Chunks<'a> {
    stream: &'a mut Incoming,
    stall: Duration,
}

async fn assemble(
    shell: &Shell,
    rest: &mut Chunks<'_>,
    first: Chunk,
    caller: &mut Option<Caller>,
    ended: &mut bool,
) -> Result<Push, Failure> {
    let mut chunk = first;
    let Some(header) = chunk.fields.header.take() else {
        let what = "the first message of a push has no header";
        return Err(Error::new(ErrorCode::BadField, what).with("field", "header").into());
    };
    let header = PushHeader::try_from(header)?;
    *caller = Some(header.caller);
    let mut assembly = Assembly::begin(shell.driver(), header)?;
    loop {
        assembly = match assembly.take(&chunk.fields, chunk.data)? {
            Progress::Whole(push) => return Ok(push),
            Progress::More(assembly) => assembly,
        };
        chunk = rest.next().await?;
        *ended = chunk.fields.last;
    }
}

impl Chunks<'_> {
    async fn next(&mut self) -> Result<Chunk, Failure> {
        match tokio::time::timeout(self.stall, self.stream.chunk()).await {
            Ok(Ok(Some(chunk))) => Ok(chunk),
            Ok(Ok(None)) => Err(Error::new(
                ErrorCode::BadField,
                "the stream ended inside a push; its final chunk must be marked last",
            )
            .with("field", "last")
            .into()),
            Ok(Err(status)) => Err(Failure::Broken(status)),
            Err(_) => {
                let what = format!("a push stood still for {:?}", self.stall);
                Err(Error::new(ErrorCode::Deadline, what).into())
            }
        }
    }
}

fn append(
    chunk: &pb::PushRequest,
    data: Pieces,
    gradient: &mut Gradient,
    dim: usize,
    dtype: Dtype,
) -> Result<(), Error> {
    if chunk.header.is_some() {
        return Err(Error::new(
            ErrorCode::BadField,
            "a header stands inside a push; the chunk before it should have been marked last",
        )
        .with("field", "header"));
    }
    if !data.has_remaining() {
        return Err(Error::new(ErrorCode::Empty, "a chunk carries no elements"));
    }
    let encoding = encoding_from(chunk.dtype, dtype).ok_or_else(|| {
        Error::new(
            ErrorCode::BadDtype,
            format!("a chunk has dtype number {}, the job's is {dtype}", chunk.dtype),
        )
        .with("want", dtype)
        .with("got", chunk.dtype)
    })?;
    if chunk.key != gradient.len() as u64 {
        return Err(Error::new(
            ErrorCode::BadKey,
            format!("a chunk begins at key {}, {} was next", chunk.key, gradient.len()),
        )
        .with("want", gradient.len())
        .with("got", chunk.key));
    }
    match encoding {
        Encoding::Plain => gradient.append(data, dim)?,
        coded => gradient.append_coded(coded, data, dim)?,
    }
    if chunk.last && gradient.len() != dim {
        return Err(Error::new(
            ErrorCode::DimMismatch,
            format!("the gradient has {} elements, theta has {dim}", gradient.len()),
        )
        .with("want", dim)
        .with("got", gradient.len()));
    }
    Ok(())
}

/// Reads on to the end of a refused push.
async fn drain(shell: &Shell, rest: &mut Chunks<'_>) {
    let theta_bytes = shell.driver().shape().map_or(0, |(dim, dtype)| dim * dtype.size_bytes());
    let mut budget = theta_bytes + PARAMETERS_MESSAGE_BYTES_MAX;
    while let Ok(Ok(Some(chunk))) = tokio::time::timeout(rest.stall, rest.stream.chunk()).await {
        let Arrived { fields, data, .. } = chunk;
        if fields.last || data.remaining() >= budget {
            return;
        }
        budget -= data.remaining().max(1);
    }
}
