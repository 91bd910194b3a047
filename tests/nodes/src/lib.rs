//! Two real nodes on one machine, each in its own namespaces: kubelets with containerd, kube-proxies and pods, with a whole control plane.
//! They test behaviour that a process beside an API server cannot show: Services over HTTP/1.1, rollouts, drains, power cuts.
//!
//! They need Linux, root, and a few packages of the system: see [`requirements`]. They do not change the network of the machine, and end
//! with this process, for any reason.

mod cluster;
mod error;
mod image;
pub mod load;
pub mod messages;
mod namespaces;
mod network;
mod node;
mod pki;
pub mod requirements;

use std::{
    thread,
    time::{Duration, Instant},
};

pub use cluster::Cluster;
pub use error::{Error, Result};
pub use image::build as build_image;
pub use namespaces::Namespaces;
pub use network::STATIC_SERVICE;
pub use node::Node;

/// Calls `check` until it succeeds, and returns its result.
///
/// # Errors
/// If it does not succeed in time. The error contains the result of the last check.
pub fn wait<T>(what: &str, within: Duration, mut check: impl FnMut() -> std::result::Result<T, String>) -> Result<T> {
    let started = Instant::now();
    loop {
        match check() {
            Ok(found) => return Ok(found),
            Err(last) if started.elapsed() >= within => {
                return Err(Error::Timeout { what: what.to_owned(), within, last });
            }
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}
