//! Captions and pairs → classes and join index, kept in `catalog/` so that they are read once.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::PipelineError;
use super::partial::{Gathered, Partial, Position};
use super::report::CatalogReport;
use super::stream::{RunContext, THE_STORE, fill};
use crate::catalog::{
    ClassSource, Classes, HISTOGRAM_LABELS, JoinIndex, JoinIndexBuilder, Languages, Match, RowTally, UrlVariants,
    url_hash,
};
use crate::chunk::{Checksum, tables, verify};
use crate::config::raw::{RawCaptions, RawPairs};
use crate::config::value::{Classes as ClassesWord, MatchRule};
use crate::corpus::{CaptionList, PairCounts, PairProblem, PairRow, Pairs};
use crate::objects::{Object, ReadStats, Store};
use crate::run_dir::{Directory, LocalCopy};
use crate::runtime::Shutdown;
use crate::telemetry::{Shard, StageProgress, StageTimer};

/// Longest row of a pairs file or caption list that is read; context columns hold whole paragraphs.
const MAX_RECORD_BYTES: usize = 64 << 20;

/// The catalog's journal entry: it exists if and only if its files are complete.
const ENTRY: &str = "journal/catalog.json";
const CLASSES: &str = "catalog/classes.parquet";
const LABELS: &str = "catalog/labels.parquet";

/// Classes and labels of a run.
#[derive(Debug)]
pub(super) struct Catalog {
    pub(super) classes: Arc<Classes>,
    pub(super) index: Arc<JoinIndex>,
    pub(super) languages: Arc<Languages>,
    pub(super) report: CatalogReport,
}

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
    /// A file of the catalog, as it was written.
    fn fetch(&self, directory: &Directory, name: &str) -> Result<LocalCopy, PipelineError> {
        let copy = directory.fetch(name)?;
        verify(&copy, &directory.display(name), self.checksums.get(name).copied())?;
        Ok(copy)
    }
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
    // A file that someone removed, because it was damaged, is made again.
    let there = directory.list("catalog")?;
    if [CLASSES, LABELS].iter().any(|name| !there.iter().any(|file| name.ends_with(file.as_str()))) {
        return Ok(None);
    }
    let mut classes = Classes::new(source(captions.classes), rule(captions.match_rule));
    let (mut failed, mut languages, mut class) = (None, Languages::default(), 0);
    tables::read_classes(&entry.fetch(directory, CLASSES)?, |row| {
        languages.set(class, row.language);
        class += 1;
        if let Err(error) = classes.add(row.caption) {
            failed.get_or_insert(error);
        }
    })?;
    if let Some(error) = failed {
        return Err(refused(error));
    }
    let entries = tables::read_labels(&entry.fetch(directory, LABELS)?)?;
    let tally = RowTally { rows: entry.rows, labelled_rows: entry.labelled_rows };
    let index = JoinIndex::from_sorted_entries(entries, classes.groups(), tally).map_err(refused)?;
    let (index, languages) = (Arc::new(index), Arc::new(languages));
    Ok(Some(Catalog { classes: Arc::new(classes), index, languages, report: entry.report }))
}

/// A caption that is a class.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Caption {
    pub(super) text: Box<str>,
    /// Image URLs that have it.
    pub(super) images: u32,
}

/// The classes of a run directory, as a text head needs them.
pub(super) struct Own {
    pub(super) classes: Arc<Classes>,
    pub(super) languages: Languages,
    /// Image URLs of each class.
    pub(super) images: Vec<u32>,
}

impl Default for Own {
    fn default() -> Self {
        let classes = Arc::new(Classes::new(ClassSource::List, Match::Exact));
        Self { classes, languages: Languages::default(), images: Vec::new() }
    }
}

/// The classes, of a run directory whose catalog is complete.
///
/// # Errors
/// When the directory has no complete catalog.
pub(super) fn load_own(directory: &Directory) -> Result<Own, PipelineError> {
    let mut classes = Classes::new(ClassSource::List, Match::Exact);
    let (mut languages, mut images, mut failed) = (Languages::default(), Vec::new(), None);
    each_class(directory, |row| {
        languages.set(images.len(), row.language);
        images.push(row.images);
        if let Err(error) = classes.add(row.caption) {
            failed.get_or_insert(error);
        }
    })?;
    if let Some(error) = failed {
        return Err(refused(error));
    }
    classes.shrink();
    Ok(Own { classes: Arc::new(classes), languages, images })
}

/// The captions of the classes, of a run directory whose catalog is complete.
///
/// # Errors
/// When the directory has no complete catalog.
pub(super) fn load_captions(directory: &Directory) -> Result<Vec<Caption>, PipelineError> {
    let mut captions = Vec::new();
    each_class(directory, |row| captions.push(Caption { text: row.caption.into(), images: row.images }))?;
    Ok(captions)
}

fn each_class(directory: &Directory, take: impl FnMut(tables::ClassRow<'_>)) -> Result<(), PipelineError> {
    let entry = directory.read(ENTRY)?.and_then(|content| serde_json::from_slice::<Entry>(&content).ok());
    let Some(entry) = entry else {
        return Err(PipelineError::Input(format!(
            "`{}` has no complete catalog of captions: run its training pipeline first",
            directory.display("")
        )));
    };
    Ok(tables::read_classes(&entry.fetch(directory, CLASSES)?, take)?)
}

/// Builds the catalog, behind what an earlier process gathered; `None` when the run was asked to stop.
///
/// # Errors
/// When a file cannot be read, or no caption is a class.
pub(super) async fn build(
    machine: &RunContext,
    captions: &RawCaptions,
    pairs: &RawPairs,
    shards: &[Object],
    stage_progress: &StageProgress,
    partial: Partial,
    gathered: Option<Gathered>,
) -> Result<Option<Catalog>, PipelineError> {
    let RunContext { store, stop, events, .. } = machine;
    let mut classes = Classes::new(source(captions.classes), rule(captions.match_rule));
    if captions.classes == ClassesWord::List {
        read_list(store, &captions.list, &mut classes).await?;
        if classes.is_empty() {
            return Err(PipelineError::Input(format!(
                "`{}` (`captions.list`) holds no caption: check the file",
                Store::redact(&captions.list)
            )));
        }
    }
    let duplicates = classes.duplicates();
    let intake = Arc::new(ReadStats::default());
    let waited = Arc::clone(&intake);
    stage_progress.part(StageTimer::serial("read pairs").starved_by(THE_STORE).starvation(move || waited.waited()));
    let known = |shard: &Object| Shard { name: shard.url.clone(), bytes: shard.size, ..Shard::default() };
    stage_progress.set_shards(shards.iter().map(known).collect());
    let mut builder = JoinIndexBuilder::new();
    let (mut forms, mut languages, mut start) = (UrlVariants::new(), Languages::default(), None);
    if let Some(gathered) = gathered {
        for caption in &gathered.captions {
            classes.add(caption).map_err(refused)?;
        }
        builder = JoinIndexBuilder::from_parts(gathered.entries, gathered.tally);
        (forms, languages) = (gathered.forms, gathered.languages);
        stage_progress.add_resumed(gathered.position.before.rows + gathered.position.of_shard.rows);
        start = Some(gathered.position);
    }
    events.started(stage_progress);
    let mut reading = Reading {
        store,
        wanted: &pairs.languages,
        stage_progress,
        stop,
        intake,
        all_bytes: shards.iter().map(|shard| shard.size).sum(),
        before: shards.iter().take(start.map_or(0, |start| start.shard)).map(|shard| shard.size).sum(),
        counts: start.map_or_else(PairCounts::default, |start| start.before),
        forms,
        languages,
        builder,
        partial,
    };
    let first = start.map_or(0, |start| start.shard);
    for index in 0..first.min(shards.len()) {
        stage_progress.shard(index, |shard| shard.done = true);
    }
    for (index, shard) in shards.iter().enumerate().skip(first) {
        let start = start.filter(|start| start.shard == index);
        if !reading.shard(index, shard, start, &mut classes, captions.classes).await? {
            return Ok(None);
        }
    }
    stage_progress.set_total(stage_progress.progress().0);
    if classes.is_empty() {
        return Err(PipelineError::Input(
            "no row of `pairs.shards` has a caption, so there is no class: check the files and `pairs.languages`"
                .into(),
        ));
    }
    classes.shrink();
    let (counts, merges) = (reading.counts, reading.forms.merges());
    let mut languages = reading.languages;
    languages.share_within_groups(&classes.groups());
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
    let (index, languages) = (Arc::new(index), Arc::new(languages));
    Ok(Some(Catalog { classes: Arc::new(classes), index, languages, report }))
}

/// Writes the catalog, then its entry.
///
/// # Errors
/// When the disk is full or refuses.
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

pub(super) async fn read_list(store: &Store, name: &str, classes: &mut Classes) -> Result<(), PipelineError> {
    let object = store.find(name).await?;
    let mut reader = store.open(&object, Arc::default()).await?;
    let mut list = CaptionList::new(&object.url, MAX_RECORD_BYTES);
    loop {
        let more = fill(&mut reader, &mut list, &object.url).await?;
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
    /// Languages that are wanted; none: all.
    wanted: &'a [String],
    stage_progress: &'a StageProgress,
    stop: &'a Shutdown,
    intake: Arc<ReadStats>,
    all_bytes: u64,
    /// Stored bytes of the shards before the one at hand.
    before: u64,
    counts: PairCounts,
    forms: UrlVariants,
    languages: Languages,
    builder: JoinIndexBuilder,
    partial: Partial,
}

impl Reading<'_> {
    /// Reads one file, from `start` on; false when the run was asked to stop.
    async fn shard(
        &mut self,
        index: usize,
        shard: &Object,
        start: Option<Position>,
        classes: &mut Classes,
        source: ClassesWord,
    ) -> Result<bool, PipelineError> {
        let before = self.intake.bytes();
        let mut pairs = Pairs::new(&shard.url, self.wanted, MAX_RECORD_BYTES);
        if let Some(start) = start {
            let mut head = self.store.open(shard, Arc::default()).await?;
            while !pairs.has_header()? {
                fill(&mut head, &mut pairs, &shard.url).await?;
            }
            pairs.resume_at(start.mark, start.of_shard);
        }
        let from = start.map_or(0, |start| start.mark.byte_offset);
        let mut reader = self.store.open_at(shard, from, Arc::clone(&self.intake)).await?;
        let mut counted = pairs.counts().rows;
        loop {
            let more = fill(&mut reader, &mut pairs, &shard.url).await?;
            while let Some(row) = pairs.next()? {
                let PairRow::Pair(pair) = row else { continue };
                let group = match source {
                    ClassesWord::List => classes.group_of(pair.target),
                    ClassesWord::Train => classes.add(pair.target).map_err(refused)?,
                };
                if let Some(group) = group {
                    self.languages.record(group, pair.language);
                }
                self.builder.add(url_hash(pair.image_url), group).map_err(refused)?;
                self.forms.add(pair.image_url);
            }
            self.stage_progress.add(pairs.counts().rows - counted);
            counted = pairs.counts().rows;
            let of_shard = self.intake.bytes() - before;
            let read = self.before + of_shard;
            if read > 0 {
                let done = self.stage_progress.progress().0 as f64;
                self.stage_progress.set_total((done * self.all_bytes as f64 / read as f64).round() as u64);
            }
            self.stage_progress.shard(index, |shard| {
                shard.read_bytes = of_shard;
                (shard.rows, shard.kept, shard.done) = (counted, counted, !more);
            });
            let stopped = self.stop.is_raised();
            if let (true, true, Some(mark)) = (stopped || self.partial.is_due(), more, pairs.resume_point()) {
                let (before, of_shard) = (self.counts, *pairs.counts());
                let position = Position { shard: index, mark, before, of_shard };
                let made_here = (source == ClassesWord::Train).then_some(&*classes);
                self.partial.keep(position, &self.builder, made_here, &self.forms, &self.languages)?;
            }
            if stopped {
                return Ok(false);
            }
            if !more {
                self.before += shard.size;
                self.counts.add(pairs.counts());
                return Ok(true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::pipeline::events::Events;
    use crate::run_dir::LocalDirectory;
    use crate::runtime::{ByteBudget, CpuPool, Signal};
    use crate::telemetry::ProgressRegistry;

    fn machine(stopped: bool) -> RunContext {
        let stop = Shutdown::default();
        if stopped {
            stop.raise(Signal::Terminate);
        }
        RunContext {
            store: Store::default(),
            pool: CpuPool::new(1).unwrap(),
            budget: ByteBudget::new(1 << 30),
            stop,
            registry: ProgressRegistry::default(),
            events: Events::default(),
        }
    }

    /// A pairs file of about 1.5 MB; its captions hold line ends.
    fn rows(seed: u32) -> String {
        let mut text = "language\timage_url\tcaption_title_and_reference_description\n".to_owned();
        for row in 0..9_000u32 {
            let number = row.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 20;
            let long = "word ".repeat(number as usize % 40);
            text.push_str(&format!("en\thttp://x/{number}/{seed}\t\"Title {}\n[SEP] {long}\"\n", number % 500));
        }
        text
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_reading_that_is_stopped_after_every_block_gives_the_same_catalog() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.tsv"), rows(1)).unwrap();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(rows(2).as_bytes()).unwrap();
        std::fs::write(dir.path().join("b.tsv.gz"), packed.finish().unwrap()).unwrap();
        let shards = Store::default().list(&[format!("{}/*.tsv*", dir.path().display())]).await.unwrap();
        let captions = RawCaptions { classes: ClassesWord::Train, ..RawCaptions::default() };
        let directory: Directory = LocalDirectory::create(dir.path().join("run")).unwrap().into();
        let build = async |stopped: bool| {
            let machine = machine(stopped);
            let stage_progress = machine.registry.stage("pairs", "rows", 0);
            let (partial, gathered) = Partial::open(directory.clone(), "g").unwrap();
            let resumed = gathered.is_some();
            let built =
                build(&machine, &captions, &RawPairs::default(), &shards, &stage_progress, partial, gathered).await;
            (built.unwrap(), resumed, stage_progress.snapshot())
        };
        let (Some(expected), false, _) = build(false).await else { panic!("a new reading ends") };
        let mut stops = 0;
        loop {
            let (built, resumed, stage_progress) = build(true).await;
            assert_eq!(resumed, stops > 0);
            let Some(built) = built else {
                stops += 1;
                // The last block of a file leaves nothing to keep: another process ends it.
                if directory.list("catalog/partial").unwrap().len() < stops {
                    break;
                }
                continue;
            };
            assert_eq!(stage_progress.done, built.report.pair_rows);
            break;
        }
        assert!(stops > 3, "{stops} stops");
        let (Some(found), true, stage_progress) = build(false).await else { panic!("the reading goes on and ends") };
        assert_eq!(stage_progress.done, 18_000);
        assert!(stage_progress.resumed > 0 && stage_progress.shards.iter().all(|shard| shard.done));
        assert_eq!(found.index.entries(), expected.index.entries());
        assert_eq!(found.classes.texts().collect::<Vec<_>>(), expected.classes.texts().collect::<Vec<_>>());
        assert_eq!((found.report, found.languages), (expected.report, expected.languages));
    }
}
