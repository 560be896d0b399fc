//! Files of a complete catalog in the run directory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Catalog;
use super::build::BuiltCatalog;
use crate::catalog::{ClassSource, Classes, Groups, JoinIndex, Languages, RowTally, Texts};
use crate::chunk::{Checksum, ChunkError, tables, verify};
use crate::config::CaptionsConfig;
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::report::CatalogReport;
use crate::run_dir::{Directory, LocalCopy};

/// Journal entry of the catalog.
const ENTRY: &str = "journal/catalog.json";
const CLASSES: &str = "catalog/classes.parquet";
const LABELS: &str = "catalog/labels.parquet";

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    generation: String,
    rows: u64,
    labelled_rows: u64,
    report: CatalogReport,
    /// Members of each group of several classes; absent in entries of older versions.
    #[serde(default)]
    groups: Option<Vec<Vec<u32>>>,
    #[serde(default)]
    checksums: BTreeMap<String, Checksum>,
}

impl Entry {
    /// Reads the journal entry; `None` if it is absent or not complete.
    fn read(directory: &Directory) -> Result<Option<Self>, PipelineError> {
        Ok(directory.read(ENTRY)?.and_then(|content| serde_json::from_slice(&content).ok()))
    }

    /// Reads the journal entry of a complete catalog.
    ///
    /// # Errors
    /// When the directory has none.
    fn require(directory: &Directory) -> Result<Self, PipelineError> {
        Self::read(directory)?.ok_or_else(|| {
            PipelineError::Input(format!(
                "`{}` has no complete catalog of captions: run its training pipeline first",
                directory.display("")
            ))
        })
    }

    /// Returns the groups of the classes. Those of an entry of an older version are found by the captions.
    fn groups(&self, directory: &Directory, captions: &CaptionsConfig) -> Result<Groups, PipelineError> {
        let classes = self.report.classes as usize;
        if let Some(members) = &self.groups {
            return Groups::from_members(classes, members).ok_or_else(|| {
                let name = directory.display(ENTRY);
                PipelineError::Input(format!(
                    "`{name}` is damaged: remove the file, so that the catalog is built again"
                ))
            });
        }
        if captions.classes == ClassSource::Train {
            return Ok(Groups::from_members(classes, &[]).unwrap_or_default());
        }
        let mut list = Classes::new(captions.classes, captions.match_rule);
        let mut failed = None;
        tables::read_classes(&self.fetch(directory, CLASSES)?, |row| {
            failed = list.add(row.caption).err().or(failed.take());
        })?;
        failed.map_or_else(|| Ok(list.groups()), |error| Err(error.into()))
    }

    /// Fetches a file of the catalog and verifies its checksum.
    fn fetch(&self, directory: &Directory, name: &str) -> Result<LocalCopy, PipelineError> {
        let copy = directory.fetch(name)?;
        verify(&copy, &directory.display(name), self.checksums.get(name).copied())?;
        Ok(copy)
    }
}

/// Returns whether the run directory has a complete catalog of this generation.
///
/// # Errors
/// When the directory cannot be read.
pub(crate) fn is_complete(directory: &Directory, generation: &str) -> Result<bool, PipelineError> {
    if Entry::read(directory)?.is_none_or(|entry| entry.generation != generation) {
        return Ok(false);
    }
    // A user may have removed a damaged file so that the catalog is built again.
    let present = directory.list("catalog")?;
    Ok([CLASSES, LABELS].iter().all(|name| present.iter().any(|file| name.ends_with(file.as_str()))))
}

/// Loads the catalog of a run directory; `None` if it is absent or of another generation.
///
/// # Errors
/// When an expected file is damaged or cannot be read.
pub(super) fn load(
    directory: &Directory,
    captions: &CaptionsConfig,
    generation: &str,
) -> Result<Option<Catalog>, PipelineError> {
    let (true, Some(entry)) = (is_complete(directory, generation)?, Entry::read(directory)?) else { return Ok(None) };
    let groups = entry.groups(directory, captions)?;
    let entries = tables::read_labels(&entry.fetch(directory, LABELS)?)?;
    let tally = RowTally { rows: entry.rows, labelled_rows: entry.labelled_rows };
    let index = Arc::new(JoinIndex::from_sorted_entries(entries, groups, tally)?);
    Ok(Some(Catalog { classes: entry.report.classes as usize, index, report: entry.report }))
}

/// Returns the number of classes of a complete catalog.
///
/// # Errors
/// When the directory has no complete catalog.
pub(crate) fn count_classes(directory: &Directory) -> Result<usize, PipelineError> {
    Ok(Entry::require(directory)?.report.classes as usize)
}

/// The table of the classes of a complete catalog. Its columns are read when they are needed.
#[derive(Clone)]
pub(crate) struct StoredClasses {
    directory: Directory,
    /// Number of classes.
    pub(crate) count: usize,
    checksum: Option<Checksum>,
}

impl StoredClasses {
    /// Opens the table of a run directory. Nothing of it is read.
    ///
    /// # Errors
    /// When the directory has no complete catalog.
    pub(crate) fn open(directory: &Directory) -> Result<Self, PipelineError> {
        let entry = Entry::require(directory)?;
        let (count, checksum) = (entry.report.classes as usize, entry.checksums.get(CLASSES).copied());
        Ok(Self { directory: directory.clone(), count, checksum })
    }

    /// Returns a name of the table's content, equal for equal classes; `None` if an older version wrote the table.
    pub(crate) fn identity(&self) -> Option<String> {
        self.checksum.map(|sum| format!("{} classes {sum}", self.count))
    }

    /// Fetches the table and verifies its checksum.
    fn fetch(&self) -> Result<LocalCopy, PipelineError> {
        let copy = self.directory.fetch(CLASSES)?;
        verify(&copy, &self.directory.display(CLASSES), self.checksum)?;
        Ok(copy)
    }

    /// Reads the captions. Blocks the thread.
    ///
    /// # Errors
    /// When the table is damaged or cannot be read.
    pub(crate) fn read_texts(&self) -> Result<Texts, PipelineError> {
        Ok(read_table(&self.fetch()?, |_| ())?)
    }

    /// Reads the language of each class. Blocks the thread.
    ///
    /// # Errors
    /// As [`Self::read_texts`].
    pub(crate) fn read_languages(&self) -> Result<Languages, PipelineError> {
        let (mut languages, mut class) = (Languages::default(), 0);
        tables::read_class_languages(&self.fetch()?, |language| {
            languages.set(class, language);
            class += 1;
        })?;
        Ok(languages)
    }

    /// Reads the number of images of each class. Blocks the thread.
    ///
    /// # Errors
    /// As [`Self::read_texts`].
    pub(crate) fn read_images(&self) -> Result<Vec<u32>, PipelineError> {
        Ok(tables::read_class_images(&self.fetch()?)?)
    }

    /// Returns the class of each of these captions that is a class. Blocks the thread.
    ///
    /// # Errors
    /// As [`Self::read_texts`].
    pub(crate) fn find_all<'t>(&self, captions: &HashSet<&'t str>) -> Result<HashMap<&'t str, u32>, PipelineError> {
        let (mut found, mut class) = (HashMap::new(), 0);
        tables::read_classes(&self.fetch()?, |row| {
            if let Some(caption) = captions.get(row.caption) {
                found.entry(*caption).or_insert(class);
            }
            class += 1;
        })?;
        Ok(found)
    }

    /// Passes each class to `visit`, in order. Blocks the thread.
    ///
    /// # Errors
    /// As [`Self::read_texts`].
    pub(crate) fn visit(&self, visit: impl FnMut(tables::ClassRow<'_>)) -> Result<(), PipelineError> {
        Ok(tables::read_classes(&self.fetch()?, visit)?)
    }

    /// Reads the captions of some classes, by ascending class. Blocks the thread.
    ///
    /// # Errors
    /// As [`Self::read_texts`].
    pub(crate) fn read_some_texts(&self, classes: &[u32]) -> Result<Vec<Box<str>>, PipelineError> {
        let (mut class, mut wanted, mut texts) = (0, classes.iter().peekable(), Vec::with_capacity(classes.len()));
        tables::read_classes(&self.fetch()?, |row| {
            while wanted.next_if_eq(&&class).is_some() {
                texts.push(row.caption.into());
            }
            class += 1;
        })?;
        Ok(texts)
    }
}

/// Reads the captions of a class table, and passes each row to `visit`.
fn read_table(path: &LocalCopy, mut visit: impl FnMut(&tables::ClassRow<'_>)) -> Result<Texts, ChunkError> {
    let mut texts = Texts::default();
    tables::read_classes(path, |row| {
        // A table has at most as many rows as `u32` can number: `save` wrote it from such texts.
        texts.push(row.caption);
        visit(&row);
    })?;
    texts.shrink();
    Ok(texts)
}

/// Classes of a complete catalog, for a text head.
#[derive(Default)]
pub(crate) struct RunCatalog {
    /// Captions that are classes.
    pub(crate) texts: Arc<Texts>,
    /// Language of each class.
    pub(crate) languages: Languages,
    /// Image URLs of each class.
    pub(crate) images: Vec<u32>,
}

impl RunCatalog {
    /// Reads the classes of a run directory.
    ///
    /// # Errors
    /// As [`StoredClasses::open`] and [`StoredClasses::read_texts`].
    pub(crate) fn load(directory: &Directory) -> Result<Self, PipelineError> {
        let (mut languages, mut images) = (Languages::default(), Vec::new());
        let texts = read_table(&StoredClasses::open(directory)?.fetch()?, |row| {
            languages.set(images.len(), row.language);
            images.push(row.images);
        })?;
        Ok(Self { texts: Arc::new(texts), languages, images })
    }
}

/// Writes the files of the catalog, then its journal entry. Returns what stays in memory.
///
/// # Errors
/// When the run directory cannot be written.
pub(super) fn save(directory: &Directory, built: BuiltCatalog, generation: &str) -> Result<Catalog, PipelineError> {
    let BuiltCatalog { texts, languages, index, report } = built;
    directory.remove(ENTRY)?;
    let path = directory.temporary(CLASSES)?;
    let language = |class| languages.language(class);
    let classes_sum = tables::write_classes(&path, texts.iter(), &index.frequencies(), language)?;
    let classes = texts.len();
    drop((texts, languages));
    directory.publish(CLASSES)?;
    let labels_sum = tables::write_labels(&directory.temporary(LABELS)?, index.entries())?;
    directory.publish(LABELS)?;
    let entry = Entry {
        generation: generation.to_owned(),
        rows: index.tally().rows,
        labelled_rows: index.tally().labelled_rows,
        report,
        groups: Some(index.groups().all_members()),
        checksums: [(CLASSES.to_owned(), classes_sum), (LABELS.to_owned(), labels_sum)].into(),
    };
    let content = serde_json::to_vec_pretty(&entry).map_err(|error| PipelineError::Internal(error.to_string()))?;
    directory.create_new(ENTRY, &content)?;
    Ok(Catalog { classes, index: Arc::new(index), report: entry.report })
}
