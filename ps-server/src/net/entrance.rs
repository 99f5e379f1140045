//! What a connection does before it is served: TLS, where it is served, and the first bytes of
//! HTTP/2, all of it in time.
//!
//! Without this a peer that says nothing would be held for ever: HTTP/2's own keepalive begins after
//! its first bytes. Knows no calls.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ps_common::transport::{Socket, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::connections::{Accepted, Connection};
use super::lanes::Incoming;
use super::turnaways::{Turnaways, Why};

/// What every HTTP/2 connection begins with (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The first byte of a TLS connection.
const TLS_HANDSHAKE: u8 = 22;

/// After a refused handshake: time for the peer to read why before the connection is closed.
const FAREWELL: Duration = Duration::from_secs(1);

/// How connections come in.
#[derive(Clone)]
pub(super) struct Entrance {
    /// None: plaintext.
    pub(super) tls: Option<TlsAcceptor>,
    /// For all that comes before the first call.
    pub(super) limit: Duration,
    pub(super) turnaways: Arc<Turnaways>,
}

impl Entrance {
    /// The connections among `accepted` that have come in, on the runtime that calls it. Ends with
    /// `accepted`; who is on the way in then is cut.
    pub(super) fn pass(self, mut accepted: mpsc::UnboundedReceiver<Accepted>) -> Incoming {
        let (ready, connections) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut entering = JoinSet::new();
            loop {
                tokio::select! {
                    biased;
                    Some(_) = entering.join_next() => {}
                    next = accepted.recv() => match next {
                        None => return,
                        Some(next) => {
                            let (entrance, ready) = (self.clone(), ready.clone());
                            entering.spawn(async move {
                                if let Some(connection) = entrance.let_in(next).await {
                                    // Nobody serves any more: it is closed.
                                    let _ = ready.send(connection);
                                }
                            });
                        }
                    },
                }
            }
        });
        Box::pin(UnboundedReceiverStream::new(connections).map(Ok))
    }

    async fn let_in(&self, accepted: Accepted) -> Option<Connection> {
        let address = accepted.address();
        let deadline = Instant::now() + self.limit;
        let (socket, rest) = accepted.open().ok()?;
        let mut transport = match &self.tls {
            None => Transport::Plain(socket),
            Some(acceptor) => match timeout_at(deadline, handshake(acceptor, socket)).await {
                Ok(Ok(stream)) => Transport::Tls(Box::new(stream.into())),
                Ok(Err(error)) => {
                    self.turnaways.note(Why::Handshake, address, error);
                    return None;
                }
                Err(_) => {
                    let detail = format!("nothing came of it within {:?}", self.limit);
                    self.turnaways.note(Why::Handshake, address, detail);
                    return None;
                }
            },
        };
        match timeout_at(deadline, read_preface(&mut transport)).await {
            Ok(Ok(Greeting::Http2)) => return Some(Connection::new(transport, rest)),
            // A probe that looks whether the port is open.
            Ok(Ok(Greeting::Nothing) | Err(_)) => tracing::debug!(%address, "said nothing"),
            Ok(Ok(Greeting::Tls)) => {
                let detail = "the peer speaks TLS, this server does not (--tls-cert, --tls-key)";
                self.turnaways.note(Why::Preface, address, detail);
            }
            Ok(Ok(Greeting::Other)) => {
                self.turnaways.note(Why::Preface, address, "the peer speaks something else");
            }
            Err(_) => {
                let detail = format!("it did not come within {:?}", self.limit);
                self.turnaways.note(Why::Preface, address, detail);
            }
        }
        None
    }
}

/// TLS; where it fails the peer hears why before the connection is closed.
async fn handshake(acceptor: &TlsAcceptor, socket: Socket) -> io::Result<TlsStream<Socket>> {
    let (error, mut socket) = match acceptor.accept(socket).into_fallible().await {
        Ok(stream) => return Ok(stream),
        Err(failed) => failed,
    };
    // Closing with bytes unread would reset the connection, and the peer would lose the alert.
    let mut scrap = [0; 4096];
    let _ = socket.shutdown().await;
    let _ =
        timeout(FAREWELL, async { while socket.read(&mut scrap).await.is_ok_and(|n| n > 0) {} })
            .await;
    Err(error)
}

/// How a peer begins.
enum Greeting {
    Http2,
    Tls,
    Other,
    /// It closes the connection without a word.
    Nothing,
}

async fn read_preface(transport: &mut Transport) -> io::Result<Greeting> {
    let mut begun = [0; PREFACE.len()];
    let mut n = 0;
    while n < begun.len() {
        match transport.read(&mut begun[n..]).await? {
            0 if n == 0 => return Ok(Greeting::Nothing),
            0 => return Ok(Greeting::Other),
            more => n += more,
        }
        if begun[..n] != PREFACE[..n] {
            return Ok(if begun[0] == TLS_HANDSHAKE { Greeting::Tls } else { Greeting::Other });
        }
    }
    Ok(Greeting::Http2)
}
