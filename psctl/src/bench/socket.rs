//! TCP sockets as the bare-socket side uses them, and which congestion control is to be had.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use ps_common::congestion;
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use super::args::Congestion;

/// Send and receive buffers. Larger ones let data fall out of the cache before it is used.
const BUFFER_BYTES: usize = 256 * 1024;

/// The congestion control that the run uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Chosen {
    /// What the sockets really use.
    pub(super) name: String,
    /// What must be set on each socket, if anything.
    #[serde(skip)]
    pub(super) set: Option<String>,
    /// Why it is not what was asked for.
    #[serde(skip)]
    pub(super) note: Option<String>,
}

/// Tries `wanted` on a socket; what the kernel refuses is replaced by its default, with a note.
pub(super) fn choose(wanted: Congestion) -> io::Result<Chosen> {
    let socket = tcp_socket()?;
    let system = congestion_of(&socket);
    let Some(name) = wanted.name() else {
        return Ok(Chosen { name: system, set: None, note: None });
    };
    match congestion::set((&socket).into(), name) {
        Ok(()) => Ok(Chosen { name: name.to_owned(), set: Some(name.to_owned()), note: None }),
        Err(e) => {
            let note = format!(
                "congestion control {name} could not be set ({e}): both sides use the system's, \
                 {system}"
            );
            Ok(Chosen { name: system, set: None, note: Some(note) })
        }
    }
}

/// Listens on a free loopback port. Accepted connections inherit the options.
pub(super) fn listen(control: Option<&str>) -> io::Result<TcpListener> {
    let socket = prepared(control)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(128)?;
    Ok(socket.into())
}

/// Connects to `address`.
pub(super) fn connect(address: SocketAddr, control: Option<&str>) -> io::Result<TcpStream> {
    let socket = prepared(control)?;
    socket.connect(&address.into())?;
    Ok(socket.into())
}

fn tcp_socket() -> io::Result<Socket> {
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))
}

fn prepared(control: Option<&str>) -> io::Result<Socket> {
    let socket = tcp_socket()?;
    socket.set_tcp_nodelay(true)?;
    // The kernel caps both at its own limits.
    socket.set_send_buffer_size(BUFFER_BYTES)?;
    socket.set_recv_buffer_size(BUFFER_BYTES)?;
    if let Some(name) = control {
        congestion::set((&socket).into(), name)?;
    }
    Ok(socket)
}

fn congestion_of(socket: &Socket) -> String {
    congestion::of(socket.into()).unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_what_the_socket_reports_or_says_why_not() {
        for wanted in [Congestion::Reno, Congestion::Cubic, Congestion::Bbr, Congestion::System] {
            let chosen = choose(wanted).expect("a socket");
            if let Some(name) = &chosen.set {
                let socket = prepared(Some(name)).expect("settable");
                assert_eq!(congestion_of(&socket), *name);
                assert_eq!(chosen.name, *name);
            } else {
                assert_eq!(chosen.name, congestion_of(&tcp_socket().expect("a socket")));
                assert_eq!(chosen.note.is_some(), wanted != Congestion::System);
            }
        }
    }

    #[test]
    fn an_unknown_name_is_refused() {
        assert!(listen(Some("no-such-control")).is_err());
    }
}
