//! TCP connections: accepted one by one, counted, named; the core hears when one is gone.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::Connected;

use super::lanes::Lanes;
use super::shell::Shell;
use crate::core::{ConnId, Input};

/// Pause after a failed accept: out of file descriptors, the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A bound listener that hands out connections.
#[derive(Debug)]
pub struct Connections {
    listener: TcpListener,
    shell: Arc<Shell>,
    permits: Arc<Semaphore>,
}

impl Connections {
    /// Takes at most `max` connections at once; more are closed as they come.
    pub fn new(listener: TcpListener, shell: Arc<Shell>, max: usize) -> Self {
        Self { listener, shell, permits: Arc::new(Semaphore::new(max)) }
    }

    /// Gives all connections that come to `lanes`, for ever.
    pub(super) async fn hand_out(self, lanes: &Lanes) -> Infallible {
        loop {
            match self.listener.accept().await {
                Ok((tcp, address)) => {
                    if let Some(accepted) = self.admit(tcp, address) {
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

    fn admit(&self, tcp: TcpStream, address: SocketAddr) -> Option<Accepted> {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            tracing::warn!(%address, "closed a connection beyond --connections-max");
            return None;
        };
        // With a listener of our own tonic leaves this to us; without it a small step takes 88 ms.
        tcp.set_nodelay(true).ok()?;
        let tcp = tcp.into_std().ok()?;
        let peer = Peer { conn: self.shell.connected(), address };
        let open = Open { shell: Arc::clone(&self.shell), conn: peer.conn };
        Some(Accepted { tcp, peer, lane: None, open, permit })
    }
}

/// Who is at the other end; an extension of every request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    /// Names the connection.
    pub conn: ConnId,
    /// Where it comes from.
    pub address: SocketAddr,
}

impl Peer {
    /// The peer that a request came from.
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Self {
        *request.extensions().get::<Self>().expect("every connection has a peer")
    }
}

/// A connection that no runtime has yet.
#[derive(Debug)]
pub(super) struct Accepted {
    tcp: std::net::TcpStream,
    peer: Peer,
    /// Counts it where it is served.
    pub(super) lane: Option<Arc<()>>,
    open: Open,
    permit: OwnedSemaphorePermit,
}

/// A connection that is served.
#[derive(Debug)]
pub(super) struct Connection {
    tcp: TcpStream,
    peer: Peer,
    _lane: Option<Arc<()>>,
    _open: Open,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// Has the runtime of this thread wait for the connection's traffic.
    pub(super) fn open(accepted: Accepted) -> io::Result<Self> {
        let Accepted { tcp, peer, lane, open, permit } = accepted;
        let tcp = TcpStream::from_std(tcp)?;
        Ok(Self { tcp, peer, _lane: lane, _open: open, _permit: permit })
    }
}

/// Tells the core when the connection is closed.
#[derive(Debug)]
struct Open {
    shell: Arc<Shell>,
    conn: ConnId,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shell.tell(Input::Disconnected { conn: self.conn });
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
