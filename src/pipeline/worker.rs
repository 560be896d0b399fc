//! What the device thread owns: backbone, head and optimiser. Host vectors cross to it; numbers come back, and promises of features.
//!
//! A card works on several *lanes*, each a stream with a copy of the backbone and memory of its own, and batches take them in
//! turn. The runtime copies pixels from memory that is not pinned, which waits for everything before it on the stream, and reading
//! blocks whoever reads. On a lane both wait for its own batch alone, while the card computes those of the other lanes. All
//! lanes are fed by the one device thread; the features are waited for elsewhere.

mod text;

use std::path::Path;

use burn::backend::cuda::CudaDevice;
use burn::backend::flex::FlexDevice;
use burn::tensor::backend::Backend as _;
use burn::tensor::{DType, StreamId};
use cubecl::Runtime as _;
use cubecl::cuda::CudaRuntime;

use crate::config::raw::RawDevice;
use crate::config::value::Precision;
use crate::config::{ConfigError, Problem};
use crate::device::{self, GpuInfo, SelectedDevice};
use crate::model::text::TextEncoder;
use crate::model::{Any, AnyDevice, Attention, Checkpoint, ExtractOptions, Extractor, Numerics};
use crate::predict::rank::TopK;
use crate::predict::scorer::{Scored, Scorer, Selection};
use crate::predict::tiles::{Blocks, Compute};
use crate::runtime::{BufferPool, DeviceThread, PooledBuffer};
use crate::train::text::{Projector, TextTrainer};
use crate::train::{
    CheckpointError, Features, HeadState, Kept, Options, Place, Progress, Sgd, Targets, Trainer, checkpoint,
};

pub(super) use text::{TextPart, TextStart};

use super::PipelineError;
use super::feature_store::Rows;
use super::forward::BATCHES_AHEAD;

/// Images in one forward pass on the CPU: enough to fill the matrix product, little enough to stay in the cache.
const CPU_BATCH_ROWS: usize = 32;

/// Most images in one forward pass on a card, unless the configuration says otherwise: more fill it no better.
const CUDA_BATCH_ROWS: usize = 128;

/// Tokens in one pass of the text encoder on the CPU, padding counted: what stays in the cache.
const CPU_TEXT_TOKENS: usize = 1024;

/// And on a card.
const CUDA_TEXT_TOKENS: usize = 16_384;

/// Memory of a card that is left to its driver, to compiled kernels and to what tuning tries.
const CUDA_RESERVE_BYTES: u64 = 1 << 30;

/// Lanes of a card: one computes, one waits behind it, one is being uploaded to or read from.
const CUDA_STREAMS: usize = 3;

/// The stream of a lane: threads' own are counted from 0.
fn lane_stream(lane: usize) -> StreamId {
    StreamId { value: u64::MAX - lane as u64 }
}

/// Rows of features and classes of a tile that a card works on at once: 64 MiB of f32 logits where it ranks; training has
/// those of all tiles at once.
const CUDA_BLOCKS: Blocks = Blocks { rows: 1024, classes: 16_384 };

/// Times that a backbone may be warmed up: kernels that tuning tries may fail, those that it keeps may not.
const WARM_UPS: usize = 3;

/// Features that are being computed.
pub(super) struct Pending {
    features: crate::model::Pending<Any>,
    panics: u64,
}

impl Pending {
    /// Blocks until the features are there: `[rows, feature_dim]`, row-major.
    pub(super) fn wait(self) -> Result<Vec<f32>, PipelineError> {
        let features = self.features.wait().map_err(model_error)?;
        sound(self.panics)?;
        Ok(features)
    }
}

/// Whether the device's threads have panicked no more often than they had; what is computed after that is not to be trusted.
fn sound(panics: u64) -> Result<(), PipelineError> {
    if device::panic_count() == panics {
        return Ok(());
    }
    Err(PipelineError::Internal(
        "a thread of the device's runtime failed, and its results cannot be trusted".to_owned(),
    ))
}

/// Sum of losses, in nats, and how many there are.
pub(super) type Losses = (f64, u64);

/// Where a head's training starts.
pub(super) struct Start {
    pub(super) state: HeadState,
    pub(super) sgd: Sgd,
    /// The losses that were not taken yet.
    pub(super) loss: Losses,
}

/// Everything that lives on the device. One thread has it for the whole run.
pub(super) struct DeviceWorker {
    device: AnyDevice,
    numerics: Numerics,
    options: Options,
    selection: Selection,
    lanes: usize,
    /// The backbone, once for each lane.
    backbone: Vec<Extractor<Any>>,
    /// The lane of the next batch.
    next: usize,
    trainers: Vec<Trainer<Any>>,
    /// The features of all epochs, where they fit.
    kept: Option<Kept<Any>>,
    scorer: Option<Scorer<Any>>,
    text_encoder: Option<TextEncoder<Any>>,
    text_trainers: Vec<TextTrainer<Any>>,
    projector: Option<Projector<Any>>,
    /// Panics of the device's threads before anything was computed that counts.
    panics: u64,
}

/// Gives the memory of the stream at hand back to the card; a failure of the card shows at its next use. Through `Dispatch`, burn's
/// own way does nothing.
fn give_back(device: &AnyDevice) {
    if let AnyDevice::Cuda(card) = device {
        Any::sync(device).ok();
        CudaRuntime::client(card).memory_cleanup();
    }
}

/// Warms a backbone up until nothing fails; gives the panics until then.
fn warm_up(backbone: &Extractor<Any>) -> Result<u64, PipelineError> {
    let mut last = Ok(());
    for _ in 0..WARM_UPS {
        let before = device::panic_count();
        backbone.warm_up().map_err(model_error)?;
        last = sound(before);
        if last.is_ok() {
            break;
        }
    }
    last.map(|()| device::panic_count())
}

fn absent(what: &str) -> PipelineError {
    PipelineError::Internal(format!("the {what} is not loaded"))
}

impl DeviceWorker {
    fn new(device: AnyDevice, numerics: Numerics, options: Options, selection: Selection, lanes: usize) -> Self {
        let (backbone, next, panics) = (Vec::new(), 0, device::panic_count());
        Self {
            device,
            numerics,
            options,
            selection,
            lanes,
            backbone,
            next,
            trainers: Vec::new(),
            kept: None,
            scorer: None,
            text_encoder: None,
            text_trainers: Vec::new(),
            projector: None,
            panics,
        }
    }

    /// Puts the backbone on the device, unless it is there; gives how it attends.
    pub(super) fn load_backbone(
        &mut self,
        checkpoint: &Checkpoint,
        options: &ExtractOptions,
    ) -> Result<Attention, PipelineError> {
        for lane in self.backbone.len()..self.lanes {
            let load = || Extractor::load(checkpoint, options, self.numerics, &self.device);
            let backbone = lane_stream(lane).executes(load).map_err(model_error)?;
            if self.numerics.batch_rows.is_some() {
                self.panics = lane_stream(lane).executes(|| warm_up(&backbone))?;
            }
            self.backbone.push(backbone);
        }
        let attention = self.backbone.first().map(Extractor::attention).ok_or_else(|| absent("backbone"))?;
        tracing::info!(attention = attention.as_str(), "the backbone is on the device");
        Ok(attention)
    }

    /// Frees what training does not need.
    pub(super) fn unload_backbone(&mut self) {
        for (lane, backbone) in self.backbone.drain(..).enumerate() {
            lane_stream(lane).executes(|| {
                drop(backbone);
                give_back(&self.device);
            });
        }
    }

    /// Hands a batch of pixels to the next lane and does not wait for its features.
    pub(super) fn submit(&mut self, pixels: PooledBuffer, rows: usize) -> Result<Pending, PipelineError> {
        let lane = self.next;
        let backbone = self.backbone.get(lane).ok_or_else(|| absent("backbone"))?;
        self.next = (lane + 1) % self.lanes;
        let features = lane_stream(lane).executes(|| backbone.submit(pixels, rows)).map_err(model_error)?;
        Ok(Pending { features, panics: self.panics })
    }

    fn trainer(&mut self, trial: usize) -> Result<&mut Trainer<Any>, PipelineError> {
        self.trainers.get_mut(trial).ok_or_else(|| absent("trainer"))
    }

    fn scorer(&self) -> Result<&Scorer<Any>, PipelineError> {
        self.scorer.as_ref().ok_or_else(|| absent("head"))
    }

    /// Puts heads and their optimisers on the device, those of a sweep in their order; `step`: the updates that they have made.
    pub(super) fn load_trainers(&mut self, starts: Vec<Start>, step: u64) -> Result<(), PipelineError> {
        let (states, rest): (Vec<_>, Vec<_>) =
            starts.into_iter().map(|start| ((start.state, start.sgd), start.loss)).unzip();
        let trainers = Trainer::several(states, self.options, &self.device).map_err(model_error)?;
        let resumed = |(trainer, (sum, count)): (Trainer<Any>, Losses)| trainer.resumed(step, sum, count);
        self.trainers = trainers.into_iter().zip(rest).map(resumed).collect();
        Ok(())
    }

    /// One update of each head, at its own rate, with micro-batches of `batch` rows; the losses of each since they were last
    /// taken, where asked for.
    pub(super) fn train(
        &mut self,
        features: &Rows,
        targets: &Targets,
        batch: usize,
        rates: &[f64],
        loss: bool,
    ) -> Result<Option<Vec<Losses>>, PipelineError> {
        let rows = targets.rows();
        for (trainer, rate) in self.trainers.iter_mut().zip(rates) {
            for first in (0..rows).step_by(batch.max(1)) {
                let span = first..(first + batch).min(rows);
                let features = match features {
                    Rows::Host { values, dim } => Features::Host(&values[span.start * dim..span.end * dim]),
                    Rows::Kept(indices) => {
                        let kept = self.kept.as_ref().ok_or_else(|| absent("set of features"))?;
                        Features::Kept(kept, &indices[span.clone()])
                    }
                };
                trainer.accumulate(&features, &targets.part(span), rows).map_err(model_error)?;
            }
            trainer.step(*rate).map_err(model_error)?;
        }
        if loss { self.take_losses().map(Some) } else { Ok(None) }
    }

    /// Makes room for features that stay for all epochs.
    pub(super) fn keep(&mut self, rows: usize, dim: usize, precision: Precision) {
        let format = match precision {
            Precision::Bf16 => DType::BF16,
            Precision::F32 => DType::F32,
        };
        self.kept = Some(Kept::new(rows, dim, format, &self.device));
    }

    /// Puts some of them there.
    pub(super) fn put(&mut self, first: usize, values: &[f32]) -> Result<(), PipelineError> {
        self.kept.as_mut().ok_or_else(|| absent("set of features"))?.put(first, values).map_err(model_error)
    }

    /// The losses of each head since they were last taken; they start anew.
    pub(super) fn take_losses(&mut self) -> Result<Vec<Losses>, PipelineError> {
        let classes = self.trainers.iter_mut().map(Trainer::take_loss);
        classes
            .chain(self.text_trainers.iter_mut().map(TextTrainer::take_loss))
            .map(|loss| loss.map_err(model_error))
            .collect()
    }

    /// Saves a head and its optimiser as a checkpoint, with the losses that were not taken yet; here, so that a head in memory
    /// is not copied for it.
    pub(super) fn save(
        &mut self,
        trial: usize,
        dir: &Path,
        mut progress: Progress,
    ) -> Result<Result<(), CheckpointError>, PipelineError> {
        if !self.text_trainers.is_empty() {
            return self.save_text(trial, dir, progress);
        }
        let trainer = self.trainer(trial)?;
        (progress.loss_sum, progress.loss_count) = trainer.loss().map_err(model_error)?;
        let state = trainer.view().map_err(model_error)?;
        Ok(checkpoint::save(dir, &state, &progress))
    }

    /// Frees heads, optimisers and features.
    pub(super) fn unload_trainers(&mut self) {
        self.trainers.clear();
        self.text_trainers.clear();
        self.kept = None;
        give_back(&self.device);
    }

    /// Puts a head there to rank with.
    pub(super) fn load_scorer(&mut self, head: &HeadState) -> Result<(), PipelineError> {
        // In f32 on any device: bf16 would make equals of logits that are not, and ranking is a single pass.
        let HeadState { weight, bias, classes, dim, .. } = head;
        let scorer = Scorer::new(weight, bias, *classes, *dim, self.options.blocks, Compute::F32, &self.device);
        self.scorer = Some(scorer.map_err(model_error)?.selecting(self.selection));
        Ok(())
    }

    /// Ranks with a head that is being trained, as it is now.
    pub(super) fn score_with_trainer(&mut self, trial: usize) -> Result<(), PipelineError> {
        let selection = self.selection;
        self.scorer = Some(self.trainer(trial)?.scorer().map_err(model_error)?.selecting(selection));
        Ok(())
    }

    /// Frees the head to rank with.
    pub(super) fn unload_scorer(&mut self) {
        self.scorer = None;
    }

    /// The best classes of each row.
    pub(super) fn top_k(&mut self, features: &[f32], rows: usize, k: usize) -> Result<Vec<TopK>, PipelineError> {
        self.scorer()?.top_k(features, rows, k).map_err(model_error)
    }

    /// For each class `log Σ exp` of its logits over all rows.
    pub(super) fn lse_by_class(&mut self, features: &[f32], rows: usize) -> Result<Vec<f64>, PipelineError> {
        self.scorer()?.lse_by_class(features, rows).map_err(model_error)
    }

    /// Offers each class's logits over the rows to its list of the `k` largest.
    pub(super) fn largest_by_class(
        &mut self,
        features: &[f32],
        rows: usize,
        k: usize,
        mut largest: Vec<Vec<f32>>,
    ) -> Result<Vec<Vec<f32>>, PipelineError> {
        self.scorer()?.largest_by_class(features, rows, k, &mut largest).map_err(model_error)?;
        Ok(largest)
    }

    /// The best classes and the loss of each row.
    pub(super) fn score(&mut self, features: &[f32], labels: &[u32], k: usize) -> Result<Vec<Scored>, PipelineError> {
        self.scorer()?.score(features, labels, k).map_err(model_error)
    }
}

/// The thread that owns the [`DeviceWorker`], and what the others have to know of it.
pub(super) struct Device {
    thread: DeviceThread<DeviceWorker>,
    /// Rows of a batch of images.
    pub(super) batch_rows: usize,
    /// Batches that may be on their way at once.
    pub(super) in_flight: usize,
    /// For the pixels of all batches that the host may hold.
    pub(super) buffers: BufferPool,
    /// Tokens of a batch of captions, and whether batches should have few shapes.
    pub(super) text_batches: (usize, bool),
    /// Free memory of a card, when it was opened; none of the CPU, whose memory is the host's.
    pub(super) free_bytes: Option<u64>,
}

impl Device {
    /// Runs `job` on the device's thread and waits for its answer.
    ///
    /// # Errors
    /// What the job says; or when the device's thread is gone.
    pub(super) async fn call<T, F>(&self, job: F) -> Result<T, PipelineError>
    where
        T: Send + 'static,
        F: FnOnce(&mut DeviceWorker) -> Result<T, PipelineError> + Send + 'static,
    {
        let watched = |worker: &mut DeviceWorker| {
            let done = job(worker)?;
            sound(worker.panics)?;
            Ok(done)
        };
        self.thread.call(watched).await?
    }

    /// As [`Self::call`], for what cannot fail.
    pub(super) async fn tell(&self, job: impl FnOnce(&mut DeviceWorker) + Send + 'static) -> Result<(), PipelineError> {
        Ok(self.thread.call(job).await?)
    }
}

/// What a device and its host have to hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Parameters of the backbone.
    pub(super) parameters: u64,
    /// Intermediate values of an image, at f32.
    pub(super) activation_bytes: u64,
    /// Pixels of an image.
    pub(super) pixel_bytes: u64,
    /// Host memory for pixels on their way to the device.
    pub(super) host_bytes: u64,
    /// The format to compute in.
    pub(super) precision: Precision,
}

impl Load {
    /// Of a head alone.
    pub(super) fn of_head(precision: Precision) -> Self {
        Self { parameters: 0, activation_bytes: 0, pixel_bytes: 0, host_bytes: u64::MAX, precision }
    }
}

/// The device that a machine file asks for.
///
/// # Errors
/// When it is not there.
pub(super) async fn choose(asked: &RawDevice) -> Result<SelectedDevice, PipelineError> {
    let RawDevice { kind, index, .. } = *asked;
    let chosen = tokio::task::spawn_blocking(move || device::select_device(kind, index)).await?;
    chosen.map_err(|error| PipelineError::Model(error.to_string()))
}

/// Opens a device. `batch_size`: 0 where it is to be chosen; `scratch`: where compiled kernels are kept.
///
/// # Errors
/// When host or card have too little memory, or the system has no thread left.
pub(super) async fn open(
    chosen: &SelectedDevice,
    load: Load,
    batch_size: u32,
    scratch: &Path,
) -> Result<Device, PipelineError> {
    let lanes = if chosen.is_cuda() { CUDA_STREAMS } else { 1 };
    let most = load.host_bytes / (load.pixel_bytes * (BATCHES_AHEAD + lanes) as u64).max(1);
    if u64::from(batch_size.max(1)) > most {
        let key = if batch_size == 0 { "limits.memory" } else { "device.batch_size" };
        let what = format!(
            "it leaves room for batches of {most} images of this size; raise `limits.memory`, or lower the batch"
        );
        return Err(ConfigError(vec![Problem { key: key.to_owned(), what }]).into());
    }
    let ready = |thread, batch_rows| {
        let buffers = BufferPool::new(BATCHES_AHEAD + lanes, batch_rows * load.pixel_bytes as usize);
        let free_bytes = chosen.gpu.as_ref().map(|card| card.free_bytes);
        let text_batches = if chosen.is_cuda() { (CUDA_TEXT_TOKENS, true) } else { (CPU_TEXT_TOKENS, false) };
        Device { thread, batch_rows, in_flight: lanes, buffers, text_batches, free_bytes }
    };
    let Some(card) = &chosen.gpu else {
        let device = AnyDevice::Flex(FlexDevice);
        let worker = move || DeviceWorker::new(device, Numerics::default(), Options::default(), Selection::Host, lanes);
        let batch_rows = if batch_size == 0 { CPU_BATCH_ROWS.min(most as usize) } else { batch_size as usize };
        return Ok(ready(start(worker).await?, batch_rows));
    };
    let batch_rows = if batch_size == 0 {
        fitting(load, card)?.min(CUDA_BATCH_ROWS as u64).min(most) as usize
    } else {
        batch_size as usize
    };
    let (format, compute) = match load.precision {
        Precision::Bf16 => (DType::BF16, Compute::Bf16),
        Precision::F32 => (DType::F32, Compute::F32),
    };
    device::configure_kernel_cache(scratch, chosen);
    let device = AnyDevice::Cuda(CudaDevice::new(card.index as usize));
    let numerics = Numerics { format, batch_rows: Some(batch_rows), fused: true };
    let options = Options { blocks: CUDA_BLOCKS, compute, place: Place::Device };
    let worker = move || DeviceWorker::new(device, numerics, options, Selection::Device, lanes);
    Ok(ready(start(worker).await?, batch_rows))
}

async fn start(
    worker: impl FnOnce() -> DeviceWorker + Send + 'static,
) -> Result<DeviceThread<DeviceWorker>, PipelineError> {
    let opened = DeviceThread::start(move || Ok::<_, std::convert::Infallible>(worker())).await?;
    Ok(opened.unwrap_or_else(|never| match never {}))
}

/// Most rows of a batch that fit the free memory of a card.
fn fitting(load: Load, card: &GpuInfo) -> Result<u64, PipelineError> {
    let width = match load.precision {
        Precision::Bf16 => 2,
        Precision::F32 => 4,
    };
    // Each lane has weights and intermediate values of its own; of the latter twice as many, because memory is cut into pages.
    let lanes = CUDA_STREAMS as u64;
    let image = 2 * lanes * (load.activation_bytes / 4 * width + load.pixel_bytes);
    let taken = CUDA_RESERVE_BYTES + lanes * load.parameters * width;
    let rows = card.free_bytes.saturating_sub(taken) / image.max(1);
    if rows > 0 {
        return Ok(rows);
    }
    let mib = |bytes: u64| bytes >> 20;
    Err(PipelineError::Model(format!(
        "card {} has {} MiB of free memory, and the model needs {} MiB: free some, take another card by `device.index`, or set \
         `device.kind` to `cpu`",
        card.index,
        mib(card.free_bytes),
        mib(taken + image)
    )))
}

/// A damaged artefact of a run, with the causes, as one sentence.
pub(super) fn damaged(error: impl std::error::Error) -> PipelineError {
    PipelineError::Input(super::chain(&error))
}

/// An error of the model with its causes, as one sentence.
pub(super) fn model_error(error: impl std::error::Error) -> PipelineError {
    PipelineError::Model(super::chain(&error))
}

#[cfg(test)]
mod tests {
    use std::borrow::BorrowMut as _;

    use super::*;

    fn load(precision: Precision) -> Load {
        let (activation_bytes, pixel_bytes) = (20 << 20, 150_528);
        Load { parameters: 86_000_000, activation_bytes, pixel_bytes, host_bytes: 1 << 30, precision }
    }

    fn card(free_bytes: u64) -> GpuInfo {
        GpuInfo {
            index: 3,
            name: "X".to_owned(),
            compute_capability: "8.0".to_owned(),
            memory_bytes: 80 << 30,
            free_bytes,
            problem: None,
        }
    }

    #[test]
    fn batches_fit_the_card_and_a_card_without_room_is_one_sentence() {
        let (large, small) = (card(70 << 30), card(3 << 30));
        assert!(fitting(load(Precision::Bf16), &large).unwrap() > 500);
        let rows = fitting(load(Precision::Bf16), &small).unwrap();
        assert!((1..1000).contains(&rows) && rows > fitting(load(Precision::F32), &small).unwrap());
        let error = fitting(load(Precision::F32), &card(1 << 30)).unwrap_err();
        assert_eq!(error.exit_code(), 5);
        assert!(error.to_string().starts_with("card 3 has 1024 MiB of free memory, and the model needs 21"), "{error}");
    }

    /// What a card has, on the CPU: lanes in turn, fixed batches, bf16.
    #[test]
    fn batches_take_the_lanes_in_turn_and_are_waited_for_in_any_order() {
        let checkpoint = Checkpoint::open(Path::new("tests/reference/model/vit")).unwrap();
        let size_px = checkpoint.image_size_px();
        let options = ExtractOptions { size_px, layer: -1, pool: crate::model::Pool::Default };
        let numerics = Numerics { format: DType::BF16, batch_rows: Some(3), fused: true };
        let worker = |lanes| {
            let device = AnyDevice::Flex(FlexDevice);
            let mut worker = DeviceWorker::new(device, numerics, Options::default(), Selection::Device, lanes);
            worker.load_backbone(&checkpoint, &options).unwrap();
            worker
        };
        let spares = BufferPool::new(1, 1 << 20);
        let batch = |seed: usize, rows: usize| -> PooledBuffer {
            let mut lent = spares.acquire_pooled();
            let pixels: &mut Vec<u8> = lent.borrow_mut();
            pixels.clear();
            pixels.extend((0..rows * (3 * size_px * size_px) as usize).map(|at| (at * (31 + seed) % 251) as u8));
            lent
        };
        let (mut one, mut three) = (worker(1), worker(CUDA_STREAMS));
        let rows = [3, 1, 2, 3, 3, 1, 0];
        let expected: Vec<Vec<f32>> = rows
            .iter()
            .enumerate()
            .map(|(seed, rows)| one.submit(batch(seed, *rows), *rows).unwrap().wait().unwrap())
            .collect();
        let pending: Vec<(usize, Pending)> = rows
            .iter()
            .enumerate()
            .map(|(seed, rows)| (seed, three.submit(batch(seed, *rows), *rows).unwrap()))
            .collect();
        let waiting: Vec<_> = pending
            .into_iter()
            .rev()
            .map(|(seed, pending)| (seed, std::thread::spawn(move || pending.wait().unwrap())))
            .collect();
        for (seed, thread) in waiting {
            assert_eq!(thread.join().unwrap(), expected[seed], "batch {seed}");
        }
        three.unload_backbone();
        assert!(three.submit(batch(0, 1), 1).is_err());
    }

    #[tokio::test]
    async fn a_batch_that_the_host_cannot_hold_is_refused_by_its_key() {
        let cpu = device::select_device(crate::config::value::DeviceKind::Cpu, 0).unwrap();
        let scratch = Path::new("/nonexistent");
        let error = open(&cpu, load(Precision::F32), 60_000, scratch).await.err().unwrap();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("`device.batch_size`") && error.to_string().contains("1783"), "{error}");
        let device = open(&cpu, load(Precision::F32), 0, scratch).await.unwrap();
        assert_eq!((device.batch_rows, device.in_flight), (CPU_BATCH_ROWS, 1));
    }
}
