//! Listens, on all addresses of the machine where none is chosen, and accepts in spite of errors. It reads and writes nothing.

use crate::telemetry::error_chain::ErrorChain;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

/// The pause after a connection could not be accepted.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Listens on `address`. `[::]` is every address of the machine, of IPv4 and of IPv6, as far as it has them.
///
/// # Errors
/// Where the address is taken, or is none of this machine.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

/// The next connection of `whom`. What fails is one that went away before it was accepted, or the process is out of descriptors.
pub async fn accept(listener: &TcpListener, whom: &'static str) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), whom, "cannot accept a connection");
                sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_address_is_listened_on_whichever_the_machine_has() {
        let listener = bind("[::]:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).await.expect("IPv4");
        if address.is_ipv6() && TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, address.port())).await.expect("IPv6");
        }
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_not_listened_on_in_part() {
        let taken = bind("[::]:0".parse().unwrap()).await.unwrap();
        let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), taken.local_addr().unwrap().port());
        assert_eq!(bind(address).await.unwrap_err().kind(), ErrorKind::AddrInUse);
    }
}
