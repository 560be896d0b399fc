//! What reading the pairs has gathered so far, kept in the run directory every few seconds, so that a kill costs seconds of it.
//!
//! The catalog is made at the end, of all rows, and reading them takes minutes. Segments `catalog/partial/NNNNNN` hold what
//! came since the one before, and where the reading goes on. Each is whole or absent, and carries what it was made from and
//! a checksum; a gap or a damaged one ends the sequence. They go once the catalog is there.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::catalog::{Classes, JoinIndexBuilder, Languages, RowTally, UrlVariants};
use crate::corpus::{PairCounts, ResumePoint};
use crate::objects::StoreError;
use crate::run_dir::Directory;

/// Folder of the segments.
const FOLDER: &str = "catalog/partial";
/// Time between two segments; one that takes long to write is followed by four times that.
const EVERY: Duration = Duration::from_secs(4);

/// Where the reading goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Shard.
    pub(super) shard: usize,
    /// Record in it.
    pub(super) mark: ResumePoint,
    /// Rows of the shards before it.
    pub(super) before: PairCounts,
    /// Rows of it so far.
    pub(super) of_shard: PairCounts,
}

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    generation: String,
    position: Position,
    tally: RowTally,
    halvings: u32,
    entries: usize,
    captions: usize,
    sample: usize,
    /// All languages so far.
    languages: Vec<String>,
    /// The first class whose language is in the segment, and of how many.
    first_language: usize,
    languages_of: usize,
}

/// What all segments hold together.
#[derive(Debug)]
pub(super) struct Gathered {
    pub(super) position: Position,
    pub(super) tally: RowTally,
    pub(super) entries: Vec<[u32; 3]>,
    /// New classes, where the pairs make them.
    pub(super) captions: Vec<String>,
    pub(super) forms: UrlVariants,
    pub(super) languages: Languages,
}

/// Keeps segments.
#[derive(Debug)]
pub(super) struct Partial {
    directory: Directory,
    generation: String,
    number: u32,
    entries: usize,
    captions: usize,
    saved: Instant,
    took: Duration,
}

fn name(number: u32) -> String {
    format!("{FOLDER}/{number:06}")
}

impl Partial {
    /// Reads what an earlier process kept, if it was made from the same inputs.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub(super) fn open(directory: Directory, generation: &str) -> Result<(Self, Option<Gathered>), StoreError> {
        let mut gathered: Option<Gathered> = None;
        let mut number = 0;
        while let Some(content) = directory.read(&name(number))? {
            let Some((segment, first)) = parse(&content, generation) else { break };
            gathered = Some(match gathered {
                None => segment,
                Some(mut before) => {
                    before.entries.extend(segment.entries);
                    before.captions.extend(segment.captions);
                    let mut codes = before.languages.codes().to_vec();
                    codes.truncate(first);
                    codes.extend_from_slice(segment.languages.codes());
                    let languages = Languages::from_parts(segment.languages.names().to_vec(), codes);
                    Gathered { entries: before.entries, captions: before.captions, languages, ..segment }
                }
            });
            number += 1;
        }
        // What follows a gap must not be taken for what follows a later segment.
        directory.sweep(FOLDER, |file| file.parse::<u32>().is_ok_and(|file| file < number))?;
        let entries = gathered.as_ref().map_or(0, |gathered| gathered.entries.len());
        let captions = gathered.as_ref().map_or(0, |gathered| gathered.captions.len());
        let generation = generation.to_owned();
        let (saved, took) = (Instant::now(), Duration::ZERO);
        Ok((Self { directory, generation, number, entries, captions, saved, took }, gathered))
    }

    /// Whether it is time for the next segment.
    pub(super) fn is_due(&self) -> bool {
        self.saved.elapsed() >= EVERY.max(4 * self.took)
    }

    /// Keeps what came since the last segment; `classes` are given where the pairs make them.
    ///
    /// # Errors
    /// When the disk is full or refuses.
    pub(super) fn keep(
        &mut self,
        position: Position,
        builder: &JoinIndexBuilder,
        classes: Option<&Classes>,
        forms: &UrlVariants,
        languages: &Languages,
    ) -> Result<(), StoreError> {
        let started = Instant::now();
        let entries = &builder.entries()[self.entries..];
        let captions: Vec<&str> =
            classes.map(|classes| classes.texts().skip(self.captions).collect()).unwrap_or_default();
        // New classes have one from the start; those of a list may get theirs at any time.
        let first_language = if classes.is_some() { self.captions.min(languages.codes().len()) } else { 0 };
        let codes = &languages.codes()[first_language..];
        let (halvings, sample) = forms.sample();
        let head = Head {
            generation: self.generation.clone(),
            position,
            tally: builder.tally(),
            halvings,
            entries: entries.len(),
            captions: captions.len(),
            sample: sample.len(),
            languages: languages.names().to_vec(),
            first_language,
            languages_of: codes.len(),
        };
        // Numbers and text alone: this cannot fail.
        let head = serde_json::to_vec(&head).unwrap_or_default();
        let mut content = Vec::with_capacity(head.len() + 12 * entries.len() + 16 * sample.len() + 64);
        content.extend_from_slice(&(head.len() as u64).to_le_bytes());
        content.extend_from_slice(&head);
        content.extend(entries.iter().flatten().flat_map(|word| word.to_le_bytes()));
        content.extend(sample.flat_map(|(normal, raw)| [normal, raw]).flat_map(u64::to_le_bytes));
        content.extend(codes.iter().flat_map(|code| code.to_le_bytes()));
        for caption in &captions {
            content.extend_from_slice(&(caption.len() as u64).to_le_bytes());
            content.extend_from_slice(caption.as_bytes());
        }
        let sum = XxHash3_64::oneshot(&content);
        content.extend_from_slice(&sum.to_le_bytes());
        self.directory.write(&name(self.number), &content)?;
        self.number += 1;
        (self.entries, self.captions) = (builder.entries().len(), self.captions + captions.len());
        (self.saved, self.took) = (Instant::now(), started.elapsed());
        Ok(())
    }

    /// Removes all segments.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn clear(directory: &Directory) -> Result<(), StoreError> {
        directory.remove(FOLDER)
    }
}

/// Takes the front of a slice off.
fn front<'a>(rest: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(bytes)?;
    *rest = left;
    Some(taken)
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    front(rest, 8)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// A sound segment of the generation, and the first class whose language it has.
fn parse(content: &[u8], generation: &str) -> Option<(Gathered, usize)> {
    let (body, sum) = content.split_last_chunk::<8>()?;
    if XxHash3_64::oneshot(body) != u64::from_le_bytes(*sum) {
        return None;
    }
    let mut rest = body;
    let head_bytes = usize::try_from(number(&mut rest)?).ok()?;
    let head: Head = serde_json::from_slice(front(&mut rest, head_bytes)?).ok()?;
    if head.generation != generation {
        return None;
    }
    let words = front(&mut rest, head.entries.checked_mul(12)?)?.as_chunks::<4>().0;
    let words: Vec<u32> = words.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    let hashes = front(&mut rest, head.sample.checked_mul(16)?)?.as_chunks::<8>().0;
    let hashes: Vec<u64> = hashes.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
    let codes = front(&mut rest, head.languages_of.checked_mul(2)?)?.as_chunks::<2>().0;
    let codes: Vec<u16> = codes.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
    let mut captions = Vec::new();
    for _ in 0..head.captions {
        let bytes = usize::try_from(number(&mut rest)?).ok()?;
        captions.push(std::str::from_utf8(front(&mut rest, bytes)?).ok()?.to_owned());
    }
    let gathered = Gathered {
        languages: Languages::from_parts(head.languages, codes),
        position: head.position,
        tally: head.tally,
        entries: words.as_chunks::<3>().0.to_vec(),
        captions,
        forms: UrlVariants::from_parts(
            head.halvings,
            hashes.as_chunks::<2>().0.iter().map(|[normal, raw]| (*normal, *raw)),
        ),
    };
    Some((gathered, head.first_language))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{ClassSource, Match, url_hash};
    use crate::run_dir::LocalDirectory;

    fn position(row: u64) -> Position {
        let (before, mut of_shard) = (PairCounts::default(), PairCounts::default());
        of_shard.rows = row;
        Position { shard: 1, mark: ResumePoint { byte_offset: 10 * row, number: row + 1 }, before, of_shard }
    }

    #[test]
    fn segments_add_up_to_everything_gathered_and_damage_ends_them() {
        let dir = tempfile::tempdir().unwrap();
        let directory: Directory = LocalDirectory::create(dir.path()).unwrap().into();
        let (mut partial, none) = Partial::open(directory.clone(), "g").unwrap();
        assert!(none.is_none());
        let mut classes = Classes::new(ClassSource::Train, Match::Exact);
        let (mut builder, mut forms) = (JoinIndexBuilder::new(), UrlVariants::new());
        let mut languages = Languages::default();
        for row in 0..30u64 {
            let url = format!("http://x/{row}");
            let group = classes.add(&format!("caption {}\n", row % 7)).unwrap();
            builder.add(url_hash(&url), group).unwrap();
            forms.add(&url);
            languages.record(group.unwrap(), ["de", "en", "fr"][row as usize % 3]);
            if row % 10 == 9 {
                partial.keep(position(row), &builder, Some(&classes), &forms, &languages).unwrap();
            }
        }
        let (_, gathered) = Partial::open(directory.clone(), "g").unwrap();
        let gathered = gathered.unwrap();
        assert_eq!((gathered.position, gathered.tally), (position(29), builder.tally()));
        assert_eq!(gathered.entries, builder.entries());
        assert_eq!(gathered.captions, classes.texts().collect::<Vec<_>>());
        assert_eq!(gathered.languages, languages);
        assert_eq!(gathered.forms.sample().1.collect::<Vec<_>>(), forms.sample().1.collect::<Vec<_>>());

        let mut content = directory.read(&name(1)).unwrap().unwrap();
        content[20] ^= 1;
        directory.write(&name(1), &content).unwrap();
        let (_, gathered) = Partial::open(directory.clone(), "g").unwrap();
        assert_eq!(gathered.unwrap().position, position(9));
        assert_eq!(directory.list(FOLDER).unwrap(), ["000000"], "what followed the damage is gone");
        assert!(Partial::open(directory.clone(), "other").unwrap().1.is_none());
        assert!(directory.list(FOLDER).unwrap().is_empty());
    }
}
