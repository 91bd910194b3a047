//! Reserved ports on loopback. A port stays reserved while its server is stopped, and other test processes cannot take it.

use std::{
    fs::{self, File, TryLockError},
    hash::{BuildHasher, RandomState},
    net::{Ipv4Addr, SocketAddr, TcpListener},
};

use crate::{Error, tools};

/// Linux (from 32768) and macOS (from 49152) take the ports of outgoing connections from higher ranges. Otherwise an outgoing connection
/// could take the port of an API server during a restart.
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// A free port. A file lock reserves it while this value lives, and the system releases the lock when the process ends.
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
    fn reserved_ports_differ_and_can_be_bound() {
        let ports: Vec<Port> = (0..20).map(|_| Port::reserve().unwrap()).collect();
        let numbers: HashSet<u16> = ports.iter().map(|port| port.address().port()).collect();
        assert_eq!(numbers.len(), ports.len());
        for port in &ports {
            TcpListener::bind(port.address()).unwrap();
        }
    }
}
