//! One push out of its chunks: header first, then elements in order of key, whole and valid.
//!
//! Every refusal of a malformed gradient is made here; what comes out needs no further check.

use std::time::Duration;

use bytes::Buf;
use ps_common::calls::{Caller, PushHeader};
use ps_common::codec::Encoding;
use ps_common::wire::frames::{Arrived, Pieces};
use ps_common::wire::parameters::{encoding_from, theta_encoding_from};
use ps_common::wire::{PARAMETERS_MESSAGE_BYTES_MAX, pb};
use ps_common::{Error, ErrorCode};
use tonic::Status;

use super::hot::Incoming;
use super::shell::Shell;
use crate::core::Input;
use crate::driver::Driver;
use crate::follower::{Follower, Shape};
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
    /// How theta of the answer is to be written, if there is any in it.
    pub theta_encoding: Encoding,
}

/// Whom a push is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Host<'a> {
    /// The server that decides.
    Driver(&'a Driver),
    /// One that keeps its part until it is told what becomes of it.
    Follower(&'a Follower),
}

impl Host<'_> {
    fn admit(self, caller: Caller) -> Result<(Shape, Gradient), Error> {
        match self {
            Self::Driver(driver) => {
                let (dim, dtype) = driver.admit(caller)?;
                Ok((Shape { first_key: 0, dim, dtype }, driver.empty_gradient(dtype)))
            }
            Self::Follower(follower) => follower.admit(caller),
        }
    }

    fn recycle(self, gradient: Gradient) {
        match self {
            Self::Driver(driver) => driver.recycle(gradient),
            Self::Follower(follower) => follower.recycle(gradient),
        }
    }

    /// Of the theta that it has.
    fn theta_bytes(self) -> usize {
        match self {
            Self::Driver(driver) => {
                driver.shape().map_or(0, |(dim, dtype)| dim * dtype.size_bytes())
            }
            Self::Follower(follower) => follower.theta_bytes(),
        }
    }
}

/// A push on its way in: which messages make one, without the stream that they come by.
#[derive(Debug)]
pub struct Assembly<'a> {
    host: Host<'a>,
    header: PushHeader,
    gradient: Gradient,
    digest: crc32fast::Hasher,
    shape: Shape,
    theta_encoding: Encoding,
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
    /// Begins with the header of a push's first message, which then goes to [`Assembly::take`]; theta
    /// of the answer is sent as it is.
    ///
    /// # Errors
    /// The refusal of the header, or as [`Driver::admit`].
    pub fn begin(driver: &'a Driver, header: PushHeader) -> Result<Self, Error> {
        let as_it_is = pb::Dtype::Unspecified.into();
        Self::begin_at(Host::Driver(driver), header, as_it_is)
    }

    fn begin_at(host: Host<'a>, header: PushHeader, theta_dtype: i32) -> Result<Self, Error> {
        let (shape, gradient) = host.admit(header.caller)?;
        let theta_encoding = match theta_encoding_from(theta_dtype, shape.dtype) {
            Ok(encoding) => encoding,
            Err(error) => {
                host.recycle(gradient);
                return Err(error);
            }
        };
        let digest = crc32fast::Hasher::new();
        Ok(Self { host, header, gradient, digest, shape, theta_encoding })
    }

    /// The next message, its header taken out if it is the first, and its data apart.
    ///
    /// # Errors
    /// The refusal of the push, of which nothing is left.
    pub fn take(mut self, fields: &pb::PushRequest, data: Pieces) -> Result<Progress<'a>, Error> {
        data.iter().for_each(|piece| self.digest.update(piece));
        let staged = check_staged(fields, self.host);
        if let Err(error) =
            staged.and_then(|()| append(fields, data, &mut self.gradient, self.shape))
        {
            self.host.recycle(self.gradient);
            return Err(error);
        }
        if !fields.last {
            return Ok(Progress::More(self));
        }
        let digest = self.digest.finalize();
        let digest = match fields.staged {
            None => digest,
            Some(staged) => joint_digest(digest, staged),
        };
        let Self { header, gradient, theta_encoding, .. } = self;
        Ok(Progress::Whole(Push { header, gradient, digest, theta_encoding }))
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
    let rejected = |caller, code| shell.tell(Input::Rejected { caller, code });
    read_push_for(Host::Driver(shell.driver()), stream, stall, rejected).await
}

/// As [`read_push`]; `rejected` hears whose push was refused, as far as it is known, and why.
pub(super) async fn read_push_for(
    host: Host<'_>,
    stream: &mut Incoming,
    stall: Duration,
    rejected: impl FnOnce(Option<Caller>, ErrorCode),
) -> Result<Option<Push>, Failure> {
    let first: Chunk = match stream.chunk().await {
        Ok(Some(first)) => first,
        Ok(None) => return Ok(None),
        Err(status) => return Err(Failure::Broken(status)),
    };
    let mut caller = None;
    let mut ended = first.fields.last;
    let mut rest = Chunks { stream, stall };
    let result = assemble(host, &mut rest, first, &mut caller, &mut ended).await;
    if let Err(Failure::Refused(error)) = &result {
        if !ended {
            drain(host, &mut rest).await;
        }
        rejected(caller, error.code);
    }
    result.map(Some)
}

/// What follows the first chunk of a push.
struct Chunks<'a> {
    stream: &'a mut Incoming,
    stall: Duration,
}

async fn assemble(
    host: Host<'_>,
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
    let theta_dtype = header.theta_dtype;
    let header = PushHeader::try_from(header)?;
    *caller = Some(header.caller);
    let mut assembly = Assembly::begin_at(host, header, theta_dtype)?;
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

/// What names a gradient whose parts several servers have: that of this server's part, and what the
/// others answered theirs with.
fn joint_digest(own: u32, staged: u32) -> u32 {
    crc32fast::hash(&[own.to_le_bytes(), staged.to_le_bytes()].concat())
}

/// A push over several servers counts only once the others have their parts.
fn check_staged(chunk: &pb::PushRequest, host: Host<'_>) -> Result<(), Error> {
    let refuse = |what: String| Err(Error::new(ErrorCode::BadField, what).with("field", "staged"));
    let several = match host {
        Host::Driver(driver) if driver.partition().count > 1 => Some(driver.partition()),
        Host::Driver(_) | Host::Follower(_) => None,
    };
    match (chunk.staged, several) {
        (None, Some(partition)) if chunk.last => refuse(format!(
            "the last message of a push to server {partition} says in `staged` that the others have \
             their parts: CRC-32 over their digests"
        )),
        (Some(_), Some(_)) if !chunk.last => {
            refuse("`staged` stands in the last message of a push".to_owned())
        }
        (Some(_), None) => refuse(
            "`staged` goes to the first of several servers; this one has nobody beside it that it \
             decides for"
                .to_owned(),
        ),
        _ => Ok(()),
    }
}

fn append(
    chunk: &pb::PushRequest,
    data: Pieces,
    gradient: &mut Gradient,
    Shape { first_key, dim, dtype }: Shape,
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
    let next_key = first_key + gradient.len();
    if chunk.key != next_key as u64 {
        return Err(Error::new(
            ErrorCode::BadKey,
            format!("a chunk begins at key {}, {next_key} was next", chunk.key),
        )
        .with("want", next_key)
        .with("got", chunk.key));
    }
    match encoding {
        Encoding::Plain => gradient.append_from(first_key, data, dim)?,
        coded => gradient.append_coded(first_key, coded, data, dim)?,
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
async fn drain(host: Host<'_>, rest: &mut Chunks<'_>) {
    let mut budget = host.theta_bytes() + PARAMETERS_MESSAGE_BYTES_MAX;
    while let Ok(Ok(Some(chunk))) = tokio::time::timeout(rest.stall, rest.stream.chunk()).await {
        let Arrived { fields, data, .. } = chunk;
        if fields.last || data.remaining() >= budget {
            return;
        }
        budget -= data.remaining().max(1);
    }
}
