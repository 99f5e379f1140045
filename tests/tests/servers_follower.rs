//! A real server of one part of theta, told what to do as partition 0 would tell it (rules M6 to M12).

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use ps_common::Dtype;
use ps_common::calls::Caller as Name;
use ps_common::dtype::as_le_bytes;
use ps_common::job::{Combine, Fingerprint, JobState, PROTOCOL_VERSION};
use ps_common::partition::{CheckpointName, Decision, Give, Joint, Partition, PushName, Word};
use ps_common::tables::{Initializer, Table, Tables};
use ps_common::wire::pb;
use ps_common::wire::pb::partition_client::PartitionClient;
use ps_server::numeric::{Optimizer, Wish};
use ps_server::table::{Gradient, Store, Update};
use ps_tests::{Caller, Process, reason_of};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

const PARTITION: Partition = Partition { index: 1, count: 2 };
const FLAGS: [&str; 8] =
    ["--partition", "1/2", "--dtype", "f64", "--optimizer", "adam", "--weight-decay", "0.01"];
/// More than two chunks of f64.
const DIM: u64 = 140_001;
/// Elements in a message.
const CHUNK: usize = 32 << 10;
const LONG: Duration = Duration::from_secs(60);

fn tables() -> Tables {
    let uniform = Initializer::Uniform { bound: 1.0, seed: 7 };
    let tables =
        [Table::new("W", &[100_000], uniform, true), Table::zeros("b", &[DIM - 100_000], false)];
    Tables::new(tables.into()).expect("sane")
}

/// All of theta, by the server's own code and no server.
fn whole() -> Store {
    let wish = Wish {
        optimizer: "adam",
        lr: None,
        schedule: "constant",
        weight_decay: Some(0.01),
        clip_norm: None,
    };
    let optimizer = Optimizer::new(&wish).expect("sane");
    Store::new(&tables(), Dtype::F64, optimizer, 1 << 16)
}

fn gradient(rank: u32, clock: u64) -> Vec<f64> {
    (0..DIM).map(|key| ((key * 3 + clock * 7 + u64::from(rank)) as f64 * 0.37).sin()).collect()
}

fn keys() -> std::ops::Range<usize> {
    PARTITION.keys(DIM as usize)
}

/// The bytes of this server's part of `theta`.
fn part_of(theta: &Store) -> Vec<u8> {
    theta.snapshot().chunks().collect::<Vec<_>>().concat()[keys().start * 8..].to_vec()
}

/// What this server's theta should be after rounds `clocks` of two workers.
fn train(theta: &mut Store, clocks: std::ops::Range<u64>) {
    for clock in clocks {
        let part = |rank| (Gradient::F64(gradient(rank, clock).into()), 0.5);
        let parts = [part(0), part(1)];
        let (combine, compensation) = (Combine::Sum, None);
        let update = Update { parts: &parts, combine, rate_factor: 1.0, compensation };
        theta.update(&update).expect("finite");
    }
}

fn name(rank: u32, epoch: u32) -> Name {
    Name { rank, incarnation: u64::from(epoch) << 32 | 1 }
}

/// Partition 0's side of the stream of decisions.
struct Decider {
    decisions: mpsc::UnboundedSender<Decision>,
    words: Streaming<pb::Word>,
    holding: Vec<CheckpointName>,
}

fn open(settings: &[(&str, &str)]) -> Decision {
    let field = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let settings: Fingerprint = settings.iter().map(field).collect();
    Decision::Open { protocol_version: PROTOCOL_VERSION, partition: PARTITION, settings }
}

impl Decider {
    async fn follow(address: &str, first: Decision) -> Result<Self, Status> {
        let (decisions, told) = mpsc::unbounded_channel();
        decisions.send(first).expect("its other end is at hand");
        let told = UnboundedReceiverStream::new(told).map(pb::Decision::from);
        let words = client(address).await.follow(told).await?.into_inner();
        let mut decider = Self { decisions, words, holding: Vec::new() };
        match decider.word().await? {
            Word::Holding(holding) => decider.holding = holding,
            other => panic!("{other:?}"),
        }
        Ok(decider)
    }

    /// With a life begun.
    async fn begun(address: &str, epoch: u32, checkpoint: Option<CheckpointName>) -> Self {
        let mut decider = Self::follow(address, open(&[])).await.expect("opened");
        decider.tell(Decision::Begin { epoch, checkpoint });
        assert_eq!(decider.word().await.expect("a word"), Word::Ready);
        decider
    }

    /// With theta made.
    async fn created(address: &str) -> Self {
        let mut decider = Self::begun(address, 1, None).await;
        decider.tell(Decision::Create { tables: tables(), dtype: Dtype::F64, job: 9 });
        assert!(decider.collect().await == part_of(&whole()), "theta is made");
        decider
    }

    fn tell(&self, decision: Decision) {
        self.decisions.send(decision).expect("the call goes on");
    }

    async fn word(&mut self) -> Result<Word, Status> {
        let word = tokio::time::timeout(LONG, self.words.message()).await.expect("in time")?;
        Ok(Word::try_from(word.expect("the stream goes on")).expect("a word"))
    }

    /// What ends the stream.
    async fn end(&mut self) -> Option<Status> {
        match tokio::time::timeout(LONG, self.words.message()).await.expect("in time") {
            Ok(None) => None,
            Ok(Some(word)) => panic!("{word:?}"),
            Err(status) => Some(status),
        }
    }

    fn prepare(&self, epoch: u32, clock: u64) {
        let part = |rank| (PushName { caller: name(rank, epoch), clock }, 0.5);
        let parts = vec![part(0), part(1)];
        let (combine, compensation) = (Combine::Sum, None);
        self.tell(Decision::Prepare(Joint { parts, combine, rate_factor: 1.0, compensation }));
    }

    fn give(&self, caller: Name, exchange: u64, version: u64) {
        let state = JobState::Running;
        self.tell(Decision::Give(Give { caller, exchange, version, state, seconds: 0.5 }));
    }

    /// One round of two workers, staged, prepared, put in force.
    async fn round(&mut self, address: &str, epoch: u32, clock: u64) {
        let mut worker = client(address).await;
        for rank in 0..2 {
            let part = &gradient(rank, clock)[keys()];
            stage_as(&mut worker, name(rank, epoch), clock, part).await;
        }
        self.prepare(epoch, clock);
        assert_eq!(self.word().await.expect("a word"), Word::Prepared(None));
        self.tell(Decision::Commit);
    }

    async fn collect(&mut self) -> Vec<u8> {
        self.tell(Decision::Collect);
        let mut theta = Vec::new();
        loop {
            match self.word().await.expect("a word") {
                Word::Part(bytes, last) => {
                    theta.extend_from_slice(&bytes);
                    if last {
                        return theta;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

async fn client(address: &str) -> PartitionClient<Channel> {
    PartitionClient::new(Caller::connect(address).await.channel)
}

/// The messages of a part, its keys counted over all of theta.
fn messages(caller: Name, clock: u64, part: &[f64]) -> Vec<pb::PushRequest> {
    let mut key = keys().start;
    let mut messages: Vec<_> = part
        .chunks(CHUNK)
        .map(|chunk| {
            let dtype = pb::Dtype::F64.into();
            let data = Bytes::copy_from_slice(as_le_bytes(chunk));
            let message = pb::PushRequest { dtype, key: key as u64, data, ..Default::default() };
            key += chunk.len();
            message
        })
        .collect();
    messages.last_mut().expect("not empty").last = true;
    let Name { rank, incarnation } = caller;
    messages[0].header = Some(pb::PushHeader { rank, incarnation, clock, ..Default::default() });
    messages
}

async fn stage(
    client: &mut PartitionClient<Channel>,
    messages: Vec<pb::PushRequest>,
) -> Result<u32, Status> {
    let answer = client.stage(tokio_stream::iter(messages)).await?;
    Ok(answer.into_inner().digest)
}

async fn stage_as(
    client: &mut PartitionClient<Channel>,
    caller: Name,
    clock: u64,
    part: &[f64],
) -> u32 {
    stage(client, messages(caller, clock, part)).await.expect("staged")
}

/// Version and bytes of the theta that is given in an exchange.
async fn take(
    client: &mut PartitionClient<Channel>,
    caller: Name,
    exchange: u64,
    wait_ms_max: u32,
) -> Result<(u64, Vec<u8>), Status> {
    let Name { rank, incarnation } = caller;
    let request =
        pb::TakeRequest { rank, incarnation, exchange, wait_ms_max, ..Default::default() };
    let mut chunks = client.take(request).await?.into_inner();
    let (mut version, mut theta) = (None, Vec::new());
    while let Some(chunk) = chunks.message().await? {
        assert_eq!(chunk.dim as usize, keys().len());
        assert_eq!(chunk.key as usize, keys().start + theta.len() / 8);
        assert_eq!(*version.get_or_insert(chunk.version), chunk.version, "one version");
        theta.extend_from_slice(&chunk.data);
        assert_eq!(chunk.last, theta.len() == keys().len() * 8);
    }
    Ok((version.expect("at least a chunk"), theta))
}

#[tokio::test]
async fn m7_m9_parts_are_staged_counted_and_taken_with_the_bits_of_the_whole() {
    let (server, address) = Process::server(&FLAGS);
    let mut decider = Decider::created(&address).await;
    let mut theta = whole();
    let (first, second) = (name(0, 1), name(1, 1));
    decider.give(first, 1, 0);
    let mut worker = client(&address).await;
    assert_eq!(take(&mut worker, first, 1, 0).await.expect("given"), (0, part_of(&theta)));
    for clock in 0..3 {
        // One asks before partition 0 says anything, the other may come after.
        let waits = tokio::spawn({
            let mut worker = client(&address).await;
            async move { take(&mut worker, first, clock + 2, 60_000).await }
        });
        decider.round(&address, 1, clock).await;
        train(&mut theta, clock..clock + 1);
        decider.give(first, clock + 2, clock + 1);
        decider.give(second, clock + 2, clock + 1);
        let want = (clock + 1, part_of(&theta));
        assert!(waits.await.expect("no panic").expect("given") == want, "round {clock}");
        assert!(take(&mut worker, second, clock + 2, 60_000).await.expect("given") == want);
    }
    assert!(decider.collect().await == part_of(&theta));
    let nothing = take(&mut worker, first, 9, 50).await.expect_err("nothing is given");
    assert_eq!(reason_of(&nothing), (Code::DeadlineExceeded, "DEADLINE".to_owned()));
    let past = take(&mut worker, first, 2, 50).await.expect_err("past");
    assert_eq!(reason_of(&past), (Code::Aborted, "STALE_ROUND".to_owned()));

    decider.tell(Decision::End { state: JobState::Done, reason: String::new() });
    // Until then this thread has to send what was told.
    assert_eq!(decider.end().await.map(|status| status.to_string()), None);
    server.expect_exit(0);
}

#[tokio::test]
async fn m6_m7_m8_what_is_not_in_order_is_refused_and_the_server_lives() {
    let (mut server, address) = Process::server(&FLAGS);
    let mut worker = client(&address).await;
    let part = gradient(0, 0)[keys()].to_vec();
    let caller = name(0, 1);
    let good = || messages(caller, 0, &part);

    let early = stage(&mut worker, good()).await.expect_err("no theta");
    assert_eq!(reason_of(&early), (Code::FailedPrecondition, "NOT_INITIALIZED".to_owned()));
    let other =
        Decider::follow(&address, open(&[("optimizer", "sgd")])).await.err().expect("differs");
    assert_eq!(reason_of(&other), (Code::FailedPrecondition, "CONFIG_MISMATCH".to_owned()));
    assert!(other.message().contains("--optimizer") && other.message().contains("sgd"), "{other}");
    let other =
        Decider::follow(&address, open(&[("clip-norm", "1")])).await.err().expect("differs");
    assert!(other.message().contains("--clip-norm is none, partition 0's 1"), "{other}");

    let mut decider = Decider::created(&address).await;
    decider.round(&address, 1, 0).await;
    let before = decider.collect().await;
    type Change = fn(&mut Vec<pb::PushRequest>);
    let changes: [(&str, Code, Change); 7] = [
        ("BAD_KEY", Code::InvalidArgument, |all| all[0].key = 0),
        ("BAD_KEY", Code::InvalidArgument, |all| all[1].key += 1),
        ("BAD_DTYPE", Code::InvalidArgument, |all| all[1].dtype = pb::Dtype::F32.into()),
        ("BAD_LENGTH", Code::InvalidArgument, |all| all[1].data.truncate(9)),
        ("EMPTY", Code::InvalidArgument, |all| all[1].data.clear()),
        ("BAD_FIELD", Code::InvalidArgument, |all| all[0].header = None),
        ("DIM_MISMATCH", Code::InvalidArgument, |all| {
            all.truncate(2);
            all[1].last = true;
        }),
    ];
    for (reason, code, change) in changes {
        let mut all = messages(caller, 1, &part);
        change(&mut all);
        let status = stage(&mut worker, all).await.expect_err(reason);
        assert_eq!(reason_of(&status), (code, reason.to_owned()), "{status}");
    }
    let mut bad = part.clone();
    bad[CHUNK + 5] = f64::NAN;
    let status = stage(&mut worker, messages(caller, 1, &bad)).await.expect_err("NaN");
    assert_eq!(reason_of(&status), (Code::InvalidArgument, "NON_FINITE".to_owned()));
    let key = keys().start + CHUNK + 5;
    assert!(status.message().contains(&key.to_string()), "{status}");

    let old = stage(&mut worker, messages(name(0, 0), 1, &part)).await.expect_err("another life");
    assert_eq!(reason_of(&old), (Code::FailedPrecondition, "EPOCH_CHANGED".to_owned()));
    let digest = stage_as(&mut worker, caller, 1, &part).await;
    assert_eq!(stage_as(&mut worker, caller, 1, &part).await, digest, "the same bytes again");
    let other = &gradient(1, 1)[keys()];
    let status = stage(&mut worker, messages(caller, 1, other)).await.expect_err("other bytes");
    assert_eq!(reason_of(&status), (Code::AlreadyExists, "SEQ_REUSED".to_owned()));
    assert!(decider.collect().await == before, "theta has not moved");

    let mut caller = Caller::connect(&address).await;
    let join = caller.join(Caller::join_request(None, 4)).await.expect_err("it decides nothing");
    let stop = caller.operator.stop(pb::StopRequest::default()).await.expect_err("the same");
    let pull = caller.parameters.pull(pb::PullRequest::default()).await.expect_err("the same");
    for status in [join, stop, pull] {
        assert_eq!(reason_of(&status).0, Code::FailedPrecondition, "{status}");
        let says = status.message();
        assert!(says.contains("server 1/2") && says.contains("partition 0"), "{says}");
    }
    let status = caller.operator.status(pb::StatusRequest {}).await.expect("its own");
    let status = status.into_inner();
    assert_eq!((status.version, status.dim), (1, keys().len() as u64));

    // Rank 1 has staged nothing for clock 1.
    decider.prepare(1, 1);
    let status = decider.end().await.expect("an error");
    assert_eq!(reason_of(&status), (Code::InvalidArgument, "BAD_FIELD".to_owned()));
    let late = stage(&mut worker, good()).await.expect_err("its life has ended");
    assert_eq!(reason_of(&late).1, "NOT_INITIALIZED");
    Decider::created(&address).await;
    assert!(server.is_running());
}

fn kept(folder: &Path) -> Vec<String> {
    let mut flags = FLAGS.map(str::to_owned).to_vec();
    flags.extend(["--checkpoint-dir".to_owned(), folder.display().to_string()]);
    flags
}

fn start(flags: &[String]) -> (Process, String) {
    Process::server(&flags.iter().map(String::as_str).collect::<Vec<_>>())
}

#[tokio::test]
async fn m11_a_life_begins_anew_from_the_checkpoint_that_is_chosen() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let flags = kept(folder.path());
    let (server, address) = start(&flags);
    let mut decider = Decider::created(&address).await;
    assert_eq!(decider.holding, []);
    let mut names = Vec::new();
    for clock in 0..3 {
        decider.round(&address, 1, clock).await;
        decider.tell(Decision::Capture);
        let saved = decider.word().await.expect("a word");
        assert_eq!(saved, Word::Saved { version: clock + 1, result: Ok(()) });
        names.insert(0, CheckpointName { version: clock + 1, epoch: 1, job: 9 });
    }
    // The connection breaks, and partition 0 comes again and chooses the one before the last.
    drop(decider);
    let mut decider = Decider::follow(&address, open(&[])).await.expect("opened");
    assert_eq!(decider.holding, names);
    decider.tell(Decision::Begin { epoch: 2, checkpoint: Some(names[1]) });
    assert_eq!(decider.word().await.expect("a word"), Word::Ready);
    let mut theta = whole();
    train(&mut theta, 0..2);
    assert!(decider.collect().await == part_of(&theta));
    let old = messages(name(0, 1), 2, &gradient(0, 2)[keys()]);
    let old = stage(&mut client(&address).await, old).await.expect_err("another life");
    assert_eq!(reason_of(&old).1, "EPOCH_CHANGED");
    decider.round(&address, 2, 2).await;
    train(&mut theta, 2..3);
    assert!(decider.collect().await == part_of(&theta));
    decider.tell(Decision::Capture);
    let saved = decider.word().await.expect("a word");
    assert_eq!(
        saved,
        Word::Saved { version: 3, result: Ok(()) },
        "the undone one is not in its way"
    );

    // Killed and started again: the same checkpoints, whose names tell lives apart.
    server.signal("KILL");
    assert_eq!(server.wait().0, None);
    let (server, address) = start(&flags);
    let newest = CheckpointName { epoch: 2, ..names[0] };
    let mut decider = Decider::begun(&address, 3, Some(newest)).await;
    assert_eq!(decider.holding, [newest, names[1], names[2]]);
    assert!(decider.collect().await == part_of(&theta));
    drop(decider);

    // Damaged: refused with the file's name; partition 0 chooses another one.
    let file =
        std::fs::read_dir(folder.path()).expect("readable").map(|e| e.expect("readable").path());
    let is_newest = |path: &std::path::PathBuf| path.to_string_lossy().ends_with("003.psck");
    let file = file.into_iter().find(is_newest).expect("the newest");
    let mut bytes = std::fs::read(&file).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).expect("writable");
    let mut decider = Decider::follow(&address, open(&[])).await.expect("opened");
    decider.tell(Decision::Begin { epoch: 4, checkpoint: Some(newest) });
    let status = decider.end().await.expect("it is damaged");
    let file_name = file.file_name().expect("a file").to_string_lossy().into_owned();
    assert!(status.message().contains(&file_name), "{status}");
    let mut decider = Decider::begun(&address, 5, Some(names[1])).await;
    decider.tell(Decision::End { state: JobState::Failed, reason: "diverged".to_owned() });
    assert_eq!(decider.end().await.map(|status| status.to_string()), None);
    let output = server.expect_exit(1);
    assert!(output.contains("the job failed: diverged"), "{output}");
}

#[tokio::test]
async fn m12_a_signal_ends_it_and_waiting_calls_are_told() {
    let (server, address) = Process::server(&FLAGS);
    let mut decider = Decider::created(&address).await;
    decider.collect().await;
    let waits = tokio::spawn({
        let mut worker = client(&address).await;
        async move { take(&mut worker, name(0, 1), 1, 60_000).await }
    });
    server.signal("TERM");
    let status = waits.await.expect("no panic").expect_err("it goes");
    // Whether it was there before the signal is chance.
    let (_, reason) = reason_of(&status);
    assert!(reason.is_empty() || reason == "DRAINING", "{status}");
    let status = decider.end().await.expect("it goes");
    assert_eq!(reason_of(&status), (Code::Unavailable, "DRAINING".to_owned()));
    drop(decider);
    server.expect_exit(0);

    let (server, _) = Process::server(&FLAGS);
    server.signal("INT");
    server.expect_exit(130);
}

#[test]
fn what_one_of_several_servers_cannot_do_is_a_configuration_error() {
    for (flags, names) in [
        (&["--partition", "2/2"][..], "--partition"),
        (&["--partition", "x"], "--partition"),
        (&["--partition", "1/2", "--mode", "hogwild"], "--mode hogwild"),
        (
            &["--partition", "1/2", "--checkpoint-dir", ".", "--durability", "always"],
            "--durability always",
        ),
        (&["--partition", "1/2", "--peers", "http://127.0.0.1:1"], "--peers"),
    ] {
        let output = Process::start("ps-server", flags).expect_exit(78);
        assert!(output.contains(names), "{flags:?}: {output}");
    }
    let flags =
        ["--partition", "1/2", "--rounds", "7", "--workers", "3", "--listen", "127.0.0.1:0"];
    let server = Process::start("ps-server", &flags);
    ps_tests::wait_until("the line on what is left to partition 0", || {
        let output = server.output();
        (output.contains("server 1/2") && output.contains("--rounds")).then_some(())
    });
    server.signal("TERM");
    server.expect_exit(0);
}
