//! Finds the checkout in which a program runs. The program may have been compiled in another one: users copy a checkout with its `target`
//! directory, and the copy must not use the files of the original.

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::Error;

/// A file that identifies the root of a checkout.
const MARK: &str = "tests/control-plane/go.mod";

/// Returns the root of the checkout that contains the working directory, which `make` and cargo set.
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
    fn root_is_found_from_any_directory_of_a_checkout() {
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
