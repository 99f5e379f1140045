//! The bytes of a connection, as they are or inside TLS: one type for whoever reads and writes.
//!
//! Connections are the system's TCP, or whatever else stands in for it: a simulation brings its own
//! by [`Listen`] and [`Dial`].

use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// Bytes both ways, of whatever kind.
pub trait Duplex: AsyncRead + AsyncWrite + Debug + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Debug + Send + Sync + Unpin> Duplex for T {}

/// A future in a box.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where connections come from, if not from the system.
pub trait Listen: Debug + Send + Sync {
    /// The next connection, and who is at its other end.
    fn accept(&self) -> Boxed<'_, io::Result<(Box<dyn Duplex>, SocketAddr)>>;
}

/// How connections are opened, if not by the system.
pub trait Dial: Debug + Send + Sync {
    /// Opens a connection to a port of a host.
    fn dial<'a>(&'a self, host: &'a str, port: u16) -> Boxed<'a, io::Result<Box<dyn Duplex>>>;
}

/// The bytes that a connection sends and receives.
#[derive(Debug)]
pub enum Socket {
    /// The system's.
    Tcp(TcpStream),
    /// What stands in for it.
    Other(Box<dyn Duplex>),
}

/// The bytes of a connection.
#[derive(Debug)]
pub enum Transport {
    /// As they are.
    Plain(Socket),
    /// Inside TLS.
    Tls(Box<TlsStream<Socket>>),
}

/// Hands all of reading and writing on to whichever variant there is.
macro_rules! either {
    ($name:ident, $first:ident, $second:ident) => {
        impl AsyncRead for $name {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::$first(bytes) => Pin::new(bytes).poll_read(cx, buffer),
                    Self::$second(bytes) => Pin::new(bytes).poll_read(cx, buffer),
                }
            }
        }

        impl AsyncWrite for $name {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::$first(out) => Pin::new(out).poll_write(cx, bytes),
                    Self::$second(out) => Pin::new(out).poll_write(cx, bytes),
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                slices: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::$first(out) => Pin::new(out).poll_write_vectored(cx, slices),
                    Self::$second(out) => Pin::new(out).poll_write_vectored(cx, slices),
                }
            }

            fn is_write_vectored(&self) -> bool {
                match self {
                    Self::$first(out) => out.is_write_vectored(),
                    Self::$second(out) => out.is_write_vectored(),
                }
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::$first(out) => Pin::new(out).poll_flush(cx),
                    Self::$second(out) => Pin::new(out).poll_flush(cx),
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::$first(out) => Pin::new(out).poll_shutdown(cx),
                    Self::$second(out) => Pin::new(out).poll_shutdown(cx),
                }
            }
        }
    };
}

either!(Socket, Tcp, Other);
either!(Transport, Plain, Tls);
