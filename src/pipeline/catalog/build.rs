//! Builds the catalog from captions and pairs.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::checkpoint::{CatalogCheckpoint, CheckpointWriter, Position};
use crate::catalog::{
    ClassSource, Classes, HISTOGRAM_LABELS, JoinIndex, JoinIndexBuilder, Languages, Texts, UrlVariants, url_hash,
};
use crate::config::{CaptionsConfig, CatalogConfig};
use crate::corpus::{CaptionList, PairCounts, PairProblem, PairRow};
use crate::objects::{Object, ReadStats, Store};
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::pipeline::feed::feed_parser;
use crate::pipeline::inputs::{MAX_RECORD_BYTES, PairInput, PairReader};
use crate::pipeline::observe::report::CatalogReport;
use crate::telemetry::{Party, Shard, StageProgress, StageTimer};

/// Adds all captions of a list to `classes`.
///
/// # Errors
/// When the file cannot be read, or a row is not valid.
pub(crate) async fn read_captions(store: &Store, name: &str, classes: &mut Classes) -> Result<(), PipelineError> {
    let object = store.find(name).await?;
    let mut reader = store.open(&object, Arc::default()).await?;
    let mut list = CaptionList::new(&object.url, MAX_RECORD_BYTES);
    loop {
        let more = feed_parser(&mut reader, &mut list, &object.url).await?;
        while let Some(row) = list.next()? {
            classes.add(row.text)?;
        }
        if !more {
            return Ok(());
        }
    }
}

/// A catalog that was built from the inputs and is not saved yet.
pub(super) struct BuiltCatalog {
    /// Captions that are classes.
    pub(super) texts: Texts,
    /// Language of each class.
    pub(super) languages: Languages,
    /// Classes of each image URL.
    pub(super) index: JoinIndex,
    /// Counts for the report.
    pub(super) report: CatalogReport,
}

/// Builds the catalog, starting at the end of `checkpoint`. Returns `None` when the run has to stop.
///
/// # Errors
/// When a file cannot be read, or there is no class.
pub(super) async fn build(
    ctx: &RunContext,
    config: &CatalogConfig,
    (input, shards): (&PairInput, &[Object]),
    stage_progress: &StageProgress,
    writer: CheckpointWriter,
    checkpoint: Option<CatalogCheckpoint>,
) -> Result<Option<BuiltCatalog>, PipelineError> {
    let captions = &config.captions;
    let mut classes = Classes::new(captions.classes, captions.match_rule);
    if let Some(list) = captions.class_list() {
        read_captions(&ctx.store, list, &mut classes).await?;
        if classes.is_empty() {
            return Err(PipelineError::Input(format!(
                "`{}` (`captions.list`) holds no caption: check the file",
                Store::redact(list)
            )));
        }
    }
    let duplicates = classes.duplicates();
    let stats = Arc::new(ReadStats::default());
    let waited = Arc::clone(&stats);
    stage_progress.part(StageTimer::serial("read pairs").starved_by(Party::Store).starvation(move || waited.waited()));
    let shard = |shard: &Object| Shard { name: shard.url.clone(), bytes: shard.size, ..Shard::default() };
    stage_progress.set_shards(shards.iter().map(shard).collect());
    let mut reader = PairsReader {
        ctx,
        input,
        source: captions.classes,
        stage_progress,
        stats,
        total_bytes: shards.iter().map(|shard| shard.size).sum(),
        bytes_before: 0,
        counts: PairCounts::default(),
        classes,
        url_variants: UrlVariants::new(),
        languages: Languages::default(),
        index: JoinIndexBuilder::new(),
        writer,
    };
    let start = checkpoint.map(|checkpoint| reader.restore(checkpoint, shards));
    ctx.events.stage_started(stage_progress);
    let first = start.map_or(0, |start| start.shard);
    for (index, shard) in shards.iter().enumerate().skip(first) {
        let start = start.filter(|start| start.shard == index);
        if !reader.read_shard(index, shard, start).await? {
            return Ok(None);
        }
    }
    stage_progress.set_total(stage_progress.progress().0);
    reader.finish(captions, duplicates).map(Some)
}

/// Accumulates the rows of the pairs files.
struct PairsReader<'a> {
    ctx: &'a RunContext,
    /// Format and columns of the files.
    input: &'a PairInput,
    source: ClassSource,
    stage_progress: &'a StageProgress,
    stats: Arc<ReadStats>,
    /// Stored bytes of all shards.
    total_bytes: u64,
    /// Stored bytes of the shards before the open one.
    bytes_before: u64,
    /// Rows of the shards before the open one.
    counts: PairCounts,
    classes: Classes,
    url_variants: UrlVariants,
    languages: Languages,
    index: JoinIndexBuilder,
    writer: CheckpointWriter,
}

impl PairsReader<'_> {
    /// Restores the state of an earlier process and returns its position.
    fn restore(&mut self, checkpoint: CatalogCheckpoint, shards: &[Object]) -> Position {
        let CatalogCheckpoint { position, tally, entries, captions, url_variants, languages } = checkpoint;
        if self.source == ClassSource::Train {
            self.classes = Classes::from_train_texts(self.classes.rule(), captions);
        }
        self.index = JoinIndexBuilder::from_parts(entries, tally);
        (self.url_variants, self.languages) = (url_variants, languages);
        self.stage_progress.add_resumed(position.before.rows + position.of_shard.rows);
        self.counts = position.before;
        for (index, shard) in shards.iter().enumerate().take(position.shard) {
            self.bytes_before += shard.size;
            self.stage_progress.shard(index, |shard| shard.done = true);
        }
        position
    }

    /// Reads one file from `start` on. Returns false when the run has to stop.
    async fn read_shard(
        &mut self,
        index: usize,
        shard: &Object,
        start: Option<Position>,
    ) -> Result<bool, PipelineError> {
        let ctx = self.ctx;
        let stats_before = self.stats.bytes();
        let start = start.map(|start| (start.mark, start.of_shard));
        let mut pairs = PairReader::open(&ctx.store, shard, self.input, start, &self.stats).await?;
        let mut counted = pairs.counts().rows;
        loop {
            let more = pairs.fill().await?;
            while let Some(row) = pairs.next()? {
                let PairRow::Pair(pair) = row else { continue };
                let group = match self.source {
                    ClassSource::List => self.classes.group_of(pair.target),
                    ClassSource::Train => self.classes.add(pair.target)?,
                };
                if let Some(group) = group {
                    self.languages.record(group, pair.language);
                }
                self.index.add(url_hash(pair.image_url), group)?;
                self.url_variants.add(pair.image_url);
            }
            self.stage_progress.add(pairs.counts().rows - counted);
            counted = pairs.counts().rows;
            self.show_progress(index, self.stats.bytes() - stats_before, counted, !more);
            let stopped = ctx.shutdown.is_raised();
            if let (true, true, Some(mark)) = (stopped || self.writer.is_due(), more, pairs.resume_point()) {
                let position = Position { shard: index, mark, before: self.counts, of_shard: pairs.counts() };
                let new_classes = (self.source == ClassSource::Train).then_some(&self.classes);
                self.writer.append(position, &self.index, new_classes, &self.url_variants, &self.languages)?;
            }
            if stopped {
                return Ok(false);
            }
            if !more {
                self.bytes_before += shard.size;
                self.counts.add(&pairs.counts());
                return Ok(true);
            }
        }
    }

    /// Estimates the total number of rows from the bytes read so far, and shows the progress of the open shard.
    fn show_progress(&self, index: usize, shard_bytes: u64, shard_rows: u64, done: bool) {
        let read = self.bytes_before + shard_bytes;
        if read > 0 {
            let rows = self.stage_progress.progress().0 as f64;
            self.stage_progress.set_total((rows * self.total_bytes as f64 / read as f64).round() as u64);
        }
        self.stage_progress.shard(index, |shard| {
            shard.read_bytes = shard_bytes;
            (shard.rows, shard.kept, shard.done) = (shard_rows, shard_rows, done);
        });
    }

    /// Builds the join index and counts the rows for the report.
    fn finish(self, captions: &CaptionsConfig, duplicates: u64) -> Result<BuiltCatalog, PipelineError> {
        let Self { counts, classes, url_variants, mut languages, index, .. } = self;
        if classes.is_empty() {
            return Err(PipelineError::Input(
                "no row of `pairs.shards` has a caption, so there is no class: check the files and `pairs.languages`"
                    .into(),
            ));
        }
        let (merges, groups) = (url_variants.merges(), classes.groups());
        drop(url_variants);
        // No caption is looked up any more.
        let texts = classes.into_texts();
        languages.share_within_groups(&groups);
        let index: JoinIndex = index.build_from_groups(groups)?;
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
            duplicate_captions: if captions.classes == ClassSource::List { duplicates } else { 0 },
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
        Ok(BuiltCatalog { texts, languages, index, report })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::config::PairsConfig;
    use crate::run_dir::{Directory, LocalDirectory};
    use crate::runtime::Signal;
    use crate::types::PairsFormat;

    /// Returns a pairs file of about 1.5 MB whose captions contain line breaks.
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
    async fn catalog_is_the_same_after_any_number_of_stops() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.tsv"), rows(1)).unwrap();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(rows(2).as_bytes()).unwrap();
        std::fs::write(dir.path().join("b.tsv.gz"), packed.finish().unwrap()).unwrap();
        let shards = Store::default().list(&[format!("{}/*.tsv*", dir.path().display())]).await.unwrap();
        let captions = CaptionsConfig { classes: ClassSource::Train, ..CaptionsConfig::default() };
        let config = CatalogConfig { captions, pairs: PairsConfig::default() };
        let input = PairInput::new(PairsFormat::Tsv, &config.pairs);
        let directory: Directory = LocalDirectory::create(dir.path().join("run")).unwrap().into();
        let build = async |stopped: bool| {
            let ctx = RunContext::for_test(1, 1 << 30);
            if stopped {
                ctx.shutdown.raise(Signal::Terminate);
            }
            let stage_progress = ctx.progress.stage("pairs", "rows", 0);
            let (writer, checkpoint) = CheckpointWriter::open(directory.clone(), "g").unwrap();
            let resumed = checkpoint.is_some();
            let built = build(&ctx, &config, (&input, &shards), &stage_progress, writer, checkpoint).await;
            (built.unwrap(), resumed, stage_progress.snapshot())
        };
        let (Some(expected), false, _) = build(false).await else { panic!("the first build completes") };
        let mut stops = 0;
        loop {
            let (built, resumed, stage_progress) = build(true).await;
            assert_eq!(resumed, stops > 0);
            let Some(built) = built else {
                stops += 1;
                // The last block of a file leaves no checkpoint, so the next process completes the build.
                if directory.list("catalog/partial").unwrap().len() < stops {
                    break;
                }
                continue;
            };
            assert_eq!(stage_progress.done, built.report.pair_rows);
            break;
        }
        assert!(stops > 3, "{stops} stops");
        let (Some(found), true, stage_progress) = build(false).await else { panic!("a resumed build completes") };
        assert_eq!(stage_progress.done, 18_000);
        assert!(stage_progress.resumed > 0 && stage_progress.shards.iter().all(|shard| shard.done));
        assert_eq!(found.index.entries(), expected.index.entries());
        assert!(found.texts.iter().eq(expected.texts.iter()));
        assert_eq!((found.report, found.languages), (expected.report, expected.languages));
    }
}
