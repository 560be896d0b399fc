//! Whether and how much a process may write to a local disk.

use std::fs::{self, OpenOptions};
use std::path::Path;

/// Checks that this process may create files in a directory, or in the nearest existing parent if it is absent. Leaves
/// nothing behind.
///
/// # Errors
/// The reason why it cannot, as a clause.
pub fn check_writable(path: &Path) -> Result<(), String> {
    let absolute = std::path::absolute(path).map_err(|error| error.to_string())?;
    // The root always exists.
    let Some(existing) = absolute.ancestors().find(|path| path.exists()) else { return Ok(()) };
    let shown = existing.display();
    if !existing.is_dir() {
        return Err(format!("`{shown}` is a file"));
    }
    // A file without a name appears nowhere. Where the file system has none, a file with a name is created and removed.
    let unnamed = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
    if rustix::fs::open(existing, unnamed, rustix::fs::Mode::RUSR).is_ok() {
        return Ok(());
    }
    let probe = existing.join(format!(".wikicap-{}", uuid::Uuid::new_v4()));
    let created = OpenOptions::new().write(true).create_new(true).open(&probe);
    let refused = |error: std::io::Error| {
        let user = rustix::process::geteuid().as_raw();
        format!(
            "`{shown}` cannot be written to by this user (id {user}): {error}; change its owner, or mount a writable volume there"
        )
    };
    created.map_err(refused)?;
    fs::remove_file(&probe).map_err(refused)
}

/// Returns the bytes that this process may still write to the file system of a path, which need not exist; `None` if
/// the system does not say.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let absolute = std::path::absolute(path).ok()?;
    let existing = absolute.ancestors().find(|path| path.exists())?;
    let system = rustix::fs::statvfs(existing).ok()?;
    // Systems without blocks, such as `/proc`, have no size.
    (system.f_blocks > 0).then(|| system.f_bavail.saturating_mul(system.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_existing_parent_decides() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(check_writable(&dir.path().join("a/b")), Ok(()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(check_writable(&dir.path().join("file")).unwrap_err().contains("is a file"));
        assert!(check_writable(Path::new("/proc/none")).unwrap_err().contains("`/proc` cannot be written to"));
        assert!(free_bytes(&dir.path().join("a/b")).unwrap() > 0);
    }
}
