//! Two real nodes on one machine: kubelets with containerd, kube-proxies and pods, under a whole control plane, each node in namespaces
//! of its own. What a process beside an API server cannot show is shown here: Services over HTTP/1.1, rollouts, drains, power cuts.
//!
//! Linux and root are needed, and a few of the system's packages: see [`requirements`]. Nothing touches the machine's own network, and
//! all ends with this process, however that ends.

mod cluster;
mod error;
mod image;
pub mod load;
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
pub use node::Node;

/// Looks until `look` succeeds, and returns what it found.
///
/// # Errors
/// Where that does not happen in time; then with what the last look gave.
pub fn wait<T>(what: &str, within: Duration, mut look: impl FnMut() -> std::result::Result<T, String>) -> Result<T> {
    let started = Instant::now();
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(last) if started.elapsed() >= within => {
                return Err(Error::Timeout { what: what.to_owned(), within, last });
            }
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}
