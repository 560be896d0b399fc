//! Captions that are known by their text.

use std::collections::{BTreeMap, BTreeSet};

use super::{CaptionIndex, CaptionList, build, lists};
use crate::catalog::url_hash;
use crate::chunk::texts;
use crate::explore::images::read;
use crate::explore::jobs::Progress;
use crate::explore::opened::OpenRun;
use crate::pipeline::PipelineError;
use crate::pipeline::catalog::StoredClasses;

/// Captions of a list, found by their texts.
pub(in crate::explore) struct KnownCaptions {
    index: CaptionIndex,
    /// Row of each caption by the hash of its text.
    rows: BTreeMap<u64, u32>,
}

/// Finds the list that holds the most of some captions, which are given by the hashes of their texts; `None` if none holds
/// any. Blocks the thread.
///
/// # Errors
/// When a list cannot be read.
pub(in crate::explore) fn find_known(
    run: &OpenRun,
    captions: &BTreeSet<u64>,
) -> Result<Option<KnownCaptions>, PipelineError> {
    let mut best: Option<(CaptionList, BTreeMap<u64, u32>)> = None;
    for list in lists(run)? {
        let (mut rows, mut row) = (BTreeMap::new(), 0);
        let mut add = |caption: &str| {
            let hash = url_hash(caption);
            if captions.contains(&hash) {
                rows.entry(hash).or_insert(row);
            }
            row += 1;
        };
        if let CaptionList::Classes { .. } = list {
            StoredClasses::open(&run.dir)?.visit(|class| add(class.caption))?;
        }
        for file in list.files() {
            texts::visit_captions(&run.dir.fetch(&file)?, &mut add)?;
        }
        let is_complete = rows.len() == captions.len();
        if rows.len() > best.as_ref().map_or(0, |(_, best)| best.len()) {
            best = Some((list, rows));
        }
        if is_complete {
            break;
        }
    }
    let Some((list, rows)) = best else { return Ok(None) };
    let index = build(run, &list, &Progress::default())?;
    Ok(Some(KnownCaptions { index, rows }))
}

impl KnownCaptions {
    /// Returns the language of a caption, and its score for a query.
    ///
    /// # Errors
    /// When scratch disk fails.
    pub(in crate::explore) fn look_up(
        &self,
        text: &str,
        query: Option<&[f32]>,
    ) -> Result<(String, Option<f32>), PipelineError> {
        let Some(row) = self.rows.get(&url_hash(text)) else { return Ok((String::new(), None)) };
        let vector = self.index.file.vector(*row).map_err(read)?;
        let score = query.map(|query| query.iter().zip(&vector).map(|(one, other)| one * other).sum());
        Ok((self.index.language(self.index.file.group(*row).map_err(read)?).to_owned(), score))
    }
}
