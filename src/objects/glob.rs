//! Expands names and globs to objects one path component at a time, so that only directories that can match are listed.

use globset::GlobBuilder;
use object_store::ObjectMeta;
use object_store::local::LocalFileSystem;
use object_store::path::Path;

use super::client::{Client, Clients, redact, remote_scheme};
use super::read::read_meta;
use super::{StoreError, listing};

/// Characters that make a name a glob.
const WILD: [char; 4] = ['*', '?', '[', '{'];

/// Converts a local name (relative, absolute or `file://`) to an absolute location.
pub(super) fn local_location(name: &str) -> Result<Path, StoreError> {
    let bad = |reason: String| StoreError::BadPattern { pattern: name.to_owned(), reason };
    let absolute = std::path::absolute(name).map_err(|error| bad(error.to_string()))?;
    let climbs = absolute.components().any(|part| part == std::path::Component::ParentDir);
    // Behind a symbolic link, only the file system knows the parent of `..`.
    let absolute =
        if climbs { absolute.canonicalize().map_err(|error| StoreError::io(name, "found", error))? } else { absolute };
    Path::from_absolute_path(absolute).map_err(|error| bad(error.to_string()))
}

/// Converts the key of a remote object to a location. Web URLs are percent-encoded, keys of buckets are not.
pub(super) fn remote_location(client: &Client, key: &str) -> Result<Path, StoreError> {
    let parsed = if client.root.starts_with("http") { Path::from_url_path(key) } else { Path::parse(key) };
    parsed.map_err(|error| StoreError::BadUrl { url: format!("{}/{key}", client.root), reason: error.to_string() })
}

pub(super) fn strip_file_scheme(name: &str) -> &str {
    name.strip_prefix("file://").unwrap_or(name)
}

/// Returns a pattern that matches a name and nothing else.
pub(super) fn escape(name: &str) -> String {
    name.chars().fold(String::with_capacity(name.len()), |mut pattern, letter| {
        if WILD.contains(&letter) || letter == '}' {
            pattern.extend(['[', letter, ']']);
        } else {
            pattern.push(letter);
        }
        pattern
    })
}

/// Returns the client and the location of an exact name.
pub(super) fn locate(clients: &Clients, name: &str) -> Result<(Client, Path), StoreError> {
    if remote_scheme(name).is_some() {
        let (client, key) = clients.client_for(name)?;
        let location = remote_location(&client, key)?;
        if location.as_ref().is_empty() {
            let reason = "it names no object".to_owned();
            return Err(StoreError::BadUrl { url: redact(name).to_owned(), reason });
        }
        return Ok((client, location));
    }
    refuse_directory(name, strip_file_scheme(name))?;
    Ok((clients.local(), local_location(strip_file_scheme(name))?))
}

/// Returns the client and the location of a remote folder, which may be the root of its bucket.
pub(super) fn locate_folder(clients: &Clients, name: &str) -> Result<(Client, Path), StoreError> {
    let (client, key) = clients.client_for(name)?;
    let location = remote_location(&client, key)?;
    Ok((client, location))
}

/// Returns the path of an object below the folder `name`.
pub(super) fn below(client: &Client, name: &str, location: &Path) -> Result<String, StoreError> {
    let outside =
        || StoreError::BadUrl { url: redact(name).to_owned(), reason: format!("it does not hold `{location}`") };
    if client.is_local() {
        let root =
            std::path::absolute(strip_file_scheme(name)).map_err(|error| StoreError::io(name, "found", error))?;
        let root = if root.components().any(|part| part == std::path::Component::ParentDir) {
            root.canonicalize().map_err(|error| StoreError::io(name, "found", error))?
        } else {
            root
        };
        let path = std::path::PathBuf::from(local_path(location));
        return path.strip_prefix(root).map(|path| path.display().to_string()).map_err(|_| outside());
    }
    let url = client.url(location);
    let root = format!("{}/", redact(name).trim_end_matches('/'));
    if let Some(below) = url.strip_prefix(&root) {
        return Ok(below.to_owned());
    }
    // Schemes have several spellings, such as `s3a`.
    let key = root.splitn(4, '/').nth(3).unwrap_or_default();
    location.as_ref().strip_prefix(key).map(ToOwned::to_owned).ok_or_else(outside)
}

/// Returns the display name of an object: in the form of the pattern that matched it.
pub(super) fn display(client: &Client, pattern: &str, location: &Path) -> String {
    if !client.is_local() {
        return client.url(location);
    }
    let full = local_path(location);
    if strip_file_scheme(pattern).starts_with('/') {
        return full;
    }
    let here = std::env::current_dir().map(|dir| dir.display().to_string()).unwrap_or_default();
    full.strip_prefix(&here).map_or_else(|| full.clone(), |rest| rest.trim_start_matches('/').to_owned())
}

pub(super) fn local_path(location: &Path) -> String {
    LocalFileSystem::new()
        .path_to_filesystem(location)
        .map_or_else(|_| location.to_string(), |path| path.display().to_string())
}

/// Returns the last component of a location without `object_store`'s encoding.
fn file_name(client: &Client, location: &Path) -> Option<String> {
    if !client.is_local() {
        return location.filename().map(ToOwned::to_owned);
    }
    std::path::Path::new(&local_path(location)).file_name().map(|name| name.to_string_lossy().into_owned())
}

/// Refuses a directory where a file is expected, with a better message than "does not exist".
fn refuse_directory(pattern: &str, plain: &str) -> Result<(), StoreError> {
    if std::path::Path::new(plain).is_dir() {
        let reason = "it is a directory; name its files, for example with `/*`".to_owned();
        return Err(StoreError::BadPattern { pattern: pattern.to_owned(), reason });
    }
    Ok(())
}

/// Returns the objects that match a pattern, in no particular order.
pub(super) async fn expand(clients: &Clients, pattern: &str) -> Result<(Client, Vec<ObjectMeta>), StoreError> {
    let web = pattern.starts_with("http");
    // In a web URL a `?` starts the query.
    let wild = if web { redact(pattern).contains(['*', '[', '{']) } else { strip_file_scheme(pattern).contains(WILD) };
    let bad = |reason: String| StoreError::BadPattern { pattern: redact(pattern).to_owned(), reason };
    if !wild {
        let (client, location) = locate(clients, pattern)?;
        let meta = read_meta(&client, redact(pattern), &location).await?;
        return Ok((client, vec![meta]));
    }
    if web {
        return Err(bad(
            "a web server has no listing; name its files by a range such as `{00..99}`, or in a list: `@files.txt`"
                .to_owned(),
        ));
    }
    let (client, key) = match remote_scheme(pattern) {
        Some(_) => clients.client_for(pattern)?,
        None => (clients.local(), strip_file_scheme(pattern)),
    };
    let components: Vec<&str> = key.split('/').collect();
    let first_wild = components.iter().position(|part| part.contains(WILD)).unwrap_or(0);
    let base = match components[..first_wild].join("/") {
        empty if empty.is_empty() && client.is_local() => if key.starts_with('/') { "/" } else { "." }.to_owned(),
        base => base,
    };
    let base = if client.is_local() { local_location(&base)? } else { remote_location(&client, &base)? };
    let mut directories = vec![base];
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
            let listing = match listing::list_folder(&client, pattern, directory).await {
                Ok(listing) => listing,
                // An empty prefix matches nothing; a missing bucket is an error.
                Err(StoreError::NotFound { .. }) if client.is_local() => continue,
                Err(error) => return Err(error),
            };
            let matches = |path: &Path| file_name(&client, path).is_some_and(|name| matcher.is_match(name));
            if last {
                found.extend(listing.objects.into_iter().filter(|meta| matches(&meta.location)));
            } else {
                next.extend(listing.folders.into_iter().filter(matches));
            }
        }
        directories = next;
    }
    Ok((client, found))
}
