//! Lists of captions → vectors in the space of the images.

mod known;

use std::collections::BTreeMap;

use super::encode::Query;
use super::images::{read, require_space, written};
use super::jobs::Progress;
use super::opened::{Head, OpenRun};
use super::{Entry, FoundCaption, internal, scratch};
use crate::catalog::url_hash;
use crate::chunk::texts;
use crate::pipeline::PipelineError;
use crate::pipeline::catalog::StoredClasses;
use crate::search::{Hit, VectorFile, VectorWriter};
use crate::train::HeadState;
use crate::types::Precision;

pub(super) use known::find_known;

/// Folder of the sets of caption vectors in a run directory.
const FOLDER: &str = "texts";
/// Name of the list that a classifier ranks.
const CLASSES: &str = "classes";
/// Largest list, other than the classes, whose languages are looked up: 12 bytes of memory a caption.
const MAX_LOOKED_UP: usize = 4 << 20;
/// Group of a caption without a known language.
const UNKNOWN: u16 = u16::MAX;
/// Bytes of a caption's text on scratch disk, for the estimate of the space.
const TEXT_BYTES: u64 = 150;

/// A list of captions of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CaptionList {
    /// The classes of a classifier.
    Classes {
        /// Number of classes.
        count: u64,
    },
    /// A set of caption vectors.
    Set {
        /// Name of its folder.
        folder: String,
        /// Files of its chunks, in order.
        chunks: Vec<String>,
        /// Captions of a full chunk.
        chunk_rows: usize,
        /// The first caption.
        first: String,
        /// Number of captions.
        count: u64,
        /// True if it holds the classes of the run.
        is_classes: bool,
    },
}

impl CaptionList {
    /// Returns the name of the list in queries.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Classes { .. } => CLASSES,
            Self::Set { folder, .. } => folder,
        }
    }

    /// Returns the files of the chunks, in order; none for a classifier.
    fn files(&self) -> Vec<String> {
        let Self::Set { folder, chunks, .. } = self else { return Vec::new() };
        chunks.iter().map(|chunk| format!("{FOLDER}/{folder}/{chunk}")).collect()
    }

    /// Describes the list.
    pub(super) fn entry(&self) -> Entry {
        let (title, rows) = match self {
            Self::Classes { count } => ("the classes of the run".to_owned(), *count),
            Self::Set { count, is_classes: true, .. } => ("the captions of the training images".to_owned(), *count),
            Self::Set { count, first, .. } => {
                let sample: String = first.chars().take(40).collect();
                (format!("a list that begins with “{sample}”"), *count)
            }
        };
        Entry { name: self.name().to_owned(), title, rows: Some(rows) }
    }
}

/// Lists the captions that can be ranked. Blocks the thread.
///
/// # Errors
/// When the run directory cannot be read.
pub(super) fn lists(run: &OpenRun) -> Result<Vec<CaptionList>, PipelineError> {
    if let Head::Classes(head) = &run.head {
        return Ok(vec![CaptionList::Classes { count: head.classes as u64 }]);
    }
    let classes = StoredClasses::open(&run.dir).ok();
    let mut lists = Vec::new();
    for folder in run.dir.list(FOLDER)? {
        if let Some(list) = open_set(run, &folder, classes.as_ref())? {
            lists.push(list);
        }
    }
    // The lists that predictions rank come first, the longest list last.
    lists.sort_by_key(|list| list.entry().rows);
    Ok(lists)
}

fn open_set(
    run: &OpenRun,
    folder: &str,
    classes: Option<&StoredClasses>,
) -> Result<Option<CaptionList>, PipelineError> {
    let path = format!("{FOLDER}/{folder}");
    let mut chunks: Vec<String> = run.dir.list(&path)?.into_iter().filter(|name| name.ends_with(".parquet")).collect();
    chunks.sort();
    let (Some(first), Some(last)) = (chunks.first(), chunks.last()) else { return Ok(None) };
    let mut captions = Vec::new();
    texts::visit_captions(&run.dir.fetch(&format!("{path}/{first}"))?, |caption| captions.push(caption.to_owned()))?;
    let mut in_last = 0;
    texts::visit_captions(&run.dir.fetch(&format!("{path}/{last}"))?, |_| in_last += 1)?;
    let count = ((chunks.len() - 1) * captions.len() + in_last) as u64;
    let is_classes = classes.is_some_and(|classes| {
        let some: Vec<u32> = (0..captions.len().min(8) as u32).collect();
        classes.count as u64 == count
            && classes
                .read_some_texts(&some)
                .is_ok_and(|own| own.iter().zip(&captions).all(|(one, other)| **one == **other))
    });
    let chunk_rows = captions.len();
    let first = captions.into_iter().next().unwrap_or_default();
    Ok(Some(CaptionList::Set { folder: folder.to_owned(), chunks, chunk_rows, first, count, is_classes }))
}

/// Finds a list by its name. Blocks the thread.
///
/// # Errors
/// When the run has no such list.
pub(super) fn find(run: &OpenRun, name: &str) -> Result<CaptionList, PipelineError> {
    let absent = || PipelineError::Input(format!("the run has no list of captions `{name}`"));
    lists(run)?.into_iter().find(|list| list.name() == name).ok_or_else(absent)
}

/// Reads the vectors of some captions of a set as they are stored, by ascending numbers. Blocks the thread.
///
/// # Errors
/// When a chunk is damaged, or a number is out of range.
pub(super) fn read_vectors(run: &OpenRun, list: &CaptionList, numbers: &[u32]) -> Result<Vec<f32>, PipelineError> {
    let CaptionList::Set { chunk_rows, .. } = list else { return Err(internal("classes have no vectors")) };
    let (files, absent) = (list.files(), || internal("a caption has no vector"));
    let chunk_of = |number: u32| number as usize / (*chunk_rows).max(1);
    let mut all = Vec::new();
    for group in numbers.chunk_by(|one, other| chunk_of(*one) == chunk_of(*other)) {
        let file = files.get(chunk_of(group[0])).ok_or_else(absent)?;
        let vectors = texts::read(&run.dir.fetch(file)?)?;
        for number in group {
            let first = *number as usize % chunk_rows * vectors.dim;
            all.extend_from_slice(vectors.values.get(first..first + vectors.dim).ok_or_else(absent)?);
        }
    }
    Ok(all)
}

/// Captions of a list, with a vector each.
pub(crate) struct CaptionIndex {
    pub(super) file: VectorFile,
    /// Languages by group.
    languages: Vec<String>,
}

/// Reads the vectors of a list. Blocks the thread.
///
/// # Errors
/// When a chunk is damaged, or scratch disk is short.
pub(super) fn build(run: &OpenRun, list: &CaptionList, progress: &Progress) -> Result<CaptionIndex, PipelineError> {
    progress.set_total(list.entry().rows.unwrap_or(0));
    match (&run.head, list) {
        (Head::Classes(head), _) => build_classes(run, head, progress),
        (_, CaptionList::Set { count, is_classes, .. }) => build_set(run, &list.files(), *count, *is_classes, progress),
        (_, CaptionList::Classes { .. }) => Err(internal("a text head has no classes to rank")),
    }
}

fn build_classes(run: &OpenRun, head: &HeadState, progress: &Progress) -> Result<CaptionIndex, PipelineError> {
    require_space(head.classes as u64 * (4 * head.dim as u64 + TEXT_BYTES), "classes")?;
    let mut writer = VectorWriter::create(&scratch(), head.dim + 1, Precision::F32).map_err(written)?;
    let mut languages = Groups::default();
    let mut rows = head.weight.chunks_exact(head.dim.max(1)).zip(&head.bias);
    let mut outcome = Ok(());
    StoredClasses::open(&run.dir)?.visit(|class| {
        if let (Some((weight, bias)), true) = (rows.next(), outcome.is_ok()) {
            let row: Vec<f32> = weight.iter().copied().chain([*bias]).collect();
            outcome = writer.push(&row, languages.group(class.language), class.caption.as_bytes());
            progress.add(1);
        }
    })?;
    outcome.map_err(written)?;
    Ok(CaptionIndex { file: writer.finish().map_err(written)?, languages: languages.names })
}

fn build_set(
    run: &OpenRun,
    names: &[String],
    count: u64,
    is_classes: bool,
    progress: &Progress,
) -> Result<CaptionIndex, PipelineError> {
    let (mut writer, mut row) = (None, 0_usize);
    let (groups, languages) = caption_groups(run, names, is_classes)?;
    for name in names {
        let copy = run.dir.fetch(name)?;
        let mut vectors = texts::read(&copy)?;
        match &run.head {
            Head::Projection(head) if head.text_mean().len() == vectors.dim => {
                vectors.values = head.map_captions(std::mem::take(&mut vectors.values));
                vectors.dim = head.output();
            }
            Head::Projection(head) => {
                return Err(PipelineError::Generation(format!(
                    "the list has vectors of {} values, and the head expects {}: another text encoder made it",
                    vectors.dim,
                    head.text_mean().len()
                )));
            }
            Head::Classes(_) | Head::Paired => {}
        }
        let writer = match &mut writer {
            Some(writer) => writer,
            none => {
                require_space(count * (2 * vectors.dim as u64 + TEXT_BYTES), "captions")?;
                none.insert(VectorWriter::create(&scratch(), vectors.dim, Precision::Bf16).map_err(written)?)
            }
        };
        let mut rows = vectors.values.chunks_exact(vectors.dim.max(1));
        let mut outcome = Ok(());
        texts::visit_captions(&copy, |caption| {
            if let (Some(vector), true) = (rows.next(), outcome.is_ok()) {
                let group = groups.get(row).copied().unwrap_or(UNKNOWN);
                outcome = writer.push(vector, group, caption.as_bytes());
                row += 1;
            }
        })?;
        outcome.map_err(written)?;
        progress.add((vectors.values.len() / vectors.dim.max(1)) as u64);
    }
    let writer = writer.ok_or_else(|| PipelineError::Input("the list has no captions".to_owned()))?;
    Ok(CaptionIndex { file: writer.finish().map_err(written)?, languages })
}

/// Languages in order of first appearance.
#[derive(Default)]
struct Groups {
    names: Vec<String>,
    numbers: BTreeMap<String, u16>,
}

impl Groups {
    fn group(&mut self, language: &str) -> u16 {
        if language.is_empty() {
            return UNKNOWN;
        }
        if let Some(number) = self.numbers.get(language) {
            return *number;
        }
        let Some(number) = u16::try_from(self.names.len()).ok().filter(|number| *number < UNKNOWN) else {
            return UNKNOWN;
        };
        self.names.push(language.to_owned());
        self.numbers.insert(language.to_owned(), number);
        number
    }
}

/// Returns the language group of each caption, 2 bytes each: those of the classes, in which captions of other lists are
/// looked up.
fn caption_groups(run: &OpenRun, names: &[String], is_classes: bool) -> Result<(Vec<u16>, Vec<String>), PipelineError> {
    let mut languages = Groups::default();
    let Ok(classes) = StoredClasses::open(&run.dir) else { return Ok((Vec::new(), Vec::new())) };
    let mut groups = Vec::new();
    if is_classes {
        classes.visit(|class| groups.push(languages.group(class.language)))?;
        return Ok((groups, languages.names));
    }
    let mut hashes: Vec<(u64, u32)> = Vec::new();
    for name in names {
        texts::visit_captions(&run.dir.fetch(name)?, |caption| hashes.push((url_hash(caption), hashes.len() as u32)))?;
        if hashes.len() > MAX_LOOKED_UP {
            return Ok((Vec::new(), Vec::new()));
        }
    }
    groups.resize(hashes.len(), UNKNOWN);
    hashes.sort_unstable();
    classes.visit(|class| {
        let hash = url_hash(class.caption);
        let first = hashes.partition_point(|(other, _)| *other < hash);
        for (_, row) in hashes[first..].iter().take_while(|(other, _)| *other == hash) {
            groups[*row as usize] = languages.group(class.language);
        }
    })?;
    Ok((groups, languages.names))
}

impl CaptionIndex {
    /// Returns the language of a group; empty if it is not known.
    fn language(&self, group: u16) -> &str {
        self.languages.get(usize::from(group)).map_or("", String::as_str)
    }

    fn found(&self, hit: Hit) -> Result<FoundCaption, PipelineError> {
        let text = String::from_utf8_lossy(&self.file.text(hit.row).map_err(read)?).into_owned();
        let language = self.language(self.file.group(hit.row).map_err(read)?).to_owned();
        Ok(FoundCaption { row: hit.row, text, language, score: hit.score })
    }

    /// Returns the captions nearest to a query.
    ///
    /// # Errors
    /// When the query has another length, or scratch disk fails.
    pub(super) fn rank(&self, query: &[f32], limit: usize) -> Result<Vec<FoundCaption>, PipelineError> {
        self.file.search(query, limit).map_err(read)?.into_iter().map(|hit| self.found(hit)).collect()
    }

    /// Returns the captions of each language nearest to a query.
    ///
    /// # Errors
    /// As [`Self::rank`].
    pub(super) fn rank_by_language(
        &self,
        query: &[f32],
        limit: usize,
    ) -> Result<BTreeMap<String, Vec<FoundCaption>>, PipelineError> {
        let groups = self.file.search_groups(query, limit).map_err(read)?.into_iter();
        let found = groups.map(|(group, hits)| {
            let found = hits.into_iter().map(|hit| self.found(hit)).collect::<Result<_, PipelineError>>()?;
            Ok((self.language(group).to_owned(), found))
        });
        found.collect()
    }

    /// Returns the query for something like a caption of the list.
    ///
    /// # Errors
    /// When there is no such row.
    pub(super) fn query(&self, run: &OpenRun, row: u32) -> Result<Query, PipelineError> {
        if row >= self.file.rows() {
            return Err(PipelineError::Input(format!("there is no caption {row}: the list has {}", self.file.rows())));
        }
        let mut vector = self.file.vector(row).map_err(read)?;
        if matches!(run.head, Head::Classes(_)) {
            // The bias is no direction. Weights of other classes are compared without theirs.
            vector.pop();
            let captions = vector.iter().copied().chain([0.0]).collect();
            return Ok(Query { images: vector, captions: Some(captions) });
        }
        Ok(Query { images: vector.clone(), captions: Some(vector) })
    }
}
