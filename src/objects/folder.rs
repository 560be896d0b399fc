//! Folders of files, each of which counts as one object.

use std::path::Path as FilePath;

use futures::TryStreamExt as _;
use futures::stream::{self, StreamExt as _};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt as _};

use super::client::{Client, Clients, redact, remote_scheme};
use super::local_files::walk;
use super::object::{Folder, Object};
use super::{StoreError, glob, listing, read};

/// Files of a folder whose content counts in its fingerprint, besides all names and sizes.
const FINGERPRINT_FILES: usize = 256;
/// Bytes at the start of these files that count.
const FINGERPRINT_BYTES: u64 = 16 << 10;
/// Files that are read at once.
const CONCURRENT_FILES: usize = 16;

/// Lists the files below each folder. Returns the folder's name in messages, and its files.
pub(super) async fn list(clients: &Clients, folders: &[String]) -> Result<Vec<(String, Vec<Object>)>, StoreError> {
    let mut listed = Vec::new();
    for folder in folders {
        let name = redact(folder).to_owned();
        let (client, metas) = list_below(clients, folder).await?;
        let mut files: Vec<Object> = Vec::with_capacity(metas.len());
        let root = format!("{}/", name.trim_end_matches('/'));
        for meta in metas {
            let url = glob::display(&client, folder, &meta.location);
            let below = glob::below(&client, folder, &meta.location)?;
            if below.split('/').any(|part| part.starts_with('.') || part == "__MACOSX") {
                continue;
            }
            let mut file = Object::new(url, &client, meta);
            file.name = below;
            files.push(file);
        }
        if files.is_empty() {
            return Err(StoreError::NoMatch { pattern: root });
        }
        files.sort_by(|one, other| one.name.cmp(&other.name));
        listed.push((root, files));
    }
    Ok(listed)
}

async fn list_below(clients: &Clients, folder: &str) -> Result<(Client, Vec<ObjectMeta>), StoreError> {
    if folder.starts_with("http") {
        let reason = "a web server has no listing; name each file".to_owned();
        return Err(StoreError::BadPattern { pattern: redact(folder).to_owned(), reason });
    }
    let name = folder.trim_end_matches('/');
    let (client, location) = match remote_scheme(name) {
        Some(_) => glob::locate_folder(clients, name)?,
        None => {
            (clients.local(), glob::local_location(glob::strip_file_scheme(if name.is_empty() { "/" } else { name }))?)
        }
    };
    let url = redact(folder);
    let metas = if client.is_local() {
        list_local(&client, folder, &location).await?
    } else if client.s3.is_some() {
        listing::list_below(&client, url, &location).await?
    } else {
        client.request(url, "listed", || client.inner.list(Some(&location)).try_collect::<Vec<_>>()).await?
    };
    Ok((client, metas))
}

/// Lists the files below a local directory. Those that cannot be used are left out with a warning.
async fn list_local(client: &Client, folder: &str, location: &Path) -> Result<Vec<ObjectMeta>, StoreError> {
    let root = glob::local_path(location);
    let found = tokio::task::spawn_blocking(move || walk(FilePath::new(&root))).await;
    let found = found.map_err(|error| StoreError::io(folder, "listed", std::io::Error::other(error)))?;
    if let Some((path, kind)) = found.unreadable {
        return Err(StoreError::io(path, "listed", kind.into()));
    }
    for (path, reason) in found.left_out {
        tracing::warn!(path = %path.display(), reason, "a file is left out");
    }
    let describe = |(path, _): (String, u64)| async move {
        let location = Path::from_absolute_path(&path)
            .map_err(|error| StoreError::io(&path, "listed", std::io::Error::other(error)))?;
        client.request(&path, "listed", || client.inner.head(&location)).await
    };
    stream::iter(found.files).map(describe).buffered(CONCURRENT_FILES).try_collect().await
}

/// Computes a fingerprint: the names and sizes of all files, and the first bytes of some of them, evenly chosen.
pub(super) async fn fingerprint(folder: &Folder) -> Result<String, StoreError> {
    let mut hasher = blake3::Hasher::new();
    for file in folder.files.iter().chain(&folder.others) {
        hasher.update(format!("{}\t{}\n", file.name, file.size).as_bytes());
    }
    let step = folder.files.len().div_ceil(FINGERPRINT_FILES).max(1);
    let chosen: Vec<Object> =
        folder.files.iter().step_by(step).chain(&folder.others).take(2 * FINGERPRINT_FILES).cloned().collect();
    let mut heads = stream::iter(chosen.into_iter().filter(|file| file.size > 0))
        .map(|file| async move { read::read_range(&file, 0..file.size.min(FINGERPRINT_BYTES)).await })
        .buffered(CONCURRENT_FILES);
    while let Some(head) = heads.try_next().await? {
        hasher.update(&head);
    }
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::objects::Store;

    #[tokio::test]
    async fn files_are_named_by_their_path_below_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b/2 ü.jpg", "a.jpg", ".hidden/x.jpg", "b/.x.jpg", "b/c/1.txt", "__MACOSX/a.jpg", "100%.png"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        let store = Store::default();
        let root = dir.path().to_str().unwrap();
        for name in [root.to_owned(), format!("{root}/"), format!("file://{root}/")] {
            assert!(Store::is_folder(&name));
            let listed = store.list_folders(&[name]).await.unwrap();
            let names: Vec<&str> = listed[0].1.iter().map(|file| file.name.as_str()).collect();
            assert_eq!(names, ["100%.png", "a.jpg", "b/2 ü.jpg", "b/c/1.txt"]);
            for file in &listed[0].1 {
                let content = read::read_range(file, 0..file.size).await.unwrap();
                assert_eq!(content, file.name.as_bytes());
            }
        }
        let empty = dir.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        let error = store.list_folders(&[empty.to_str().unwrap().to_owned()]).await.unwrap_err();
        assert!(matches!(error, StoreError::NoMatch { .. }), "{error}");
    }

    #[tokio::test]
    async fn fingerprint_depends_on_names_sizes_and_content() {
        let dir = tempfile::tempdir().unwrap();
        let fingerprint = async || {
            let (url, files) =
                Store::default().list_folders(&[dir.path().to_str().unwrap().to_owned()]).await.unwrap().remove(0);
            let folder = Folder { files, ..Folder::default() };
            let object = Object::from_folder(url, "f".to_owned(), folder).unwrap();
            assert!(Arc::strong_count(object.folder().unwrap()) == 1);
            Store::default().fingerprints(&[object]).await.unwrap().remove(0)
        };
        std::fs::write(dir.path().join("a.jpg"), "one").unwrap();
        let first = fingerprint().await;
        assert_eq!(fingerprint().await, first);
        std::fs::write(dir.path().join("a.jpg"), "two").unwrap();
        let second = fingerprint().await;
        std::fs::rename(dir.path().join("a.jpg"), dir.path().join("b.jpg")).unwrap();
        let third = fingerprint().await;
        assert!(first != second && second != third && first != third);
    }
}
