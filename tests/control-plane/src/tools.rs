//! Builds the components of Kubernetes, etcd and helm with Go, once per machine, and keeps them in the cache directory of the user. It also
//! builds older API servers, the tools that document and check the chart, and other operators that the tests install. The `go.mod` and
//! `go.sum` of each module pin their versions. It downloads no binaries.

use std::{
    env, fmt,
    fs::{self, File, TryLockError},
    io,
    path::PathBuf,
    process::Command,
    ptr,
    time::Duration,
};

use data_encoding::HEXLOWER;
use ring::digest;

use crate::{
    Error,
    kubernetes::Kubernetes,
    process::{self, Process},
    progress::{Progress, about, say},
    repository,
};

/// A Go module that pins tools by its `tool` directives, or is a tool itself.
pub(crate) struct Module {
    /// The path relative to the root of the repository.
    directory: &'static str,
    go_mod: &'static str,
    go_sum: &'static str,
    /// The source code, if the module is a tool itself.
    source: Option<&'static str>,
    flags: fn(&Module) -> Vec<String>,
}

impl Module {
    /// The version of Kubernetes that it pins.
    pub(crate) fn kubernetes(&self) -> &'static str {
        let mut lines = self.go_mod.lines();
        let pinned = lines.find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes v")?.split(' ').next());
        pinned.unwrap_or("0.0.0")
    }
}

pub(crate) static CONTROL_PLANE: Module = Module {
    directory: "tests/control-plane",
    go_mod: include_str!("../go.mod"),
    go_sum: include_str!("../go.sum"),
    source: None,
    flags: kubernetes_flags,
};

/// Older API servers, the oldest first. Each has its own module, because each needs the staging modules of its release.
pub(crate) static OLDER_API_SERVERS: [Module; 3] = [
    older_api_server(
        "tests/control-plane/kubernetes-1.31",
        [include_str!("../kubernetes-1.31/go.mod"), include_str!("../kubernetes-1.31/go.sum")],
    ),
    older_api_server(
        "tests/control-plane/kubernetes-1.33",
        [include_str!("../kubernetes-1.33/go.mod"), include_str!("../kubernetes-1.33/go.sum")],
    ),
    older_api_server(
        "tests/control-plane/kubernetes-1.35",
        [include_str!("../kubernetes-1.35/go.mod"), include_str!("../kubernetes-1.35/go.sum")],
    ),
];

const fn older_api_server(directory: &'static str, [go_mod, go_sum]: [&'static str; 2]) -> Module {
    Module { directory, go_mod, go_sum, source: None, flags: kubernetes_flags }
}

/// A separate module, so that its dependencies and those of the control plane do not affect each other.
static CHART_TOOLS: Module = Module {
    directory: "tests/control-plane/chart-tools",
    go_mod: include_str!("../chart-tools/go.mod"),
    go_sum: include_str!("../chart-tools/go.sum"),
    source: None,
    // Builds promtool without the service discovery for clouds.
    flags: |_| flags(&["-tags", "remove_all_sd"], ""),
};

/// Our own tool, which uses the libraries of kstatus and Argo CD.
static HEALTH_TOOLS: Module = Module {
    directory: "tests/control-plane/health-tools",
    go_mod: include_str!("../health-tools/go.mod"),
    go_sum: include_str!("../health-tools/go.sum"),
    source: Some(include_str!("../health-tools/main.go")),
    flags: |_| flags(&[], ""),
};

/// A tool over Flux's libraries. It is a module of its own, since it needs the versions that Flux was released with.
static GITOPS_TOOLS: Module = Module {
    directory: "tests/control-plane/gitops-tools",
    go_mod: include_str!("../gitops-tools/go.mod"),
    go_sum: include_str!("../gitops-tools/go.sum"),
    source: Some(include_str!("../gitops-tools/main.go")),
    flags: |_| flags(&[], ""),
};

/// Our own tool, which uses only the standard library.
static PAUSE: Module = Module {
    directory: "tests/nodes/pause",
    go_mod: include_str!("../../nodes/pause/go.mod"),
    go_sum: "",
    source: Some(include_str!("../../nodes/pause/main.go")),
    flags: |_| flags(&[], ""),
};

/// A separate module, because it needs other versions of its dependencies.
static CERT_MANAGER: Module = Module {
    directory: "tests/nodes/cert-manager",
    go_mod: include_str!("../../nodes/cert-manager/go.mod"),
    go_sum: include_str!("../../nodes/cert-manager/go.sum"),
    source: None,
    flags: |_| flags(&[], ""),
};

/// A separate module, because it needs other versions of its dependencies.
static FLUX: Module = Module {
    directory: "tests/nodes/flux",
    go_mod: include_str!("../../nodes/flux/go.mod"),
    go_sum: include_str!("../../nodes/flux/go.sum"),
    source: None,
    flags: |_| flags(&[], ""),
};

/// Our own tool, which uses only the standard library.
static GIT_SERVER: Module = Module {
    directory: "tests/nodes/git-server",
    go_mod: include_str!("../../nodes/git-server/go.mod"),
    go_sum: "",
    source: Some(include_str!("../../nodes/git-server/main.go")),
    flags: |_| flags(&[], ""),
};

/// A component of the control plane, a client of it, or a tool that documents or checks the chart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// The API server.
    KubeApiserver,
    /// The store of the API server.
    Etcd,
    /// The command line client.
    Kubectl,
    /// Installs charts.
    Helm,
    /// Empties deleted namespaces, besides much else.
    KubeControllerManager,
    /// Assigns pods to nodes.
    KubeScheduler,
    /// Runs the pods of a node.
    Kubelet,
    /// Routes the traffic to Services on a node.
    KubeProxy,
    /// Holds the namespaces of a pod, or of a node, open.
    Pause,
    /// cert-manager's controller.
    CertManagerController,
    /// Writes the CAs into webhook configurations.
    CertManagerCainjector,
    /// Validates the objects of cert-manager.
    CertManagerWebhook,
    /// Flux's controller that fetches Git repositories.
    SourceController,
    /// Flux's controller that applies manifests.
    KustomizeController,
    /// Serves Git repositories over HTTP.
    GitServer,
    /// Writes a chart's README from the comments in its values.
    HelmDocs,
    /// Checks and tests rules of Prometheus.
    Promtool,
    /// Computes the health of an object as kstatus and Argo CD do.
    Health,
    /// Applies manifests as Flux does.
    FluxApply,
}

impl Tool {
    /// The tools for `make test`.
    pub const TESTS: [Self; 9] = [
        Self::KubeApiserver,
        Self::Etcd,
        Self::Kubectl,
        Self::Helm,
        Self::KubeControllerManager,
        Self::HelmDocs,
        Self::Promtool,
        Self::Health,
        Self::FluxApply,
    ];

    /// The tools for two nodes.
    pub const NODES: [Self; 9] = [
        Self::KubeApiserver,
        Self::Etcd,
        Self::Kubectl,
        Self::Helm,
        Self::KubeControllerManager,
        Self::KubeScheduler,
        Self::Kubelet,
        Self::KubeProxy,
        Self::Pause,
    ];

    /// The components of cert-manager.
    pub const CERT_MANAGER: [Self; 3] =
        [Self::CertManagerController, Self::CertManagerCainjector, Self::CertManagerWebhook];

    /// The controllers of Flux, and the server of the repositories that they fetch.
    pub const FLUX: [Self; 3] = [Self::SourceController, Self::KustomizeController, Self::GitServer];

    /// The tools for `make run` and `make test-versions`.
    pub const PLAYGROUND: [Self; 4] = [Self::KubeApiserver, Self::Etcd, Self::Kubectl, Self::Helm];

    /// The name of its binary.
    #[must_use]
    pub fn binary(self) -> &'static str {
        match self {
            Self::KubeApiserver => "kube-apiserver",
            Self::Etcd => "etcd",
            Self::Kubectl => "kubectl",
            Self::Helm => "helm",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeScheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
            Self::Pause => "pause",
            Self::CertManagerController => "cert-manager-controller",
            Self::CertManagerCainjector => "cert-manager-cainjector",
            Self::CertManagerWebhook => "cert-manager-webhook",
            Self::SourceController => "source-controller",
            Self::KustomizeController => "kustomize-controller",
            Self::GitServer => "git-server",
            Self::HelmDocs => "helm-docs",
            Self::Promtool => "promtool",
            Self::Health => "health",
            Self::FluxApply => "flux-apply",
        }
    }

    /// Only the API server has the requested version: etcd and the clients work with all versions.
    fn module(self, kubernetes: Kubernetes) -> &'static Module {
        match self {
            Self::KubeApiserver => kubernetes.module(),
            Self::Etcd
            | Self::Kubectl
            | Self::Helm
            | Self::KubeControllerManager
            | Self::KubeScheduler
            | Self::Kubelet
            | Self::KubeProxy => &CONTROL_PLANE,
            Self::Pause => &PAUSE,
            Self::CertManagerController | Self::CertManagerCainjector | Self::CertManagerWebhook => &CERT_MANAGER,
            Self::SourceController | Self::KustomizeController => &FLUX,
            Self::GitServer => &GIT_SERVER,
            Self::HelmDocs | Self::Promtool => &CHART_TOOLS,
            Self::Health => &HEALTH_TOOLS,
            Self::FluxApply => &GITOPS_TOOLS,
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::KubeApiserver => "k8s.io/kubernetes/cmd/kube-apiserver",
            Self::Etcd => "go.etcd.io/etcd/server/v3",
            Self::Kubectl => "k8s.io/kubernetes/cmd/kubectl",
            Self::Helm => "helm.sh/helm/v4/cmd/helm",
            Self::KubeControllerManager => "k8s.io/kubernetes/cmd/kube-controller-manager",
            Self::KubeScheduler => "k8s.io/kubernetes/cmd/kube-scheduler",
            Self::Kubelet => "k8s.io/kubernetes/cmd/kubelet",
            Self::KubeProxy => "k8s.io/kubernetes/cmd/kube-proxy",
            Self::CertManagerController => "github.com/cert-manager/cert-manager/cmd/controller",
            Self::CertManagerCainjector => "github.com/cert-manager/cert-manager/cmd/cainjector",
            Self::CertManagerWebhook => "github.com/cert-manager/cert-manager/cmd/webhook",
            Self::SourceController => "github.com/fluxcd/source-controller",
            Self::KustomizeController => "github.com/fluxcd/kustomize-controller",
            Self::HelmDocs => "github.com/norwoodj/helm-docs/cmd/helm-docs",
            Self::Promtool => "github.com/prometheus/prometheus/cmd/promtool",
            Self::Health | Self::FluxApply | Self::Pause | Self::GitServer => ".",
        }
    }

    /// The usual duration of its first build on two cores, after the build of the API server and with the download of its modules.
    fn usual(self) -> Duration {
        Duration::from_secs(match self {
            Self::KubeApiserver => 390,
            Self::Pause => 5,
            Self::SourceController => 300,
            Self::CertManagerCainjector | Self::CertManagerWebhook => 10,
            Self::Etcd | Self::HelmDocs | Self::GitServer => 15,
            Self::KubeControllerManager | Self::CertManagerController | Self::KustomizeController => 110,
            Self::Kubectl | Self::Helm | Self::Health | Self::KubeScheduler | Self::Kubelet | Self::KubeProxy => 30,
            Self::FluxApply => 80,
            Self::Promtool => 120,
        })
    }
}

impl fmt::Display for Tool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.binary())
    }
}

/// Returns the directory of the module whose package a tool is. It contains what belongs to the tool: manifests, CRDs, a chart.
pub fn source_of(tool: Tool) -> Result<PathBuf, Error> {
    let mut command = Command::new("go");
    command.args(["list", "-f", "{{.Module.Dir}}", tool.package()]);
    let module = repository::root()?.join(tool.module(Kubernetes::current()).directory);
    let directory = process::run(command.current_dir(module).env("GOFLAGS", "").env("GOWORK", "off"))?;
    Ok(PathBuf::from(directory.trim()))
}

/// Returns the paths of these tools, and first builds the ones that this machine does not have. Progress goes to stderr.
///
/// The API server has the version that [`Kubernetes::asked_for`] returns, otherwise the current one. Binaries in the directory
/// `KUBEBUILDER_ASSETS`, the variable that the ecosystem uses for existing binaries, are used without a build, except for an API server
/// whose version is requested. The other tools need Go in the version of `go.mod`; otherwise this returns an error immediately.
pub fn ensure<const N: usize>(tools: [Tool; N]) -> Result<[PathBuf; N], Error> {
    ensure_with(Kubernetes::asked_for()?, tools)
}

/// Like [`ensure`], but with an API server of this version. It ignores the version in the environment.
pub(crate) fn ensure_with<const N: usize>(
    kubernetes: Option<Kubernetes>,
    tools: [Tool; N],
) -> Result<[PathBuf; N], Error> {
    let assets = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let asset = |tool: Tool| {
        let serves = tool != Tool::KubeApiserver || kubernetes.is_none();
        Some(assets.as_ref()?.join(tool.binary())).filter(|path| serves && path.is_file())
    };
    let module_of = |tool: Tool| tool.module(kubernetes.unwrap_or_else(Kubernetes::current));
    let mut paths = tools.map(|tool| asset(tool).unwrap_or_default());
    let modules =
        [&CONTROL_PLANE, &CHART_TOOLS, &HEALTH_TOOLS, &GITOPS_TOOLS, &PAUSE, &CERT_MANAGER, &FLUX, &GIT_SERVER];
    for module in modules.into_iter().chain(&OLDER_API_SERVERS) {
        let wanted = |tool: Tool| asset(tool).is_none() && ptr::eq(module_of(tool), module);
        if !tools.iter().any(|tool| wanted(*tool)) {
            continue;
        }
        let cache = Cache::open(module)?;
        let missing = || tools.into_iter().filter(|tool| wanted(*tool) && !cache.path(*tool).is_file());
        if missing().next().is_some() {
            let _lock = cache.lock()?;
            // Checks again: another process may have built them while this process waited.
            cache.build_all(&missing().collect::<Vec<_>>())?;
        }
        for (tool, path) in tools.into_iter().zip(&mut paths).filter(|(tool, _)| wanted(*tool)) {
            *path = cache.path(tool);
        }
    }
    Ok(paths)
}

/// The directory for built tools and for the locks on ports: `$SWITCHBOARD_CACHE`, otherwise `switchboard` in the cache directory of the
/// user.
pub fn cache_directory() -> Result<PathBuf, Error> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("SWITCHBOARD_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("switchboard")))
        .or_else(|| Some(set("HOME")?.join(".cache").join("switchboard")))
        .ok_or_else(|| {
            let remedy = "neither SWITCHBOARD_CACHE nor XDG_CACHE_HOME nor HOME is set: set one of them";
            Error::Io { doing: "find the cache directory".to_owned(), source: io::Error::other(remedy) }
        })
}

/// The directory for one state of a module: its `go.mod`, `go.sum`, source, flags and version of Go. A change of any of them selects
/// another directory, so that processes that use the old one are not affected.
struct Cache {
    module: &'static Module,
    source: PathBuf,
    directory: PathBuf,
}

impl Cache {
    fn open(module: &'static Module) -> Result<Self, Error> {
        let root = repository::root()?;
        let source = root.join(module.directory);
        let check = process::output(Command::new("sh").arg(root.join(CONTROL_PLANE.directory).join("require-go.sh")))?;
        if !check.status.success() {
            return Err(Error::Toolchain(String::from_utf8_lossy(&check.stderr).trim().to_owned()));
        }
        let version = process::output(Command::new("go").arg("version").current_dir(&source))?.stdout;
        let key = key([module.go_mod, module.go_sum], &(module.flags)(module), &version, module.source);
        let directory = cache_directory()?.join(format!("tools-{key}"));
        fs::create_dir_all(&directory).map_err(Error::io(format!(
            "create {} (set SWITCHBOARD_CACHE to use another directory)",
            directory.display()
        )))?;
        Ok(Self { module, source, directory })
    }

    fn path(&self, tool: Tool) -> PathBuf {
        self.directory.join(tool.binary())
    }

    /// The lock is held during a build. The system releases it if the process dies.
    fn lock(&self) -> Result<File, Error> {
        let path = self.directory.join("lock");
        let doing = format!("lock {}", path.display());
        let lock = File::create(&path).map_err(Error::io(doing.clone()))?;
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) => say("Waiting for another process that builds the same tools."),
            Err(TryLockError::Error(error)) => return Err(Error::io(doing)(error)),
        }
        lock.lock().map_err(Error::io(doing))?;
        Ok(lock)
    }

    fn build_all(&self, tools: &[Tool]) -> Result<(), Error> {
        let usual: Duration = tools.iter().map(|tool| tool.usual()).sum();
        let name = |tool: &Tool| match tool {
            Tool::KubeApiserver => format!("{tool} {}", self.module.kubernetes()),
            _ => tool.to_string(),
        };
        let names: Vec<_> = tools.iter().map(name).collect();
        if !tools.is_empty() {
            say(&format!(
                "Building {} from source, once for this machine: {} on two cores. The cache directory is {}",
                names.join(", "),
                about(usual),
                self.directory.display()
            ));
        }
        tools.iter().try_for_each(|tool| self.build(*tool))
    }

    /// Builds into another file and renames it, so that readers never see an incomplete file.
    fn build(&self, tool: Tool) -> Result<(), Error> {
        let unfinished = self.directory.join(format!("{tool}.unfinished"));
        let log = self.directory.join(format!("{tool}.log"));
        // Otherwise the log of an earlier failure would be shown.
        let _ = fs::remove_file(&log);
        let mut command = Command::new("go");
        command
            .arg("build")
            .args((self.module.flags)(self.module))
            .arg("-o")
            .args([unfinished.as_os_str(), tool.package().as_ref()])
            .current_dir(&self.source)
            .env("CGO_ENABLED", "0")
            // The settings of the user must not change the build, because the key does not contain them.
            .env("GOFLAGS", "")
            .env("GOWORK", "off");
        // A watched process ends together with this process, so that no build continues for minutes without it.
        let build = Process::new(format!("go build {tool}"), log.clone(), command)?;
        let mut progress = Progress::new(tool.binary(), "building", tool.usual());
        build.start()?;
        let status = loop {
            match build.wait(Duration::from_millis(200)) {
                Some(status) => break status,
                None => progress.show(),
            }
        };
        if !status.success() {
            progress.end("failed");
            let output = fs::read_to_string(&log).unwrap_or_default();
            return Err(Error::Build { tool: tool.binary(), output });
        }
        let path = self.path(tool);
        fs::rename(&unfinished, &path).map_err(Error::io(format!("write {}", path.display())))?;
        let _ = fs::remove_file(&log);
        progress.end("built");
        Ok(())
    }
}

/// The flags of every build, with `more` flags and `link` flags for the linker.
fn flags(more: &[&str], link: &str) -> Vec<String> {
    let linker = format!("-s -w {link}");
    [&["-trimpath", "-buildvcs=false"], more, &["-ldflags", linker.trim_end()]]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect()
}

/// Links the version that the module pins (`-X …`). Otherwise the API server reports v0.0.0, and clients complain.
fn kubernetes_flags(module: &Module) -> Vec<String> {
    let version = module.kubernetes();
    let mut numbers = version.split('.');
    let package = "k8s.io/component-base/version";
    let link = format!(
        "-X {package}.gitVersion=v{version} -X {package}.gitMajor={} -X {package}.gitMinor={}",
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    flags(&[], &link)
}

/// Hashes the length before each part, so that different inputs never have the same text.
fn key([go_mod, go_sum]: [&str; 2], flags: &[String], go_version: &[u8], source: Option<&str>) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    let flags = flags.join("\n");
    let pinned = [go_mod.as_bytes(), go_sum.as_bytes(), flags.as_bytes(), go_version];
    for part in pinned.into_iter().chain(source.map(str::as_bytes)) {
        context.update(&part.len().to_be_bytes());
        context.update(part);
    }
    HEXLOWER.encode(&context.finish().as_ref()[..8])
}

#[cfg(test)]
mod tests {
    use super::{CONTROL_PLANE, FLUX, GITOPS_TOOLS, Module, OLDER_API_SERVERS, key};

    #[test]
    fn cache_key_depends_on_every_input_of_a_build() {
        let flags = |text: &str| vec![text.to_owned()];
        let base = key(["module", "sum"], &flags("-trimpath"), b"go1.26.0", None);
        assert_eq!(base, key(["module", "sum"], &flags("-trimpath"), b"go1.26.0", None));
        assert_ne!(base, key(["module2", "sum"], &flags("-trimpath"), b"go1.26.0", None));
        assert_ne!(base, key(["module", "sum2"], &flags("-trimpath"), b"go1.26.0", None));
        assert_ne!(base, key(["module", "sum"], &flags("-s"), b"go1.26.0", None));
        assert_ne!(base, key(["module", "sum"], &flags("-trimpath"), b"go1.27.0", None));
        assert_ne!(
            base,
            key(["modules", "um"], &flags("-trimpath"), b"go1.26.0", None),
            "the boundary between parts counts"
        );
        assert_ne!(base, key(["module", "sum"], &flags("-trimpath"), b"go1.26.0", Some("")));
    }

    #[test]
    fn api_server_is_linked_with_the_version_of_its_go_mod() {
        for (module, version, minor) in [
            (&OLDER_API_SERVERS[0], "v1.31.14", "31"),
            (&OLDER_API_SERVERS[1], "v1.33.13", "33"),
            (&OLDER_API_SERVERS[2], "v1.35.4", "35"),
            (&CONTROL_PLANE, "v1.37.2", "37"),
        ] {
            let linker = (module.flags)(module).pop().unwrap();
            assert!(linker.contains(&format!(".gitVersion={version} ")), "{linker}");
            let numbers = format!(".gitMajor=1 -X k8s.io/component-base/version.gitMinor={minor}");
            assert!(linker.ends_with(&numbers), "{linker}");
        }
    }

    #[test]
    fn flux_apply_has_the_libraries_of_flux() {
        let libraries = ["github.com/fluxcd/pkg/ssa ", "github.com/fluxcd/cli-utils ", "k8s.io/client-go "];
        let versions = |module: &'static Module| {
            libraries.map(|library| {
                module.go_mod.lines().find_map(|line| line.trim().strip_prefix(library)?.split(' ').next())
            })
        };
        let [ours, flux] = [&GITOPS_TOOLS, &FLUX].map(versions);
        assert!(ours.iter().all(Option::is_some), "{ours:?}");
        assert_eq!(ours, flux);
    }

    #[test]
    fn staging_modules_match_the_version_of_the_api_server() {
        for module in OLDER_API_SERVERS.iter().chain([&CONTROL_PLANE]) {
            let released = format!(" v0.{}", module.kubernetes().strip_prefix("1.").unwrap());
            let replaced: Vec<_> = module.go_mod.lines().filter(|line| line.contains(" => ")).collect();
            assert!(replaced.len() >= 30 && replaced.iter().all(|line| line.ends_with(&released)), "{replaced:?}");
        }
    }
}
