//! Walks a local directory.
//!
//! Hidden files and folders are left out. Links are followed, except a link to a folder that holds the link. A file whose
//! name is not UTF-8 cannot be named in results, so it is left out too.

use std::path::{Path, PathBuf};

/// Files below a directory.
#[derive(Debug, Default)]
pub struct LocalFiles {
    /// Paths that begin with that of the directory, with sizes in bytes, in the order of their names.
    pub files: Vec<(String, u64)>,
    /// Entries that are not in `files`, with the reason.
    pub left_out: Vec<(PathBuf, String)>,
    /// First folder that could not be read.
    pub unreadable: Option<(PathBuf, std::io::ErrorKind)>,
}

/// Returns whether an entry is hidden, or made by a system for itself.
fn is_hidden(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".") || name == "__MACOSX"
}

/// Finds the files below a directory, at any depth.
pub fn walk(folder: &Path) -> LocalFiles {
    let mut found = LocalFiles::default();
    enter(folder, &mut Vec::new(), &mut found);
    found
}

/// Adds the files of a folder; `above` are the folders that it is in, without links.
fn enter(folder: &Path, above: &mut Vec<PathBuf>, found: &mut LocalFiles) {
    let here = folder.canonicalize().and_then(|here| Ok((here, std::fs::read_dir(folder)?)));
    let (here, entries) = match here {
        Ok(here) => here,
        Err(error) => {
            found.left_out.push((folder.to_owned(), format!("it cannot be read: {error}")));
            found.unreadable.get_or_insert_with(|| (folder.to_owned(), error.kind()));
            return;
        }
    };
    if above.contains(&here) {
        found.left_out.push((folder.to_owned(), "it is a link to a folder that holds it".to_owned()));
        return;
    }
    above.push(here);
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort_unstable();
    for path in paths.into_iter().filter(|path| path.file_name().is_some_and(|name| !is_hidden(name))) {
        match (std::fs::metadata(&path), path.to_str()) {
            (Err(error), _) => found.left_out.push((path, format!("it cannot be read: {error}"))),
            (Ok(_), None) => found.left_out.push((path, "its name is not UTF-8 text: rename it to use it".to_owned())),
            (Ok(metadata), Some(_)) if metadata.is_dir() => enter(&path, above, found),
            (Ok(metadata), Some(name)) if metadata.is_file() => found.files.push((name.to_owned(), metadata.len())),
            // Sockets, pipes and devices are no files.
            (Ok(_), Some(_)) => {}
        }
    }
    above.pop();
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_but_not_in_circles() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for name in ["a/1.jpg", "b/2.jpg", ".hidden/3.jpg", "__MACOSX/1.jpg"] {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        symlink(root.join("b"), root.join("a/linked")).unwrap();
        symlink("..", root.join("b/loop")).unwrap();
        symlink("nowhere", root.join("dangling.jpg")).unwrap();
        std::fs::write(root.join(std::ffi::OsStr::from_bytes(b"caf\xe9.jpg")), "x").unwrap();
        let found = walk(&root);
        let below = |path: &str| path.strip_prefix(root.to_str().unwrap()).unwrap().to_owned();
        let names: Vec<String> = found.files.iter().map(|(path, _)| below(path)).collect();
        assert_eq!(names, ["/a/1.jpg", "/a/linked/2.jpg", "/b/2.jpg"]);
        // The loop is met below `b` and below the link to it.
        assert_eq!(found.left_out.len(), 4, "{:?}", found.left_out);
        assert!(found.unreadable.is_none());
        assert!(walk(&dir.path().join("none")).unreadable.is_some());
    }
}
