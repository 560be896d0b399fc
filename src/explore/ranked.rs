//! Held-out and test images with their ranked captions, scores and right captions.
//!
//! Held-out images are ranked here, by the head of the run: a classifier ranks the classes, a projection head the captions of
//! the held-out images, as validation does. Test images have the ranking of their submission, whatever signals made it.

mod held_out;
mod test_images;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::encode::Encoders;
use super::images::{ImageIndex, Stream, read, written};
use super::jobs::Progress;
use super::opened::OpenRun;
use super::{internal, scratch};
use crate::pipeline::PipelineError;
use crate::predict::metrics::gain;
use crate::search::{VectorFile, VectorWriter};
use crate::types::Precision;

/// Captions ranked for a held-out image.
const TOP_K: usize = 10;
/// Right captions shown for an image.
const SHOWN_RIGHT: usize = 20;

/// An image with its ranked captions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Picture {
    /// Row in the set of images; `None` for an id without a usable image.
    pub row: Option<u32>,
    /// URL of the image.
    pub url: String,
    /// Id of a test image.
    pub id: Option<String>,
    /// Mean gain of its right captions; `None` if none is known.
    pub ndcg5: Option<f64>,
    /// Best captions, best first.
    pub ranked: Vec<RankedCaption>,
    /// Right captions.
    pub right: Vec<RankedCaption>,
    /// Number of right captions, shown or not.
    pub rights: usize,
}

/// A caption of an image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RankedCaption {
    /// The caption.
    pub text: String,
    /// Its language; empty if it is not known.
    pub language: String,
    /// Logit of a classifier, or cosine similarity by pixels; `None` if it is not known.
    pub score: Option<f32>,
    /// True if it is a right caption of the image.
    pub is_right: bool,
}

/// Order of a page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Best score first.
    #[default]
    Best,
    /// Worst score first.
    Worst,
    /// By a hash of the row and a seed.
    Random,
}

/// Choice of pictures.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Filter {
    /// Order of the pictures.
    #[serde(default)]
    pub order: Order,
    /// Seed of a random order.
    #[serde(default)]
    pub seed: u64,
    /// Language of a right caption.
    pub language: Option<String>,
    /// Least score.
    pub from: Option<f64>,
    /// Largest score.
    pub to: Option<f64>,
    /// Text in a right caption, whatever its case.
    pub text: Option<String>,
    /// Pictures to leave out before the page.
    #[serde(default)]
    pub offset: usize,
}

/// A page of pictures.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Page {
    /// Pictures of the set.
    pub total: u64,
    /// Pictures that match the filter.
    pub matching: usize,
    /// Mean score of those that match and have one, over their right captions, as in a report.
    pub mean_ndcg5: Option<f64>,
    /// Languages of right captions, with the number of pictures.
    pub languages: BTreeMap<String, u64>,
    /// The pictures.
    pub pictures: Vec<Picture>,
    /// Remarks for people.
    pub notes: Vec<String>,
}

/// Facts about a picture that filters need.
#[derive(Debug, Clone, Default)]
struct Brief {
    /// NaN if it is not known.
    ndcg5: f64,
    /// Number of right captions.
    rights: u32,
    /// Languages of right captions, as numbers of [`PictureSet::languages`].
    languages: Box<[u16]>,
}

/// Ranked images of a set, on scratch disk.
pub struct PictureSet {
    /// The pictures, as JSON.
    pictures: VectorFile,
    /// Right captions of each picture in lower case.
    texts: VectorFile,
    briefs: Vec<Brief>,
    languages: Vec<String>,
    notes: Vec<String>,
}

/// Ranks the images of a set.
///
/// # Errors
/// When an input or a chunk cannot be read, scratch disk is short, or the device fails.
pub(super) async fn rank(
    run: Arc<OpenRun>,
    encoders: Arc<Encoders>,
    stream: Stream,
    images: Arc<ImageIndex>,
    progress: Progress,
) -> Result<PictureSet, PipelineError> {
    match stream {
        Stream::HeldOut => held_out::rank(run, encoders, images, progress).await,
        Stream::Test(stem) => test_images::read(run, stem, images, progress).await,
        Stream::Train => Err(PipelineError::Input("training images have no ranked captions".to_owned())),
    }
}

/// Returns the mean gain of an image's right captions by their ranks.
fn mean_gain(ranks: impl Iterator<Item = Option<usize>>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0_u32);
    for rank in ranks {
        sum += rank.map_or(0.0, gain);
        count += 1;
    }
    (count > 0).then(|| sum / f64::from(count))
}

/// Collects pictures.
struct SetWriter {
    pictures: VectorWriter,
    texts: VectorWriter,
    briefs: Vec<Brief>,
    languages: Vec<String>,
}

impl SetWriter {
    fn create() -> Result<Self, PipelineError> {
        let file = || VectorWriter::create(&scratch(), 0, Precision::F32).map_err(written);
        Ok(Self { pictures: file()?, texts: file()?, briefs: Vec::new(), languages: Vec::new() })
    }

    fn push(&mut self, mut picture: Picture) -> Result<(), PipelineError> {
        let mut languages: Vec<u16> = Vec::new();
        for caption in picture.right.iter().filter(|caption| !caption.language.is_empty()) {
            let known = self.languages.iter().position(|name| *name == caption.language).unwrap_or_else(|| {
                self.languages.push(caption.language.clone());
                self.languages.len() - 1
            });
            if !languages.contains(&(known as u16)) {
                languages.push(known as u16);
            }
        }
        let texts: Vec<String> = picture.right.iter().map(|caption| caption.text.to_lowercase()).collect();
        picture.rights = picture.right.len();
        picture.right.truncate(SHOWN_RIGHT);
        let json = serde_json::to_vec(&picture).map_err(|error| internal(&error.to_string()))?;
        self.pictures.push(&[], 0, &json).map_err(written)?;
        self.texts.push(&[], 0, texts.join("\n").as_bytes()).map_err(written)?;
        self.briefs.push(Brief {
            ndcg5: picture.ndcg5.unwrap_or(f64::NAN),
            rights: picture.rights as u32,
            languages: languages.into(),
        });
        Ok(())
    }

    fn finish(self, notes: Vec<String>) -> Result<PictureSet, PipelineError> {
        let Self { pictures, texts, briefs, languages } = self;
        let (pictures, texts) = (pictures.finish().map_err(written)?, texts.finish().map_err(written)?);
        Ok(PictureSet { pictures, texts, briefs, languages, notes })
    }
}

/// Mixes a number (the finaliser of `SplitMix64`, Steele et al. 2014).
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl PictureSet {
    /// Returns a page of `limit` pictures. Blocks the thread.
    ///
    /// # Errors
    /// When scratch disk fails.
    pub fn page(&self, filter: &Filter, limit: usize) -> Result<Page, PipelineError> {
        let mut chosen = self.choose(filter)?;
        let score = |row: u32| self.briefs[row as usize].ndcg5;
        // Pictures without a score come last in either order.
        let by_score = |one: &u32, other: &u32| {
            let (one, other) = (score(*one), score(*other));
            one.is_nan().cmp(&other.is_nan()).then(one.total_cmp(&other))
        };
        match filter.order {
            Order::Best => chosen.sort_by(|one, other| {
                score(*one).is_nan().cmp(&score(*other).is_nan()).then(score(*other).total_cmp(&score(*one)))
            }),
            Order::Worst => chosen.sort_by(by_score),
            Order::Random => chosen.sort_by_key(|row| mix(u64::from(*row) ^ mix(filter.seed.wrapping_add(1)))),
        }
        let scored = chosen.iter().map(|row| &self.briefs[*row as usize]).filter(|brief| !brief.ndcg5.is_nan());
        let (sum, rights) = scored.fold((0.0, 0.0), |(sum, rights), brief| {
            let own = f64::from(brief.rights);
            (sum + own * brief.ndcg5, rights + own)
        });
        let mut languages = BTreeMap::new();
        for language in self.briefs.iter().flat_map(|brief| &*brief.languages) {
            *languages.entry(self.languages[usize::from(*language)].clone()).or_insert(0) += 1;
        }
        let load = |row: &u32| {
            let json = self.pictures.text(*row).map_err(read)?;
            serde_json::from_slice(&json).map_err(|error| internal(&error.to_string()))
        };
        Ok(Page {
            total: self.briefs.len() as u64,
            matching: chosen.len(),
            mean_ndcg5: (rights > 0.0).then(|| sum / rights),
            languages,
            pictures: chosen.iter().skip(filter.offset).take(limit).map(load).collect::<Result<_, PipelineError>>()?,
            notes: self.notes.clone(),
        })
    }

    /// Returns the pictures that match a filter, in the order of the corpus.
    fn choose(&self, filter: &Filter) -> Result<Vec<u32>, PipelineError> {
        let language = filter.language.as_ref().filter(|language| !language.is_empty());
        let number = language.map(|language| self.languages.iter().position(|name| name == language));
        let (from, to) = (filter.from.unwrap_or(f64::NEG_INFINITY), filter.to.unwrap_or(f64::INFINITY));
        let is_scored = filter.from.is_some() || filter.to.is_some();
        let matches = |brief: &Brief| {
            let has_language =
                number.is_none_or(|number| number.is_some_and(|number| brief.languages.contains(&(number as u16))));
            has_language && (!is_scored || (from..=to).contains(&brief.ndcg5))
        };
        let mut chosen: Vec<u32> =
            (0..self.briefs.len() as u32).filter(|row| matches(&self.briefs[*row as usize])).collect();
        let text = filter.text.as_deref().map(str::to_lowercase).filter(|text| !text.is_empty());
        if let Some(text) = text {
            let finder = memchr::memmem::Finder::new(text.as_bytes());
            let mut found = Vec::new();
            let mut wanted = chosen.iter().copied().peekable();
            self.texts
                .visit_texts(|row, captions| {
                    if wanted.next_if_eq(&row).is_some() && finder.find(captions).is_some() {
                        found.push(row);
                    }
                    Ok(())
                })
                .map_err(read)?;
            chosen = found;
        }
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(count: u32) -> PictureSet {
        let mut writer = SetWriter::create().unwrap();
        for number in 0..count {
            let language = ["de", "ar", ""][number as usize % 3].to_owned();
            let right = RankedCaption { text: format!("Übung {number}"), language, score: None, is_right: true };
            let ndcg5 = (number % 4 > 0).then(|| f64::from(number) / 100.0);
            let url = number.to_string();
            writer.push(Picture { url, ndcg5, right: vec![right], ..Picture::default() }).unwrap();
        }
        writer.finish(Vec::new()).unwrap()
    }

    fn urls(set: &PictureSet, filter: &Filter) -> (usize, String) {
        let page = set.page(filter, 3).unwrap();
        (page.matching, page.pictures.iter().map(|picture| picture.url.as_str()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn filters_and_orders_choose_pictures() {
        let set = set(13);
        let filter = Filter::default();
        assert_eq!(urls(&set, &filter), (13, "11 10 9".to_owned()));
        assert_eq!(urls(&set, &Filter { order: Order::Worst, offset: 8, ..filter.clone() }), (13, "11 0 4".to_owned()));
        let arabic = Filter { language: Some("ar".to_owned()), ..filter.clone() };
        assert_eq!(urls(&set, &arabic), (4, "10 7 1".to_owned()));
        assert_eq!(urls(&set, &Filter { language: Some("xx".to_owned()), ..filter.clone() }).0, 0);
        assert_eq!(urls(&set, &Filter { from: Some(0.02), to: Some(0.05), ..filter.clone() }), (3, "5 3 2".to_owned()));
        assert_eq!(
            urls(&set, &Filter { text: Some("übung 1".to_owned()), ..filter.clone() }),
            (4, "11 10 1".to_owned())
        );
        let random = |seed| urls(&set, &Filter { order: Order::Random, seed, ..Filter::default() }).1;
        assert_eq!(random(1), random(1));
        assert_ne!(random(1), random(2));
        assert_eq!(set.page(&filter, 1).unwrap().languages, [("ar".to_owned(), 4), ("de".to_owned(), 5)].into());
    }
}
