//! Scores of a projection head on held-out images and on a test set with a truth. The fusion weights are chosen on the
//! held-out images.

use std::collections::{HashMap, HashSet};

use super::{ProjectionRanking, read_names};
use crate::catalog::url_hash;
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::report::{SignalReport, StageRemarks};
use crate::pipeline::predict::eval_set::{EvalImages, EvalSet, Query, Rankings, score_by_language, score_slices};
use crate::pipeline::predict::examples;
use crate::pipeline::predict::fusion::{CandidateVectors, FusionSignal, FusionWeights};
use crate::pipeline::predict::held_out::HeldOutImages;
use crate::pipeline::predict::ranking::Ranking;
use crate::pipeline::predict::test_set::{IdSource, read_truth_rows, visit_ids};
use crate::predict::evaluate::TruthRow;

impl ProjectionRanking<'_> {
    /// Chooses the weights on the held-out images, scores them, and writes the page of examples.
    pub(super) async fn evaluate_held_out(
        &self,
        held_out: &HeldOutImages,
        remarks: &mut StageRemarks,
    ) -> Result<(FusionWeights, Option<SignalReport>), PipelineError> {
        let (images, texts) = (&held_out.images, &self.catalog.texts);
        let text = |class: &u32| texts.get(*class).unwrap_or_default();
        let candidates = CandidateVectors {
            vectors: images.vectors.clone(),
            dim: self.head.output,
            scale: self.head.scale(),
            bias: 0.0,
            classifier: self.classifier.as_ref().map(|other| other.rows(images.captions.iter().map(text))),
        };
        let eval_set = self.build_eval_set(held_out, &candidates).await?;
        let weights = eval_set.choose_weights().await?;
        let rankings = eval_set.rank_by_signal(weights).await?;
        let report = eval_set.report(weights, &rankings).await?;
        if self.input.own {
            examples::write(self.ctx, images, self.catalog, weights, &rankings, remarks)?;
        }
        Ok((weights, Some(report)))
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
            correction: self.input.settings.correction,
            device: self.input.device,
        })
    }

    /// Scores the test images by signal, and by language if the truth or the catalog names it.
    pub(super) async fn score_test_set(
        &self,
        truth: &str,
        ids: &IdSource,
        rankings: &[(FusionSignal, &Ranking)],
    ) -> Result<SignalReport, PipelineError> {
        let urls = &self.input.test_set.urls;
        let truth = read_truth_rows(&self.ctx.store, truth).await?;
        let mut by_id: HashMap<&str, Vec<&TruthRow>> = HashMap::new();
        for row in &truth {
            by_id.entry(&*row.id).or_default().push(row);
        }
        let captions: HashSet<&str> = truth.iter().map(|row| &*row.caption).collect();
        let (class_of, place_of) = (self.catalog.texts.find_all(&captions), self.list.captions.find_all(&captions));
        let (mut queries, mut languages) = (Vec::new(), Vec::<String>::new());
        visit_ids(&self.ctx.store, ids, |id| {
            let Some(image) = urls.position(url_hash(id.image_url)) else { return Ok(()) };
            for row in by_id.get(id.id).into_iter().flatten() {
                let (class, caption) = (class_of.get(&*row.caption).copied(), place_of.get(&*row.caption).copied());
                queries.push(self.test_query(
                    Query { image, caption, language: None, seen: false },
                    class,
                    row,
                    &mut languages,
                ));
            }
            Ok(())
        })
        .await?;
        let by_image = |(signal, ranking): &(FusionSignal, &Ranking)| {
            let captions = |image: usize| ranking.captions(image).map_or_else(Vec::new, <[u32]>::to_vec);
            (*signal, (0..urls.len()).map(captions).collect())
        };
        let rankings: Rankings = rankings.iter().map(by_image).collect();
        let captions = self.list.len();
        Ok(SignalReport {
            images: urls.len() as u64,
            captions: captions as u64,
            groups: score_slices(&queries, captions, &rankings),
            by_language: score_by_language(&queries, &languages, captions, &rankings),
        })
    }

    /// Completes the query of a row of the truth, whose caption is this class of the run, if any. Adds a new language to
    /// `languages`.
    fn test_query(&self, query: Query, class: Option<u32>, row: &TruthRow, languages: &mut Vec<String>) -> Query {
        let name = if row.language.is_empty() {
            class.map_or("", |class| self.catalog.languages.language(class))
        } else {
            &row.language
        };
        let language = (!name.is_empty()).then(|| {
            languages.iter().position(|known| known == name).unwrap_or_else(|| {
                languages.push(name.to_owned());
                languages.len() - 1
            })
        });
        let seen = class.is_some_and(|class| match &self.held_out {
            Some(held_out) => held_out.seen_classes.contains(class),
            None => self.catalog.images.get(class as usize).is_some_and(|images| *images > 0),
        });
        Query { language, seen, ..query }
    }
}
