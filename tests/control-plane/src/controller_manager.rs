//! Starts kube-controller-manager.

use std::{path::Path, process::Command};

use crate::{
    Error,
    data_directory::DataDirectory,
    process::Process,
    tools::{self, Tool},
};

/// Starts only the namespace controller, as the user and against the API server of the kubeconfig. It opens no port.
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
