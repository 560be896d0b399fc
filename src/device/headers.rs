//! Where the toolkit's headers are, and which of those that kernels include are missing.

use std::path::{Path, PathBuf};

/// What the generated kernels include.
const NEEDED: [&str; 7] =
    ["cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "mma.h", "crt/mma.h", "cuda/barrier", "cooperative_groups.h"];

/// The folders in which the headers of a toolkit lie: since CUDA 13 those of CCCL have one of their own.
pub(super) fn folders(toolkit: &Path) -> [PathBuf; 2] {
    let include = toolkit.join("include");
    let cccl = include.join("cccl");
    [include, cccl]
}

/// What is wrong with the headers of a toolkit; `None` where there is no toolkit at all.
pub(super) fn problem(toolkit: Option<&Path>, asked: bool) -> Option<String> {
    let Some(toolkit) = toolkit else {
        return Some(
            "the CUDA toolkit's headers were not found: install the toolkit, or take a container image that has it (`devel` in its \
             name), or set CUDA_PATH to the folder that has its `include`"
                .to_owned(),
        );
    };
    let folders = folders(toolkit);
    let missing: Vec<&str> =
        NEEDED.into_iter().filter(|name| !folders.iter().any(|folder| folder.join(name).is_file())).collect();
    if missing.is_empty() {
        return None;
    }
    let (by, include) = (if asked { " (CUDA_PATH)" } else { "" }, folders[0].display());
    Some(format!(
        "`{include}`{by} lacks {}: install the CUDA toolkit's headers there, or set CUDA_PATH to where they are",
        missing.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_headers_are_named_and_both_layouts_are_known() {
        assert!(problem(None, false).unwrap().contains("CUDA_PATH"));
        let dir = tempfile::tempdir().unwrap();
        let text = problem(Some(dir.path()), true).unwrap();
        for name in NEEDED {
            assert!(text.contains(name), "{text}");
        }
        assert!(text.contains("include` (CUDA_PATH) lacks"), "{text}");
        for name in NEEDED {
            let folder = if name.contains('/') { "include/cccl" } else { "include" };
            let path = dir.path().join(folder).join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        assert_eq!(problem(Some(dir.path()), false), None);
        std::fs::remove_file(dir.path().join("include/mma.h")).unwrap();
        assert!(problem(Some(dir.path()), false).unwrap().contains("include` lacks mma.h:"));
    }
}
