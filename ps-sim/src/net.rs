//! The simulated network in the product's terms: where connections come from, how they are opened.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use ps_common::transport::{Boxed, Dial, Duplex, Listen};
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

/// Opens connections from the simulated host that calls it.
#[derive(Debug)]
pub(crate) struct Dialer;

impl Dial for Dialer {
    fn dial<'a>(&'a self, host: &'a str, port: u16) -> Boxed<'a, io::Result<Box<dyn Duplex>>> {
        Box::pin(async move {
            let stream = TcpStream::connect((host, port)).await?;
            Ok(Box::new(stream) as Box<dyn Duplex>)
        })
    }
}
