//! Flux: its source-controller and its kustomize-controller as pods, from the manifests in their modules, and a Git repository that they
//! fetch over HTTP from the first node.

use std::{fs, path::PathBuf, process::Command};

use control_plane::{Tool, copy_directory, run, tools};
use nodes::{Error, Result, STATIC_SERVICE, wait};
use serde_json::{Value, json};

use crate::world::{OTHER_TAG, TIMEOUT, World};

/// The namespace of the controllers, of the `GitRepository` and of all Kustomizations.
pub const NAMESPACE: &str = "flux-system";
/// The name of the process that serves the repository.
pub const GIT_SERVER: &str = "git-server";

const GIT_PORT: u16 = 8418;
/// The name of the repository, and of its `GitRepository`.
const SOURCE: &str = "conversations";
const CONTROLLERS: [&str; 2] = ["source-controller", "kustomize-controller"];

/// Flux, and the repository from which it applies. Each Kustomization has a directory of its name there.
pub struct Flux<'a> {
    /// The cluster.
    pub world: &'a World,
    /// The working tree. Clients fetch from its `.git`.
    repository: PathBuf,
    /// The directory with the manifests of the controllers.
    manifests: PathBuf,
}

impl<'a> Flux<'a> {
    /// Starts the controllers, and the server of a repository without manifests.
    pub fn install(world: &'a mut World) -> Result<Self> {
        let [source_controller, kustomize_controller, git_server] = tools::ensure(Tool::FLUX)?;
        let directory = world.cluster.directory().path();
        let (repositories, manifests) = (directory.join("repositories"), directory.join("flux"));
        let repository = repositories.join(SOURCE);
        for created in [&repository, &manifests] {
            fs::create_dir_all(created).map_err(|error| Error::io(format!("create {}", created.display()), error))?;
        }
        let server = format!("{}:{GIT_PORT}", world.cluster.nodes()[0].address());
        let arguments = [server.clone(), repositories.display().to_string()];
        world.cluster.run_on_first_node(GIT_SERVER, &git_server, &arguments)?;
        for (name, program) in CONTROLLERS.iter().zip([source_controller, kustomize_controller]) {
            world.import_program(name, &program)?;
        }
        let flux = Self { world, repository, manifests };
        run(flux.git().args(["init", "--quiet", "--initial-branch=main"]))?;
        flux.commit(&[])?;
        flux.install_controllers()?;
        flux.apply(&json!({
            "apiVersion": "source.toolkit.fluxcd.io/v1",
            "kind": "GitRepository",
            "metadata": {"name": SOURCE, "namespace": NAMESPACE},
            "spec": {
                "interval": "1s",
                "url": format!("http://{server}/{SOURCE}/.git"),
                "ref": {"branch": "main"},
            },
        }))?;
        Ok(flux)
    }

    /// Applies the controllers' own CRDs, roles and Deployments. The cluster has no DNS, so the source-controller's name is in the hosts file
    /// of the kustomize-controller.
    fn install_controllers(&self) -> Result<()> {
        let mut resources = Vec::new();
        for (name, tool) in CONTROLLERS.iter().zip([Tool::SourceController, Tool::KustomizeController]) {
            let source = tools::source_of(tool)?.join("config");
            let copied = self.manifests.join(name);
            fs::create_dir_all(&copied).map_err(|error| Error::io(format!("create {}", copied.display()), error))?;
            for part in ["crd", "rbac", "manager"] {
                copy_directory(&source.join(part), &copied.join(part))?;
                resources.push(format!("{name}/{part}"));
            }
        }
        let images = CONTROLLERS.map(
            |name| json!({"name": format!("fluxcd/{name}"), "newName": format!("localhost/{name}"), "newTag": OTHER_TAG}),
        );
        let host = format!("source-controller.{NAMESPACE}.svc.cluster.local");
        let aliases = json!([{"ip": STATIC_SERVICE, "hostnames": [host]}]);
        let patch = |kind: &str, name: &str, path: &str, value: Value| {
            let operations = json!([{"op": "add", "path": path, "value": value}]);
            json!({"target": {"kind": kind, "name": name}, "patch": operations.to_string()})
        };
        let kustomization = json!({
            "namespace": NAMESPACE,
            "resources": resources,
            "images": images,
            "patches": [
                patch("Service", CONTROLLERS[0], "/spec/clusterIP", json!(STATIC_SERVICE)),
                patch("Deployment", CONTROLLERS[1], "/spec/template/spec/hostAliases", aliases),
            ],
        });
        let file = self.manifests.join("kustomization.yaml");
        fs::write(&file, kustomization.to_string()).map_err(|error| Error::io("write the kustomization", error))?;
        self.world.cluster.kubectl_run(&["create", "namespace", NAMESPACE])?;
        let manifests = self.manifests.display().to_string();
        self.world.cluster.kubectl_run(&["apply", "--server-side", "--kustomize", &manifests])?;
        for name in CONTROLLERS {
            self.kubectl(&["rollout", "status", &format!("deployment/{name}"), "--timeout=5m"])?;
        }
        Ok(())
    }

    /// Deletes the Kustomizations, which prunes all that they applied, and the controllers.
    pub fn uninstall(self) -> Result<()> {
        self.kubectl(&["delete", "kustomizations,gitrepositories", "--all", "--timeout=3m"])?;
        let manifests = self.manifests.display().to_string();
        self.world.cluster.kubectl_run(&["delete", "--kustomize", &manifests, "--timeout=3m"])?;
        self.world.cluster.kubectl_run(&["delete", "namespace", NAMESPACE, "--timeout=3m"])?;
        Ok(())
    }

    /// kubectl in the namespace of Flux.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.world.cluster.kubectl_run(&[&["--namespace", NAMESPACE], arguments].concat())
    }

    fn apply(&self, manifest: &Value) -> Result<()> {
        let file = self.world.cluster.write("flux.json", &manifest.to_string())?;
        self.world.cluster.kubectl_run(&["apply", "--filename", &file.display().to_string()]).map(drop)
    }

    /// git in the working tree. The settings of the user do not change its commits.
    fn git(&self) -> Command {
        let mut git = Command::new("git");
        git.arg("-C").arg(&self.repository).env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
            git.env_remove(name);
        }
        for role in ["AUTHOR", "COMMITTER"] {
            git.env(format!("GIT_{role}_NAME"), "e2e").env(format!("GIT_{role}_EMAIL"), "e2e@example.com");
        }
        git
    }

    /// Replaces the manifests in these directories by one commit, and returns its revision as Flux writes it.
    pub fn commit(&self, directories: &[(&str, &[Value])]) -> Result<String> {
        let failed = |error| Error::io("write the manifests of a commit", error);
        for (directory, manifests) in directories {
            let directory = self.repository.join(directory);
            if directory.exists() {
                fs::remove_dir_all(&directory).map_err(failed)?;
            }
            fs::create_dir_all(&directory).map_err(failed)?;
            for manifest in *manifests {
                let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
                fs::write(directory.join(format!("{name}.yaml")), manifest.to_string()).map_err(failed)?;
            }
        }
        run(self.git().args(["add", "--all"]))?;
        run(self.git().args(["commit", "--quiet", "--allow-empty", "--message=Change conversations"]))?;
        let hash = run(self.git().args(["rev-parse", "HEAD"]))?;
        Ok(format!("main@sha1:{}", hash.trim()))
    }

    /// Creates the Kustomization of the directory with this name. Its spec has these fields more than the usual ones.
    pub fn create_kustomization(&self, name: &str, more: &Value) -> Result<()> {
        let mut spec = json!({
            // Flux reconciles each new revision immediately.
            "interval": "1h",
            "retryInterval": "5s",
            // Flux uses this value for each shorter one.
            "timeout": "30s",
            "wait": true,
            "prune": true,
            "path": format!("./{name}"),
            "sourceRef": {"kind": "GitRepository", "name": SOURCE},
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        self.apply(&json!({
            "apiVersion": "kustomize.toolkit.fluxcd.io/v1",
            "kind": "Kustomization",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": spec,
        }))
    }

    fn kustomization(&self, name: &str) -> std::result::Result<Value, String> {
        self.world.get_in(NAMESPACE, &["kustomization", name]).map_err(|error| error.to_string())
    }

    /// Waits until the Kustomization is Ready at this revision: everything is applied, pruned and healthy.
    pub fn wait_until_ready(&self, name: &str, revision: &str) -> Result<()> {
        // During a reconciliation, the condition does not say how the previous one failed.
        let mut failure = "it has not failed".to_owned();
        wait(&format!("Kustomization {name} to be Ready at {revision}"), TIMEOUT, || {
            let kustomization = self.kustomization(name)?;
            let ready = condition(&kustomization, "Ready");
            let is_applied = kustomization["status"]["lastAppliedRevision"] == revision;
            if ready["status"] == "True" && is_applied {
                return Ok(());
            }
            if ready["status"] == "False" {
                failure = format!("{}: {}", ready["reason"], ready["message"]);
            }
            Err(failure.clone())
        })
    }

    /// Waits until a reconciliation of this revision has failed with this reason, and with all of these texts in its message.
    pub fn wait_until_failed(&self, name: &str, revision: &str, reason: &str, texts: &[&str]) -> Result<()> {
        wait(&format!("Kustomization {name} to fail with {reason} and {texts:?} at {revision}"), TIMEOUT, || {
            let kustomization = self.kustomization(name)?;
            let ready = condition(&kustomization, "Ready");
            let is_attempted = kustomization["status"]["lastAttemptedRevision"] == revision;
            let has_failed = is_attempted && ready["status"] == "False" && ready["reason"] == reason;
            let message = ready["message"].as_str().unwrap_or_default();
            if has_failed && texts.iter().all(|text| message.contains(text)) {
                return Ok(());
            }
            Err(ready.to_string())
        })
    }

    /// Waits until Flux has reconciled the same manifests this number of times, and each of them has failed.
    pub fn wait_for_failures(&self, name: &str, count: u64) -> Result<()> {
        wait(&format!("{count} failed reconciliations of Kustomization {name}"), TIMEOUT, || {
            let kustomization = self.kustomization(name)?;
            // The first entry is the latest one. It counts reconciliations with the same manifests and the same outcome.
            let latest = &kustomization["status"]["history"][0];
            let failures = latest["totalReconciliations"].as_u64().unwrap_or_default();
            let has_failed = latest["lastReconciledStatus"] == "ReconciliationFailed";
            if has_failed && failures >= count { Ok(()) } else { Err(latest.to_string()) }
        })
    }
}

/// A condition of an object; null if it has none of this type.
pub fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().find(|condition| condition["type"] == kind).cloned().unwrap_or_default()
}
