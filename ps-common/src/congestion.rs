//! TCP congestion control of one socket, by the kernel's names (`reno`, `cubic`, `bbr`).
//!
//! Where the system has no such choice, setting one is an error that says so.

use std::io;

use socket2::SockRef;

/// Has `socket` use the congestion control `name`. Connections that a listener accepts use what it
/// had been told.
///
/// # Errors
/// The kernel's, where it does not have or not permit it; `Unsupported` on other systems than Linux
/// and FreeBSD.
#[cfg(any(target_os = "linux", target_os = "freebsd"))]
pub fn set(socket: SockRef<'_>, name: &str) -> io::Result<()> {
    socket.set_tcp_congestion(name.as_bytes())
}

/// The name of what `socket` uses; `None` where the system does not say.
#[cfg(any(target_os = "linux", target_os = "freebsd"))]
pub fn of(socket: SockRef<'_>) -> Option<String> {
    let name = socket.tcp_congestion().ok()?;
    let name = String::from_utf8_lossy(&name);
    let name = name.trim_end_matches('\0');
    (!name.is_empty()).then(|| name.to_owned())
}

/// Always an error on this system.
///
/// # Errors
/// `Unsupported`.
#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
pub fn set(_: SockRef<'_>, _: &str) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// `None` on this system.
#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
pub fn of(_: SockRef<'_>) -> Option<String> {
    None
}
