//! Checkpoints of a catalog that is being built.
//!
//! Reading the pairs takes minutes, and the catalog is written at the end. Every few seconds a segment
//! `catalog/partial/NNNNNN` is written. It holds the rows since the previous segment and the position in the input. A
//! segment is whole or absent; it names the generation of its input and ends with a checksum. A gap or a damaged
//! segment ends the sequence. All segments are removed once the catalog is complete.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::catalog::{Classes, JoinIndexBuilder, Languages, RowTally, Texts, UrlVariants};
use crate::corpus::{PairCounts, ResumePoint};
use crate::objects::StoreError;
use crate::run_dir::Directory;

/// Folder of the segments.
const FOLDER: &str = "catalog/partial";
/// Minimum time between two segments. The pause is also at least four times the time that the last segment took to
/// write.
const INTERVAL: Duration = Duration::from_secs(4);

/// Position in the pairs files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Index of the open shard.
    pub(super) shard: usize,
    /// Next record of the shard.
    pub(super) mark: ResumePoint,
    /// Counts of the rows in earlier shards.
    pub(super) before: PairCounts,
    /// Counts of the rows read from the open shard.
    pub(super) of_shard: PairCounts,
}

/// JSON header of a segment. Binary parts of the given lengths follow it.
#[derive(Debug, Serialize, Deserialize)]
struct SegmentHeader {
    generation: String,
    position: Position,
    tally: RowTally,
    /// State of [`UrlVariants`].
    halvings: u32,
    entries: usize,
    captions: usize,
    sample: usize,
    /// Names of all languages so far.
    languages: Vec<String>,
    /// First class whose language is in the segment.
    first_language: usize,
    /// Number of classes whose language is in the segment.
    languages_of: usize,
}

/// Merged content of all segments.
#[derive(Debug)]
pub(super) struct CatalogCheckpoint {
    /// Position at which reading resumes.
    pub(super) position: Position,
    /// Counts of the rows so far.
    pub(super) tally: RowTally,
    /// Entries of the join index.
    pub(super) entries: Vec<[u32; 3]>,
    /// New classes, if the training captions are the classes.
    pub(super) captions: Texts,
    /// Sample of URL variants.
    pub(super) url_variants: UrlVariants,
    /// Languages of the classes.
    pub(super) languages: Languages,
}

/// Writes segments.
#[derive(Debug)]
pub(super) struct CheckpointWriter {
    directory: Directory,
    generation: String,
    /// Number of the next segment.
    next: u32,
    /// Entries in the segments so far.
    entries: usize,
    /// Captions in the segments so far.
    captions: usize,
    /// Time of the last write, and its duration.
    written: (Instant, Duration),
}

fn segment_name(number: u32) -> String {
    format!("{FOLDER}/{number:06}")
}

impl CheckpointWriter {
    /// Opens the checkpoint of a run directory and returns its content for `generation`. Removes segments that do not
    /// continue it.
    ///
    /// # Errors
    /// When a segment cannot be read or removed.
    pub(super) fn open(
        directory: Directory,
        generation: &str,
    ) -> Result<(Self, Option<CatalogCheckpoint>), StoreError> {
        let mut checkpoint: Option<CatalogCheckpoint> = None;
        let mut next = 0;
        while let Some(content) = directory.read(&segment_name(next))? {
            let Some((segment, first_language)) = parse_segment(&content, generation) else { break };
            checkpoint = Some(match checkpoint {
                None => segment,
                Some(earlier) => earlier.extend(segment, first_language),
            });
            next += 1;
        }
        // A segment after a gap must not become the successor of a segment written later.
        directory.sweep(FOLDER, |file| file.parse::<u32>().is_ok_and(|file| file < next))?;
        let entries = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.entries.len());
        let captions = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.captions.len());
        let generation = generation.to_owned();
        let written = (Instant::now(), Duration::ZERO);
        Ok((Self { directory, generation, next, entries, captions, written }, checkpoint))
    }

    /// Whether it is time for the next segment.
    pub(super) fn is_due(&self) -> bool {
        let (at, took) = self.written;
        at.elapsed() >= INTERVAL.max(4 * took)
    }

    /// Writes a segment with everything new since the previous one. `new_classes` is set if the training captions are
    /// the classes.
    ///
    /// # Errors
    /// When the run directory cannot be written.
    pub(super) fn append(
        &mut self,
        position: Position,
        index: &JoinIndexBuilder,
        new_classes: Option<&Classes>,
        url_variants: &UrlVariants,
        languages: &Languages,
    ) -> Result<(), StoreError> {
        let started = Instant::now();
        let entries = &index.entries()[self.entries..];
        let captions: Vec<&str> =
            new_classes.map(|classes| classes.texts_from(self.captions).collect()).unwrap_or_default();
        // A new class has its language from the start. A class of a list may get its language at any time.
        let first_language = if new_classes.is_some() { self.captions.min(languages.codes().len()) } else { 0 };
        let codes = &languages.codes()[first_language..];
        let (halvings, sample) = url_variants.sample();
        let header = SegmentHeader {
            generation: self.generation.clone(),
            position,
            tally: index.tally(),
            halvings,
            entries: entries.len(),
            captions: captions.len(),
            sample: sample.len(),
            languages: languages.names().to_vec(),
            first_language,
            languages_of: codes.len(),
        };
        // Numbers and strings serialise without error.
        let header = serde_json::to_vec(&header).unwrap_or_default();
        let mut content = Vec::with_capacity(header.len() + 12 * entries.len() + 16 * sample.len() + 64);
        content.extend_from_slice(&(header.len() as u64).to_le_bytes());
        content.extend_from_slice(&header);
        content.extend(entries.iter().flatten().flat_map(|word| word.to_le_bytes()));
        content.extend(sample.flat_map(|(normal, raw)| [normal, raw]).flat_map(u64::to_le_bytes));
        content.extend(codes.iter().flat_map(|code| code.to_le_bytes()));
        for caption in &captions {
            content.extend_from_slice(&(caption.len() as u64).to_le_bytes());
            content.extend_from_slice(caption.as_bytes());
        }
        let sum = XxHash3_64::oneshot(&content);
        content.extend_from_slice(&sum.to_le_bytes());
        self.directory.write(&segment_name(self.next), &content)?;
        self.next += 1;
        (self.entries, self.captions) = (index.entries().len(), self.captions + captions.len());
        self.written = (Instant::now(), started.elapsed());
        Ok(())
    }

    /// Removes all segments.
    ///
    /// # Errors
    /// When a segment cannot be removed.
    pub(super) fn remove_all(directory: &Directory) -> Result<(), StoreError> {
        directory.remove(FOLDER)
    }
}

impl CatalogCheckpoint {
    /// Appends the next segment, whose languages start with class `first_language`.
    fn extend(mut self, segment: Self, first_language: usize) -> Self {
        // Doubling would exceed the memory that a row may take.
        if self.entries.capacity() - self.entries.len() < segment.entries.len() {
            self.entries.reserve_exact(segment.entries.len().max(self.entries.len() / 8));
        }
        self.entries.extend(segment.entries);
        // A segment with more captions than `u32` can number is never written.
        self.captions.append(&segment.captions);
        let mut codes = self.languages.codes().to_vec();
        codes.truncate(first_language);
        codes.extend_from_slice(segment.languages.codes());
        let languages = Languages::from_parts(segment.languages.names().to_vec(), codes);
        Self { entries: self.entries, captions: self.captions, languages, ..segment }
    }
}

/// Splits off the first `bytes` bytes of a slice; `None` if it is shorter.
fn split_front<'a>(rest: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(bytes)?;
    *rest = left;
    Some(taken)
}

fn read_u64(rest: &mut &[u8]) -> Option<u64> {
    split_front(rest, 8)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// Parses a segment. Returns it with the first class whose language it holds; `None` if it is damaged or of another
/// generation.
fn parse_segment(content: &[u8], generation: &str) -> Option<(CatalogCheckpoint, usize)> {
    let (body, sum) = content.split_last_chunk::<8>()?;
    if XxHash3_64::oneshot(body) != u64::from_le_bytes(*sum) {
        return None;
    }
    let mut rest = body;
    let header_bytes = usize::try_from(read_u64(&mut rest)?).ok()?;
    let header: SegmentHeader = serde_json::from_slice(split_front(&mut rest, header_bytes)?).ok()?;
    if header.generation != generation {
        return None;
    }
    let words = split_front(&mut rest, header.entries.checked_mul(12)?)?.as_chunks::<4>().0;
    let words: Vec<u32> = words.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    let hashes = split_front(&mut rest, header.sample.checked_mul(16)?)?.as_chunks::<8>().0;
    let hashes: Vec<u64> = hashes.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
    let codes = split_front(&mut rest, header.languages_of.checked_mul(2)?)?.as_chunks::<2>().0;
    let codes: Vec<u16> = codes.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
    let mut captions = Texts::default();
    for _ in 0..header.captions {
        let bytes = usize::try_from(read_u64(&mut rest)?).ok()?;
        captions.push(std::str::from_utf8(split_front(&mut rest, bytes)?).ok()?)?;
    }
    let segment = CatalogCheckpoint {
        languages: Languages::from_parts(header.languages, codes),
        position: header.position,
        tally: header.tally,
        entries: words.as_chunks::<3>().0.to_vec(),
        captions,
        url_variants: UrlVariants::from_parts(
            header.halvings,
            hashes.as_chunks::<2>().0.iter().map(|[normal, raw]| (*normal, *raw)),
        ),
    };
    Some((segment, header.first_language))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{ClassSource, url_hash};
    use crate::run_dir::LocalDirectory;
    use crate::types::MatchRule;

    fn position(row: u64) -> Position {
        let (before, mut of_shard) = (PairCounts::default(), PairCounts::default());
        of_shard.rows = row;
        Position { shard: 1, mark: ResumePoint { byte_offset: 10 * row, number: row + 1 }, before, of_shard }
    }

    #[test]
    fn segments_restore_all_rows_until_damage() {
        let dir = tempfile::tempdir().unwrap();
        let directory: Directory = LocalDirectory::create(dir.path()).unwrap().into();
        let (mut writer, none) = CheckpointWriter::open(directory.clone(), "g").unwrap();
        assert!(none.is_none());
        let mut classes = Classes::new(ClassSource::Train, MatchRule::Exact);
        let (mut index, mut url_variants) = (JoinIndexBuilder::new(), UrlVariants::new());
        let mut languages = Languages::default();
        for row in 0..30u64 {
            let url = format!("http://x/{row}");
            let group = classes.add(&format!("caption {}\n", row % 7)).unwrap();
            index.add(url_hash(&url), group).unwrap();
            url_variants.add(&url);
            languages.record(group.unwrap(), ["de", "en", "fr"][row as usize % 3]);
            if row % 10 == 9 {
                writer.append(position(row), &index, Some(&classes), &url_variants, &languages).unwrap();
            }
        }
        let (_, checkpoint) = CheckpointWriter::open(directory.clone(), "g").unwrap();
        let checkpoint = checkpoint.unwrap();
        assert_eq!((checkpoint.position, checkpoint.tally), (position(29), index.tally()));
        assert_eq!(checkpoint.entries, index.entries());
        assert!(checkpoint.captions.iter().eq(classes.texts()));
        assert_eq!(checkpoint.languages, languages);
        assert_eq!(checkpoint.url_variants.sample().1.collect::<Vec<_>>(), url_variants.sample().1.collect::<Vec<_>>());

        let mut content = directory.read(&segment_name(1)).unwrap().unwrap();
        content[20] ^= 1;
        directory.write(&segment_name(1), &content).unwrap();
        let (_, checkpoint) = CheckpointWriter::open(directory.clone(), "g").unwrap();
        assert_eq!(checkpoint.unwrap().position, position(9));
        assert_eq!(directory.list(FOLDER).unwrap(), ["000000"], "what followed the damage is gone");
        assert!(CheckpointWriter::open(directory.clone(), "other").unwrap().1.is_none());
        assert!(directory.list(FOLDER).unwrap().is_empty());
    }
}
