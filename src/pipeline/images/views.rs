//! Random crops of the training images (`train.views`).

use crate::catalog::url_hash;
use crate::config::RunConfig;
use crate::decode::View;
use crate::types::ValidationSplit;

/// Number of random crops of each training image. Held-out images stay whole.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Views {
    /// Crops of each image.
    pub(crate) count: u8,
    /// Split that holds out images from training. Its seed, which is the run's seed, also seeds the crops.
    pub(crate) split: ValidationSplit,
}

impl Views {
    /// Reads the settings of a configuration; `None` if images stay whole.
    pub(crate) fn from_config(config: &RunConfig) -> Option<Self> {
        let count = config.views();
        (count > 0).then(|| Self { count: count as u8, split: config.validation_split() })
    }

    /// Lists the views of an image in `views`. Returns the number of the first view; the other numbers follow it.
    ///
    /// Number 0 is the whole image, random crops count from 1.
    pub(crate) fn list(settings: Option<Self>, url: &str, views: &mut Vec<View>) -> u8 {
        views.clear();
        match settings {
            Some(Self { count, split }) if !split.contains(url) => {
                views.extend((1..=count).map(|number| View::random(split.seed, url_hash(url), number)));
                1
            }
            _ => {
                views.push(View::Plain);
                0
            }
        }
    }

    /// Returns the upper bound on the views of one image.
    pub(crate) fn per_image(settings: Option<Self>) -> usize {
        settings.map_or(1, |views| usize::from(views.count).max(1))
    }
}
