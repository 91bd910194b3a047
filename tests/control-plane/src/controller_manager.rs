//! How kube-controller-manager is started.

use std::{path::Path, process::Command};

use crate::{
    Error,
    data_directory::DataDirectory,
    process::Process,
    tools::{self, Tool},
};

/// The namespace controller alone, as the user of that kubeconfig, at the API server of its current context. It serves nothing.
pub(crate) fn start(directory: &DataDirectory, kubeconfig: &Path) -> Result<Process, Error> {
    let [binary] = tools::ensure([Tool::KubeControllerManager])?;
    let mut command = Command::new(binary);
    command
        .args(["--controllers", "namespace-controller"])
        .args(["--leader-elect=false", "--secure-port=0"])
        .arg("--kubeconfig")
        .arg(kubeconfig);
    let name = "controller-manager";
    let process = Process::new(name, directory.log(name), command)?;
    process.start()?;
    Ok(process)
}
