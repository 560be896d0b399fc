//! One input object, pinned to the version that was listed.

use std::sync::Arc;

use object_store::ObjectMeta;
use object_store::path::Path;

use super::client::Client;

/// An object in the version that was listed.
#[derive(Debug, Clone)]
pub struct Object {
    /// Path or URL, for messages.
    pub url: String,
    /// Name among the objects of the same listing. It does not depend on their location, so results do not either.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    pub(super) client: Client,
    pub(super) location: Path,
    pub(super) e_tag: Option<String>,
    /// Time of the last change, in seconds since the Unix epoch.
    modified: i64,
    /// Files of a folder that counts as one object.
    pub(super) folder: Option<Arc<Folder>>,
}

/// Files of a folder that counts as one object. Each is named by its path below the folder, behind the name of the folder where
/// several are listed.
#[derive(Debug, Clone, Default)]
pub struct Folder {
    /// Files that are read one by one, in the order of their names.
    pub files: Vec<Object>,
    /// Other files of interest, in the order of their names.
    pub others: Vec<Object>,
}

impl Object {
    pub(crate) fn new(url: String, client: &Client, meta: ObjectMeta) -> Self {
        Self {
            name: distinct_names([url.as_str()]).remove(0),
            url,
            size: meta.size,
            client: client.clone(),
            location: meta.location,
            e_tag: meta.e_tag.map(add_quotes),
            modified: meta.last_modified.timestamp(),
            folder: None,
        }
    }

    /// Makes one object of a folder with at least one file. Its size is that of the files that are read.
    pub fn from_folder(url: String, name: String, folder: Folder) -> Option<Self> {
        let size = folder.files.iter().map(|file| file.size).sum();
        let first = folder.files.first()?.clone();
        Some(Self { url, name, size, e_tag: None, folder: Some(Arc::new(folder)), ..first })
    }

    /// Returns the files of an object that stands for a folder.
    pub fn folder(&self) -> Option<&Arc<Folder>> {
        self.folder.as_ref()
    }

    /// Returns whether a response belongs to another version than the listed one.
    ///
    /// Versions are compared by `ETag` where both are known, else by size and time of the last change. A response with the
    /// same `ETag` and another size is a truncated one. Local files have their time in the `ETag`, so their size counts too.
    pub(super) fn differs_from(&self, meta: &ObjectMeta) -> bool {
        match (&self.e_tag, &meta.e_tag) {
            (Some(listed), Some(current)) if !self.client.is_local() => *listed != add_quotes(current.clone()),
            (Some(listed), Some(current)) if *listed != add_quotes(current.clone()) => true,
            _ if self.client.is_local() => self.size != meta.size,
            _ => self.size != meta.size || self.modified != meta.last_modified.timestamp(),
        }
    }
}

/// Returns an `ETag` as headers have it; Azure lists it without quotation marks.
fn add_quotes(tag: String) -> String {
    if tag.ends_with('"') { tag } else { format!("\"{tag}\"") }
}

/// Returns the part of each path or URL that follows the folder common to all of them.
pub(super) fn distinct_names<'a>(urls: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let urls: Vec<&str> = urls.into_iter().collect();
    let folder_bytes = |url: &str| url.rfind('/').map_or(0, |slash| slash + 1);
    let common = urls.iter().skip(1).fold(urls.first().map_or(0, |first| folder_bytes(first)), |common, url| {
        let same = urls[0].bytes().zip(url.bytes()).take_while(|(one, other)| one == other).count();
        // Ends behind a `/`, which is never part of a multi-byte character.
        urls[0].as_bytes()[..common.min(same)].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1)
    });
    urls.iter().map(|url| url[common..].to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_depend_on_the_location() {
        for root in ["/data/", "s3://bucket/some/where/", "https://host/", "data/", ""] {
            let names = |names: &[&str]| {
                let urls: Vec<String> = names.iter().map(|name| format!("{root}{name}")).collect();
                distinct_names(urls.iter().map(String::as_str))
            };
            assert_eq!(names(&["images/part-0.gz"]), ["part-0.gz"]);
            assert_eq!(names(&["images/part-00.gz", "images/part-01.gz"]), ["part-00.gz", "part-01.gz"]);
            assert_eq!(
                names(&["a/part-0.gz", "b/part-0.gz", "a/part-1.gz"]),
                ["a/part-0.gz", "b/part-0.gz", "a/part-1.gz"]
            );
            assert_eq!(names(&["äö/x.gz", "äü/x.gz"]), ["äö/x.gz", "äü/x.gz"]);
            assert_eq!(names(&["x/ab/1", "x/ab", "x/ab/2"]), ["ab/1", "ab", "ab/2"]);
            assert_eq!(names(&[]), Vec::<String>::new());
        }
    }
}
