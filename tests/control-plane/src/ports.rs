//! Ports on loopback that stay ours: also while a server is stopped, and against other test processes.

use std::{
    fs::{self, File, TryLockError},
    hash::{BuildHasher, RandomState},
    net::{Ipv4Addr, SocketAddr, TcpListener},
};

use crate::{Error, tools};

/// Below the range from which Linux (32768 on) and macOS (49152 on) take the ports of outgoing connections: else such a
/// connection could get the port of an API server while that is being restarted.
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// A free port, kept for as long as this value lives by the lock on a file, which the system drops with the process.
pub(crate) struct Port {
    address: SocketAddr,
    _reservation: File,
}

impl Port {
    pub(crate) fn reserve() -> Result<Self, Error> {
        let directory = tools::cache_directory()?.join("ports");
        let doing = || format!("reserve a port in {}", directory.display());
        fs::create_dir_all(&directory).map_err(Error::io(doing()))?;
        let start = u16::try_from(RandomState::new().hash_one(0) % u64::from(COUNT)).unwrap_or_default();
        for offset in 0..COUNT {
            let number = FIRST + (start + offset) % COUNT;
            let reservation = File::create(directory.join(number.to_string())).map_err(Error::io(doing()))?;
            match reservation.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(Error::io(doing())(error)),
            }
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, number));
            if TcpListener::bind(address).is_ok() {
                return Ok(Self { address, _reservation: reservation });
            }
        }
        Err(Error::Io {
            doing: format!("find a free port between {FIRST} and {}", FIRST + COUNT - 1),
            source: std::io::ErrorKind::AddrInUse.into(),
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, net::TcpListener};

    use super::Port;

    #[test]
    fn ports_that_are_held_at_the_same_time_differ_and_can_be_bound() {
        let ports: Vec<Port> = (0..20).map(|_| Port::reserve().unwrap()).collect();
        let numbers: HashSet<u16> = ports.iter().map(|port| port.address().port()).collect();
        assert_eq!(numbers.len(), ports.len());
        for port in &ports {
            TcpListener::bind(port.address()).unwrap();
        }
    }
}
