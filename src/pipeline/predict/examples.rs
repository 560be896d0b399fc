//! Content of `examples.html`: the held-out images that the run's head ranks best and worst, with their thumbnails.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

use crate::chunk::features::read_thumbnails;
use crate::pipeline::chunk_files::{ChunkFile, fetch_files};
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::report::StageRemarks;
use crate::pipeline::predict::held_out::HeldOutImages;
use crate::pipeline::train::held_out::HeldOut;
use crate::predict::metrics::{gain, rank_of};
use crate::run_dir::Directory;
use crate::view::{Example, ExampleCaption, examples_page};

/// Name of the page in the run directory.
const FILE: &str = "examples.html";
/// Images in each of the two lists, at most.
const LIST_IMAGES: usize = 20;
/// Ranked captions shown for an image.
const SHOWN_RANKED: usize = 5;
/// Right captions shown for an image.
const SHOWN_RIGHT: usize = 8;

/// An image with its scores and captions, which are classes.
#[derive(Debug, Clone)]
struct Chosen {
    image: usize,
    /// Mean gain over its right captions.
    ndcg5: f64,
    /// Mean reciprocal rank over its right captions.
    mrr: f64,
    ranked: Vec<u32>,
    right: Vec<u32>,
}

impl Chosen {
    /// Better images come first, equal ones in the order of the corpus.
    fn compare(&self, other: &Self) -> Ordering {
        other.ndcg5.total_cmp(&self.ndcg5).then(other.mrr.total_cmp(&self.mrr)).then(self.image.cmp(&other.image))
    }
}

/// The images that are ranked best and worst.
#[derive(Debug, Default)]
pub(super) struct ChosenExamples {
    best: Vec<Chosen>,
    worst: Vec<Chosen>,
}

impl ChosenExamples {
    /// Chooses among images with right captions. `ranked` returns the best classes of an image.
    pub(super) fn choose(images: &HeldOut, ranked: impl Fn(usize) -> Vec<u32>) -> Self {
        let mut examples: Vec<Chosen> = (0..images.images())
            .filter(|image| !images.captions_of.row(*image).is_empty())
            .map(|image| {
                let class_of = |place: &u32| images.captions[*place as usize];
                score_image(image, ranked(image), images.captions_of.row(image).iter().map(class_of).collect())
            })
            .collect();
        examples.sort_by(Chosen::compare);
        // No image is in both lists.
        let worst = LIST_IMAGES.min(examples.len() / 2);
        let worst: Vec<Chosen> = examples.iter().rev().take(worst).cloned().collect();
        examples.truncate(LIST_IMAGES.min(examples.len() - worst.len()));
        Self { best: examples, worst }
    }

    fn all(&self) -> impl Iterator<Item = &Chosen> {
        self.best.iter().chain(&self.worst)
    }

    /// Returns the classes whose texts are shown, ascending.
    pub(super) fn classes(&self) -> Vec<u32> {
        let shown =
            self.all().flat_map(|one| one.ranked.iter().take(SHOWN_RANKED).chain(one.right.iter().take(SHOWN_RIGHT)));
        shown.copied().collect::<BTreeSet<u32>>().into_iter().collect()
    }

    /// Writes the page. `caption` returns the text and the language of a class, `ranked` says what is ranked and how. Blocks
    /// the thread.
    ///
    /// # Errors
    /// When a chunk cannot be read, or the run directory cannot be written.
    pub(super) fn write<'t>(
        &self,
        ctx: &RunContext,
        HeldOutImages { images, files, .. }: &HeldOutImages,
        caption: impl Fn(u32) -> (&'t str, &'t str),
        ranked: &str,
        remarks: &mut StageRemarks,
    ) -> Result<(), PipelineError> {
        if self.best.is_empty() {
            return Ok(());
        }
        let urls: Vec<&str> = self.all().map(|one| &*images.urls[one.image]).collect();
        let thumbnails = read_listed_thumbnails(&ctx.dir, files, &urls)?;
        let shown = |class: &u32, right: &[u32]| {
            let (text, language) = caption(*class);
            ExampleCaption { text, language, is_right: right.contains(class) }
        };
        let render = |one: &Chosen| {
            let url = &*images.urls[one.image];
            Example {
                url: &images.urls[one.image],
                thumbnail: thumbnails.get(url).map(Vec::as_slice),
                ndcg5: one.ndcg5,
                ranked: one.ranked.iter().take(SHOWN_RANKED).map(|class| shown(class, &one.right)).collect(),
                right: one.right.iter().take(SHOWN_RIGHT).map(|class| shown(class, &one.right)).collect(),
                rights: one.right.len(),
            }
        };
        let sections =
            [("Best", self.best.iter().map(render).collect()), ("Worst", self.worst.iter().map(render).collect())];
        let notes = [format!("{} images; {ranked}.", images.images())];
        ctx.dir
            .write(FILE, examples_page("Captions for images held out from training", &notes, &sections).as_bytes())?;
        remarks.add_output("examples", FILE);
        Ok(())
    }
}

fn score_image(image: usize, ranked: Vec<u32>, right: Vec<u32>) -> Chosen {
    let (mut gains, mut reciprocals, count) = (0.0, 0.0, right.len() as f64);
    for class in &right {
        let rank = rank_of(*class, &ranked);
        gains += rank.map_or(0.0, gain);
        reciprocals += rank.map_or(0.0, |rank| 1.0 / rank as f64);
    }
    Chosen { image, ndcg5: gains / count, mrr: reciprocals / count, ranked, right }
}

/// Reads the thumbnails of some images from feature chunks, by URL.
fn read_listed_thumbnails(
    dir: &Directory,
    files: &[ChunkFile],
    urls: &[&str],
) -> Result<HashMap<String, Vec<u8>>, PipelineError> {
    // A damaged thumbnail is harmless, so do not verify the chunks again.
    let files: Vec<ChunkFile> = files.iter().map(|file| ChunkFile { sum: None, ..file.clone() }).collect();
    let mut found = HashMap::new();
    for fetched in fetch_files(dir, &files) {
        let (_, copy) = fetched?;
        read_thumbnails(&copy, |url, bytes| {
            // The first image of a URL counts.
            if urls.contains(&url) && !found.contains_key(url) {
                found.insert(url.to_owned(), bytes.to_vec());
            }
        })?;
        if found.len() == urls.len() {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Targets;

    #[test]
    fn no_image_is_best_and_worst() {
        let mut captions_of = Targets::default();
        for image in 0..5 {
            captions_of.push(if image == 3 { &[] } else { &[0, 1] });
        }
        let images = HeldOut {
            features: Vec::new(),
            captions_of,
            captions: vec![20, 50],
            vectors: Vec::new(),
            urls: (0..5).map(|number| format!("{number}").into()).collect(),
        };
        let ranked = |image: usize| match image {
            0 => vec![1, 2],
            1 => vec![50, 20],
            _ => vec![2, 20],
        };
        let chosen = ChosenExamples::choose(&images, ranked);
        let numbers = |list: &[Chosen]| list.iter().map(|one| one.image).collect::<Vec<_>>();
        assert_eq!((numbers(&chosen.best), numbers(&chosen.worst)), (vec![1, 2], vec![0, 4]));
        assert_eq!(chosen.classes(), [1, 2, 20, 50]);
        assert!((chosen.best[0].ndcg5 - f64::midpoint(gain(1), gain(2))).abs() < 1e-12);
        assert!(
            ChosenExamples::choose(&HeldOut { captions_of: Targets::default(), ..images }, |_| Vec::new())
                .best
                .is_empty()
        );
    }
}
