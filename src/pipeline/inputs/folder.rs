//! Image files of a folder, and their captions.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use super::PairInput;
use super::pairs::PairReader;
use crate::corpus::folder::{METADATA_NAMES, class_of, is_metadata, join, split_folder, text_of};
use crate::corpus::{
    CaptionQueue, CaptionedRow, EncodedImage, ImageRow, ImageRowProblem, Pair, PairCounts, PairProblem, PairRow,
    ResumePoint, check_row,
};
use crate::objects::read::read_range;
use crate::objects::{Folder, Object, ReadStats, Store};
use crate::pipeline::error::PipelineError;
use crate::types::{FolderCaptions, PairsFormat};

/// Files that are read at once.
const FILES_AT_ONCE: usize = 8;
/// Bytes of files that are read at once, unless one is larger.
const BATCH_BYTES: u64 = 8 << 20;
/// Captions that are read at once.
const TEXTS_AT_ONCE: usize = 32;
/// Upper bound on a file with one caption.
const MAX_TEXT_BYTES: u64 = 1 << 20;

fn folder_of(object: &Object) -> Result<&Arc<Folder>, PipelineError> {
    object.folder().ok_or_else(|| PipelineError::Internal(format!("`{}` is not a folder", object.url)))
}

/// Reads a whole file; an empty one without a request.
async fn read_file(file: Object, stats: Arc<ReadStats>) -> Result<Bytes, PipelineError> {
    if file.size == 0 {
        return Ok(Bytes::new());
    }
    let started = Instant::now();
    let bytes = read_range(&file, 0..file.size).await?;
    stats.add(bytes.len() as u64, started.elapsed());
    Ok(bytes)
}

/// Images of a folder, in the order of their names.
pub(super) struct FolderImages {
    folder: Arc<Folder>,
    max_encoded_bytes: u64,
    stats: Arc<ReadStats>,
    /// Next file to read.
    next_file: usize,
    /// Files that were read; `None` for one over the limit.
    batch: VecDeque<(usize, Option<Bytes>)>,
    current: Option<(usize, Option<Bytes>)>,
}

impl FolderImages {
    pub(super) fn new(
        object: &Object,
        max_encoded_bytes: u64,
        first_row: u64,
        stats: &Arc<ReadStats>,
    ) -> Result<Self, PipelineError> {
        let folder = Arc::clone(folder_of(object)?);
        let next_file = usize::try_from(first_row).unwrap_or(usize::MAX).min(folder.files.len());
        let (stats, batch) = (Arc::clone(stats), VecDeque::new());
        Ok(Self { folder, max_encoded_bytes, stats, next_file, batch, current: None })
    }

    /// Reads the next files at once.
    pub(super) async fn fill(&mut self) -> Result<bool, PipelineError> {
        let mut bytes = 0;
        let limit = self.max_encoded_bytes;
        let rest = self.folder.files.iter().enumerate().skip(self.next_file).take(FILES_AT_ONCE);
        let chosen: Vec<(usize, Object)> = rest
            .take_while(|(index, file)| {
                let is_first = *index == self.next_file;
                bytes += if file.size > limit { 0 } else { file.size };
                is_first || bytes <= BATCH_BYTES
            })
            .map(|(index, file)| (index, file.clone()))
            .collect();
        self.next_file += chosen.len();
        let read = stream::iter(chosen).map(|(index, file)| {
            let stats = Arc::clone(&self.stats);
            async move {
                if file.size > limit {
                    stats.skip(file.size);
                    return Ok::<_, PipelineError>((index, None));
                }
                Ok((index, Some(read_file(file, stats).await?)))
            }
        });
        self.batch = read.buffered(FILES_AT_ONCE).try_collect().await?;
        Ok(self.next_file < self.folder.files.len())
    }

    pub(super) fn next(&mut self) -> Option<ImageRow<'_>> {
        self.current = self.batch.pop_front();
        let (index, content) = self.current.as_ref()?;
        let (row, file) = (*index as u64, self.folder.files.get(*index)?);
        Some(match content {
            Some(content) => check_row(row, file.name.as_bytes(), EncodedImage::File(content)),
            None => ImageRow::Bad {
                row,
                reason: ImageRowProblem::RowTooLong,
                detail: format!("the image has {} bytes, over the limit of {}", file.size, self.max_encoded_bytes),
                image_url: Some(file.name.clone()),
            },
        })
    }
}

/// Captions of a folder.
pub(super) enum FolderPairs {
    /// Files with rows of names and captions.
    Metadata(Box<MetadataPairs>),
    /// One caption for each image.
    PerImage(ImageCaptions),
}

/// Captions in files `metadata.*`.
pub(super) struct MetadataPairs {
    store: Store,
    files: VecDeque<Object>,
    open: Option<OpenMetadata>,
    input: PairInput,
    /// Counts of the files before the open one.
    counts: PairCounts,
    stats: Arc<ReadStats>,
    /// Name of the image of the current row.
    name: String,
}

struct OpenMetadata {
    folder: String,
    rows: PairReader,
    /// True if all bytes were read.
    ended: bool,
}

/// Captions of the images one by one.
pub(super) struct ImageCaptions {
    folder: Arc<Folder>,
    /// Files with the captions, by name; `None` if folders are the captions.
    texts: Option<BTreeMap<String, Object>>,
    next_file: usize,
    queue: CaptionQueue,
    stats: Arc<ReadStats>,
}

impl FolderPairs {
    pub(super) fn open(
        store: &Store,
        object: &Object,
        input: &PairInput,
        (first_row, counts): (u64, PairCounts),
        stats: &Arc<ReadStats>,
    ) -> Result<Self, PipelineError> {
        let folder = folder_of(object)?;
        let has_text = |image: &Object| {
            let name = text_of(&image.name);
            folder.others.binary_search_by(|other| other.name.as_str().cmp(&name)).is_ok()
        };
        let found = match input.folder_captions {
            FolderCaptions::Auto if folder.others.iter().any(|file| is_metadata(&file.name)) => {
                FolderCaptions::Metadata
            }
            FolderCaptions::Auto if folder.files.iter().any(has_text) => FolderCaptions::Text,
            FolderCaptions::Auto if folder.files.iter().any(|file| class_of(&file.name).is_some()) => {
                FolderCaptions::Folders
            }
            FolderCaptions::Auto => {
                return Err(PipelineError::Input(format!(
                    "`{}` holds no captions: add a file `metadata.csv` with the columns `file_name` and `text`, a file `NAME.txt` \
                     beside each image, or one folder for each class",
                    object.url
                )));
            }
            set => set,
        };
        let stats = Arc::clone(stats);
        if found == FolderCaptions::Metadata {
            let files: VecDeque<Object> =
                folder.others.iter().filter(|file| is_metadata(&file.name)).cloned().collect();
            if files.is_empty() {
                return Err(PipelineError::Input(format!(
                    "`{}` holds no file {}, which `pairs.folder_captions` asks for",
                    object.url,
                    METADATA_NAMES.map(|name| format!("`{name}`")).join(" or ")
                )));
            }
            let mut input = input.clone();
            input.columns.url.get_or_insert_with(|| "file_name".to_owned());
            return Ok(Self::Metadata(Box::new(MetadataPairs {
                store: store.clone(),
                files,
                open: None,
                input,
                counts,
                stats,
                name: String::new(),
            })));
        }
        let texts = (found == FolderCaptions::Text)
            .then(|| folder.others.iter().map(|file| (file.name.clone(), file.clone())).collect());
        let queue = CaptionQueue::new(&input.languages, counts);
        let next_file = usize::try_from(first_row).unwrap_or(usize::MAX);
        Ok(Self::PerImage(ImageCaptions { folder: Arc::clone(folder), texts, next_file, queue, stats }))
    }

    pub(super) async fn fill(&mut self) -> Result<bool, PipelineError> {
        match self {
            Self::Metadata(pairs) => pairs.fill().await,
            Self::PerImage(pairs) => pairs.fill().await,
        }
    }

    pub(super) fn next(&mut self) -> Result<Option<PairRow<'_>>, PipelineError> {
        match self {
            Self::Metadata(pairs) => pairs.next(),
            Self::PerImage(pairs) => Ok(pairs.queue.next()),
        }
    }

    pub(super) fn counts(&self) -> PairCounts {
        match self {
            Self::Metadata(pairs) => {
                let mut counts = pairs.counts;
                if let Some(open) = &pairs.open {
                    counts.add(&open.rows.counts());
                }
                counts
            }
            Self::PerImage(pairs) => *pairs.queue.counts(),
        }
    }

    /// Returns the next image. Files `metadata.*` are read again from the start.
    pub(super) fn resume_point(&self) -> Option<ResumePoint> {
        match self {
            Self::Metadata(_) => None,
            Self::PerImage(pairs) => Some(ResumePoint { byte_offset: 0, number: pairs.next_file as u64 }),
        }
    }
}

impl MetadataPairs {
    async fn fill(&mut self) -> Result<bool, PipelineError> {
        if let Some(open) = self.open.take_if(|open| open.ended) {
            self.counts.add(&open.rows.counts());
        }
        if self.open.is_none() {
            let Some(file) = self.files.pop_front() else { return Ok(false) };
            self.input.format = match file.name.rsplit_once('.') {
                Some((_, "tsv")) => PairsFormat::Tsv,
                Some((_, "jsonl")) => PairsFormat::Jsonl,
                Some((_, "parquet")) => PairsFormat::Parquet,
                _ => PairsFormat::Csv,
            };
            let folder = split_folder(&file.name).0.to_owned();
            let rows = Box::pin(PairReader::open(&self.store, &file, &self.input, None, &self.stats)).await?;
            self.open = Some(OpenMetadata { folder, rows, ended: false });
        }
        let Some(open) = &mut self.open else { return Ok(false) };
        open.ended = !Box::pin(open.rows.fill()).await?;
        Ok(!open.ended || !self.files.is_empty())
    }

    fn next(&mut self) -> Result<Option<PairRow<'_>>, PipelineError> {
        let Some(OpenMetadata { folder, rows, .. }) = &mut self.open else { return Ok(None) };
        Ok(match rows.next()? {
            Some(PairRow::Pair(pair)) => {
                self.name = join(folder, pair.image_url).unwrap_or_else(|| pair.image_url.to_owned());
                Some(PairRow::Pair(Pair { image_url: &self.name, ..pair }))
            }
            other => other,
        })
    }
}

impl ImageCaptions {
    async fn fill(&mut self) -> Result<bool, PipelineError> {
        let rest = self.folder.files.iter().enumerate().skip(self.next_file).take(TEXTS_AT_ONCE);
        let mut reads = Vec::new();
        for (index, image) in rest {
            let text = match &self.texts {
                Some(texts) => texts.get(&text_of(&image.name)).cloned(),
                None => None,
            };
            reads.push((index as u64, image.name.clone(), text));
        }
        self.next_file += reads.len();
        let by_folder = self.texts.is_none();
        let stats = &self.stats;
        let mut rows = stream::iter(reads)
            .map(|(row, name, text)| async move {
                let caption = match text {
                    _ if by_folder => class_of(&name).map(|class| class.as_bytes().to_vec()),
                    Some(text) if text.size > MAX_TEXT_BYTES => {
                        return Ok::<_, PipelineError>(CaptionedRow::unusable(row, PairProblem::RowTooLong));
                    }
                    Some(text) => Some(read_file(text, Arc::clone(stats)).await?.trim_ascii().to_vec()),
                    None => None,
                };
                let captions = caption.into_iter().map(|caption| (Vec::new(), caption)).collect();
                Ok(CaptionedRow { row, image_url: name.into_bytes(), captions, problem: None })
            })
            .buffered(FILES_AT_ONCE);
        while let Some(row) = rows.try_next().await? {
            self.queue.push(row);
        }
        drop(rows);
        Ok(self.next_file < self.folder.files.len())
    }
}
