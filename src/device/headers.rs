//! Location and completeness of the CUDA toolkit's headers.

use std::path::{Path, PathBuf};

/// Headers that the generated kernels include.
const REQUIRED: [&str; 7] =
    ["cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "mma.h", "crt/mma.h", "cuda/barrier", "cooperative_groups.h"];

/// Returns the include folders of a toolkit. Since CUDA 13, the CCCL headers have a folder of their own.
pub(super) fn include_folders(toolkit: &Path) -> [PathBuf; 2] {
    let include = toolkit.join("include");
    let cccl = include.join("cccl");
    [include, cccl]
}

/// Returns the problem with the headers of a toolkit, if any. `from_env` tells that `CUDA_PATH` named the toolkit.
pub(super) fn find_problem(toolkit: Option<&Path>, from_env: bool) -> Option<String> {
    let Some(toolkit) = toolkit else {
        return Some(
            "the CUDA toolkit's headers were not found: install the toolkit, or use the container image `gpu` \
             (docs/container.md), or set CUDA_PATH to the folder that contains its `include`"
                .to_owned(),
        );
    };
    let include_folders = include_folders(toolkit);
    let missing: Vec<&str> =
        REQUIRED.into_iter().filter(|name| !include_folders.iter().any(|folder| folder.join(name).is_file())).collect();
    if missing.is_empty() {
        return None;
    }
    let (origin, include) = (if from_env { " (CUDA_PATH)" } else { "" }, include_folders[0].display());
    Some(format!(
        "`{include}`{origin} lacks {}: install the CUDA toolkit's headers there, or set CUDA_PATH to their folder",
        missing.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_headers_are_named() {
        assert!(find_problem(None, false).unwrap().contains("CUDA_PATH"));
        let dir = tempfile::tempdir().unwrap();
        let text = find_problem(Some(dir.path()), true).unwrap();
        for name in REQUIRED {
            assert!(text.contains(name), "{text}");
        }
        assert!(text.contains("include` (CUDA_PATH) lacks"), "{text}");
        for name in REQUIRED {
            let folder = if name.contains('/') { "include/cccl" } else { "include" };
            let path = dir.path().join(folder).join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        assert_eq!(find_problem(Some(dir.path()), false), None);
        std::fs::remove_file(dir.path().join("include/mma.h")).unwrap();
        assert!(find_problem(Some(dir.path()), false).unwrap().contains("include` lacks mma.h:"));
    }
}
