//! The cluster with the installed chart, and the operations of the scenarios.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use control_plane::{output, run};
use nodes::{Cluster, Error, Result, build_image, load::Load, wait};
use serde_json::Value;

/// The namespace of the release.
pub const NAMESPACE: &str = "switchboard-system";
/// The name of the release, and of all objects of the chart.
pub const RELEASE: &str = "switchboard";
/// The port of the API server that all components of the cluster use.
pub const API_SERVER: u16 = 6443;
/// The time limit on a loaded machine for steps that usually take seconds.
pub const TIMEOUT: Duration = Duration::from_mins(5);
/// The interval between two creates during a disruption.
pub const CREATE_INTERVAL: Duration = Duration::from_millis(50);

/// The directory of the chart. The working directory is the root of the repository.
const CHART: &str = "charts/switchboard";
const IMAGE: &str = "localhost/switchboard";
/// The tag of the images of other programs.
pub const OTHER_TAG: &str = "e2e";
/// The tags of the image: an upgrade goes from the first to the second.
pub const TAGS: [&str; 2] = ["e2e-1", "e2e-2"];

/// A pod of the operator.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name, which is also its identity in the Lease.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The node on which it runs.
    pub node: String,
    /// Its address.
    pub address: String,
    /// The number of restarts of its container.
    pub restarts: u64,
    /// The reasons why its container ended last, or does not run.
    pub reasons: Vec<String>,
}

/// The shared state of the scenarios.
pub struct World {
    /// The nodes and the control plane.
    pub cluster: Cluster,
    /// Whether the scenarios are small.
    pub is_quick: bool,
    /// The number of sets of creates so far. Each set has its own name.
    sets: usize,
}

impl World {
    /// Starts two nodes, and imports the image of the operator under two tags.
    pub fn new(program: &Path, is_quick: bool) -> Result<Self> {
        let cluster = Cluster::start()?;
        let context = cluster.directory().path().join("image");
        let failed = |error| Error::io("package the operator's image", error);
        fs::create_dir_all(&context).map_err(failed)?;
        fs::copy(program, context.join("switchboard")).map_err(failed)?;
        // Building the SBOM takes minutes, and no scenario reads it.
        fs::write(context.join("switchboard.cdx.json"), "{}").map_err(failed)?;
        for tag in TAGS {
            let containerfile = Path::new("image/Containerfile");
            cluster.import(&build_image(&context, containerfile, &format!("{IMAGE}:{tag}"), cluster.directory())?)?;
        }
        Ok(Self { cluster, is_quick, sets: 0 })
    }

    /// Imports a program that needs no other files, as the image `localhost/NAME` with the tag [`OTHER_TAG`].
    pub fn import_program(&self, name: &str, program: &Path) -> Result<()> {
        let context = self.cluster.directory().path().join(name);
        let failed = |error| Error::io(format!("package {name}"), error);
        fs::create_dir_all(&context).map_err(failed)?;
        fs::copy(program, context.join("program")).map_err(failed)?;
        let containerfile = context.join("Containerfile");
        let text = "FROM scratch\nCOPY --chmod=0555 program /program\nUSER 1000\nENTRYPOINT [\"/program\"]\n";
        fs::write(&containerfile, text).map_err(failed)?;
        let image = format!("localhost/{name}:{OTHER_TAG}");
        self.cluster.import(&build_image(&context, &containerfile, &image, self.cluster.directory())?)
    }

    /// Makes sure that the chart is installed and ready, whatever state the previous scenario left.
    pub fn prepare(&mut self, scenario: &str) -> Result<()> {
        if scenario.starts_with("chart_installs") {
            return Ok(());
        }
        self.cluster.kubectl_run(&["uncordon", "node-1", "node-2"])?;
        self.install(RELEASE, &[])?;
        self.wait_for_creates().map(drop)
    }

    /// Installs or upgrades the release with the first image and more arguments, and waits until both replicas are ready.
    pub fn install(&self, release: &str, arguments: &[&str]) -> Result<()> {
        self.upgrade(release, &[&["--wait", "--timeout=5m"], arguments].concat())?;
        self.wait_for_rollout()
    }

    /// Like [`install`](Self::install), but without waiting.
    pub fn upgrade(&self, release: &str, arguments: &[&str]) -> Result<()> {
        self.create_namespace()?;
        run(self
            .cluster
            .helm()?
            .args(["upgrade", "--install", release, CHART, "--namespace", NAMESPACE])
            .args(["--set", &format!("image.repository={IMAGE},image.tag={}", TAGS[0])])
            .args(arguments))?;
        Ok(())
    }

    /// Creates the namespace, in which Pod Security enforces "restricted".
    fn create_namespace(&self) -> Result<()> {
        if self.cluster.kubectl_run(&["get", "namespace", NAMESPACE]).is_err() {
            self.cluster.kubectl_run(&["create", "namespace", NAMESPACE])?;
            self.cluster.kubectl_run(&[
                "label",
                "namespace",
                NAMESPACE,
                "pod-security.kubernetes.io/enforce=restricted",
                "pod-security.kubernetes.io/warn=restricted",
            ])?;
        }
        Ok(())
    }

    /// Waits until the rollout of the Deployment is complete and no previous pod exists.
    pub fn wait_for_rollout(&self) -> Result<()> {
        self.kubectl(&["rollout", "status", "deployment/switchboard", "--timeout=5m"])?;
        wait("two pods, both of them ready", TIMEOUT, || {
            let pods = self.pods().map_err(|error| error.to_string())?;
            if pods.len() == 2 { Ok(()) } else { Err(format!("{pods:?}")) }
        })
    }

    /// kubectl in the namespace of the release.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.kubectl_run(&[&["--namespace", NAMESPACE], arguments].concat())
    }

    /// Returns the output of `kubectl get` in the namespace of the release as JSON.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        self.get_in(NAMESPACE, arguments)
    }

    /// Returns the output of `kubectl get` in this namespace as JSON.
    pub fn get_in(&self, namespace: &str, arguments: &[&str]) -> Result<Value> {
        let text =
            self.cluster.kubectl_run(&[&["--namespace", namespace, "get", "--output=json"], arguments].concat())?;
        serde_json::from_str(&text)
            .map_err(|error| Error::Unexpected(format!("the output of kubectl is not JSON: {error}")))
    }

    /// The pods of the operator, including terminating ones.
    pub fn pods(&self) -> Result<Vec<Pod>> {
        let pods = self.get(&["pods", "--selector=app.kubernetes.io/name=switchboard"])?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(list(&pods)
            .iter()
            .map(|pod| {
                let status = &pod["status"]["containerStatuses"][0];
                let reasons =
                    [&status["state"]["waiting"], &status["state"]["terminated"], &status["lastState"]["terminated"]];
                Pod {
                    name: text(&pod["metadata"]["name"]),
                    uid: text(&pod["metadata"]["uid"]),
                    node: text(&pod["spec"]["nodeName"]),
                    address: text(&pod["status"]["podIP"]),
                    restarts: status["restartCount"].as_u64().unwrap_or_default(),
                    reasons: reasons
                        .iter()
                        .map(|state| text(&state["reason"]))
                        .filter(|reason| !reason.is_empty())
                        .collect(),
                }
            })
            .collect())
    }

    /// The holder of the Lease: the name of a pod and a random suffix, so that it changes when the container restarts.
    pub fn holder(&self) -> Result<String> {
        let lease = self.get(&["lease", "switchboard"])?;
        Ok(lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits for a pod that holds the Lease, and returns it.
    pub fn leader(&self) -> Result<Pod> {
        self.leader_after("")
    }

    /// Waits for a pod that holds the Lease and is not the previous holder, and returns it.
    pub fn leader_after(&self, before: &str) -> Result<Pod> {
        wait("a pod that leads", TIMEOUT, || {
            let failed = |error: Error| error.to_string();
            let holder = self.holder().map_err(failed)?;
            let is_holder = |pod: &Pod| holder != before && holder.starts_with(&format!("{}_", pod.name));
            let pods = self.pods().map_err(failed)?;
            pods.into_iter().find(is_holder).ok_or(format!("the holder of the Lease is {holder:?}"))
        })
    }

    /// Waits for the process of the operator in a pod, and returns its process id on the machine.
    pub fn process_of(pod: &Pod) -> Result<u32> {
        wait(&format!("the process of {}", pod.name), TIMEOUT, || {
            Self::process_of_now(pod).ok_or_else(|| "no such process".to_owned())
        })
    }

    /// Returns the process id if the process runs now.
    pub fn process_of_now(pod: &Pod) -> Option<u32> {
        let processes = fs::read_dir("/proc").ok()?.flatten();
        let read = |id: u32, file: &str| fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default();
        let is_operator =
            |id: &u32| read(*id, "cgroup").contains(&pod.uid) && read(*id, "cmdline").starts_with("/switchboard\0run");
        processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(is_operator)
    }

    /// Sends creates at this interval through the first API server until they are stopped.
    pub fn creates(&mut self, interval: Duration) -> Result<Load> {
        let name = self.set();
        Load::start(&self.cluster, API_SERVER, &name, interval)
    }

    /// Returns a new name for a set of creates.
    pub fn set(&mut self) -> String {
        self.sets += 1;
        format!("set-{}", self.sets)
    }

    /// Waits until a create succeeds, and returns the waiting time.
    pub fn wait_for_creates(&self) -> Result<Duration> {
        let probe = self.cluster.write("probe.yaml", &manifest("probe", "probe"))?;
        let probe = probe.display().to_string();
        let started = Instant::now();
        wait("a create to succeed", TIMEOUT, || {
            self.cluster
                .kubectl_run(&["create", "--dry-run=server", "--validate=false", "--filename", &probe])
                .map_err(|error| error.to_string())
        })?;
        Ok(started.elapsed())
    }

    /// Keeps the logs of all components and pods, and returns their directory.
    pub fn keep_logs(&self) -> PathBuf {
        let logs = self.cluster.keep_logs();
        let path = r#"--output=jsonpath={range .items[*]}{.metadata.namespace} {.metadata.name}{"\n"}{end}"#;
        let pods = self.cluster.kubectl_run(&["get", "pods", "--all-namespaces", path]).unwrap_or_default();
        for (namespace, pod) in pods.lines().filter_map(|line| line.split_once(' ')) {
            for (suffix, previous) in [("", "--previous=false"), ("-before", "--previous=true")] {
                if let Ok(text) = self.cluster.kubectl_run(&["--namespace", namespace, "logs", pod, previous]) {
                    let _ = fs::write(logs.join(format!("{pod}{suffix}.log")), text);
                }
            }
        }
        logs
    }

    /// The command with which a user calls the cluster.
    pub fn how_to_call(&self) -> String {
        let Ok(kubectl) = self.cluster.kubectl() else { return String::new() };
        let words: Vec<_> = kubectl.get_args().map(|word| word.to_string_lossy()).collect();
        format!("KUBECONFIG={} nsenter {}", self.cluster.kubeconfig().display(), words.join(" "))
    }
}

/// The items of a list.
pub fn list(value: &Value) -> &[Value] {
    value["items"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A conversation on Chat.
pub fn manifest(name: &str, contact: &str) -> String {
    serde_json::json!({
        "apiVersion": "switchboard.dev/v1alpha1",
        "kind": "Conversation",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"channel": "Chat", "contact": {"address": contact}, "proxy": {"address": "desk"}},
    })
    .to_string()
}

/// Returns an error unless the condition holds.
pub fn expect(holds: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Unexpected(otherwise())) }
}

/// Returns the output of a command, whether or not it succeeded.
pub fn output_of(command: &mut std::process::Command) -> Result<String> {
    let output = output(command)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}
