//! Captions and pairs → classes and join index, kept in `catalog/` so that they are read once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::PipelineError;
use super::report::CatalogReport;
use super::stream::fill;
use crate::catalog::{
    ClassSource, Classes, HISTOGRAM_LABELS, JoinIndex, JoinIndexBuilder, Match, RowTally, UrlForms, url_hash,
};
use crate::chunk::tables;
use crate::config::raw::{RawCaptions, RawPairs};
use crate::config::value::{Classes as ClassesWord, MatchRule};
use crate::corpus::{CaptionList, PairCounts, PairProblem, PairRow, Pairs};
use crate::flow::{Meter, Stop};
use crate::store::{Directory, Object, Store};

/// Longest row of a pairs file or caption list that is read; context columns hold whole paragraphs.
const MAX_RECORD_BYTES: usize = 64 << 20;
/// Bytes handed to a parser at a time.
const FEED_BYTES: usize = 256 << 10;

/// The catalog's journal entry: it exists if and only if its files are complete.
const ENTRY: &str = "journal/catalog.json";
const CLASSES: &str = "catalog/classes.parquet";
const LABELS: &str = "catalog/labels.parquet";

/// Classes and labels of a run.
#[derive(Debug)]
pub(super) struct Catalog {
    pub(super) classes: Classes,
    pub(super) index: Arc<JoinIndex>,
    pub(super) report: CatalogReport,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    generation: String,
    rows: u64,
    labelled_rows: u64,
    report: CatalogReport,
}

fn rule(word: MatchRule) -> Match {
    match word {
        MatchRule::Trimmed => Match::Trimmed,
        MatchRule::Exact => Match::Exact,
        MatchRule::Casefold => Match::Casefold,
        MatchRule::Title => Match::Title,
    }
}

fn source(word: ClassesWord) -> ClassSource {
    match word {
        ClassesWord::List => ClassSource::List,
        ClassesWord::Train => ClassSource::Train,
    }
}

fn refused(error: impl std::fmt::Display) -> PipelineError {
    PipelineError::Input(error.to_string())
}

/// Reads the catalog of a run directory, if its entry is there and of this generation.
///
/// # Errors
/// When the entry is there and its files are not readable.
pub(super) fn load(
    directory: &Directory,
    captions: &RawCaptions,
    generation: &str,
) -> Result<Option<Catalog>, PipelineError> {
    let Some(content) = directory.read(ENTRY)? else { return Ok(None) };
    let Some(entry) = serde_json::from_slice::<Entry>(&content).ok().filter(|entry| entry.generation == generation)
    else {
        return Ok(None);
    };
    let mut classes = Classes::new(source(captions.classes), rule(captions.match_rule));
    let mut failed = None;
    tables::read_classes(&directory.fetch(CLASSES)?, |caption, _| {
        if let Err(error) = classes.add(caption) {
            failed.get_or_insert(error);
        }
    })?;
    if let Some(error) = failed {
        return Err(refused(error));
    }
    let entries = tables::read_labels(&directory.fetch(LABELS)?)?;
    let tally = RowTally { rows: entry.rows, labelled_rows: entry.labelled_rows };
    let index = JoinIndex::from_sorted_entries(entries, classes.groups(), tally).map_err(refused)?;
    Ok(Some(Catalog { classes, index: Arc::new(index), report: entry.report }))
}

/// The captions of the classes with their numbers of images, of a run directory whose catalog is complete.
///
/// # Errors
/// When the directory has no complete catalog.
#[cfg(feature = "model")]
pub(super) fn load_captions(directory: &Directory) -> Result<Vec<(Box<str>, u32)>, PipelineError> {
    if directory.read(ENTRY)?.is_none() {
        return Err(PipelineError::Input(format!(
            "`{}` has no complete catalog of captions: run its training pipeline first",
            directory.display("")
        )));
    }
    let mut captions = Vec::new();
    tables::read_classes(&directory.fetch(CLASSES)?, |caption, images| captions.push((caption.into(), images)))?;
    Ok(captions)
}

/// Builds the catalog and keeps it; `None` when the run was asked to stop.
///
/// # Errors
/// When a file cannot be read, or no caption is a class.
pub(super) async fn build(
    store: &Store,
    captions: &RawCaptions,
    pairs: &RawPairs,
    shards: &[Object],
    meter: &Meter,
    stop: &Stop,
) -> Result<Option<Catalog>, PipelineError> {
    let mut classes = Classes::new(source(captions.classes), rule(captions.match_rule));
    if captions.classes == ClassesWord::List {
        read_list(store, &captions.list, &mut classes).await?;
        if classes.is_empty() {
            return Err(PipelineError::Input(format!(
                "`{}` (`captions.list`) holds no caption: check the file",
                Store::shown(&captions.list)
            )));
        }
    }
    let duplicates = classes.duplicates();
    let mut reading = Reading {
        store,
        languages: &pairs.languages,
        meter,
        stop,
        packed: Arc::new(AtomicU64::new(0)),
        all_bytes: shards.iter().map(|shard| shard.size).sum(),
        counts: PairCounts::default(),
        forms: UrlForms::new(),
        builder: JoinIndexBuilder::new(),
    };
    for shard in shards {
        if !reading.shard(shard, &mut classes, captions.classes).await? {
            return Ok(None);
        }
    }
    meter.set_total(meter.snapshot().done);
    if classes.is_empty() {
        return Err(PipelineError::Input(
            "no row of `pairs.shards` has a caption, so there is no class: check the files and `pairs.languages`"
                .into(),
        ));
    }
    classes.shrink();
    let (counts, merges) = (reading.counts, reading.forms.merges());
    let index = reading.builder.build(&classes).map_err(refused)?;
    let coverage = index.coverage();
    let mut skipped: BTreeMap<String, u64> = PairProblem::ALL
        .into_iter()
        .filter(|reason| counts.skipped(*reason) > 0)
        .map(|reason| (reason.as_str().to_owned(), counts.skipped(reason)))
        .collect();
    if coverage.rows > coverage.labelled_rows {
        skipped.insert("no_class".to_owned(), coverage.rows - coverage.labelled_rows);
    }
    let report = CatalogReport {
        source: captions.classes.to_string(),
        match_rule: captions.match_rule.to_string(),
        classes: coverage.classes,
        duplicate_captions: if captions.classes == ClassesWord::List { duplicates } else { 0 },
        pair_rows: counts.rows,
        pair_rows_skipped: skipped,
        labelled_rows: coverage.labelled_rows,
        labelled_images: coverage.labelled_images,
        classes_with_images: coverage.classes_with_images,
        images_per_class: HISTOGRAM_LABELS
            .iter()
            .zip(coverage.histogram)
            .map(|(label, count)| ((*label).to_owned(), count))
            .collect(),
        urls_merged_by_normalising: merges.urls,
        urls_merged_exact: merges.exact,
    };
    Ok(Some(Catalog { classes, index: Arc::new(index), report }))
}

/// Writes the catalog, then its entry.
///
/// # Errors
/// When the disk is full or refuses.
pub(super) fn save(directory: &Directory, catalog: &Catalog, generation: &str) -> Result<(), PipelineError> {
    directory.remove(ENTRY)?;
    tables::write_classes(&directory.temporary(CLASSES)?, catalog.classes.texts(), &catalog.index.frequencies())?;
    directory.publish(CLASSES)?;
    tables::write_labels(&directory.temporary(LABELS)?, catalog.index.entries())?;
    directory.publish(LABELS)?;
    let entry = Entry {
        generation: generation.to_owned(),
        rows: catalog.index.tally().rows,
        labelled_rows: catalog.index.tally().labelled_rows,
        report: catalog.report.clone(),
    };
    let content = serde_json::to_vec_pretty(&entry).map_err(|error| PipelineError::Internal(error.to_string()))?;
    directory.create_new(ENTRY, &content)?;
    Ok(())
}

async fn read_list(store: &Store, name: &str, classes: &mut Classes) -> Result<(), PipelineError> {
    let object = store.find(name).await?;
    let mut reader = store.open(&object, Arc::default()).await?;
    let mut list = CaptionList::new(&object.url, MAX_RECORD_BYTES);
    let mut buffer = vec![0; FEED_BYTES];
    loop {
        let more = fill(&mut reader, &mut list, &mut buffer, &object.url).await?;
        while let Some(row) = list.next()? {
            classes.add(row.text).map_err(refused)?;
        }
        if !more {
            return Ok(());
        }
    }
}

/// What reading the pairs files accumulates.
struct Reading<'a> {
    store: &'a Store,
    languages: &'a [String],
    meter: &'a Meter,
    stop: &'a Stop,
    packed: Arc<AtomicU64>,
    all_bytes: u64,
    counts: PairCounts,
    forms: UrlForms,
    builder: JoinIndexBuilder,
}

impl Reading<'_> {
    /// Reads one file; false when the run was asked to stop.
    async fn shard(
        &mut self,
        shard: &Object,
        classes: &mut Classes,
        source: ClassesWord,
    ) -> Result<bool, PipelineError> {
        let mut reader = self.store.open(shard, Arc::clone(&self.packed)).await?;
        let mut pairs = Pairs::new(&shard.url, self.languages, MAX_RECORD_BYTES);
        let mut buffer = vec![0; FEED_BYTES];
        let mut counted = 0;
        loop {
            let more = fill(&mut reader, &mut pairs, &mut buffer, &shard.url).await?;
            while let Some(row) = pairs.next()? {
                let PairRow::Pair(pair) = row else { continue };
                let group = match source {
                    ClassesWord::List => classes.group_of(pair.target),
                    ClassesWord::Train => classes.add(pair.target).map_err(refused)?,
                };
                self.builder.add(url_hash(pair.image_url), group).map_err(refused)?;
                self.forms.see(pair.image_url);
            }
            self.meter.add(pairs.counts().rows - counted);
            counted = pairs.counts().rows;
            let read = self.packed.load(Ordering::Relaxed);
            if read > 0 {
                let done = self.meter.snapshot().done as f64;
                self.meter.set_total((done * self.all_bytes as f64 / read as f64).round() as u64);
            }
            if self.stop.is_raised() {
                return Ok(false);
            }
            if !more {
                self.counts.add(pairs.counts());
                return Ok(true);
            }
        }
    }
}
