//! What ranks captions for an image beside its pixels, how much each counts, and how well each does by itself.
//!
//! Everything is a sum of inner products, so one head ranks: a caption's row is its vector, scaled, beside the weights that a head of
//! classes has for it; an image's row is its projected feature and its name's vector, weighted and added, beside its feature. What is
//! taken off captions that are close to every image is the bias.

use std::collections::BTreeMap;

use super::PipelineError;
use super::report::{EvidenceGroup, EvidenceReport, EvidenceScores};
use super::text_training::scorer_of;
use super::worker::{Device, DeviceWorker};
use crate::predict::metrics::{Tally, rank_of};
use crate::train::HeadState;
use crate::types::Correction;

/// Captions that are looked at for a reciprocal rank.
const LOOKED_AT: usize = 20;
/// Images that are close, for the mean similarity of a caption to them.
const CLOSE: usize = 10;
/// Weights that are tried, where one is chosen.
const WEIGHTS: [f32; 9] = [0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0];

/// Which evidence ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Pixels alone.
    Pixels,
    /// File names alone.
    Names,
    /// Both.
    Both,
}

impl Kind {
    /// Name in the fingerprint of a batch log. It never changes.
    pub(super) fn fingerprint_name(self) -> &'static str {
        match self {
            Self::Pixels => "Pixels",
            Self::Names => "Names",
            Self::Both => "Both",
        }
    }
}

/// How much evidence beside the projected feature counts.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Mix {
    /// Of the name's vector, where the projected feature's is 1.
    pub(super) names: f32,
    /// Of the logits of a head of classes.
    pub(super) classes: f32,
}

/// Captions that are ranked.
pub(super) struct Candidates {
    /// `[captions, dim]`, centred and of length 1.
    pub(super) vectors: Vec<f32>,
    pub(super) dim: usize,
    /// What similarities are multiplied by.
    pub(super) scale: f32,
    /// Weights `[captions, features]` and bias of a head of classes; zero for captions that it does not have.
    pub(super) classes: Option<(Vec<f32>, Vec<f32>)>,
}

impl Candidates {
    pub(super) fn len(&self) -> usize {
        self.vectors.len() / self.dim.max(1)
    }

    /// Some of them.
    fn part(&self, places: &[u32]) -> Self {
        let rows = |values: &[f32], width: usize| -> Vec<f32> {
            places
                .iter()
                .flat_map(|place| &values[*place as usize * width..(*place as usize + 1) * width])
                .copied()
                .collect()
        };
        let classes = self.classes.as_ref().map(|both| {
            let width = both.0.len() / both.1.len().max(1);
            (rows(&both.0, width), rows(&both.1, 1))
        });
        Self { vectors: rows(&self.vectors, self.dim), dim: self.dim, scale: self.scale, classes }
    }

    /// The head that ranks them, without a correction.
    pub(super) fn head(&self, kind: Kind, mix: Mix) -> HeadState {
        let with_classes = self.classes.as_ref().filter(|_| kind != Kind::Names && mix.classes != 0.0);
        let Some(classes) = with_classes else {
            let weight = self.vectors.iter().map(|value| value * self.scale).collect();
            return scorer_of(weight, vec![0.0; self.len()], self.dim);
        };
        let (weights, bias) = classes;
        let width = weights.len() / bias.len().max(1);
        let mut weight = Vec::with_capacity(self.len() * (self.dim + width));
        for (vector, own) in self.vectors.chunks_exact(self.dim).zip(weights.chunks_exact(width.max(1))) {
            weight.extend(vector.iter().map(|value| value * self.scale));
            weight.extend(own.iter().map(|value| value * mix.classes));
        }
        scorer_of(weight, bias.iter().map(|value| value * mix.classes).collect(), self.dim + width)
    }
}

/// Rows of images for a head of [`Candidates::head`]: `pixels` and `names` are `[images, dim]`, `features` `[images, width]`.
pub(super) fn queries(
    kind: Kind,
    mix: Mix,
    dim: usize,
    pixels: &[f32],
    names: Option<&[f32]>,
    features: Option<&[f32]>,
) -> Vec<f32> {
    let images = pixels.len() / dim.max(1);
    let features = features.filter(|_| kind != Kind::Names && mix.classes != 0.0);
    let width = features.map_or(0, |features| features.len() / images.max(1));
    let weight = match kind {
        Kind::Pixels => 0.0,
        Kind::Names => 1.0,
        Kind::Both => mix.names,
    };
    let mut rows = Vec::with_capacity(images * (dim + width));
    for image in 0..images {
        let span = image * dim..(image + 1) * dim;
        let name = names.map(|names| &names[span.clone()]);
        let seen = if kind == Kind::Names { 0.0 } else { 1.0 };
        rows.extend(
            pixels[span]
                .iter()
                .enumerate()
                .map(|(at, pixel)| seen * pixel + weight * name.map_or(0.0, |name| name[at])),
        );
        if let Some(features) = features {
            rows.extend_from_slice(&features[image * width..(image + 1) * width]);
        }
    }
    rows
}

/// Sums over images from which a correction is made.
pub(super) enum Closeness {
    None,
    Softmax(Vec<f64>),
    Csls(Vec<Vec<f32>>),
}

impl Closeness {
    pub(super) fn new(correction: Correction, captions: usize) -> Self {
        match correction {
            Correction::None => Self::None,
            Correction::Softmax => Self::Softmax(vec![f64::NEG_INFINITY; captions]),
            Correction::Csls => Self::Csls(vec![Vec::new(); captions]),
        }
    }

    /// Adds images; the head without a correction is on the device.
    pub(super) async fn add(&mut self, device: &Device, rows: Vec<f32>, images: usize) -> Result<(), PipelineError> {
        match self {
            Self::None => {}
            Self::Softmax(sums) => {
                let more = device.call(move |worker| worker.lse_by_class(&rows, images)).await?;
                for (sum, more) in sums.iter_mut().zip(more) {
                    let (low, high) = if *sum < more { (*sum, more) } else { (more, *sum) };
                    *sum = if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() };
                }
            }
            Self::Csls(largest) => {
                let lists = std::mem::take(largest);
                *largest = device.call(move |worker| worker.largest_by_class(&rows, images, CLOSE, lists)).await?;
            }
        }
        Ok(())
    }

    /// What is added to each caption's logits.
    pub(super) fn bias(&self) -> Option<Vec<f32>> {
        match self {
            Self::None => None,
            Self::Softmax(sums) => {
                Some(sums.iter().map(|sum| if sum.is_finite() { -*sum as f32 } else { 0.0 }).collect())
            }
            // Twice the similarity without the mean to the closest; an image's own mean changes no order.
            Self::Csls(largest) => {
                let mean = |list: &Vec<f32>| list.iter().sum::<f32>() / list.len().max(1) as f32;
                Some(largest.iter().map(|list| -0.5 * mean(list)).collect())
            }
        }
    }
}

/// Images in memory with what ranks captions for them.
pub(super) struct Images {
    /// `[images, dim]`.
    pub(super) pixels: Vec<f32>,
    pub(super) names: Option<Vec<f32>>,
    /// Where a head of classes takes part.
    pub(super) features: Option<Vec<f32>>,
}

impl Images {
    fn count(&self, dim: usize) -> usize {
        self.pixels.len() / dim.max(1)
    }

    /// The best captions of each image.
    pub(super) async fn rank(
        &self,
        device: &Device,
        candidates: &Candidates,
        correction: Correction,
        kind: Kind,
        mix: Mix,
    ) -> Result<Vec<Vec<u32>>, PipelineError> {
        let (images, captions) = (self.count(candidates.dim), candidates.len());
        if captions == 0 || images == 0 {
            return Ok(vec![Vec::new(); images]);
        }
        let mut head = candidates.head(kind, mix);
        let rows = queries(kind, mix, candidates.dim, &self.pixels, self.names.as_deref(), self.features.as_deref());
        let mut closeness = Closeness::new(correction, captions);
        if correction != Correction::None {
            let plain = head.clone();
            device.call(move |worker| worker.load_scorer(&plain)).await?;
            closeness.add(device, rows.clone(), images).await?;
        }
        if let Some(bias) = closeness.bias() {
            head.bias.iter_mut().zip(bias).for_each(|(bias, more)| *bias += more);
        }
        device.call(move |worker| worker.load_scorer(&head)).await?;
        let tops = device.call(move |worker| worker.top_k(&rows, images, LOOKED_AT)).await?;
        device.tell(DeviceWorker::unload_scorer).await?;
        Ok(tops.into_iter().map(|top| top.classes).collect())
    }
}

/// An image and one of its right captions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) image: usize,
    /// Its place among the candidates; none where it is not among them.
    pub(super) caption: Option<u32>,
    /// The language's number; none where it is not known.
    pub(super) language: Option<usize>,
    /// Whether an image of the training side has the caption.
    pub(super) seen: bool,
}

fn scores<'a>(questions: impl Iterator<Item = &'a Question>, ranked: &[Vec<u32>]) -> EvidenceScores {
    let mut tally = Tally::default();
    for question in questions {
        tally.add(question.caption.and_then(|caption| rank_of(caption, &ranked[question.image])));
    }
    EvidenceScores { ndcg5: tally.ndcg5(), recall1: tally.recall1(), recall5: tally.recall5(), mrr: tally.mrr() }
}

/// The rankings of a side by each evidence; pixels first.
pub(super) type Rankings = Vec<(Kind, Vec<Vec<u32>>)>;

fn group(name: &str, captions: usize, questions: &[&Question], rankings: &Rankings) -> EvidenceGroup {
    let by = |kind: Kind| {
        let ranked = rankings.iter().find(|(found, _)| *found == kind);
        ranked.map(|(_, ranked)| scores(questions.iter().copied(), ranked))
    };
    EvidenceGroup {
        name: name.to_owned(),
        questions: questions.len() as u64,
        captions: captions as u64,
        pixels: by(Kind::Pixels).unwrap_or_default(),
        names: by(Kind::Names),
        both: by(Kind::Both),
    }
}

/// Scores of all questions, of those whose caption was seen in training and of those whose was not, by the same rankings.
pub(super) fn groups(questions: &[Question], captions: usize, rankings: &Rankings) -> Vec<EvidenceGroup> {
    let all = |name: &str, wanted: &dyn Fn(&Question) -> bool| {
        let chosen: Vec<&Question> = questions.iter().filter(|question| wanted(question)).collect();
        (!chosen.is_empty()).then(|| group(name, captions, &chosen, rankings))
    };
    let seen = all("captions seen in training", &|question| question.seen);
    let unseen = all("captions never seen", &|question| !question.seen);
    all("all captions", &|_| true).into_iter().chain(seen).chain(unseen).collect()
}

/// Scores by language, by the same rankings.
pub(super) fn by_language(
    questions: &[Question],
    languages: &[String],
    captions: usize,
    rankings: &Rankings,
) -> Vec<EvidenceGroup> {
    let mut of: BTreeMap<&str, Vec<&Question>> = BTreeMap::new();
    for question in questions {
        if let Some(language) = question.language {
            of.entry(&languages[language]).or_default().push(question);
        }
    }
    of.into_iter().map(|(name, questions)| group(name, captions, &questions, rankings)).collect()
}

/// A side whose images are in memory.
pub(super) struct Side<'a> {
    pub(super) images: Images,
    pub(super) candidates: &'a Candidates,
    pub(super) questions: Vec<Question>,
    pub(super) languages: Vec<String>,
    pub(super) correction: Correction,
}

impl Side<'_> {
    async fn ndcg5(&self, device: &Device, kind: Kind, mix: Mix) -> Result<f64, PipelineError> {
        let ranked = self.images.rank(device, self.candidates, self.correction, kind, mix).await?;
        Ok(scores(self.questions.iter(), &ranked).ndcg5)
    }

    /// The weights with the best NDCG@5: first that of the head of classes, then that of names. Of equals the first.
    pub(super) async fn choose(&self, device: &Device) -> Result<Mix, PipelineError> {
        let mut mix = Mix::default();
        if self.candidates.classes.is_some() {
            let mut best = self.ndcg5(device, Kind::Pixels, mix).await?;
            for classes in WEIGHTS {
                let tried = Mix { classes, ..Mix::default() };
                let found = self.ndcg5(device, Kind::Pixels, tried).await?;
                if found > best {
                    (best, mix) = (found, tried);
                }
            }
        }
        if self.images.names.is_some() {
            let mut best = self.ndcg5(device, Kind::Both, mix).await?;
            for names in WEIGHTS {
                let tried = Mix { names, ..mix };
                let found = self.ndcg5(device, Kind::Both, tried).await?;
                if found > best {
                    (best, mix) = (found, tried);
                }
            }
        }
        Ok(mix)
    }

    /// Rankings by each evidence that there is.
    pub(super) async fn rankings(&self, device: &Device, mix: Mix) -> Result<Rankings, PipelineError> {
        let mut rankings = Vec::new();
        for kind in [Kind::Pixels, Kind::Names, Kind::Both] {
            if kind == Kind::Pixels || self.images.names.is_some() {
                let ranked = self.images.rank(device, self.candidates, self.correction, kind, mix).await?;
                rankings.push((kind, ranked));
            }
        }
        Ok(rankings)
    }

    /// Scores of everything; a language's are among the captions of that language alone.
    pub(super) async fn report(
        &self,
        device: &Device,
        mix: Mix,
        rankings: &Rankings,
    ) -> Result<EvidenceReport, PipelineError> {
        let mut by_language = Vec::new();
        let mut of: BTreeMap<usize, Vec<Question>> = BTreeMap::new();
        for question in &self.questions {
            if let (Some(language), Some(_)) = (question.language, question.caption) {
                of.entry(language).or_default().push(*question);
            }
        }
        for (language, questions) in of {
            let mut places: Vec<u32> = questions.iter().filter_map(|question| question.caption).collect();
            places.sort_unstable();
            places.dedup();
            let candidates = self.candidates.part(&places);
            let place = |caption: u32| places.binary_search(&caption).ok().map(|place| place as u32);
            let own: Vec<Question> = questions
                .iter()
                .map(|question| Question { caption: question.caption.and_then(place), ..*question })
                .collect();
            let mut within = Vec::new();
            for (kind, _) in rankings {
                within.push((*kind, self.images.rank(device, &candidates, self.correction, *kind, mix).await?));
            }
            let own: Vec<&Question> = own.iter().collect();
            by_language.push(group(&self.languages[language], places.len(), &own, &within));
        }
        by_language.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(EvidenceReport {
            images: self.images.count(self.candidates.dim) as u64,
            captions: self.candidates.len() as u64,
            groups: groups(&self.questions, self.candidates.len(), rankings),
            by_language,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_head_adds_up_all_evidence() {
        let classes = Some((vec![1.0, 0.0, 0.0, 2.0, 0.0, 0.0], vec![0.5, 0.0, -1.0]));
        let vectors = vec![1.0, 0.0, 0.0, 1.0, 0.6, 0.8];
        let candidates = Candidates { vectors, dim: 2, scale: 10.0, classes };
        let (pixels, names, features) = ([0.8, 0.6], [0.0, 1.0], [3.0, 4.0]);
        let mix = Mix { names: 0.5, classes: 2.0 };
        let logits = |kind: Kind, mix: Mix| -> Vec<f32> {
            let head = candidates.head(kind, mix);
            let row = queries(kind, mix, 2, &pixels, Some(&names), Some(&features));
            assert_eq!(row.len(), head.dim);
            let dot = |weight: &[f32]| weight.iter().zip(&row).map(|(weight, value)| weight * value).sum::<f32>();
            head.weight.chunks(head.dim).zip(&head.bias).map(|(weight, bias)| dot(weight) + bias).collect()
        };
        let close = |found: Vec<f32>, expected: [f32; 3]| {
            assert!(found.iter().zip(expected).all(|(one, other)| (one - other).abs() < 1e-4), "{found:?}");
        };
        close(logits(Kind::Pixels, Mix::default()), [8.0, 6.0, 9.6]);
        close(logits(Kind::Names, mix), [0.0, 10.0, 8.0]);
        close(logits(Kind::Both, Mix { classes: 0.0, ..mix }), [8.0, 11.0, 13.6]);
        close(logits(Kind::Pixels, mix), [8.0 + 2.0 * 3.5, 6.0 + 2.0 * 8.0, 9.6 - 2.0]);
        close(logits(Kind::Both, mix), [15.0, 27.0, 11.6]);
        let part = candidates.part(&[2, 0]);
        assert_eq!((part.len(), part.vectors[..2].to_vec()), (2, vec![0.6, 0.8]));
        assert_eq!(part.classes.unwrap().1, [-1.0, 0.5]);
    }

    #[test]
    fn groups_count_each_question_where_it_belongs() {
        let question = |image, caption, language, seen| Question { image, caption, language, seen };
        let questions =
            [question(0, Some(4), Some(1), true), question(0, Some(9), Some(0), false), question(1, None, None, false)];
        let rankings = vec![(Kind::Pixels, vec![vec![4, 9], vec![1]]), (Kind::Names, vec![vec![9], vec![]])];
        let found = groups(&questions, 12, &rankings);
        let shown: Vec<(&str, u64, f64)> =
            found.iter().map(|group| (group.name.as_str(), group.questions, group.pixels.recall1)).collect();
        let third = 1.0 / 3.0;
        assert_eq!(
            shown,
            [("all captions", 3, third), ("captions seen in training", 1, 1.0), ("captions never seen", 2, 0.0)]
        );
        assert!(
            found[2].names.as_ref().is_some_and(|scores| (scores.recall1 - 0.5).abs() < 1e-9)
                && found[2].both.is_none()
        );
        let languages = by_language(&questions, &["de".to_owned(), "ar".to_owned()], 12, &rankings);
        assert_eq!(languages.iter().map(|group| group.name.as_str()).collect::<Vec<_>>(), ["ar", "de"]);
        assert!((languages[1].pixels.mrr - 0.5).abs() < 1e-9);
    }
}
