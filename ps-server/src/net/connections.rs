//! Connections: accepted one by one, counted, named; the core hears when one is gone.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use ps_common::transport::{Duplex, Listen, Socket, Transport};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::Connected;

use super::entrance::PREFACE;
use super::lanes::Lanes;
use super::shell::Shell;
use super::turnaways::{Turnaways, Why};
use crate::core::{ConnId, Input};
use crate::security::Limits;

/// Pause after a failed accept: out of file descriptors, the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where connections come from.
#[derive(Debug)]
pub enum Listener {
    /// The system.
    Tcp(TcpListener),
    /// What stands in for it; its connections stay on the runtime that accepts them.
    Other(Box<dyn Listen>),
}

impl From<TcpListener> for Listener {
    fn from(tcp: TcpListener) -> Self {
        Self::Tcp(tcp)
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<(Socket, SocketAddr)> {
        match self {
            Self::Tcp(tcp) => tcp.accept().await.map(|(tcp, from)| (Socket::Tcp(tcp), from)),
            Self::Other(other) => {
                other.accept().await.map(|(bytes, from)| (Socket::Other(bytes), from))
            }
        }
    }
}

/// Who hears of connections.
#[derive(Debug, Clone)]
pub(super) enum Ear {
    /// The core.
    Core(Arc<Shell>),
    /// Nobody: this server decides nothing. Names for connections.
    Nobody(Arc<AtomicU64>),
}

impl From<Arc<Shell>> for Ear {
    fn from(shell: Arc<Shell>) -> Self {
        Self::Core(shell)
    }
}

impl Ear {
    /// A name for a new connection.
    fn connected(&self) -> ConnId {
        match self {
            Self::Core(shell) => shell.connected(),
            Self::Nobody(ids) => ConnId(ids.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// Tells the core.
    pub(super) fn tell(&self, input: Input) {
        match self {
            Self::Core(shell) => shell.tell(input),
            Self::Nobody(_) => {}
        }
    }
}

/// A bound listener that hands out connections.
#[derive(Debug)]
pub struct Connections {
    listener: Listener,
    ear: Ear,
    permits: Arc<Semaphore>,
    turnaways: Arc<Turnaways>,
    /// Of a connection, until it is cut.
    life_max: Duration,
}

impl Connections {
    /// Takes at most as many connections at once as `limits` say; more are closed as they come.
    pub fn new(listener: impl Into<Listener>, shell: Arc<Shell>, limits: &Limits) -> Self {
        Self::heard_by(shell.into(), listener.into(), limits)
    }

    /// As [`Connections::new`], of a server that decides nothing.
    pub fn of_follower(listener: impl Into<Listener>, limits: &Limits) -> Self {
        Self::heard_by(Ear::Nobody(Arc::default()), listener.into(), limits)
    }

    fn heard_by(ear: Ear, listener: Listener, limits: &Limits) -> Self {
        let permits = Arc::new(Semaphore::new(limits.connections_max));
        let turnaways = Arc::new(Turnaways::new(ear.clone()));
        let life_max = limits.age.saturating_add(limits.grace());
        Self { listener, ear, permits, turnaways, life_max }
    }

    /// Whether threads of their own may serve them.
    pub(super) fn may_move(&self) -> bool {
        matches!(self.listener, Listener::Tcp(_))
    }

    /// Where those are counted who are not let in.
    pub(super) fn turnaways(&self) -> Arc<Turnaways> {
        Arc::clone(&self.turnaways)
    }

    /// Gives all connections that come to `lanes`, for ever.
    pub(super) async fn hand_out(self, lanes: &Lanes) -> Infallible {
        loop {
            match self.listener.accept().await {
                Ok((socket, address)) => {
                    if let Some(accepted) = self.admit(socket, address) {
                        lanes.take(accepted);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, socket: Socket, address: SocketAddr) -> Option<Accepted> {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            self.turnaways.note(Why::Full, address, "one more came");
            return None;
        };
        let socket = match socket {
            Socket::Tcp(tcp) => {
                // With a listener of our own tonic leaves this to us; without it a small step takes
                // 88 ms.
                tcp.set_nodelay(true).ok()?;
                Detached::Tcp(tcp.into_std().ok()?)
            }
            Socket::Other(bytes) => Detached::Other(bytes),
        };
        let line = Arc::new(Line::default());
        let peer = Peer { conn: self.ear.connected(), address, line };
        let open = Open { ear: self.ear.clone(), conn: peer.conn };
        let rest = Rest { peer, life_max: self.life_max, lane: None, _open: open, _permit: permit };
        Some(Accepted { socket, rest })
    }
}

/// Who is at the other end; an extension of every request.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    /// Names the connection.
    pub conn: ConnId,
    /// Where it comes from.
    pub address: SocketAddr,
    /// To cut it.
    pub line: Arc<Line>,
}

impl Peer {
    /// The peer that a request came from.
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get::<Self>().expect("every connection has a peer").clone()
    }
}

/// A hold on a connection that can only cut it, or have it outlive its age.
#[derive(Debug, Default)]
pub(super) struct Line {
    cut: Notify,
    has_no_age: AtomicBool,
}

impl Line {
    /// Ends the connection and all that it carries.
    pub(super) fn cut(&self) {
        self.cut.notify_one();
    }

    /// Has the connection last as long as the call that it carries, however old it gets.
    pub(super) fn keep(&self) {
        self.has_no_age.store(true, Ordering::Relaxed);
    }

    async fn comes_of_age(&self, life_max: Duration) {
        tokio::time::sleep(life_max).await;
        if self.has_no_age.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    }
}

/// A connection that no runtime has yet.
#[derive(Debug)]
pub(super) struct Accepted {
    socket: Detached,
    rest: Rest,
}

/// A [`Socket`] between two runtimes.
#[derive(Debug)]
enum Detached {
    Tcp(std::net::TcpStream),
    Other(Box<dyn Duplex>),
}

/// What belongs to a connection besides its bytes.
#[derive(Debug)]
pub(super) struct Rest {
    peer: Peer,
    life_max: Duration,
    /// Counts it where it is served.
    lane: Option<Arc<()>>,
    _open: Open,
    _permit: OwnedSemaphorePermit,
}

impl Accepted {
    /// Where it comes from.
    pub(super) fn address(&self) -> SocketAddr {
        self.rest.peer.address
    }

    /// Counts it among those that hold `lane`.
    pub(super) fn belongs_to(&mut self, lane: &Arc<()>) {
        self.rest.lane = Some(Arc::clone(lane));
    }

    /// Has the runtime of this thread wait for the connection's traffic.
    pub(super) fn open(self) -> io::Result<(Socket, Rest)> {
        let socket = match self.socket {
            Detached::Tcp(tcp) => Socket::Tcp(TcpStream::from_std(tcp)?),
            Detached::Other(bytes) => Socket::Other(bytes),
        };
        Ok((socket, self.rest))
    }
}

/// A connection that is served.
pub(super) struct Connection {
    transport: Transport,
    /// How much of [`PREFACE`], which was read at the entrance, has been handed on.
    n_replayed: usize,
    /// Done when the connection is cut: why.
    end: Pin<Box<dyn Future<Output = &'static str> + Send>>,
    ended: Option<&'static str>,
    rest: Rest,
}

impl Connection {
    /// A connection whose [`PREFACE`] has been read.
    pub(super) fn new(transport: Transport, rest: Rest) -> Self {
        let (line, life_max) = (Arc::clone(&rest.peer.line), rest.life_max);
        let end = Box::pin(async move {
            tokio::select! {
                biased;
                () = line.cut.notified() => "the peer stands still",
                () = line.comes_of_age(life_max) => "the connection has come of age",
            }
        });
        Self { transport, n_replayed: 0, end, ended: None, rest }
    }

    /// Why the connection is cut, once it is.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Option<io::Error> {
        if self.ended.is_none()
            && let Poll::Ready(why) = self.end.as_mut().poll(cx)
        {
            tracing::debug!(address = %self.rest.peer.address, why, "cut a connection");
            self.ended = Some(why);
        }
        self.ended.map(|why| io::Error::new(io::ErrorKind::TimedOut, why))
    }
}

/// Tells the core when the connection is closed.
#[derive(Debug)]
struct Open {
    ear: Ear,
    conn: ConnId,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.ear.tell(Input::Disconnected { conn: self.conn });
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.rest.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.n_replayed < PREFACE.len() {
            let n = buffer.remaining().min(PREFACE.len() - self.n_replayed);
            buffer.put_slice(&PREFACE[self.n_replayed..][..n]);
            self.n_replayed += n;
            return Poll::Ready(Ok(()));
        }
        if self.ended.is_none()
            && let Poll::Ready(read) = Pin::new(&mut self.transport).poll_read(cx, buffer)
        {
            return Poll::Ready(read);
        }
        // Asked only when there is nothing to read: traffic does not pay for it.
        self.poll_end(cx).map_or(Poll::Pending, |error| Poll::Ready(Err(error)))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}
