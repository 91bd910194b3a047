//! The addresses of the nodes, of their pods and of the Services, and the routes between them. They exist only in the network namespaces
//! of the nodes.

use std::net::Ipv4Addr;

use control_plane::run;

use crate::{Result, namespaces::Namespaces};

/// The addresses of the Services.
pub const SERVICES: &str = "10.79.0.0/24";
/// The address of the Service `kubernetes`.
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 1);
/// An address for a Service that needs a fixed one. The API server assigns the first sixteen addresses last.
pub const STATIC_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 10);
/// The addresses of the pods of all nodes.
pub const PODS: &str = "10.78.0.0/16";

/// The address of a node. The number of the first node is 1.
#[must_use]
pub fn address(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, node)
}

/// The addresses of the pods of a node.
fn pods(node: u8) -> String {
    format!("10.78.{node}.0/24")
}

/// Connects two nodes by a pair of virtual interfaces, and adds routes to the pods of the other node and to the Services. `connect` needs
/// a route to a Service before the rules of kube-proxy apply.
///
/// # Errors
/// If the system does not permit it.
pub fn join(nodes: [&Namespaces; 2]) -> Result<()> {
    let [first, second] = nodes.map(|node| node.id().to_string());
    run(std::process::Command::new("ip")
        .args(["link", "add", "up1", "netns", &first, "type", "veth", "peer", "name", "up2", "netns", &second]))?;
    for (number, node) in (1..).zip(nodes) {
        let other = 3 - number;
        let interface = format!("up{number}");
        let ip = |arguments: &[&str]| run(node.client("ip").args(arguments));
        ip(&["address", "add", &format!("{}/24", address(number)), "dev", &interface])?;
        ip(&["link", "set", &interface, "up"])?;
        ip(&["route", "add", SERVICES, "dev", &interface])?;
        ip(&["route", "add", &pods(other), "via", &address(other).to_string()])?;
    }
    Ok(())
}

/// The configuration of the network plugins for the pods of a node.
#[must_use]
pub fn plugins(node: u8) -> String {
    serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": pods(node)}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
    .to_string()
}
