//! Ports: taken before anything else is done, opened when there is something to serve.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// A port cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{interface} cannot listen on {address}: {reason}")]
pub struct BindError {
    interface: &'static str,
    address: SocketAddr,
    reason: String,
}

/// A port that nobody else gets, and on which nobody is answered yet.
pub(super) struct Reserved {
    interface: &'static str,
    socket: TcpSocket,
    address: SocketAddr,
    flag: &'static str,
}

impl Reserved {
    /// Takes the port of `interface`, which `flag` sets.
    pub(super) fn take(interface: &'static str, address: SocketAddr, flag: &'static str) -> Result<Self, BindError> {
        let socket = || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // Connections of the process before this one may still be closing.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            let bound = socket.local_addr()?;
            Ok((socket, bound))
        };
        let (socket, bound) = socket().map_err(|error| failed(interface, address, flag, &error))?;
        Ok(Self { interface, socket, address: bound, flag })
    }

    /// Begins to accept connections.
    pub(super) fn listen(self) -> Result<(TcpListener, SocketAddr), BindError> {
        let Self { interface, socket, address, flag } = self;
        let listener = socket.listen(BACKLOG).map_err(|error| failed(interface, address, flag, &error))?;
        Ok((listener, address))
    }
}

fn failed(interface: &'static str, address: SocketAddr, flag: &str, error: &io::Error) -> BindError {
    let reason = match error.kind() {
        io::ErrorKind::AddrInUse => in_use(address.port(), flag, ephemeral_ports()),
        io::ErrorKind::PermissionDenied => {
            format!("ports below 1024 belong to the system, choose another one with {flag}")
        }
        io::ErrorKind::AddrNotAvailable => "this machine has no network interface with that address".to_owned(),
        _ => error.to_string(),
    };
    BindError { interface, address, reason }
}

fn in_use(port: u16, flag: &str, ephemeral: Option<(u16, u16)>) -> String {
    let mut text = format!("port {port} is in use by another process");
    if let Some((first, last)) = ephemeral.filter(|(first, last)| (*first..=*last).contains(&port)) {
        text += &format!(
            "; it lies in the range from which the system takes ports for outgoing connections \
             ({first} to {last}), so that process may be any client and gone in a moment"
        );
    }
    text + &format!("; stop that process, try again, or choose another port with {flag}")
}

/// Returns the range from which the system takes ports for outgoing connections.
fn ephemeral_ports() -> Option<(u16, u16)> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ports = range.split_whitespace().map(str::parse);
    Some((ports.next()?.ok()?, ports.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_is_in_use_is_named_with_the_flag_that_changes_it() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let (_listener, address) = Reserved::take("gRPC", any, "--grpc-port").unwrap().listen().unwrap();
        assert_ne!(address.port(), 0);
        let second = Reserved::take("gRPC", address, "--grpc-port").and_then(Reserved::listen);
        let said = second.err().unwrap().to_string();
        assert!(said.starts_with(&format!("gRPC cannot listen on {address}: port {} is in use", address.port())));
        assert!(said.ends_with("with --grpc-port"), "{said}");
    }

    #[test]
    fn ports_for_outgoing_connections_are_recognised() {
        let ephemeral = "outgoing connections (32768 to 60999)";
        assert!(in_use(50_000, "--grpc-port", Some((32_768, 60_999))).contains(ephemeral));
        assert!(!in_use(8080, "--http-port", Some((32_768, 60_999))).contains("outgoing"));
        assert!(!in_use(50_000, "--grpc-port", None).contains("outgoing"));
    }
}
