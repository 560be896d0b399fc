//! Trained heads on the device: a linear layer that ranks classes, and a projection into the space of caption vectors.

use std::sync::Arc;

use super::{DeviceState, DeviceWorker, OnDevice, model_error};
use crate::model::Any;
use crate::pipeline::error::PipelineError;
use crate::predict::rank::TopK;
use crate::predict::scorer::{Place, PlaceQuery, Scored, Scorer};
use crate::predict::tiles::Compute;
use crate::train::HeadState;
use crate::train::text::{Ensemble, Projector};

/// A linear layer that ranks classes by their logits.
pub(crate) struct LoadedScorer {
    pub(super) device: Arc<DeviceWorker>,
    pub(super) scorer: OnDevice<Scorer<Any>>,
}

impl DeviceWorker {
    /// Loads a linear layer to rank with.
    ///
    /// # Errors
    /// When the layer's lengths do not fit, or the device fails.
    pub(crate) async fn load_scorer(self: &Arc<Self>, head: Arc<HeadState>) -> Result<LoadedScorer, PipelineError> {
        let load = move |state: &mut DeviceState| {
            // f32 on every device: bf16 would make distinct logits equal, and ranking is a single pass.
            let HeadState { weight, bias, classes, dim, .. } = &*head;
            let scorer = Scorer::new(weight, bias, *classes, *dim, state.options.tiling, Compute::F32, &state.device);
            Ok(OnDevice::new(scorer.map_err(model_error)?.with_selection(state.selection)))
        };
        let scorer = self.run(load).await?;
        Ok(LoadedScorer { device: Arc::clone(self), scorer })
    }

    /// Loads projection heads that rank together, or a single one.
    ///
    /// # Errors
    /// When a head's lengths do not fit, or the device fails.
    pub(crate) async fn load_projector(
        self: &Arc<Self>,
        heads: &Arc<Ensemble>,
    ) -> Result<LoadedProjector, PipelineError> {
        let own = Arc::clone(heads);
        let load = move |state: &mut DeviceState| {
            let load = |(head, _)| Projector::new(head, &state.device).map_err(model_error);
            Ok(OnDevice::new(own.members().map(load).collect::<Result<Vec<_>, _>>()?))
        };
        let projectors = self.run(load).await?;
        Ok(LoadedProjector { device: Arc::clone(self), projectors, heads: Arc::clone(heads) })
    }
}

/// Builds a linear layer for [`DeviceWorker::load_scorer`] from row-major weights, `[outputs, dim]`.
pub(crate) fn linear_layer(weight: Vec<f32>, bias: Vec<f32>, dim: usize) -> HeadState {
    HeadState { classes: bias.len(), dim, weight, bias, weight_momentum: Vec::new(), bias_momentum: Vec::new() }
}

impl LoadedScorer {
    async fn run<T, F>(&self, job: F) -> Result<T, PipelineError>
    where
        T: Send + 'static,
        F: FnOnce(&Scorer<Any>) -> Result<T, PipelineError> + Send + 'static,
    {
        let scorer = self.scorer.clone();
        self.device.run(move |_| job(&scorer.get())).await
    }

    /// Returns the `k` best classes of each row of features.
    ///
    /// # Errors
    /// When a length does not fit, or the device fails.
    pub(crate) async fn top_k(&self, features: Vec<f32>, rows: usize, k: usize) -> Result<Vec<TopK>, PipelineError> {
        self.run(move |scorer| scorer.top_k(&features, rows, k).map_err(model_error)).await
    }

    /// Returns `log Σ exp` of each class's logits, over all rows.
    ///
    /// # Errors
    /// As [`LoadedScorer::top_k`].
    pub(crate) async fn lse_by_class(&self, features: Vec<f32>, rows: usize) -> Result<Vec<f64>, PipelineError> {
        self.run(move |scorer| scorer.lse_by_class(&features, rows).map_err(model_error)).await
    }

    /// Returns `log Σ exp` of each class's logits over all rows, of which each is divided by its own `Σ exp` before.
    ///
    /// # Errors
    /// As [`LoadedScorer::top_k`].
    pub(crate) async fn shared_lse_by_class(&self, features: Vec<f32>, rows: usize) -> Result<Vec<f64>, PipelineError> {
        self.run(move |scorer| scorer.shared_lse_by_class(&features, rows).map_err(model_error)).await
    }

    /// Merges the logits of these rows into each class's list of its `k` largest logits.
    ///
    /// # Errors
    /// As [`LoadedScorer::top_k`].
    pub(crate) async fn largest_by_class(
        &self,
        features: Vec<f32>,
        rows: usize,
        k: usize,
        mut largest: Vec<Vec<f32>>,
    ) -> Result<Vec<Vec<f32>>, PipelineError> {
        let merge = move |scorer: &Scorer<Any>| {
            scorer.largest_by_class(&features, rows, k, &mut largest).map_err(model_error)?;
            Ok(largest)
        };
        self.run(merge).await
    }

    /// Returns the `k` best classes of each row, and the row's loss for its label.
    ///
    /// # Errors
    /// As [`LoadedScorer::top_k`]; or when a label is out of range.
    pub(crate) async fn score(
        &self,
        features: Vec<f32>,
        labels: Vec<u32>,
        k: usize,
    ) -> Result<Vec<Scored>, PipelineError> {
        self.run(move |scorer| scorer.score(&features, &labels, k).map_err(model_error)).await
    }

    /// Returns the rank of each query's class among all classes, and within its group.
    ///
    /// # Errors
    /// As [`LoadedScorer::top_k`]; or when a row or a class does not exist.
    pub(crate) async fn places(
        &self,
        features: Vec<f32>,
        rows: usize,
        queries: Vec<PlaceQuery>,
        groups: Option<Arc<Vec<u32>>>,
    ) -> Result<Vec<Option<Place>>, PipelineError> {
        if queries.is_empty() {
            return Ok(Vec::new());
        }
        let find = move |scorer: &Scorer<Any>| {
            let groups = groups.as_ref().map(|groups| groups.as_slice());
            scorer.places(&features, rows, &queries, groups).map_err(model_error)
        };
        self.run(find).await
    }

    /// Frees the layer.
    ///
    /// # Errors
    /// When the device's thread is gone.
    pub(crate) async fn unload(self) -> Result<(), PipelineError> {
        self.device.post(move |_| drop(self.scorer)).await
    }
}

/// Projections from features into the space of caption vectors, and their combination.
pub(crate) struct LoadedProjector {
    device: Arc<DeviceWorker>,
    projectors: OnDevice<Vec<Projector<Any>>>,
    heads: Arc<Ensemble>,
}

impl LoadedProjector {
    /// Projects features to the vectors that are compared with captions: `[rows, output]`. They have length 1 with a single head,
    /// and at most that with several.
    ///
    /// # Errors
    /// When a length does not fit, or the device fails.
    pub(crate) async fn project(&self, features: Vec<f32>, rows: usize) -> Result<Vec<f32>, PipelineError> {
        let projectors = self.projectors.clone();
        let project = move |_: &mut DeviceState| {
            let projectors = projectors.get();
            let own = projectors.iter().map(|projector| projector.project(&features, rows).map_err(model_error));
            own.collect::<Result<Vec<_>, _>>()
        };
        let vectors = self.device.run(project).await?;
        Ok(self.heads.combine_images(&vectors))
    }

    /// Frees the projection.
    ///
    /// # Errors
    /// When the device's thread is gone.
    pub(crate) async fn unload(self) -> Result<(), PipelineError> {
        self.device.post(move |_| drop(self.projectors)).await
    }
}
