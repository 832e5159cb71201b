//! Ends of connections that the other side cannot see, or sees all of a sudden.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Closes a connection without a word, as a machine does that loses its power: the other side still
/// has it. Needs the right to administer the network.
pub fn vanish(stream: TcpStream) -> io::Result<()> {
    let on: libc::c_int = 1;
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointer is to an int of the size that is given with it, and outlives the call.
    #[allow(unsafe_code)]
    let result = unsafe {
        let on = (&raw const on).cast();
        libc::setsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_REPAIR, on, size)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Resets a connection.
pub fn reset(stream: TcpStream) -> io::Result<()> {
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}
