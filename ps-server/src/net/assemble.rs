//! One push out of its chunks: header first, then elements in order of key, whole and valid.
//!
//! Every refusal of a malformed gradient is made here; what comes out needs no further check.

use std::time::Duration;

use bytes::Buf;
use ps_common::calls::{Caller, PushHeader};
use ps_common::codec::Encoding;
use ps_common::rows::Rows;
use ps_common::tables::Tables;
use ps_common::wire::frames::{Arrived, Pieces};
use ps_common::wire::parameters::{encoding_from, theta_encoding_from};
use ps_common::wire::{PARAMETERS_MESSAGE_BYTES_MAX, pb};
use ps_common::{Dtype, Error, ErrorCode};
use tonic::Status;

use super::hot::Incoming;
use super::rows::RowNames;
use super::shell::Shell;
use crate::core::Input;
use crate::driver::Driver;
use crate::follower::{Follower, Shape};
use crate::table::{Gradient, Pushed};

/// A push as the core and the table take it.
#[derive(Debug)]
pub struct Push {
    /// Its name and facts.
    pub header: PushHeader,
    /// As long as theta or of some of its rows, every element finite.
    pub gradient: Pushed,
    /// Rows that the answer shall bring; `None`: all of theta.
    pub asked: Option<Vec<Rows>>,
    /// CRC-32 of the gradient's bytes, and of which rows they are.
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

impl<'a> Host<'a> {
    fn admit(self, caller: Caller) -> Result<(Shape, Gradient), Error> {
        match self {
            Self::Driver(driver) => {
                let (dim, dtype) = driver.admit(caller)?;
                Ok((Shape { first_key: 0, dim, dtype }, driver.empty_gradient(dtype)))
            }
            Self::Follower(follower) => follower.admit(caller),
        }
    }

    /// By which rows are named.
    fn tables(self) -> Result<&'a Tables, Error> {
        match self {
            Self::Driver(driver) => driver.tables_of_rows(),
            Self::Follower(_) => {
                let what = "rows of theta go to one server that has all of it; this one has a part";
                Err(Error::new(ErrorCode::ConfigMismatch, what).with("field", "sparse"))
            }
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
    /// Where the gradient is of rows.
    rows: Option<RowNames<'a>>,
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
    /// Begins with the header of a push's first message, which then goes to [`Assembly::take`].
    ///
    /// # Errors
    /// The refusal of the header, or as [`Driver::admit`].
    pub fn begin(driver: &'a Driver, header: pb::PushHeader) -> Result<Self, Error> {
        let manner = Manner::of(&header);
        Self::begin_at(Host::Driver(driver), PushHeader::try_from(header)?, manner)
    }

    fn begin_at(host: Host<'a>, header: PushHeader, manner: Manner) -> Result<Self, Error> {
        let (shape, gradient) = host.admit(header.caller)?;
        let rows = manner.sparse.then(|| host.tables().map(RowNames::new)).transpose();
        let encoding = theta_encoding_from(manner.theta_dtype, shape.dtype);
        let (rows, theta_encoding) = match rows.and_then(|rows| Ok((rows, encoding?))) {
            Ok(both) => both,
            Err(error) => {
                host.recycle(gradient);
                return Err(error);
            }
        };
        let digest = crc32fast::Hasher::new();
        Ok(Self { host, header, gradient, rows, digest, shape, theta_encoding })
    }

    /// The next message, its header taken out if it is the first, and its data apart.
    ///
    /// # Errors
    /// The refusal of the push, of which nothing is left.
    pub fn take(mut self, fields: &pb::PushRequest, data: Pieces) -> Result<Progress<'a>, Error> {
        let taken = check_staged(fields, self.host).and_then(|()| self.append(fields, data));
        if let Err(error) = taken {
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
        let Self { header, gradient, rows, theta_encoding, .. } = self;
        let (gradient, asked) = match rows {
            None => (Pushed::from(gradient), None),
            Some(names) => {
                let (gradient, asked) = names.finish(gradient)?;
                (Pushed::from(gradient), Some(asked))
            }
        };
        Ok(Progress::Whole(Push { header, gradient, asked, digest, theta_encoding }))
    }

    fn append(&mut self, fields: &pb::PushRequest, data: Pieces) -> Result<(), Error> {
        if fields.header.is_some() {
            let what =
                "a header stands inside a push; the chunk before it should have been marked last";
            return Err(Error::new(ErrorCode::BadField, what).with("field", "header"));
        }
        let Self { rows, gradient, digest, shape, .. } = self;
        match rows {
            None => append(fields, data, (gradient, digest), *shape),
            Some(names) => {
                if fields.part == i32::from(pb::Part::Rows) {
                    digest.update(&fields.table.to_le_bytes());
                }
                if fields.part != i32::from(pb::Part::Asked) {
                    data.iter().for_each(|piece| digest.update(piece));
                }
                names.take(fields, data, gradient, shape.dtype)
            }
        }
    }
}

/// What a header says of how a push and its answer are written.
#[derive(Debug, Clone, Copy)]
struct Manner {
    theta_dtype: i32,
    sparse: bool,
}

impl Manner {
    fn of(header: &pb::PushHeader) -> Self {
        Self { theta_dtype: header.theta_dtype, sparse: header.sparse }
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
    let manner = Manner::of(&header);
    let header = PushHeader::try_from(header)?;
    *caller = Some(header.caller);
    let mut assembly = Assembly::begin_at(host, header, manner)?;
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
    (gradient, digest): (&mut Gradient, &mut crc32fast::Hasher),
    Shape { first_key, dim, dtype }: Shape,
) -> Result<(), Error> {
    if chunk.part != i32::from(pb::Part::Values) {
        let what = "rows are named in a push whose header does not say `sparse`";
        return Err(Error::new(ErrorCode::BadField, what).with("field", "part"));
    }
    if !data.has_remaining() {
        return Err(Error::new(ErrorCode::Empty, "a chunk carries no elements"));
    }
    let encoding =
        encoding_from(chunk.dtype, dtype).ok_or_else(|| bad_dtype(chunk.dtype, dtype))?;
    check_key(chunk.key, first_key + gradient.len())?;
    match encoding {
        Encoding::Plain => {
            gradient.append_from(first_key, data, dim, |block| digest.update(block))?;
        }
        coded => {
            data.iter().for_each(|piece| digest.update(piece));
            gradient.append_coded(first_key, coded, data, dim)?;
        }
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

/// A chunk that is not written as the job's theta, nor in fewer bytes.
pub(super) fn bad_dtype(got: i32, want: Dtype) -> Error {
    let what = format!("a chunk has dtype number {got}, the job's is {want}");
    Error::new(ErrorCode::BadDtype, what).with("want", want).with("got", got)
}

/// Refuses a chunk that does not begin where the one before it ended.
pub(super) fn check_key(got: u64, next: usize) -> Result<(), Error> {
    if got == next as u64 {
        return Ok(());
    }
    let what = format!("a chunk begins at key {got}, {next} was next");
    Err(Error::new(ErrorCode::BadKey, what).with("want", next).with("got", got))
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
