//! Random crops of the training images (`train.views`).

use crate::catalog::url_hash;
use crate::config::RunConfig;
use crate::decode::View;
use crate::train::validation::is_validation;

/// How many random crops are made of each training image. Held-out images stay whole.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Views {
    /// Crops of each image.
    pub(crate) count: u8,
    /// Seed of the run.
    pub(crate) seed: u64,
    /// Share of the images that is held out from training.
    pub(crate) held_out: f64,
}

impl Views {
    /// Reads the settings of a configuration; `None` where images stay whole.
    pub(crate) fn from_config(config: &RunConfig) -> Option<Self> {
        let (count, pipeline) = (config.views(), config.pipeline());
        let held_out = pipeline.train.as_ref().map_or(0.0, |train| train.validation_fraction);
        (count > 0).then_some(Self { count: count as u8, seed: pipeline.run.seed, held_out })
    }

    /// Lists the views of an image in `views` and returns the number of the first; the others follow it.
    ///
    /// Number 0 is the whole image, random crops count from 1.
    pub(crate) fn list(settings: Option<Self>, url: &str, views: &mut Vec<View>) -> u8 {
        views.clear();
        match settings {
            Some(Self { count, seed, held_out }) if !is_validation(url, seed, held_out) => {
                views.extend((1..=count).map(|number| View::random(seed, url_hash(url), number)));
                1
            }
            _ => {
                views.push(View::Plain);
                0
            }
        }
    }

    /// Upper bound on the views of one image.
    pub(crate) fn per_image(settings: Option<Self>) -> usize {
        settings.map_or(1, |views| usize::from(views.count).max(1))
    }
}
