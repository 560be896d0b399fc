//! Finds the files below the given paths, and groups those that differ in a number only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::corpus::folder::{is_image, split_folder, text_of};
use crate::objects::{Store, StoreError, walk};
use crate::pipeline::PipelineError;

/// Extensions of files that may hold images or captions, without that of a compression.
const TABLES: [&str; 9] = ["tsv", "csv", "txt", "parquet", "jsonl", "ndjson", "json", "tar", "tgz"];
/// Words in a path that mark images which are not for training.
const TEST_WORDS: [&str; 4] = ["test", "val", "valid", "validation"];
/// Upper bound on the files that are looked at.
const MAX_FILES: usize = 500_000;
/// Upper bound on the depth of remote folders.
const MAX_DEPTH: usize = 12;

/// Files of one folder whose names differ in numbers only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// Pattern that matches the files.
    pub(super) pattern: String,
    /// Name of the first file that is not empty, or of the first one.
    pub(super) first: String,
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// True if the path says that it is for a test.
    pub(super) is_test: bool,
    /// Size of `first`.
    first_bytes: u64,
}

impl Group {
    /// Returns the number of files, as part of a sentence.
    pub(super) fn describe(&self) -> String {
        let size = bytesize::ByteSize(self.bytes);
        if self.files == 1 {
            format!("`{}`, {size}", self.first)
        } else {
            format!("`{}`, {} files, {size}", self.pattern, self.files)
        }
    }
}

/// Files below the given paths.
#[derive(Debug, Default)]
pub(super) struct Survey {
    groups: BTreeMap<String, Group>,
    /// Paths of pictures, with their sizes.
    pub(super) pictures: BTreeMap<String, u64>,
    /// Paths of `NAME.txt` files.
    texts: BTreeSet<String>,
    /// Other files, by extension.
    pub(super) others: BTreeMap<String, u64>,
    /// Files that are not used, with the reason.
    pub(super) left_out: Vec<String>,
    files: usize,
    /// Folder that holds all files.
    base: String,
}

/// Returns whether the words of a path say that its images are for a test.
fn is_test(path: &str) -> bool {
    path.split(|letter: char| !letter.is_alphanumeric()).any(|word| TEST_WORDS.contains(&word.to_lowercase().as_str()))
}

/// Returns the deepest folder of some files, with its final `/`; empty for the current one.
pub(super) fn common_folder<'a>(mut paths: impl Iterator<Item = &'a str>) -> String {
    let mut common = paths.next().map_or("", |path| split_folder(path).0);
    for path in paths {
        while !path.starts_with(common) {
            common = split_folder(common.trim_end_matches('/')).0;
        }
    }
    common.to_owned()
}

/// Returns the lower-case extension, without that of a compression.
fn extension(name: &str) -> String {
    let lower = name.to_lowercase();
    let plain = [".gz", ".zst"].iter().find_map(|packed| lower.strip_suffix(packed)).unwrap_or(&lower);
    plain.rsplit_once('.').map_or(
        String::new(),
        |(stem, extension)| {
            if stem.is_empty() { String::new() } else { extension.to_owned() }
        },
    )
}

/// Replaces the numbers of a name by `*`, and escapes what globs interpret.
fn template(name: &str) -> String {
    let (mut pattern, mut in_number) = (String::new(), false);
    for letter in name.chars() {
        if letter.is_ascii_digit() {
            if !in_number {
                pattern.push('*');
            }
        } else {
            pattern.push_str(&Store::escape(&letter.to_string()));
        }
        in_number = letter.is_ascii_digit();
    }
    pattern
}

impl Survey {
    /// Looks at a path.
    ///
    /// # Errors
    /// When it does not exist or cannot be read.
    pub(super) async fn add(&mut self, store: &Store, path: &str) -> Result<(), PipelineError> {
        if let Some(name) = path.strip_prefix("hf:").filter(|name| !name.starts_with("//")) {
            return Box::pin(self.add_remote(store, &format!("hf://datasets/{name}"))).await;
        }
        let is_pattern = path.starts_with('@') || path.contains(['*', '{']);
        if Store::is_remote(path) && !path.starts_with("http") && !is_pattern {
            return Box::pin(self.add_remote(store, path)).await;
        }
        let local = Path::new(path.strip_prefix("file://").unwrap_or(path));
        if !Store::is_remote(path) && local.is_dir() {
            self.add_directory(local);
            return Ok(());
        }
        let exists = !Store::is_remote(path) && local.exists();
        if !exists && !is_pattern && !Store::is_remote(path) {
            let hint = if path.split('/').count() == 2 && !path.starts_with(['.', '/']) {
                format!("; for a data set of the Hugging Face hub write `hf://datasets/{path}`")
            } else {
                String::new()
            };
            return Err(PipelineError::Input(format!("`{path}` does not exist{hint}")));
        }
        let pattern = if exists { Store::escape(path) } else { path.to_owned() };
        let objects = Box::pin(store.list(std::slice::from_ref(&pattern))).await?;
        let pictures = objects.iter().all(|object| is_image(&object.url));
        for object in objects {
            if pictures {
                self.add_file(&object.url, object.size);
            } else {
                self.add_to_group(&pattern, &object.url, object.size);
            }
        }
        Ok(())
    }

    /// Looks at a local directory.
    fn add_directory(&mut self, folder: &Path) {
        let found = walk(folder);
        for (path, bytes) in found.files {
            self.add_file(path.strip_prefix("./").unwrap_or(&path), bytes);
        }
        let left_out = found.left_out.into_iter().map(|(path, reason)| format!("`{}`: {reason}", path.display()));
        self.left_out.extend(left_out);
    }

    /// Looks at a file or the folders of a remote store.
    async fn add_remote(&mut self, store: &Store, url: &str) -> Result<(), PipelineError> {
        let url = url.trim_end_matches('/');
        let mut folders = vec![(url.to_owned(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            let listed = match Box::pin(store.browse(&folder)).await {
                Ok(listed) if depth > 0 || !(listed.files.is_empty() && listed.folders.is_empty()) => listed,
                Err(error) if !matches!(error, StoreError::NotFound { .. }) => return Err(error.into()),
                // It may be a file.
                _ => {
                    let object = Box::pin(store.find(&folder)).await?;
                    self.add_file(&object.url, object.size);
                    continue;
                }
            };
            for (file, bytes) in listed.files {
                if !split_folder(&file).1.starts_with('.') {
                    self.add_file(&file, bytes);
                }
            }
            if depth < MAX_DEPTH && self.files < MAX_FILES {
                folders.extend(listed.folders.into_iter().rev().map(|folder| (folder, depth + 1)));
            }
        }
        Ok(())
    }

    fn add_file(&mut self, path: &str, bytes: u64) {
        self.files += 1;
        if self.files > MAX_FILES {
            if self.files == MAX_FILES + 1 {
                self.left_out.push(format!("files after the first {MAX_FILES} were not looked at"));
            }
            return;
        }
        let extension = extension(path);
        if is_image(path) {
            self.pictures.insert(path.to_owned(), bytes);
        } else if extension == "txt" {
            self.texts.insert(path.to_owned());
            self.group_by_name(path, bytes);
        } else if TABLES.contains(&extension.as_str()) {
            self.group_by_name(path, bytes);
        } else {
            *self.others.entry(extension).or_default() += 1;
        }
    }

    fn group_by_name(&mut self, path: &str, bytes: u64) {
        let (folder, name) = split_folder(path);
        self.add_to_group(&format!("{}{}", Store::escape(folder), template(name)), path, bytes);
    }

    fn add_to_group(&mut self, pattern: &str, path: &str, bytes: u64) {
        let new = || Group {
            pattern: pattern.to_owned(),
            first: path.to_owned(),
            files: 0,
            bytes: 0,
            is_test: false,
            first_bytes: bytes,
        };
        let group = self.groups.entry(pattern.to_owned()).or_insert_with(new);
        if group.first_bytes == 0 && bytes > 0 {
            (group.first, group.first_bytes) = (path.to_owned(), bytes);
        }
        group.files += 1;
        group.bytes += bytes;
    }

    /// Ends the survey: returns the groups, without the texts beside pictures. A group of one file is named by it.
    pub(super) fn take_groups(&mut self) -> Vec<Group> {
        let firsts = self.groups.values().map(|group| group.first.as_str());
        self.base = common_folder(firsts.chain(self.pictures.keys().map(String::as_str)));
        let beside: BTreeSet<String> = self.pictures.keys().map(|picture| text_of(picture)).collect();
        let is_beside = |group: &Group| beside.contains(&group.first);
        let groups = std::mem::take(&mut self.groups).into_values().filter(|group| !is_beside(group));
        let groups = groups.map(|group| match group.files {
            1 if !group.pattern.starts_with('@') && !group.first.starts_with("http") => {
                Group { pattern: Store::escape(&group.first), ..group }
            }
            _ => group,
        });
        let groups = groups.collect::<Vec<_>>().into_iter();
        groups.map(|group| Group { is_test: self.is_test(&group.first), ..group }).collect()
    }

    /// Returns whether the words of a path below the common folder say that its images are for a test.
    pub(super) fn is_test(&self, path: &str) -> bool {
        is_test(path.strip_prefix(&self.base).unwrap_or_default())
    }

    /// Returns the number of pictures with a text beside them.
    pub(super) fn count_texts(&self) -> usize {
        self.pictures.keys().filter(|picture| self.texts.contains(&text_of(picture))).count()
    }

    /// Returns the texts beside the first pictures.
    pub(super) fn texts_beside(&self, limit: usize) -> Vec<String> {
        let texts = self.pictures.keys().map(|picture| text_of(picture));
        texts.filter(|text| self.texts.contains(text)).take(limit).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_differ_in_numbers_are_one_group() {
        let mut survey = Survey::default();
        for name in
            ["d/train-00000-of-00002.tsv", "d/train-00001-of-00002.tsv", "d/test.tsv", "d/a[1].csv", "x.JPG", "x.txt"]
        {
            survey.add_file(name, 10);
        }
        let patterns: Vec<String> = survey.take_groups().into_iter().map(|group| group.pattern).collect();
        assert_eq!(patterns, ["d/a[[]1].csv", "d/test.tsv", "d/train-*-of-*.tsv"]);
        assert_eq!((survey.pictures.len(), survey.count_texts()), (1, 1));
    }

    #[test]
    fn extension_is_that_of_the_content() {
        for (name, expected) in
            [("a.TSV.gz", "tsv"), ("a.jsonl.zst", "jsonl"), (".tsv", ""), ("a", ""), ("a.b.tar", "tar")]
        {
            assert_eq!(extension(name), expected);
        }
    }

    #[test]
    fn folder_is_the_deepest_common_one() {
        let common = |paths: &[&str]| common_folder(paths.iter().copied());
        assert_eq!(common(&["a/b/x.jpg", "a/b/y.jpg"]), "a/b/");
        assert_eq!(common(&["a/b/x.jpg", "a/bc/y.jpg"]), "a/");
        assert_eq!(common(&["a/x.jpg", "b/y.jpg"]), "");
        assert_eq!(common(&["/a/x.jpg", "/y.jpg"]), "/");
        assert_eq!(common(&[]), "");
    }

    #[test]
    fn test_words_are_whole_words() {
        assert!(is_test("data/image_data_test/part-*.csv") && is_test("photos/val/"));
        assert!(!is_test("data/contest/part.csv") && !is_test("latest"));
    }
}
