//! A TCP load balancer on loopback, in place of a Service. A webhook configuration names one address, and the replicas of the operator
//! are its backends. It does not inspect the traffic.

use std::{
    io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{Error, reaper::lock};

/// Forwards each new connection to the next backend that accepts it. As with a Service, a connection stays on its backend.
pub struct Balancer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    backends: Mutex<Vec<SocketAddr>>,
    next: AtomicUsize,
    /// The open connections, with the backend of each.
    open: Mutex<Vec<(SocketAddr, Arc<TcpStream>)>>,
    stopped: AtomicBool,
}

impl Balancer {
    /// Listens on a free port. It closes every connection until it has a backend.
    pub fn start() -> Result<Self, Error> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let (listener, address) = listener
            .and_then(|listener| listener.local_addr().map(|address| (listener, address)))
            .map_err(Error::io("listen on a free port of 127.0.0.1"))?;
        let shared = Arc::new(Shared {
            backends: Mutex::new(Vec::new()),
            next: AtomicUsize::new(0),
            open: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let for_thread = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if for_thread.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&for_thread);
                thread::spawn(move || shared.forward(&client));
            }
        });
        Ok(Self { address, shared })
    }

    /// The address on which it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds a backend for new connections.
    pub fn add(&self, backend: SocketAddr) {
        lock(&self.shared.backends).push(backend);
    }

    /// Removes a backend from new connections. Its open connections stay.
    pub fn remove(&self, backend: SocketAddr) {
        lock(&self.shared.backends).retain(|other| *other != backend);
    }

    /// Removes a backend and closes its connections.
    pub fn cut(&self, backend: SocketAddr) {
        self.remove(backend);
        for (_, connection) in lock(&self.shared.open).iter().filter(|(other, _)| *other == backend) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn forward(&self, client: &TcpStream) {
        let Some((address, backend)) = self.connect() else { return };
        let backend = Arc::new(backend);
        lock(&self.open).push((address, Arc::clone(&backend)));
        // Otherwise each answer waits for an acknowledgement.
        let _ = client.set_nodelay(true);
        let _ = backend.set_nodelay(true);
        thread::scope(|scope| {
            scope.spawn(|| copy(client, &backend));
            copy(&backend, client);
        });
        lock(&self.open).retain(|(_, other)| !Arc::ptr_eq(other, &backend));
    }

    fn connect(&self) -> Option<(SocketAddr, TcpStream)> {
        let backends = lock(&self.backends).clone();
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        (0..backends.len())
            .map(|offset| backends[(first + offset) % backends.len()])
            .find_map(|backend| Some((backend, TcpStream::connect_timeout(&backend, Duration::from_secs(1)).ok()?)))
    }
}

/// Copies one direction until its end, and forwards the end. If one connection breaks, it closes both.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let how = if io::copy(&mut from, &mut to).is_ok() { Shutdown::Write } else { Shutdown::Both };
    let _ = to.shutdown(how);
    if how == Shutdown::Both {
        let _ = from.shutdown(how);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{SocketAddr, TcpListener, TcpStream},
        thread,
    };

    use super::Balancer;

    /// Answers each connection with its own name, until the test process ends.
    fn backend(name: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let mut question = String::new();
                client.read_to_string(&mut question).unwrap();
                write!(client, "{question} {name}").unwrap();
            }
        });
        address
    }

    fn ask(balancer: &Balancer) -> String {
        let mut client = TcpStream::connect(balancer.address()).unwrap();
        let mut answer = String::new();
        // Without a backend, the connection may be closed before or after each call.
        let _ = client.write_all(b"who?").and_then(|()| client.shutdown(std::net::Shutdown::Write));
        let _ = client.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn connections_rotate_and_skip_unreachable_backends() {
        let balancer = Balancer::start().unwrap();
        assert_eq!(ask(&balancer), "", "no backend yet");
        let unreachable = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let second = backend("second");
        balancer.add(backend("first"));
        balancer.add(unreachable);
        balancer.add(second);
        let mut answers: Vec<_> = (0..6).map(|_| ask(&balancer)).collect();
        answers.sort();
        answers.dedup();
        assert_eq!(answers, ["who? first", "who? second"]);
        balancer.remove(second);
        assert!((0..4).all(|_| ask(&balancer) == "who? first"));
    }
}
