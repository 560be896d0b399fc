//! Row groups of a Parquet file, read by ranges: only the columns that are needed, a page at a time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use crate::corpus::parquet::{
    self, Columns, FileRange, GroupRows, ImageLeaves, PairLeaves, ParquetFile, RangeReader, TAIL_BYTES, Value,
};
use crate::corpus::{
    CaptionQueue, EncodedImage, ImageColumns, ImageRow, PairColumns, PairCounts, PairRow, ResumePoint, check_row,
};
use crate::objects::read::{read_range, supports_ranges};
use crate::objects::{Object, ReadStats, StoreError};
use crate::pipeline::error::PipelineError;

/// Bytes at the end of a file that are read first. They hold the metadata of most files.
const FIRST_BYTES: u64 = 64 << 10;
/// Bytes of a column that are read at once, unless a page is larger.
const RANGE_BYTES: u64 = 4 << 20;
/// Bytes of values after which a batch of rows ends.
const BATCH_BYTES: usize = 1 << 20;
/// Largest page of a column of names.
const MAX_NAMES_PAGE_BYTES: u64 = 256 << 20;
/// Rows after which a batch ends.
const BATCH_ROWS: usize = 256;

/// Rows of some columns of a file.
pub(super) struct ParquetRows {
    object: Object,
    file: ParquetFile,
    columns: Columns,
    max_page_bytes: u64,
    stats: Arc<ReadStats>,
    /// Next row group to open.
    next_group: usize,
    /// Rows to skip in it.
    skip: u64,
    open: Option<GroupRows>,
    /// Number of the next row to read.
    next_row: u64,
    batch: VecDeque<Vec<Vec<Value>>>,
    /// Number of the first row in the batch.
    batch_row: u64,
}

/// Reads the metadata of a file.
async fn open_file(object: &Object, stats: &ReadStats) -> Result<ParquetFile, PipelineError> {
    if object.size == 0 || !supports_ranges(object).await? {
        let reason = if object.size == 0 {
            "it is empty"
        } else {
            "its server does not support ranges, which Parquet needs: download it"
        };
        return Err(StoreError::BadUrl { url: object.url.clone(), reason: reason.to_owned() }.into());
    }
    let started = Instant::now();
    let start = object.size.saturating_sub(FIRST_BYTES);
    let mut end = read_range(object, start..object.size).await?;
    let tail = end.slice(end.len().saturating_sub(TAIL_BYTES)..);
    let metadata = parquet::metadata_bytes(&object.url, object.size, &tail)?;
    let needed = (metadata + TAIL_BYTES) as u64;
    if needed > end.len() as u64 {
        end = read_range(object, object.size - needed..object.size).await?;
    }
    stats.add(end.len() as u64, started.elapsed());
    let from = end.len() - needed as usize;
    Ok(ParquetFile::new(&object.url, object.size, &end[from..from + metadata])?)
}

impl ParquetRows {
    /// Starts at row `first_row`.
    fn new(
        (object, file, columns): (&Object, ParquetFile, Columns),
        max_page_bytes: u64,
        first_row: u64,
        stats: &Arc<ReadStats>,
    ) -> Self {
        let (next_group, first) = file.find_row(first_row);
        let first_row = first_row.min(file.rows());
        Self {
            object: object.clone(),
            file,
            columns,
            max_page_bytes,
            stats: Arc::clone(stats),
            next_group,
            skip: first_row - first,
            open: None,
            next_row: first_row,
            batch: VecDeque::new(),
            batch_row: first_row,
        }
    }

    /// Returns the next row at hand, with its number.
    fn next(&mut self) -> Option<(u64, Vec<Vec<Value>>)> {
        let row = self.batch.pop_front()?;
        self.batch_row += 1;
        Some((self.batch_row - 1, row))
    }

    /// Number of the next row to return.
    fn position(&self) -> u64 {
        self.batch_row
    }

    /// Reads the next batch of rows. Returns whether more may follow.
    async fn fill(&mut self) -> Result<bool, PipelineError> {
        if self.open.is_none() {
            if self.next_group >= self.file.row_groups() {
                return Ok(false);
            }
            self.open_group()?;
        }
        let Some(mut group) = self.open.take() else { return Ok(false) };
        let skip = std::mem::take(&mut self.skip);
        // Values are decoded, and bytes are awaited, on a thread that may block.
        let read = tokio::task::spawn_blocking(move || -> Result<_, PipelineError> {
            group.skip(skip)?;
            let (mut rows, mut bytes) = (VecDeque::new(), 0);
            while bytes < BATCH_BYTES && rows.len() < BATCH_ROWS {
                let Some(row) = group.next_row()? else { return Ok((rows, None)) };
                bytes += row.iter().flatten().map(|value| value.bytes().len()).sum::<usize>();
                rows.push_back(row);
            }
            Ok((rows, Some(group)))
        });
        let (rows, group) = read.await??;
        self.open = group;
        self.batch_row = self.next_row;
        self.next_row += rows.len() as u64;
        self.batch = rows;
        Ok(self.open.is_some() || self.next_group < self.file.row_groups())
    }

    fn open_group(&mut self) -> Result<(), PipelineError> {
        let ranges = self.file.ranges(self.next_group, &self.columns);
        // The other columns are not read, but count as done.
        let read: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        self.stats.skip(self.file.group_bytes(self.next_group).saturating_sub(read));
        let source = |range: &FileRange| -> Box<dyn RangeReader> {
            Box::new(ObjectRange {
                object: self.object.clone(),
                end: range.end,
                runtime: Handle::current(),
                stats: Arc::clone(&self.stats),
                window: Mutex::default(),
            })
        };
        let sources = ranges.iter().map(source).collect();
        self.open = Some(self.file.open_group(self.next_group, &self.columns, sources, self.max_page_bytes)?);
        self.next_group += 1;
        Ok(())
    }
}

/// Part of an object that is read forwards. The next range is fetched while the current one is in use.
struct ObjectRange {
    object: Object,
    end: u64,
    runtime: Handle,
    stats: Arc<ReadStats>,
    window: Mutex<Window>,
}

type Fetch = AbortOnDropHandle<Result<Bytes, StoreError>>;

#[derive(Default)]
struct Window {
    start: u64,
    bytes: Bytes,
    /// Offset of the next range, and its bytes.
    ahead: Option<(u64, Fetch)>,
}

impl Window {
    /// Returns the bytes at an offset, at most `bytes`.
    fn get(&self, start: u64, bytes: usize) -> Option<Bytes> {
        let from = usize::try_from(start.checked_sub(self.start)?).ok()?;
        if from >= self.bytes.len() {
            return None;
        }
        Some(self.bytes.slice(from..self.bytes.len().min(from.saturating_add(bytes))))
    }
}

impl ObjectRange {
    /// Starts to fetch a range on the runtime.
    fn fetch(&self, range: std::ops::Range<u64>) -> Fetch {
        let object = self.object.clone();
        AbortOnDropHandle::new(self.runtime.spawn(async move { read_range(&object, range).await }))
    }

    /// Moves the window to `start`, and on to `bytes` bytes or a usual range.
    fn advance(
        &self,
        window: &mut Window,
        start: u64,
        bytes: usize,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let started = Instant::now();
        let fetch = match window.ahead.take() {
            Some((ahead, fetch)) if ahead == start => fetch,
            _ => self.fetch(start..self.end.min(start + RANGE_BYTES.max(bytes as u64))),
        };
        let fetched = self.runtime.block_on(fetch)??;
        self.stats.add(fetched.len() as u64, started.elapsed());
        let next = start + fetched.len() as u64;
        *window = Window { start, bytes: fetched, ahead: None };
        if next < self.end {
            window.ahead = Some((next, self.fetch(next..self.end.min(next + RANGE_BYTES))));
        }
        Ok(())
    }
}

impl RangeReader for ObjectRange {
    fn read(&self, start: u64, bytes: usize) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
        let window = &mut *self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.get(start, 1).is_none() {
            self.advance(window, start, bytes)?;
        }
        if let Some(whole) = window.get(start, bytes).filter(|found| found.len() == bytes) {
            return Ok(whole);
        }
        let mut joined = Vec::with_capacity(bytes);
        while joined.len() < bytes {
            let position = start + joined.len() as u64;
            match window.get(position, bytes - joined.len()) {
                Some(found) => joined.extend_from_slice(&found),
                None => self.advance(window, position, bytes - joined.len())?,
            }
        }
        Ok(joined.into())
    }

    fn at_hand(&self, start: u64, bytes: usize) -> usize {
        let window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        window.get(start, bytes).map_or(bytes, |found| found.len())
    }
}

/// Images of a file.
pub(super) struct ParquetImages {
    rows: ParquetRows,
    has_url: bool,
    is_base64: bool,
    /// Name and image of the current row.
    name: Vec<u8>,
    image: Option<Value>,
}

impl ParquetImages {
    pub(super) async fn open(
        object: &Object,
        names: &ImageColumns,
        max_page_bytes: u64,
        first_row: u64,
        stats: &Arc<ReadStats>,
    ) -> Result<Self, PipelineError> {
        let file = open_file(object, stats).await?;
        let ImageLeaves { columns, has_url, is_base64 } = file.image_columns(names)?;
        let rows = ParquetRows::new((object, file, columns), max_page_bytes, first_row, stats);
        Ok(Self { rows, has_url, is_base64, name: Vec::new(), image: None })
    }

    pub(super) async fn fill(&mut self) -> Result<bool, PipelineError> {
        self.rows.fill().await
    }

    pub(super) fn next(&mut self) -> Option<ImageRow<'_>> {
        self.image = None;
        let (number, values) = self.rows.next()?;
        let mut columns = values.into_iter();
        self.name = if self.has_url {
            columns.next().and_then(parquet::first_value).map(Value::into_text).unwrap_or_default()
        } else {
            format!("{}/{number}", self.rows.object.name).into_bytes()
        };
        self.image = columns.next().and_then(parquet::first_value);
        let bytes = self.image.as_ref().map_or(&[][..], Value::bytes);
        let image = if self.is_base64 { EncodedImage::Base64(bytes) } else { EncodedImage::File(bytes) };
        Some(check_row(number, &self.name, image))
    }
}

/// Captions of a file.
pub(super) struct ParquetPairs {
    rows: ParquetRows,
    has_url: bool,
    queue: CaptionQueue,
}

impl ParquetPairs {
    pub(super) async fn open(
        object: &Object,
        names: &PairColumns,
        languages: &[String],
        (first_row, counts): (u64, PairCounts),
        max_page_bytes: u64,
        stats: &Arc<ReadStats>,
    ) -> Result<Self, PipelineError> {
        let file = open_file(object, stats).await?;
        let PairLeaves { columns, has_url } = file.pair_columns(names)?;
        let rows = ParquetRows::new((object, file, columns), max_page_bytes, first_row, stats);
        Ok(Self { rows, has_url, queue: CaptionQueue::new(languages, counts) })
    }

    pub(super) async fn fill(&mut self) -> Result<bool, PipelineError> {
        self.rows.fill().await
    }

    pub(super) fn next(&mut self) -> Option<PairRow<'_>> {
        if self.queue.is_empty() {
            let (number, values) = self.rows.next()?;
            self.queue.push(parquet::captioned_row(number, values, self.has_url, &self.rows.object.name));
        }
        self.queue.next()
    }

    pub(super) fn counts(&self) -> &PairCounts {
        self.queue.counts()
    }

    /// Returns the next row. All pairs of earlier rows must have been returned.
    pub(super) fn resume_point(&self) -> ResumePoint {
        ResumePoint { byte_offset: 0, number: self.rows.position() }
    }
}

/// Passes the name of each image in a file to `visit`, reading the column of names alone.
pub(super) async fn visit_names(
    object: &Object,
    names: &ImageColumns,
    mut visit: impl FnMut(u64, &[u8]) -> Result<(), PipelineError>,
) -> Result<(), PipelineError> {
    let stats = Arc::<ReadStats>::default();
    let file = open_file(object, &stats).await?;
    let Some(columns) = file.name_column(names)? else {
        return (0..file.rows()).try_for_each(|row| visit(row, format!("{}/{row}", object.name).as_bytes()));
    };
    let mut rows = ParquetRows::new((object, file, columns), MAX_NAMES_PAGE_BYTES, 0, &stats);
    loop {
        let more = rows.fill().await?;
        while let Some((row, values)) = rows.next() {
            let name = values.into_iter().next().and_then(parquet::first_value).map(Value::into_text);
            visit(row, &name.unwrap_or_default())?;
        }
        if !more {
            return Ok(());
        }
    }
}
