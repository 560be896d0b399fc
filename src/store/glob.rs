//! Names and globs → objects, one path component at a time, so that only directories that can match are listed.

use globset::GlobBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _};

use super::{StoreError, explain};

const WILD: [char; 4] = ['*', '?', '[', '{'];

/// A local name, relative or absolute or `file://`, as the store's own absolute path.
pub(super) fn location(name: &str) -> Result<Path, StoreError> {
    let bad = |reason: String| StoreError::BadPattern { pattern: name.to_owned(), reason };
    let plain = name.strip_prefix("file://").unwrap_or(name);
    let absolute = std::path::absolute(plain).map_err(|error| bad(error.to_string()))?;
    let climbs = absolute.components().any(|part| part == std::path::Component::ParentDir);
    // Only the file system knows where `..` leads from behind a link.
    let absolute =
        if climbs { absolute.canonicalize().map_err(|error| StoreError::io(name, "found", error))? } else { absolute };
    Path::from_absolute_path(absolute).map_err(|error| bad(error.to_string()))
}

/// The name that a person recognises: what the pattern starts with, completed by what was found.
pub(super) fn display(pattern: &str, location: &Path) -> String {
    let full = local(location);
    let plain = pattern.strip_prefix("file://").unwrap_or(pattern);
    if plain.starts_with('/') {
        return full;
    }
    let here = std::env::current_dir().map(|dir| dir.display().to_string()).unwrap_or_default();
    full.strip_prefix(&here).map_or_else(|| full.clone(), |rest| rest.trim_start_matches('/').to_owned())
}

fn local(location: &Path) -> String {
    LocalFileSystem::new()
        .path_to_filesystem(location)
        .map_or_else(|_| location.to_string(), |path| path.display().to_string())
}

/// A directory where a file is expected deserves a better answer than that it is not there.
pub(super) fn refuse_directory(pattern: &str, plain: &str) -> Result<(), StoreError> {
    if std::path::Path::new(plain).is_dir() {
        let reason = "it is a directory; name its files, for example with `/*`".to_owned();
        return Err(StoreError::BadPattern { pattern: pattern.to_owned(), reason });
    }
    Ok(())
}

/// The objects that a pattern matches, in no particular order.
pub(super) async fn expand(store: &dyn ObjectStore, pattern: &str) -> Result<Vec<ObjectMeta>, StoreError> {
    let plain = pattern.strip_prefix("file://").unwrap_or(pattern);
    if !plain.contains(WILD) {
        refuse_directory(pattern, plain)?;
        let meta = store.head(&location(plain)?).await.map_err(|error| explain(pattern, error))?;
        return Ok(vec![meta]);
    }
    let bad = |reason: String| StoreError::BadPattern { pattern: pattern.to_owned(), reason };
    let components: Vec<&str> = plain.split('/').collect();
    let first_wild = components.iter().position(|part| part.contains(WILD)).unwrap_or(0);
    let base = match components[..first_wild].join("/") {
        empty if empty.is_empty() && plain.starts_with('/') => "/".to_owned(),
        empty if empty.is_empty() => ".".to_owned(),
        base => base,
    };
    let mut directories = vec![location(&base)?];
    let mut found = Vec::new();
    for (depth, part) in components.iter().enumerate().skip(first_wild) {
        if part.contains("**") {
            return Err(bad("`**` is not supported; name each level".to_owned()));
        }
        let glob = GlobBuilder::new(part).literal_separator(true).build().map_err(|error| bad(error.to_string()))?;
        let matcher = glob.compile_matcher();
        let last = depth + 1 == components.len();
        let mut next = Vec::new();
        for directory in &directories {
            let listing = match store.list_with_delimiter(Some(directory)).await {
                Ok(listing) => listing,
                Err(object_store::Error::NotFound { .. }) => continue,
                Err(error) => return Err(explain(pattern, error)),
            };
            let matches =
                |path: &Path| std::path::Path::new(&local(path)).file_name().is_some_and(|name| matcher.is_match(name));
            if last {
                found.extend(listing.objects.into_iter().filter(|meta| matches(&meta.location)));
            } else {
                next.extend(listing.common_prefixes.into_iter().filter(matches));
            }
        }
        directories = next;
    }
    Ok(found)
}
