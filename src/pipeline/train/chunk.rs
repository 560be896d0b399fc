//! A feature chunk in memory: its samples, its validation images, and their features.

use crate::chunk::features::{StoredFeatures, Values};
use crate::pipeline::train::balance::LanguageBalance;
use crate::train::Targets;
use crate::types::{TargetKind, ValidationSplit};

/// Specification of the samples of a chunk.
#[derive(Debug, Clone)]
pub(crate) struct SampleSpec {
    /// Images held out from training.
    pub(crate) split: ValidationSplit,
    /// Dimension of a feature.
    pub(crate) dim: usize,
    /// Meaning of a sample for an image with several classes.
    pub(crate) targets: TargetKind,
    /// Whether the loss is contrastive. The targets of a pair are then its own caption, followed by all captions of its
    /// image, which the loss masks.
    pub(crate) contrastive: bool,
    /// Repetitions of the pairs; `None` if each pair occurs once an epoch.
    pub(crate) balance: Option<LanguageBalance>,
}

/// Returns the number of samples of an image with these classes.
pub(super) fn count_samples(targets: TargetKind, classes: &[u32]) -> usize {
    match targets {
        TargetKind::Pairs => classes.len(),
        TargetKind::Soft => usize::from(!classes.is_empty()),
    }
}

/// A training sample of a chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// Row of the image's first view.
    pub(super) row: u32,
    /// Index into the row's classes, if each class makes its own sample.
    pub(super) nth: u32,
}

/// Rows of a chunk without their features.
#[derive(Clone)]
pub(crate) struct ChunkRows {
    /// Classes of each row.
    classes: Targets,
    /// Views of each training image; 1 if images stay whole.
    pub(super) views: u32,
    pub(super) samples: Vec<Sample>,
    /// Rows of the validation images.
    pub(super) validation: Vec<u32>,
}

impl ChunkRows {
    /// Returns the number of rows.
    pub(super) fn len(&self) -> usize {
        self.classes.rows()
    }

    /// Returns the classes of a row.
    pub(crate) fn classes(&self, row: u32) -> &[u32] {
        self.classes.row(row as usize)
    }

    /// Returns the rows of the training images, all views included.
    pub(crate) fn training_rows(&self) -> impl Iterator<Item = u32> {
        let mut held_out = self.validation.iter().copied().peekable();
        (0..self.len() as u32).filter(move |row| held_out.next_if_eq(row).is_none())
    }
}

/// A chunk with its features.
pub(crate) struct Chunk {
    values: Values,
    dim: usize,
    pub(crate) rows: ChunkRows,
}

impl Chunk {
    /// Finds the samples and the validation images of a chunk.
    pub(super) fn new(chunk: StoredFeatures, spec: &SampleSpec) -> Self {
        let (mut classes, mut samples, mut validation) = (Targets::default(), Vec::new(), Vec::new());
        let mut views = 1;
        for row in 0..chunk.rows.len() {
            let row_classes = chunk.rows.labels(row);
            classes.push(row_classes);
            views = views.max(u32::from(chunk.rows.view(row)));
            if chunk.rows.view(row) > 1 {
                continue;
            }
            if spec.split.contains(chunk.rows.url(row)) {
                validation.push(row as u32);
            } else {
                let count = count_samples(spec.targets, row_classes) as u32;
                samples.extend((0..count).map(|nth| Sample { row: row as u32, nth }));
            }
        }
        let rows = ChunkRows { classes, views, samples, validation };
        Self { values: chunk.values, dim: spec.dim, rows }
    }

    /// Appends the feature of a row.
    pub(crate) fn copy_feature(&self, row: u32, out: &mut Vec<f32>) {
        self.values.copy_to(row as usize * self.dim..(row as usize + 1) * self.dim, out);
    }

    /// Returns the features of all rows, `[rows, dim]`.
    pub(super) fn all_features(&self) -> Vec<f32> {
        let count = self.rows.len();
        let mut all = Vec::with_capacity(count * self.dim);
        (0..count as u32).for_each(|row| self.copy_feature(row, &mut all));
        all
    }
}
