//! Files of a complete catalog in the run directory.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Catalog;
use crate::catalog::{CatalogError, ClassSource, Classes, JoinIndex, Languages, Match, RowTally};
use crate::chunk::{Checksum, tables, verify};
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
    #[serde(default)]
    checksums: BTreeMap<String, Checksum>,
}

impl Entry {
    /// Reads the journal entry; `None` if it is absent or not complete.
    fn read(directory: &Directory) -> Result<Option<Self>, PipelineError> {
        Ok(directory.read(ENTRY)?.and_then(|content| serde_json::from_slice(&content).ok()))
    }

    /// Fetches a file of the catalog and verifies its checksum.
    fn fetch(&self, directory: &Directory, name: &str) -> Result<LocalCopy, PipelineError> {
        let copy = directory.fetch(name)?;
        verify(&copy, &directory.display(name), self.checksums.get(name).copied())?;
        Ok(copy)
    }
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
    let Some(entry) = Entry::read(directory)?.filter(|entry| entry.generation == generation) else { return Ok(None) };
    // A user may have removed a damaged file so that the catalog is built again.
    let present = directory.list("catalog")?;
    if [CLASSES, LABELS].iter().any(|name| !present.iter().any(|file| name.ends_with(file.as_str()))) {
        return Ok(None);
    }
    let mut builder = ClassTable::new(Classes::new(captions.classes, captions.match_rule));
    tables::read_classes(&entry.fetch(directory, CLASSES)?, |row| builder.add_row(&row))?;
    let (classes, languages, _) = builder.finish()?;
    let entries = tables::read_labels(&entry.fetch(directory, LABELS)?)?;
    let tally = RowTally { rows: entry.rows, labelled_rows: entry.labelled_rows };
    let index = JoinIndex::from_sorted_entries(entries, classes.groups(), tally)?;
    let (index, languages) = (Arc::new(index), Arc::new(languages));
    Ok(Some(Catalog { classes: Arc::new(classes), index, languages, report: entry.report }))
}

/// Rows of the class table, collected by the reader.
struct ClassTable {
    classes: Classes,
    languages: Languages,
    /// Image URLs of each class.
    images: Vec<u32>,
    /// First error. It is kept here because the reader cannot be stopped.
    error: Option<CatalogError>,
}

impl ClassTable {
    fn new(classes: Classes) -> Self {
        Self { classes, languages: Languages::default(), images: Vec::new(), error: None }
    }

    fn add_row(&mut self, row: &tables::ClassRow<'_>) {
        self.languages.set(self.images.len(), row.language);
        self.images.push(row.images);
        if let Err(error) = self.classes.add(row.caption) {
            self.error.get_or_insert(error);
        }
    }

    fn finish(self) -> Result<(Classes, Languages, Vec<u32>), PipelineError> {
        match self.error {
            Some(error) => Err(error.into()),
            None => Ok((self.classes, self.languages, self.images)),
        }
    }
}

/// Classes of a complete catalog, for a text head.
pub(crate) struct RunCatalog {
    /// Captions that are classes.
    pub(crate) classes: Arc<Classes>,
    /// Language of each class.
    pub(crate) languages: Languages,
    /// Image URLs of each class.
    pub(crate) images: Vec<u32>,
}

impl Default for RunCatalog {
    fn default() -> Self {
        let classes = Arc::new(Classes::new(ClassSource::List, Match::Exact));
        Self { classes, languages: Languages::default(), images: Vec::new() }
    }
}

impl RunCatalog {
    /// Loads the classes from a run directory.
    ///
    /// # Errors
    /// When the directory has no complete catalog.
    pub(crate) fn load(directory: &Directory) -> Result<Self, PipelineError> {
        let mut table = ClassTable::new(Classes::new(ClassSource::List, Match::Exact));
        for_each_class(directory, |row| table.add_row(&row))?;
        let (mut classes, languages, images) = table.finish()?;
        classes.shrink();
        Ok(Self { classes: Arc::new(classes), languages, images })
    }
}

/// A caption that is a class.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Caption {
    /// The caption.
    pub(crate) text: Box<str>,
    /// Number of image URLs with this caption.
    pub(crate) images: u32,
}

/// Loads the captions that are classes from a run directory.
///
/// # Errors
/// When the directory has no complete catalog.
pub(crate) fn load_captions(directory: &Directory) -> Result<Vec<Caption>, PipelineError> {
    let mut captions = Vec::new();
    for_each_class(directory, |row| captions.push(Caption { text: row.caption.into(), images: row.images }))?;
    Ok(captions)
}

fn for_each_class(directory: &Directory, process: impl FnMut(tables::ClassRow<'_>)) -> Result<(), PipelineError> {
    let Some(entry) = Entry::read(directory)? else {
        return Err(PipelineError::Input(format!(
            "`{}` has no complete catalog of captions: run its training pipeline first",
            directory.display("")
        )));
    };
    Ok(tables::read_classes(&entry.fetch(directory, CLASSES)?, process)?)
}

/// Writes the files of the catalog, then its journal entry.
///
/// # Errors
/// When the run directory cannot be written.
pub(super) fn save(directory: &Directory, catalog: &Catalog, generation: &str) -> Result<(), PipelineError> {
    directory.remove(ENTRY)?;
    let path = directory.temporary(CLASSES)?;
    let language = |class| catalog.languages.language(class);
    let classes = tables::write_classes(&path, catalog.classes.texts(), &catalog.index.frequencies(), language)?;
    directory.publish(CLASSES)?;
    let labels = tables::write_labels(&directory.temporary(LABELS)?, catalog.index.entries())?;
    directory.publish(LABELS)?;
    let entry = Entry {
        generation: generation.to_owned(),
        rows: catalog.index.tally().rows,
        labelled_rows: catalog.index.tally().labelled_rows,
        report: catalog.report.clone(),
        checksums: [(CLASSES.to_owned(), classes), (LABELS.to_owned(), labels)].into(),
    };
    let content = serde_json::to_vec_pretty(&entry).map_err(|error| PipelineError::Internal(error.to_string()))?;
    directory.create_new(ENTRY, &content)?;
    Ok(())
}
