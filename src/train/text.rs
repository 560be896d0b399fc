//! Trains a projection head from image features into the embedding space of a frozen text encoder.
//!
//! A projection head can rank captions without training samples. It is linear or has one hidden layer with GELU.
//! Features are standardised. Outputs are scaled to unit length, as are caption embeddings after the mean over the
//! training captions is subtracted.
//!
//! The loss is the symmetric contrastive loss (Radford et al. 2021, section 2.3). For a micro-batch of B pairs with
//! outputs `U`, `[batch, output]`, and captions `T`, `[batch, output]`, the logits are `L = exp(λ) · U · Tᵀ`. The loss
//! is the mean of the cross-entropies of rows and columns against the diagonal; λ is learned and limited to ln 100. A
//! caption of the batch that also belongs to the image of another row is not a negative of that row: its logit is
//! masked.
//!
//! Gradients are in closed form. With the softmax `P` of the rows and `Q` of the columns, `G = (P + Q) / 2B`. Then
//! `dU = exp(λ) · (G · T − T / B)` and `dλ = Σ G ∘ L − tr L / B`. The normalisation gives
//! `dY = (dU − U (U · dU)) / |Y|`. The optimiser equals `torch.optim.AdamW` (Loshchilov and Hutter 2019) with weight
//! decay on matrices only; the gradient is clipped to a norm as in [`super::Sgd`].

mod ensemble;
mod head;
mod member;
mod moments;
mod projector;
mod trainer;
mod weights;

pub use ensemble::{Ensemble, EnsembleError};
pub(super) use head::parameter_shapes;
pub use head::{Columns, Parameter, TextHead, TextMap, TextState, centre_and_normalise};
pub use member::MemberSpec;
pub use moments::RunningMoments;
pub use projector::Projector;
pub use trainer::{AdamW, ContrastiveBatch, TextTrainer};
pub use weights::WeightSearch;

/// Lower bound on the length of a vector before it is scaled to unit length.
const MIN_LENGTH: f64 = 1e-12;
/// Upper bound on the factor of the similarities, the inverse of the temperature 0.01 (Radford et al. 2021).
const MAX_SCALE: f64 = 100.0;

#[cfg(test)]
mod tests;
