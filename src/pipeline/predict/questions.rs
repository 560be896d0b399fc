//! Right captions of the test images, as the truth has them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::catalog::url_hash;
use crate::objects::Store;
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::pipeline::predict::Ranker;
use crate::pipeline::predict::test_set::{IdSource, TestSet, read_truth_rows, visit_ids};
use crate::predict::evaluate::{ImageOfId, TruthRow};
use crate::predict::scorer::PlaceQuery;
use crate::predict::slices::Query;

/// Group of captions without a language.
const NO_LANGUAGE: u32 = u32::MAX;

/// Queries of the test set, in the order of the ids.
#[derive(Default)]
pub(super) struct Questions {
    pub(super) queries: Vec<Query>,
    /// Number of each query's id, ascending from 0.
    pub(super) ids: Vec<u32>,
    /// Right caption of each query.
    pub(super) texts: Vec<Box<str>>,
    /// Languages that [`Query::language`] indexes.
    pub(super) languages: Vec<String>,
    /// Image of each id of the truth.
    pub(super) image_of: ImageOfId,
    /// Queries whose caption is ranked, by ascending image.
    by_image: Vec<u32>,
    /// Language of each ranked caption; absent if no language is known.
    pub(super) groups: Option<Arc<Vec<u32>>>,
}

impl Questions {
    /// Reads the right captions of the test ids. The inner error says why there is no score.
    ///
    /// # Errors
    /// When the truth or the ids cannot be read.
    pub(super) async fn read(
        ctx: &RunContext,
        truth: &str,
        ids: &IdSource,
        test_set: &TestSet,
        ranker: &impl Ranker,
    ) -> Result<Result<Self, String>, PipelineError> {
        let rows = read_truth_rows(&ctx.store, truth).await?;
        let captions: HashSet<&str> = rows.iter().map(|row| &*row.caption).collect();
        let shown = Store::redact(truth);
        let number_of = ranker.find_captions(&captions)?;
        if number_of.is_empty() {
            return Ok(Err(format!(
                "no score: the {} ranked captions hold none of the right captions of `{shown}` (`predict.truth`)",
                ranker.captions()
            )));
        }
        let mut by_id: HashMap<&str, Vec<&TruthRow>> = HashMap::new();
        for row in &rows {
            by_id.entry(&*row.id).or_default().push(row);
        }
        let (mut questions, mut number) = (Self::default(), 0);
        visit_ids(&ctx.store, ids, |id| {
            let (Some(rows), hash) = (by_id.get(id.id), url_hash(id.image_url)) else { return Ok(()) };
            questions.image_of.insert(id.id.into(), hash);
            let Some(image) = test_set.urls.position(hash) else { return Ok(()) };
            for row in rows {
                questions.push(image, number, row, number_of.get(&*row.caption).copied());
            }
            number += 1;
            Ok(())
        })
        .await?;
        if questions.queries.is_empty() {
            return Ok(Err(format!("no score: `{shown}` (`predict.truth`) has no id of {}", ids.name())));
        }
        ranker.add_languages(&mut questions);
        questions.index(ranker.captions());
        Ok(Ok(questions))
    }

    fn push(&mut self, image: usize, id: u32, row: &TruthRow, caption: Option<u32>) {
        let language = self.language(&row.language);
        self.queries.push(Query { image, caption, language, seen: false });
        self.ids.push(id);
        self.texts.push(row.caption.clone());
    }

    /// Returns the index of a language, which is added if it is new; `None` for no language.
    pub(super) fn language(&mut self, name: &str) -> Option<usize> {
        (!name.is_empty()).then(|| {
            self.languages.iter().position(|known| known == name).unwrap_or_else(|| {
                self.languages.push(name.to_owned());
                self.languages.len() - 1
            })
        })
    }

    /// Orders the queries by image and groups `captions` ranked captions by language. A caption in several languages belongs
    /// to the first.
    fn index(&mut self, captions: usize) {
        let asked = |number: &u32| self.queries[*number as usize].caption.is_some();
        self.by_image = (0..self.queries.len() as u32).filter(asked).collect();
        self.by_image.sort_by_key(|number| self.queries[*number as usize].image);
        if self.languages.is_empty() {
            return;
        }
        let mut groups = vec![NO_LANGUAGE; captions];
        for query in &self.queries {
            if let (Some(caption), Some(language)) = (query.caption, query.language) {
                let group = &mut groups[caption as usize];
                if *group == NO_LANGUAGE {
                    *group = language as u32;
                }
            }
        }
        self.groups = Some(Arc::new(groups));
    }

    /// Returns the queries of some images with a ranked caption: number of the query, position in `images` and caption.
    pub(super) fn of_images(&self, images: &[Option<usize>]) -> (Vec<usize>, Vec<PlaceQuery>) {
        let (mut numbers, mut asked) = (Vec::new(), Vec::new());
        for (row, image) in images.iter().enumerate() {
            let Some(image) = *image else { continue };
            let of = |number: &u32| self.queries[*number as usize].image;
            let first = self.by_image.partition_point(|number| of(number) < image);
            for number in self.by_image[first..].iter().take_while(|number| of(number) == image) {
                let Some(class) = self.queries[*number as usize].caption else { continue };
                numbers.push(*number as usize);
                asked.push(PlaceQuery { row: row as u32, class });
            }
        }
        (numbers, asked)
    }

    /// Returns the number of ranked captions of each language.
    pub(super) fn group_sizes(&self) -> Vec<usize> {
        let mut sizes = vec![0; self.languages.len()];
        for group in self.groups.iter().flat_map(|groups| groups.iter()).filter(|group| **group != NO_LANGUAGE) {
            sizes[*group as usize] += 1;
        }
        sizes
    }

    /// Returns a hash of the queries and of the groups, for the inputs of a batch log.
    pub(super) fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for number in &self.by_image {
            let query = &self.queries[*number as usize];
            hasher.update(&(query.image as u64).to_le_bytes()).update(&query.caption.unwrap_or_default().to_le_bytes());
        }
        for group in self.groups.iter().flat_map(|groups| groups.iter()) {
            hasher.update(&group.to_le_bytes());
        }
        hasher.finalize().to_hex()[..16].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_found_by_image_and_grouped_by_language() {
        let mut questions = Questions::default();
        let row = |language: &str| TruthRow { id: "1".into(), caption: "a".into(), language: language.into() };
        for (image, language, caption) in [(3, "de", Some(0)), (1, "en", Some(2)), (3, "en", Some(1)), (2, "", None)] {
            questions.push(image, 0, &row(language), caption);
        }
        questions.index(4);
        let (numbers, asked) = questions.of_images(&[Some(3), None, Some(2), Some(1)]);
        assert_eq!(numbers, [0, 2, 1]);
        assert_eq!(asked.iter().map(|query| (query.row, query.class)).collect::<Vec<_>>(), [(0, 0), (0, 1), (3, 2)]);
        assert_eq!(questions.groups.as_ref().unwrap().to_vec(), [0, 1, 1, NO_LANGUAGE]);
        assert_eq!(
            (questions.languages.as_slice(), questions.group_sizes()),
            (&["de".to_owned(), "en".to_owned()][..], vec![1, 2])
        );
    }
}
