//! Bad inputs, each with the answers that it may get, sent to real servers: how many get one of them.
//!
//! What else each of them must not do is looked at by `tests/tests/faults`; here every refusal is
//! followed by a look at theta's bits, and counted.

use anyhow::Result;
use ps_common::wire::pb;
use ps_common::wire::pb::worker_status::State;
use ps_tests::rows::{outcome, refusal};
use ps_tests::{Caller, Sent, header};
use serde::Serialize;
use tonic::{Request, Status};

use super::Setting;
use super::figures::{Part, Table};
use super::real::{Programs, Server, connect, join, runtime};

/// Elements of theta.
const DIM: u64 = 10;
const ONES: [f32; DIM as usize] = [1.0; DIM as usize];

/// One bad input and its answer.
#[derive(Debug, Serialize)]
struct Case {
    input: String,
    /// Any of these is right.
    expected: Vec<&'static str>,
    answer: String,
    /// `None` where nobody could look.
    theta_unchanged: Option<bool>,
}

impl Case {
    fn is_right(&self) -> bool {
        self.expected.contains(&self.answer.as_str()) && self.theta_unchanged != Some(false)
    }
}

#[derive(Debug, Serialize)]
struct Inputs {
    sent: usize,
    answered_right: usize,
    cases: Vec<Case>,
}

/// Sends them all.
pub(super) fn measure(setting: &Setting) -> Result<Part> {
    let programs = setting.programs()?;
    let mut cases = Vec::new();
    runtime()?.block_on(async {
        gradients(&programs, &mut cases).await?;
        chunks(&programs, &mut cases).await?;
        names(&programs, &mut cases).await?;
        joins(&programs, &mut cases).await?;
        bytes(&programs, &mut cases).await?;
        states(&programs, &mut cases).await?;
        tokens(&programs, &mut cases).await
    })?;
    let answered_right = cases.iter().filter(|case| case.is_right()).count();
    let figures = Inputs { sent: cases.len(), answered_right, cases };
    let mut part = Part::of(&figures);
    part.notes.push(format!(
        "bad inputs answered with the right code, theta's bits as they were: {answered_right}/{}",
        figures.sent
    ));
    let mut answers = std::collections::BTreeMap::<&str, (usize, usize)>::new();
    for case in &figures.cases {
        let (right, sent) = answers.entry(case.expected[0]).or_default();
        *right += usize::from(case.is_right());
        *sent += 1;
    }
    let mut table = Table::new(&["right answer", "inputs that got it"]);
    for (answer, (right, sent)) in answers {
        table.row([answer.to_owned(), format!("{right}/{sent}")]);
    }
    part.tables.push(table);
    part.failures.extend(figures.cases.iter().filter(|case| !case.is_right()).map(|case| {
        format!(
            "{}: answered {}, theta unchanged: {:?}, expected {:?}",
            case.input, case.answer, case.theta_unchanged, case.expected
        )
    }));
    Ok(part)
}

/// A server with a good worker that has pushed once, and one that sends what is bad.
struct Bed<'a> {
    _server: Server,
    address: String,
    good: Caller,
    bad: Caller,
    before: (u64, Vec<u8>),
    cases: &'a mut Vec<Case>,
}

impl<'a> Bed<'a> {
    async fn new(programs: &Programs, cases: &'a mut Vec<Case>) -> Result<Self> {
        let job = ["--mode=async", "--workers=3", "--rounds=0", "--lr=0.5"].map(str::to_owned);
        let server = programs.server(&job);
        let address = server.address().to_owned();
        let mut good = join(&address, 0, DIM).await?;
        good.push(0, 0, &ONES).await?;
        let bad = join(&address, 1, DIM).await?;
        let before = good.pull().await?;
        Ok(Self { _server: server, address, good, bad, before, cases })
    }

    /// Takes the answer down, and looks at theta.
    async fn note(&mut self, input: &str, expected: &[&'static str], answer: String) {
        let theta_unchanged = Some(self.good.pull().await.is_ok_and(|now| now == self.before));
        let expected = expected.to_vec();
        self.cases.push(Case { input: input.to_owned(), expected, answer, theta_unchanged });
    }

    /// Pushes these messages.
    async fn push(&mut self, input: &str, expected: &'static str, messages: Vec<pb::PushRequest>) {
        let answer = told(self.bad.push_messages(messages).await);
        self.note(input, &[expected], answer).await;
    }

    /// Sends the bytes of one message.
    async fn raw(
        &mut self,
        input: &str,
        expected: &[&'static str],
        path: &'static str,
        message: Vec<u8>,
    ) {
        let status = self.bad.raw(path, message).await;
        self.note(input, expected, refusal(&status)).await;
    }
}

fn told(sent: Sent) -> String {
    sent.map_or_else(|status| refusal(&status), |result| outcome(&result))
}

fn answered<T>(result: Result<T, Status>) -> String {
    result.map_or_else(|status| refusal(&status), |_| "OK".to_owned())
}

async fn gradients(programs: &Programs, cases: &mut Vec<Case>) -> Result<()> {
    let mut bed = Bed::new(programs, cases).await?;
    let sender = bed.bad.clone();
    let whole = |gradient: &[f32]| vec![sender.message(0, 1, gradient)];
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut gradient = ONES;
        gradient[7] = value;
        let input = format!("a gradient with {value}");
        bed.push(&input, "INVALID_ARGUMENT (NON_FINITE)", whole(&gradient)).await;
    }
    for n in [1, 9, 11, 1000] {
        let input = format!("a gradient of {n} elements for a theta of {DIM}");
        bed.push(&input, "INVALID_ARGUMENT (DIM_MISMATCH)", whole(&vec![1.0; n])).await;
    }
    for n_bytes in [1, 39] {
        let mut odd = sender.message(0, 1, &ONES);
        odd.data.truncate(n_bytes);
        let input = format!("{n_bytes} bytes of f32");
        bed.push(&input, "INVALID_ARGUMENT (BAD_LENGTH)", vec![odd]).await;
    }
    for dtype in [0, 2, 77, -1] {
        let message = pb::PushRequest { dtype, ..sender.message(0, 1, &ONES) };
        let input = format!("a gradient of element type {dtype}");
        bed.push(&input, "INVALID_ARGUMENT (BAD_DTYPE)", vec![message]).await;
    }
    bed.push("a gradient without elements", "INVALID_ARGUMENT (EMPTY)", whole(&[])).await;
    bed.push("a push without messages", "INVALID_ARGUMENT (EMPTY)", vec![]).await;
    let nothing = vec![pb::PushRequest::default()];
    bed.push("a push without any field", "INVALID_ARGUMENT (BAD_FIELD)", nothing).await;

    // theta is -0.5; one step of f32::MAX at rate 0.5 fits, and the next one, the third does not.
    let huge = [f32::MAX; DIM as usize];
    for _ in 0..2 {
        bed.good.step(&huge).await?;
    }
    bed.before = bed.good.pull().await?;
    let input = "a finite gradient whose update overflows theta";
    bed.push(input, "INVALID_ARGUMENT (UPDATE_OVERFLOW)", whole(&huge)).await;
    Ok(())
}

async fn chunks(programs: &Programs, cases: &mut Vec<Case>) -> Result<()> {
    let mut bed = Bed::new(programs, cases).await?;
    let sender = bed.bad.clone();
    let chunk = |first: bool, key: u64, last: bool, values: &[f32]| pb::PushRequest {
        header: first.then(|| header(&sender, 0, 1)),
        key,
        last,
        ..sender.message(0, 1, values)
    };
    let half = [1.0; 5];
    let first = chunk(true, 0, false, &half);
    let bad_tails = [
        (
            "a last chunk with NaN",
            chunk(false, 5, true, &[1.0, 1.0, 1.0, 1.0, f32::NAN]),
            "INVALID_ARGUMENT (NON_FINITE)",
        ),
        (
            "a chunk that leaves keys out",
            chunk(false, 6, true, &half),
            "INVALID_ARGUMENT (BAD_KEY)",
        ),
        ("two chunks that share keys", chunk(false, 3, true, &half), "INVALID_ARGUMENT (BAD_KEY)"),
        (
            "a last chunk that ends before theta does",
            chunk(false, 5, true, &half[..4]),
            "INVALID_ARGUMENT (DIM_MISMATCH)",
        ),
        (
            "chunks without a last one",
            chunk(false, 5, false, &half),
            "INVALID_ARGUMENT (BAD_FIELD)",
        ),
        ("a second header", chunk(true, 5, true, &half), "INVALID_ARGUMENT (BAD_FIELD)"),
    ];
    for (input, tail, expected) in bad_tails {
        bed.push(input, expected, vec![first.clone(), tail]).await;
    }
    for key in [DIM, u64::MAX] {
        let input = format!("a chunk that begins at key {key}");
        let beyond = vec![chunk(true, key, true, &half)];
        bed.push(&input, "INVALID_ARGUMENT (BAD_KEY)", beyond).await;
    }
    for (rows, n_values, expected) in [
        (&[3, 10], 2, "OUT_OF_RANGE (ROW_RANGE)"),
        (&[3, 4], 1, "INVALID_ARGUMENT (DIM_MISMATCH)"),
        (&[3, 3], 3, "INVALID_ARGUMENT (DIM_MISMATCH)"),
    ] {
        let input = format!("{n_values} elements for the rows {rows:?} of a table of {DIM}");
        let push = sender.rows_messages((0, 1), (&[(0, rows)], &half[..n_values]), &[]);
        bed.push(&input, expected, push).await;
    }
    Ok(())
}

async fn names(programs: &Programs, cases: &mut Vec<Case>) -> Result<()> {
    let mut bed = Bed::new(programs, cases).await?;
    let unknown = ["NOT_FOUND (UNKNOWN_WORKER)"];
    for (rank, incarnation) in [(2, 1), (99, 1), (0, 77), (1 << 31, 1)] {
        let mut stranger = connect(&bed.address).await?;
        (stranger.rank, stranger.incarnation) = (rank, incarnation);
        let name = format!("rank {rank}, life {incarnation}, which nobody was given");
        let answer = told(stranger.push(0, 1, &ONES).await);
        bed.note(&format!("a push by {name}"), &unknown, answer).await;
        let answer = answered(stranger.pull().await);
        bed.note(&format!("a pull by {name}"), &unknown, answer).await;
    }
    let mut older = bed.bad.clone();
    older.incarnation = 1;
    let answer = told(older.push(0, 1, &ONES).await);
    let input = "a push by a life that is older than the holder of its rank";
    bed.note(input, &["FAILED_PRECONDITION (FENCED)"], answer).await;
    for (clock, version) in [(7, 1), (0, 99), (u64::MAX, u64::MAX)] {
        let ahead = vec![bed.bad.message(clock, version, &ONES)];
        let input = format!("a push for clock {clock} at version {version}, ahead of the server");
        bed.push(&input, "FAILED_PRECONDITION (EPOCH_CHANGED)", ahead).await;
    }
    let answer = told(bed.good.push(0, 0, &ONES).await);
    bed.note("a push sent again", &["OK (DUPLICATE)"], answer).await;
    let answer = told(bed.good.push(0, 0, &[9.0; DIM as usize]).await);
    let input = "other bytes under the name of a push that has counted";
    bed.note(input, &["ALREADY_EXISTS (SEQ_REUSED)"], answer).await;
    Ok(())
}

async fn joins(programs: &Programs, cases: &mut Vec<Case>) -> Result<()> {
    let mut bed = Bed::new(programs, cases).await?;
    let good = || Caller::join_request(None, DIM);
    let mut not_built = good();
    not_built.tables[0].initializer = Some(pb::Initializer { kind: 4, scale: 0.5, seed: 1 });
    let mismatch = "FAILED_PRECONDITION (CONFIG_MISMATCH)";
    let requests = [
        ("a join with other tables", Caller::join_request(None, DIM + 1), mismatch),
        (
            "a join with another element type",
            pb::JoinRequest { dtype: pb::Dtype::F64.into(), ..good() },
            mismatch,
        ),
        (
            "a join in version 2 of the wire",
            pb::JoinRequest { protocol_version: 2, ..good() },
            "FAILED_PRECONDITION (PROTO_VERSION)",
        ),
        (
            "a join in no version of the wire",
            pb::JoinRequest { protocol_version: 0, ..good() },
            "FAILED_PRECONDITION (PROTO_VERSION)",
        ),
        ("a join in role 9", pb::JoinRequest { role: 9, ..good() }, "INVALID_ARGUMENT (BAD_FIELD)"),
        ("a join with a reserved initialiser", not_built, "UNIMPLEMENTED (NOT_BUILT)"),
        (
            "a join as a rank whose holder lives",
            Caller::join_request(Some(0), DIM),
            "ALREADY_EXISTS (RANK_TAKEN)",
        ),
    ];
    for (input, request, expected) in requests {
        let answer = answered(connect(&bed.address).await?.join(request).await);
        bed.note(input, &[expected], answer).await;
    }
    let answer = answered(bed.bad.operator.checkpoint(pb::CheckpointRequest {}).await);
    let input = "a checkpoint of a server that keeps none";
    bed.note(input, &["UNIMPLEMENTED (NOT_BUILT)"], answer).await;
    Ok(())
}

async fn bytes(programs: &Programs, cases: &mut Vec<Case>) -> Result<()> {
    const PUSH: &str = "/ps.v1.Parameters/Push";
    const JOIN: &str = "/ps.v1.Membership/Join";
    let mut bed = Bed::new(programs, cases).await?;
    // tonic says OUT_OF_RANGE where the gRPC text says RESOURCE_EXHAUSTED.
    let too_large = ["OUT_OF_RANGE", "RESOURCE_EXHAUSTED"];
    let big = bed.bad.message(0, 1, &vec![1.0; (1 << 18) + 1]);
    let answer = told(bed.bad.push_messages(vec![big]).await);
    bed.note("a push of 1 MiB in one message", &too_large, answer).await;
    let long = pb::JoinRequest { program: "x".repeat(65 << 10), ..Caller::join_request(None, DIM) };
    let answer = answered(bed.bad.clone().join(long).await);
    bed.note("a join of 65 KiB", &too_large, answer).await;

    let malformed: [(&str, &[u8]); 5] = [
        ("a length that runs out", &[0x7a, 0x05, 1]),
        ("a varint without end", &[0xff; 11]),
        ("a wire type that does not exist", &[0x0f]),
        ("a field of number 0", &[0x02, 0x00]),
        ("a group that never ends", &[0x7b, 0x7b, 0x7b]),
    ];
    for (what, message) in malformed {
        for path in [PUSH, JOIN] {
            bed.raw(&format!("{what}, at {path}"), &["INTERNAL"], path, message.to_vec()).await;
        }
    }
    let no_text = vec![0x3a, 0x01, 0xff];
    bed.raw("a string that is not UTF-8", &["INTERNAL"], JOIN, no_text).await;
    for path in ["/ps.v1.Parameters/Nothing", "/ps.v2.Parameters/Push", "/nothing"] {
        bed.raw(&format!("a call of {path}"), &["UNIMPLEMENTED"], path, vec![]).await;
    }
    let health = vec![0x0a, 0x01, b'x'];
    let path = "/grpc.health.v1.Health/Check";
    bed.raw("the health of an unknown service", &["NOT_FOUND"], path, health).await;
    for encoding in ["gzip", "zstd", "deflate"] {
        let status = bed.bad.compressed(PUSH, encoding).await;
        let input = format!("a message compressed with {encoding}");
        bed.note(&input, &["UNIMPLEMENTED"], refusal(&status)).await;
    }
    for timeout in ["soon", "-1S", "1"] {
        let mut request = Request::new(vec![]);
        request.metadata_mut().insert("grpc-timeout", timeout.parse()?);
        let status = bed.bad.raw_request(PUSH, request).await;
        let input = format!("a deadline of `{timeout}`");
        bed.note(&input, &["INVALID_ARGUMENT (BAD_FIELD)"], refusal(&status)).await;
    }
    Ok(())
}

/// What is wrong because of how the job stands.
async fn states(programs: &Programs, cases: &mut Vec<Case>) -> Result<()> {
    let mut alone = |input: &str, expected: &'static str, answer: String, theta_unchanged| {
        let expected = vec![expected];
        cases.push(Case { input: input.to_owned(), expected, answer, theta_unchanged });
    };
    let server = programs.server(&["--workers=1".to_owned()]);
    let mut early = connect(server.address()).await?;
    early.rank = 0;
    let expected = "FAILED_PRECONDITION (NOT_INITIALIZED)";
    alone("a pull before there is theta", expected, answered(early.pull().await), None);
    alone("a push before there is theta", expected, told(early.push(0, 0, &[1.0]).await), None);

    let server = programs.server(&["--workers=1".to_owned(), "--rounds=0".to_owned()]);
    let mut stale = join(server.address(), 0, DIM).await?;
    stale.push(0, 0, &ONES).await?;
    let before = stale.pull().await?;
    let answer = told(stale.push(1, 0, &ONES).await);
    let unchanged = Some(stale.pull().await? == before);
    let input = "a gradient for the open round, computed at an older theta";
    alone(input, "ABORTED (STALE_ROUND)", answer, unchanged);

    let job = ["--mode=async", "--workers=2", "--rounds=0", "--lease-ms=200"].map(str::to_owned);
    let server = programs.server(&job);
    let mut late = join(server.address(), 1, DIM).await?;
    let before = late.pull().await?;
    let mut onlooker = connect(server.address()).await?;
    let end = std::time::Instant::now() + super::real::PATIENCE;
    let is_lost =
        |s: &pb::StatusResponse| s.workers.get(1).is_some_and(|w| w.state() == State::Lost);
    while !is_lost(&onlooker.status().await?) {
        anyhow::ensure!(std::time::Instant::now() < end, "a lease of 200 ms never ends");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let answer = told(late.push(0, 0, &ONES).await);
    let mut again = join(server.address(), 1, DIM).await?;
    let unchanged = Some(again.pull().await? == before);
    let expected = "FAILED_PRECONDITION (LEASE_EXPIRED)";
    alone("a push after the end of the lease", expected, answer, unchanged);
    Ok(())
}

async fn tokens(programs: &Programs, cases: &mut Vec<Case>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut arguments = vec!["--workers=1".to_owned()];
    for role in ["worker", "operator"] {
        let path = folder.path().join(role);
        std::fs::write(&path, format!("the-token-of-the-{role}-0123456789\n"))?;
        arguments.push(format!("--{role}-token-file={}", path.display()));
    }
    let server = programs.server(&arguments);
    let mut caller = connect(server.address()).await?;
    let (nobody, not_his) =
        ("UNAUTHENTICATED (UNAUTHENTICATED)", "PERMISSION_DENIED (PERMISSION_DENIED)");
    let (worker, operator) = (
        "Bearer the-token-of-the-worker-0123456789",
        "Bearer the-token-of-the-operator-0123456789",
    );
    for (input, path, token, expected) in [
        ("a join without a token", "/ps.v1.Membership/Join", None, nobody),
        ("a push without a token", "/ps.v1.Parameters/Push", None, nobody),
        ("a status without a token", "/ps.v1.Operator/Status", None, nobody),
        (
            "a push with an unknown token",
            "/ps.v1.Parameters/Push",
            Some("Bearer someone-elses-0123456789"),
            nobody,
        ),
        (
            "a push with a token that is no Bearer",
            "/ps.v1.Parameters/Push",
            Some("the-token-of-the-worker-0123456789"),
            nobody,
        ),
        ("a stop with a worker's token", "/ps.v1.Operator/Stop", Some(worker), not_his),
        ("a checkpoint with a worker's token", "/ps.v1.Operator/Checkpoint", Some(worker), not_his),
        ("a push with an operator's token", "/ps.v1.Parameters/Push", Some(operator), not_his),
    ] {
        let mut request = Request::new(vec![]);
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", token.parse()?);
        }
        let answer = refusal(&caller.raw_request(path, request).await);
        let expected = vec![expected];
        cases.push(Case { input: input.to_owned(), expected, answer, theta_unchanged: None });
    }
    Ok(())
}
