//! The way from partition 0 to the other servers: one stream of decisions to each, kept open as long as
//! the group lives.
//!
//! On a thread and runtime of its own: who waits for a follower's answer holds up a thread that serves
//! workers, never this one. A follower that is silent is found by HTTP/2 keepalive, one whose
//! connection breaks at once. Knows no decision's meaning: [`crate::group`] says what is told.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use ps_common::error::Retry;
use ps_common::exit::{Exit, ExitError};
use ps_common::job::JobState;
use ps_common::partition::{CheckpointName, Decision, Partition, Word};
use ps_common::secrets::AUTHORIZATION;
use ps_common::transport::{Socket, Transport};
use ps_common::wire::partition::PARTITION_MESSAGE_BYTES_MAX;
use ps_common::wire::pb;
use ps_common::wire::pb::partition_client::PartitionClient;
use ps_common::wire::status::{Failure, from_status};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Endpoint, Uri};
use tonic::{Code, Request, Status, Streaming};
use tower::service_fn;

use crate::group::{Group, Lost, Member, Peer};

use ways::Way;
pub use ways::Ways;

#[cfg(test)]
mod tests;
mod ways;

/// Of one attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent follower is asked for a sign of life so often ...
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// ... and is lost if it gives none for so long.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(8);
/// Between two attempts to reach a follower, at first and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];
/// A follower that lives may take so long over an update, or a part of theta.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long followers may take to hear of the end.
const FAREWELL: Duration = Duration::from_secs(10);

/// The followers of one life of a job, each opened and none begun. Dropped, it ends their streams.
#[derive(Debug)]
pub struct Peers {
    group: Arc<Group>,
    holding: Vec<Vec<CheckpointName>>,
    lost: watch::Receiver<Option<Lost>>,
    ended: oneshot::Receiver<()>,
    _hold: oneshot::Sender<()>,
}

/// Why there is no group.
#[derive(Debug)]
pub enum NotGathered {
    /// Trying again cannot help.
    Refused(ExitError),
    /// This follower could not be reached in time.
    Missing(Lost),
}

/// What the thread gives back once all followers are opened.
struct Gathered {
    group: Arc<Group>,
    holding: Vec<Vec<CheckpointName>>,
    lost: watch::Receiver<Option<Lost>>,
}

impl Peers {
    /// Reaches all followers, until `until`, opens each with what `open` says to it, and hears which
    /// checkpoints it has.
    ///
    /// # Errors
    /// A follower refuses, or cannot be reached in time; I/O, where the system gives no thread.
    pub async fn gather(
        ways: &Ways,
        until: Instant,
        open: impl Fn(Partition) -> Decision,
    ) -> Result<Self, NotGathered> {
        let followers: Vec<Follower> = ways
            .followers()
            .map(|(partition, way)| Follower { partition, way: way.clone(), open: open(partition) })
            .collect();
        let (hold, dropped) = oneshot::channel::<()>();
        let (end, ended) = oneshot::channel();
        let (gathered_out, gathered) = oneshot::channel();
        let no_thread = |e| {
            let what = "cannot start the thread that talks to other servers";
            NotGathered::Refused(ExitError::new(Exit::Io, what).because(e))
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(no_thread)?;
        let thread = std::thread::Builder::new().name("peers".to_owned());
        let talk = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = talk(followers, until, gathered_out) => {}
                    // It is dropped, and nothing is ever sent.
                    _ = dropped => {}
                }
            });
            drop(runtime);
            // Nobody may wait for it.
            let _ = end.send(());
        };
        thread.spawn(talk).map_err(no_thread)?;
        match gathered.await {
            Ok(Ok(Gathered { group, holding, lost })) => {
                Ok(Self { group, holding, lost, ended, _hold: hold })
            }
            Ok(Err(failure)) => Err(failure),
            Err(_) => {
                let what = "the thread that talks to other servers ended";
                Err(NotGathered::Refused(ExitError::new(Exit::Bug, what)))
            }
        }
    }

    /// What they are told and have answered.
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// The checkpoints of each, in order of partition.
    pub fn holding(&self) -> &[Vec<CheckpointName>] {
        &self.holding
    }

    /// Waits until one of them is lost.
    pub async fn lost(&self) -> Lost {
        let mut lost = self.lost.clone();
        match lost.wait_for(Option::is_some).await {
            Ok(found) => found.clone().expect("waited for"),
            // The group, which would tell of it, is gone.
            Err(_) => std::future::pending().await,
        }
    }

    /// Tells all that the job is over, and waits a while until they have heard of it.
    pub async fn end(self, state: JobState, reason: String) {
        self.group.end(state, reason);
        if tokio::time::timeout(FAREWELL, self.ended).await.is_err() {
            tracing::warn!("a server has not said that it heard of the job's end");
        }
    }
}

/// One that is to be reached.
struct Follower {
    partition: Partition,
    way: Way,
    open: Decision,
}

/// One that has been opened.
struct Opened {
    follower: Follower,
    decisions: mpsc::UnboundedSender<Decision>,
    words: Streaming<pb::Word>,
    holding: Vec<CheckpointName>,
}

/// The way in for what [`Group`] tells a follower; none after the end, which closes the stream.
struct Sender(Mutex<Option<mpsc::UnboundedSender<Decision>>>);

impl Peer for Sender {
    fn tell(&self, decision: Decision) {
        let mut sender = self.0.lock();
        let is_last = matches!(decision, Decision::End { .. });
        if let Some(sender) = &*sender {
            // Whoever listens for its answers finds out that it is gone.
            let _ = sender.send(decision);
        }
        if is_last {
            *sender = None;
        }
    }
}

/// Reaches all, then listens to all until all have ended.
async fn talk(
    followers: Vec<Follower>,
    until: Instant,
    gathered: oneshot::Sender<Result<Gathered, NotGathered>>,
) {
    let opened = match reach_all(followers, until).await {
        Ok(opened) => opened,
        Err(failure) => {
            // Who asked may have gone.
            let _ = gathered.send(Err(failure));
            return;
        }
    };
    let (alarm, lost) = watch::channel(None);
    let member = |Opened { follower, decisions, .. }: &Opened| Member {
        url: follower.way.url.clone(),
        peer: Box::new(Sender(Mutex::new(Some(decisions.clone())))),
    };
    let members = opened.iter().map(member).collect();
    let alarm = move |lost: &Lost| drop(alarm.send_replace(Some(lost.clone())));
    let group = Arc::new(Group::new(members, PATIENCE, Box::new(alarm)));
    let holding = opened.iter().map(|opened| opened.holding.clone()).collect();
    let mut listening = JoinSet::new();
    for Opened { follower, words, .. } in opened {
        listening.spawn(listen(follower.partition.index, words, Arc::clone(&group)));
    }
    if gathered.send(Ok(Gathered { group, holding, lost })).is_ok() {
        while listening.join_next().await.is_some() {}
    }
}

async fn reach_all(followers: Vec<Follower>, until: Instant) -> Result<Vec<Opened>, NotGathered> {
    let mut reaching: JoinSet<_> =
        followers.into_iter().map(|follower| follower.reach(until)).collect();
    let mut opened = Vec::new();
    while let Some(reached) = reaching.join_next().await {
        opened.push(reached.expect("not cancelled")?);
    }
    opened.sort_by_key(|opened| opened.follower.partition.index);
    Ok(opened)
}

/// Hands on what a follower says, to its end.
async fn listen(index: u32, mut words: Streaming<pb::Word>, group: Arc<Group>) {
    loop {
        let word = match words.message().await {
            Ok(Some(word)) => Word::try_from(word),
            Ok(None) => return group.lose(index, "it has ended its stream of answers", None),
            Err(status) => {
                let failure = from_status(&status);
                let code = match &failure {
                    Failure::Refused(error) => Some(error.code),
                    _ => None,
                };
                return group.lose(index, failure, code);
            }
        };
        match word {
            Ok(word) => group.hear(index, word),
            Err(error) => {
                return group.lose(index, format!("it does not speak our language: {error}"), None);
            }
        }
    }
}

/// Why a follower is not opened.
enum NotOpened {
    Refused(String),
    NotYet(String),
}

impl Follower {
    /// Tries until it is opened.
    async fn reach(self, until: Instant) -> Result<Opened, NotGathered> {
        let Self { partition, way, open } = self;
        let [mut pause, longest] = PAUSES;
        let mut last: Option<String> = None;
        loop {
            let attempt = tokio::time::timeout_at(until, attempt(&way, &open)).await;
            let what = match attempt {
                Ok(Ok((decisions, words, holding))) => {
                    let follower = Self { partition, way, open };
                    return Ok(Opened { follower, decisions, words, holding });
                }
                Ok(Err(NotOpened::Refused(what))) => {
                    let what = format!("--peers: server {partition} ({}): {what}", way.url);
                    return Err(NotGathered::Refused(ExitError::config(what)));
                }
                Ok(Err(NotOpened::NotYet(what))) => what,
                // What it was before says more.
                Err(_) => last.clone().unwrap_or_else(|| "it does not answer".to_owned()),
            };
            if Instant::now() + pause >= until {
                return Err(NotGathered::Missing(Lost {
                    partition,
                    url: way.url,
                    what,
                    code: None,
                }));
            }
            if last.is_none() {
                tracing::info!(%partition, url = way.url, what, "waiting for a server");
            }
            last = Some(what);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }
}

type Stream = (mpsc::UnboundedSender<Decision>, Streaming<pb::Word>, Vec<CheckpointName>);

/// Connects and opens, once.
async fn attempt(way: &Way, open: &Decision) -> Result<Stream, NotOpened> {
    let dialled = way.clone();
    let connector = service_fn(move |uri: Uri| {
        let way = dialled.clone();
        async move { way.connect(&uri).await }
    });
    let channel = endpoint(&way.uri).connect_with_connector(connector).await.map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        NotOpened::NotYet(format!("{error}{}", cause.unwrap_or_default()))
    })?;
    let (decisions, told) = mpsc::unbounded_channel();
    decisions.send(open.clone()).expect("its other end is at hand");
    let mut request = Request::new(UnboundedReceiverStream::new(told).map(pb::Decision::from));
    if let Some(token) = &way.token {
        request.metadata_mut().insert(AUTHORIZATION, token.clone());
    }
    let mut client = PartitionClient::new(channel)
        .max_decoding_message_size(PARTITION_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(PARTITION_MESSAGE_BYTES_MAX);
    let mut words = client.follow(request).await.map_err(|status| refusal(&status))?.into_inner();
    let not_yet = |what: &str| NotOpened::NotYet(what.to_owned());
    let first = words.message().await.map_err(|status| refusal(&status))?;
    let first = first.ok_or_else(|| not_yet("it ended the stream at once"))?;
    match Word::try_from(first) {
        Ok(Word::Holding(holding)) => Ok((decisions, words, holding)),
        Ok(_) => Err(not_yet("its first word is another than which checkpoints it has")),
        Err(error) => Err(NotOpened::Refused(error.to_string())),
    }
}

/// Whether it may be otherwise later.
fn refusal(status: &Status) -> NotOpened {
    match from_status(status) {
        Failure::Refused(error) if error.code.retry() == Retry::Never => {
            NotOpened::Refused(error.to_string())
        }
        Failure::Other(Code::Unimplemented, _) => NotOpened::Refused(
            "it follows nobody: it was started without --partition, or with another one".to_owned(),
        ),
        failure => NotOpened::NotYet(failure.to_string()),
    }
}

fn endpoint(uri: &Uri) -> Endpoint {
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(tonic::codegen::http::uri::Scheme::HTTP);
    // TLS is made where TCP is, so that tonic need not know of it.
    Endpoint::from(Uri::from_parts(parts).expect("another scheme leaves a URI valid"))
        .origin(uri.clone())
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
}

impl Way {
    async fn connect(&self, uri: &Uri) -> io::Result<TokioIo<Transport>> {
        let host = uri.host().expect("checked").trim_matches(['[', ']']);
        let tcp = TcpStream::connect((host, uri.port_u16().expect("checked"))).await?;
        // Decisions are small, and each is waited for.
        tcp.set_nodelay(true)?;
        let socket = Socket::Tcp(tcp);
        let Some(tls) = &self.tls else { return Ok(TokioIo::new(Transport::Plain(socket))) };
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let stream = TlsConnector::from(Arc::clone(tls)).connect(name, socket).await?;
        Ok(TokioIo::new(Transport::Tls(Box::new(stream.into()))))
    }
}
