//! Binds listeners, and accepts connections; it retries after errors. It reads and writes no bytes.

use crate::telemetry::error_chain::ErrorChain;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

/// The delay after a connection could not be accepted.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Listens on `address`. `[::]` stands for every IPv4 and IPv6 address of the machine.
///
/// # Errors
/// If the address is in use, or not an address of this machine.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

/// Accepts the next connection. It retries after an error: the client may have disconnected already, or the process may be out of file
/// descriptors. `server` names the listener in the log.
pub async fn accept(listener: &TcpListener, server: &'static str) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), server, "cannot accept a connection");
                sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn unspecified_address_accepts_ipv4_and_ipv6() {
        let listener = bind("[::]:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).await.expect("IPv4");
        if address.is_ipv6() && TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, address.port())).await.expect("IPv6");
        }
    }

    #[tokio::test]
    async fn bind_fails_if_one_address_family_is_in_use() {
        let taken = bind("[::]:0".parse().unwrap()).await.unwrap();
        let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), taken.local_addr().unwrap().port());
        assert_eq!(bind(address).await.unwrap_err().kind(), ErrorKind::AddrInUse);
    }
}
