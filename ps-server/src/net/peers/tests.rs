//! The way to followers that come late, refuse, break off and fall silent, over real connections.

use std::pin::Pin;

use ps_common::job::Fingerprint;
use ps_common::wire::pb::partition_server::{Partition as Service, PartitionServer};
use ps_common::wire::status::to_status;
use ps_common::{Error, ErrorCode};
use ps_tests::Proxy;
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Response;

use super::*;
use crate::args::PeerSpec;
use crate::security::Security;

const NAME: CheckpointName = CheckpointName { version: 4, epoch: 2, job: 9 };

/// A follower that answers Open as told, Prepare at once, and counts what it hears.
#[derive(Clone)]
struct Follower {
    refusal: Option<Error>,
    heard: mpsc::UnboundedSender<Option<Decision>>,
}

type Words<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Service for Follower {
    type FollowStream = Words<pb::Word>;
    type TakeStream = Words<pb::PullResponse>;

    async fn stage(
        &self,
        _: Request<Streaming<pb::PushRequest>>,
    ) -> Result<Response<pb::StageResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn take(
        &self,
        _: Request<pb::TakeRequest>,
    ) -> Result<Response<Self::TakeStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn follow(
        &self,
        request: Request<Streaming<pb::Decision>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let (mut decisions, Self { refusal, heard }) = (request.into_inner(), self.clone());
        let (words, said) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(decision)) = decisions.message().await {
                let decision = Decision::try_from(decision).expect("our own");
                let word = match &decision {
                    Decision::Open { .. } => match &refusal {
                        Some(error) => Err(to_status(error)),
                        None => Ok(Word::Holding(vec![NAME]).into()),
                    },
                    Decision::Prepare(_) => Ok(Word::Prepared(Some(7)).into()),
                    _ => Ok(Word::Ready.into()),
                };
                let is_last = matches!(decision, Decision::End { .. });
                let _ = heard.send(Some(decision));
                if is_last {
                    break;
                }
                let _ = words.send(word);
            }
            let _ = heard.send(None);
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(said))))
    }
}

/// Serves a follower; it ends with what is given back.
async fn serve(
    listener: TcpListener,
    refusal: Option<Error>,
) -> (mpsc::UnboundedReceiver<Option<Decision>>, tokio::task::JoinHandle<()>) {
    let (heard, hearing) = mpsc::unbounded_channel();
    let service = PartitionServer::new(Follower { refusal, heard });
    let served = tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(TcpListenerStream::new(listener));
    (hearing, tokio::spawn(async move { served.await.expect("serves") }))
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound").to_string();
    (listener, address)
}

fn ways(urls: &[&str]) -> Ways {
    let urls = urls.iter().map(|url| (*url).to_owned()).collect();
    let security = Security { tls: None, tokens: None, warning: None };
    Ways::load(&PeerSpec { urls, ca: None }, &security).expect("plain")
}

async fn gather(urls: &[&str], patience: Duration) -> Result<Peers, NotGathered> {
    let open = |partition| Decision::Open {
        protocol_version: 1,
        partition,
        settings: Fingerprint::default(),
    };
    Peers::gather(&ways(urls), Instant::now() + patience, open).await
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn decisions_come_in_order_to_all_and_the_end_is_waited_for() {
    let [(first, at_first), (second, at_second)] = [listener().await, listener().await];
    let (mut heard, _serving) = serve(first, None).await;
    let late = tokio::spawn(async move {
        // Meanwhile it accepts and says nothing: as a server that has not begun to serve.
        tokio::time::sleep(Duration::from_millis(300)).await;
        serve(second, None).await
    });
    let peers = gather(&[&at_first, &at_second], LONG).await.expect("both come");
    let (mut heard_late, _serving_late) = late.await.expect("no panic");
    assert_eq!(peers.holding(), [[NAME], [NAME]]);
    let group = Arc::clone(peers.group());
    group.tell(&Decision::Begin { epoch: 3, checkpoint: Some(NAME) });
    let waiting = Arc::clone(&group);
    tokio::task::spawn_blocking(move || waiting.ready()).await.expect("joined").expect("ready");
    for rank in 0..500 {
        group.tell(&Decision::Keep(rank));
    }
    peers.end(JobState::Done, String::new()).await;
    assert_eq!(group.lost(), None, "who goes at the end is not lost");
    for (index, heard) in [(1, &mut heard), (2, &mut heard_late)] {
        let Some(Some(Decision::Open { partition, .. })) = heard.recv().await else { panic!() };
        assert_eq!(partition, Partition { index, count: 3 });
        assert!(matches!(heard.recv().await, Some(Some(Decision::Begin { epoch: 3, .. }))));
        for rank in 0..500 {
            assert_eq!(heard.recv().await, Some(Some(Decision::Keep(rank))));
        }
        assert!(matches!(heard.recv().await, Some(Some(Decision::End { .. }))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_told_and_an_absence_is_waited_for_to_the_end() {
    let (listener, address) = listener().await;
    let error = Error::new(ErrorCode::ConfigMismatch, "its --lr is 1, partition 0's 2");
    let (_heard, _serving) = serve(listener, Some(error)).await;
    let Err(NotGathered::Refused(error)) = gather(&[&address], LONG).await else {
        panic!("it differs")
    };
    assert_eq!(error.exit, Exit::Config);
    for part in ["--peers", "1/2", &address, "--lr is 1"] {
        assert!(error.message.contains(part), "{error}");
    }

    // A port that nobody listens at.
    let (gone, address) = self::listener().await;
    drop(gone);
    let patience = Duration::from_millis(300);
    let Err(NotGathered::Missing(lost)) = gather(&[&address], patience).await else {
        panic!("nobody is there")
    };
    assert_eq!((lost.partition.index, lost.url), (1, address));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_busy_now_is_asked_again() {
    let (listener, address) = listener().await;
    let error = Error::new(ErrorCode::Draining, "the life before is not over");
    let (mut heard, _serving) = serve(listener, Some(error)).await;
    let patience = Duration::from_millis(700);
    let Err(NotGathered::Missing(lost)) = gather(&[&address], patience).await else {
        panic!("it never comes free")
    };
    assert!(lost.what.contains("is not over"), "{lost}");
    let mut n_asked = 0;
    while let Ok(heard) = heard.try_recv() {
        n_asked += u32::from(heard.is_some());
    }
    assert!(n_asked >= 2, "asked {n_asked} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_is_a_loss_at_once_and_silence_within_seconds() {
    for is_silent in [false, true] {
        let [(first, at_first), (second, at_second)] = [listener().await, listener().await];
        let (mut heard, _serving) = serve(first, None).await;
        let (_heard, _serving_too) = serve(second, None).await;
        let proxy = Proxy::to(&at_second);
        let peers = gather(&[&at_first, proxy.address()], LONG).await.expect("both are there");
        if is_silent {
            proxy.part()
        } else {
            proxy.cut()
        }
        let limit = if is_silent { KEEPALIVE_INTERVAL + KEEPALIVE_TIMEOUT } else { LONG / 10 };
        let lost = tokio::time::timeout(limit + LONG / 3, peers.lost()).await.expect("found");
        assert_eq!(lost.partition, Partition { index: 2, count: 3 });
        assert_eq!(lost.url, proxy.address());
        assert_eq!(peers.group().lost(), Some(lost));
        // The other one is let go with the group.
        drop(peers);
        while heard.recv().await != Some(None) {}
    }
}
