//! Finds the checkout that a program runs in. That need not be the one in which it was compiled: checkouts are copied with their
//! `target` directory, and then two of them would write and read the files of one.

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::Error;

/// A file by which the root of a checkout is known.
const MARK: &str = "tests/control-plane/go.mod";

/// The root of the checkout around the working directory, which `make` and cargo set.
pub fn root() -> Result<PathBuf, Error> {
    let directory = env::current_dir().map_err(Error::io("find the working directory"))?;
    root_around(&directory).map(Path::to_owned).ok_or(Error::NoCheckout { directory })
}

fn root_around(directory: &Path) -> Option<&Path> {
    directory.ancestors().find(|ancestor| ancestor.join(MARK).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_that_of_the_checkout_around_a_directory() {
        let directory = env::temp_dir().join(format!("switchboard-checkouts-{}", std::process::id()));
        for checkout in ["one", "two"] {
            let mark = directory.join(checkout).join(MARK);
            std::fs::create_dir_all(mark.parent().unwrap()).unwrap();
            std::fs::write(mark, "").unwrap();
        }
        for checkout in ["one", "two"] {
            let root = directory.join(checkout);
            assert_eq!(root_around(&root), Some(root.as_path()));
            assert_eq!(root_around(&root.join("tests/control-plane")), Some(root.as_path()));
        }
        assert_eq!(root_around(&directory), None);
        std::fs::remove_dir_all(directory).unwrap();
    }
}
