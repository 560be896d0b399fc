//! Scores of a projection head on held-out images and on a test set with a truth. The fusion weights are chosen on the
//! held-out images.

use super::{ProjectionRanking, read_names};
use crate::catalog::url_hash;
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::report::{CorrectionScore, SignalReport, StageRemarks};
use crate::pipeline::predict::eval_set::{EvalImages, EvalSet};
use crate::pipeline::predict::examples::ChosenExamples;
use crate::pipeline::predict::fusion::{CandidateVectors, FusionWeights};
use crate::pipeline::predict::held_out::HeldOutImages;
use crate::pipeline::predict::hubness::CorrectionSettings;
use crate::pipeline::predict::questions::Questions;
use crate::pipeline::predict::ranking::Ranking;
use crate::predict::slices::{
    FusionSignal, Query, RankedQueries, Rankings, score_by_language, score_slices, score_within_language,
};
use crate::types::Correction;

/// Result of the held-out images.
pub(super) struct HeldOutResult {
    pub(super) weights: FusionWeights,
    pub(super) correction: CorrectionSettings,
    /// Corrections that were tried, if one was chosen.
    pub(super) corrections: Vec<CorrectionScore>,
    pub(super) report: SignalReport,
}

impl ProjectionRanking<'_> {
    /// Chooses correction and weights on the held-out images, scores them, and writes the page of examples.
    pub(super) async fn evaluate_held_out(
        &self,
        held_out: &HeldOutImages,
        remarks: &mut StageRemarks,
    ) -> Result<HeldOutResult, PipelineError> {
        let (images, texts) = (&held_out.images, &self.catalog.texts);
        let text = |class: &u32| texts.get(*class).unwrap_or_default();
        let candidates = CandidateVectors {
            vectors: images.vectors.clone(),
            dim: self.head.output(),
            scale: self.head.scale(),
            bias: 0.0,
            classifier: self.classifier.as_ref().map(|other| other.rows(images.captions.iter().map(text))),
        };
        let mut eval_set = self.build_eval_set(held_out, &candidates).await?;
        let corrections = match self.input.settings.correction {
            Correction::Auto => eval_set.choose_correction().await?,
            _ => Vec::new(),
        };
        let weights = eval_set.choose_weights().await?;
        let rankings = eval_set.rank_by_signal(weights).await?;
        let report = eval_set.report(weights, &rankings).await?;
        if let Some((signal, ranked)) = rankings.last().filter(|_| self.input.own) {
            let classes =
                |image: usize| ranked.captions[image].iter().map(|place| images.captions[*place as usize]).collect();
            let by = match signal {
                FusionSignal::Both => {
                    format!("pixels and file names (which count {} where pixels count 1)", weights.names)
                }
                _ => "pixels".to_owned(),
            };
            let caption = |class: u32| (texts.get(class).unwrap_or_default(), self.catalog.languages.language(class));
            let ranked = format!("their {} captions are ranked by {by}", images.captions.len());
            ChosenExamples::choose(images, classes).write(self.ctx, held_out, caption, &ranked, remarks)?;
        }
        Ok(HeldOutResult { weights, correction: eval_set.correction, corrections, report })
    }

    async fn build_eval_set<'c>(
        &'c self,
        held_out: &HeldOutImages,
        candidates: &'c CandidateVectors,
    ) -> Result<EvalSet<'c>, PipelineError> {
        let images = &held_out.images;
        let pixels = self.projector.project(images.features.clone(), images.images()).await?;
        let urls: Vec<u64> = images.urls.iter().map(|url| url_hash(url)).collect();
        let names = read_names(self.names.as_ref(), &urls)?;
        let features = candidates.classifier.as_ref().map(|_| images.features.clone());
        let languages = &self.catalog.languages;
        let mut queries = Vec::new();
        for (image, places) in images.captions_of.iter() {
            for place in places {
                let class = images.captions[*place as usize];
                let (language, seen) = (languages.code(class), held_out.seen_classes.contains(class));
                queries.push(Query { image, caption: Some(*place), language, seen });
            }
        }
        Ok(EvalSet {
            images: EvalImages { pixels, names, features },
            candidates,
            queries,
            languages: languages.names().to_vec(),
            correction: self.correction,
            device: self.input.device,
        })
    }

    /// Scores the test images by signal, and by language if the truth or the catalog names it.
    pub(super) fn score_test_set(&self, questions: &Questions, rankings: &[(FusionSignal, &Ranking)]) -> SignalReport {
        let urls = &self.input.test_set.urls;
        let class_of = self.catalog.texts.find_all(&questions.texts.iter().map(|text| &**text).collect());
        let with_seen = |(query, text): (&Query, &str)| Query {
            seen: class_of.get(text).is_some_and(|class| self.is_seen(*class)),
            ..*query
        };
        let queries: Vec<Query> =
            questions.queries.iter().zip(questions.texts.iter().map(|text| &**text)).map(with_seen).collect();
        let by_image = |(signal, ranking): &(FusionSignal, &Ranking)| {
            let list = |image: usize| ranking.captions(image).map_or_else(Vec::new, <[u32]>::to_vec);
            let captions = (0..urls.len()).map(list).collect();
            (*signal, RankedQueries { captions, places: ranking.places.clone() })
        };
        let rankings: Rankings = rankings.iter().map(by_image).collect();
        let (captions, languages) = (self.list.len(), &questions.languages);
        // A caption of several languages is ranked within the first of them, so it counts in no other.
        let is_in_own_group = |query: &Query| match (query.caption, query.language, &questions.groups) {
            (Some(caption), Some(language), Some(groups)) => groups[caption as usize] == language as u32,
            _ => false,
        };
        let within: Vec<Query> = queries
            .iter()
            .map(|query| Query { language: query.language.filter(|_| is_in_own_group(query)), ..*query })
            .collect();
        SignalReport {
            images: urls.len() as u64,
            captions: captions as u64,
            groups: score_slices(&queries, captions, &rankings),
            by_language: score_by_language(&queries, languages, captions, &rankings),
            within_language: score_within_language(&within, languages, &questions.group_sizes(), &rankings),
        }
    }

    /// Whether a training image has a class.
    fn is_seen(&self, class: u32) -> bool {
        match &self.held_out {
            Some(held_out) => held_out.seen_classes.contains(class),
            None => self.catalog.images.get(class as usize).is_some_and(|images| *images > 0),
        }
    }
}
