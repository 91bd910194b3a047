//! Builds images as OCI archives with buildah, as `make image` does. It pulls nothing.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use control_plane::{DataDirectory, run};

use crate::Result;

/// Builds the image `name`, and returns its archive. buildah stores its files only in `directory`.
///
/// # Errors
/// If buildah cannot build it.
pub fn build(context: &Path, containerfile: &Path, name: &str, directory: &DataDirectory) -> Result<PathBuf> {
    let buildah = || {
        let mut buildah = Command::new("buildah");
        let store = directory.path().join("buildah");
        buildah.args(["--storage-driver", "vfs"]).arg("--root").arg(store.join("root"));
        buildah.arg("--runroot").arg(store.join("run"));
        buildah
    };
    run(buildah()
        .args(["build", "--quiet", "--isolation", "chroot", "--tag", name, "--file"])
        .arg(containerfile)
        .arg(context))?;
    let archive = directory.path().join(format!("{}.tar", name.replace(['/', ':'], "-")));
    run(buildah().args(["push", "--quiet", name]).arg(format!("oci-archive:{}:{name}", archive.display())))?;
    Ok(archive)
}
