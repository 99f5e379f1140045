//! TCP connections: accepted one by one, counted, named; the core hears when one is gone.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::Stream;
use tonic::transport::server::Connected;

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

    /// All connections that come, for ever.
    pub fn incoming(self) -> impl Stream<Item = io::Result<Connection>> {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            while !sender.is_closed() {
                let accepted = tokio::select! {
                    accepted = self.listener.accept() => accepted,
                    () = sender.closed() => return,
                };
                match accepted {
                    Ok((tcp, address)) => {
                        let Some(connection) = self.admit(tcp, address) else { continue };
                        if sender.send(Ok(connection)).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
        tokio_stream::wrappers::ReceiverStream::new(receiver)
    }

    fn admit(&self, tcp: TcpStream, address: SocketAddr) -> Option<Connection> {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            tracing::warn!(%address, "closed a connection beyond --connections-max");
            return None;
        };
        // With a listener of our own tonic leaves this to us; without it a small step takes 88 ms.
        tcp.set_nodelay(true).ok()?;
        let peer = Peer { conn: self.shell.connected(), address };
        let open = Open { shell: Arc::clone(&self.shell), conn: peer.conn };
        Some(Connection { tcp, peer, _open: open, _permit: permit })
    }
}

/// Who is at the other end; an extension of every request.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
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

/// An accepted connection.
#[derive(Debug)]
pub struct Connection {
    tcp: TcpStream,
    peer: Peer,
    _open: Open,
    _permit: OwnedSemaphorePermit,
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
