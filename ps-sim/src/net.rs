//! The simulated network in the product's terms: where connections come from, how they are opened,
//! and how they break.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::Mutex;
use ps_common::transport::{Boxed, Dial, Duplex, Listen};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};

/// The port of the server, on every host that has one.
pub(crate) const PORT: u16 = 50051;

/// A port of a simulated host.
pub(crate) struct Port(TcpListener);

impl Port {
    /// Listens on [`PORT`] of the host that calls it.
    pub(crate) async fn open() -> io::Result<Self> {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await.map(Self)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Port")
    }
}

impl Listen for Port {
    fn accept(&self) -> Boxed<'_, io::Result<(Box<dyn Duplex>, SocketAddr)>> {
        Box::pin(async {
            let (stream, address) = self.0.accept().await?;
            Ok((Box::new(stream) as Box<dyn Duplex>, address))
        })
    }
}

/// Signs of life are smaller, answers with theta are not.
const ANSWER_BYTES: usize = 80;

/// What breaks connections between two healthy hosts. Clones break the same ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Breaker(Arc<Mutex<Broken>>);

#[derive(Debug, Default)]
struct Broken {
    n_times: u64,
    /// Trips at the next answer.
    is_armed: bool,
    waiting: Vec<Waker>,
}

impl Breaker {
    /// Breaks all connections that were opened by it so far; what is on its way to the opener is lost.
    pub(crate) fn trip(&self) {
        let mut broken = self.0.lock();
        broken.n_times += 1;
        broken.waiting.drain(..).for_each(Waker::wake);
    }

    /// Breaks the connection on which the next answer arrives, which is lost.
    pub(crate) fn arm(&self) {
        self.0.lock().is_armed = true;
    }

    /// Whether an answer of so many bytes is the one to be lost.
    fn strikes(&self, n_bytes: usize) -> bool {
        n_bytes >= ANSWER_BYTES && std::mem::take(&mut self.0.lock().is_armed)
    }
}

/// Opens connections from the simulated host that calls it.
#[derive(Debug)]
pub(crate) struct Dialer(pub(crate) Breaker);

impl Dial for Dialer {
    fn dial<'a>(&'a self, host: &'a str, port: u16) -> Boxed<'a, io::Result<Box<dyn Duplex>>> {
        Box::pin(async move {
            let n_times = self.0.0.lock().n_times;
            let stream = Some(TcpStream::connect((host, port)).await?);
            let breaker = self.0.clone();
            Ok(Box::new(Breakable { stream, breaker, n_times }) as Box<dyn Duplex>)
        })
    }
}

/// A connection of which its opener hears that it was reset, when its breaker trips.
#[derive(Debug)]
struct Breakable {
    stream: Option<TcpStream>,
    breaker: Breaker,
    /// How often the breaker had tripped.
    n_times: u64,
}

impl Breakable {
    /// The connection, if it is whole; else it is closed.
    fn whole(&mut self, cx: &mut Context<'_>) -> io::Result<Pin<&mut TcpStream>> {
        let mut broken = self.breaker.0.lock();
        match broken.n_times == self.n_times {
            true if broken.waiting.iter().any(|waker| waker.will_wake(cx.waker())) => {}
            true => broken.waiting.push(cx.waker().clone()),
            false => self.stream = None,
        }
        drop(broken);
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::ConnectionReset.into())
    }
}

impl AsyncRead for Breakable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n_before = buffer.filled().len();
        ready!(self.whole(cx)?.poll_read(cx, buffer))?;
        if self.breaker.strikes(buffer.filled().len() - n_before) {
            buffer.set_filled(n_before);
            self.stream = None;
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Breakable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.whole(cx)?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.whole(cx)?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.whole(cx)?.poll_shutdown(cx)
    }
}
