//! Heads of a run: one, those of a sweep, or the members of an ensemble.

use std::ops::Range;

use crate::config::{RunConfig, TrainConfig};
use crate::pipeline::device::model_error;
use crate::pipeline::error::PipelineError;
use crate::pipeline::resolve::ResolvedModel;
use crate::train::text::MemberSpec;
use crate::types::HeadMethod;

/// Training images from which on `head.method = "auto"` trains step by step. Fewer are overfitted: with 3,044 images, a tenth of
/// them held out, the closed form was better (docs/training.md).
const AUTO_IMAGES: u64 = 5000;

/// Returns the method that `auto` stands for with a number of training images.
pub(crate) fn resolve_method(method: HeadMethod, images: u64) -> HeadMethod {
    match method {
        HeadMethod::Auto if images < AUTO_IMAGES => HeadMethod::Cca,
        HeadMethod::Auto => HeadMethod::Sgd,
        method => method,
    }
}

/// Returns the heads to train, in order: for each layer all seeds.
///
/// # Errors
/// When the checkpoint has no such layer.
pub(crate) fn list(
    config: &RunConfig,
    settings: &TrainConfig,
    model: &ResolvedModel,
) -> Result<Vec<MemberSpec>, PipelineError> {
    let seed = config.seed();
    let Some(ensemble) = &settings.ensemble else {
        // A solution in closed form does not depend on the settings of a sweep.
        let heads = if settings.method == HeadMethod::Sgd { settings.trials.len() } else { 1 };
        return Ok((0..heads).map(|_| MemberSpec::new(None, None, seed)).collect());
    };
    let mut layers = vec![(None, None)];
    if let (true, Some(own)) = (ensemble.per_layer, config.model()) {
        let parts = model.backbone()?.checkpoint.feature_parts(&own.layers, own.pool).map_err(model_error)?;
        let mut first = 0;
        layers.clear();
        for (layer, width) in own.layers.iter().zip(parts) {
            layers.push((Some(*layer), Some(first..first + width)));
            first += width;
        }
    }
    // A solution in closed form does not depend on a seed.
    let seeds = if settings.method == HeadMethod::Sgd { u64::from(ensemble.seeds) } else { 1 };
    let of_layer = |(layer, span): (Option<i32>, Option<Range<usize>>)| {
        (0..seeds).map(move |number| MemberSpec::new(layer, span.clone(), seed.wrapping_add(number)))
    };
    Ok(layers.into_iter().flat_map(of_layer).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_solves_few_images_and_trains_on_many() {
        let found = [1, AUTO_IMAGES - 1, AUTO_IMAGES, 1 << 40].map(|images| resolve_method(HeadMethod::Auto, images));
        assert_eq!(found, [HeadMethod::Cca, HeadMethod::Cca, HeadMethod::Sgd, HeadMethod::Sgd]);
        assert_eq!(resolve_method(HeadMethod::Ridge, 1), HeadMethod::Ridge);
    }
}
