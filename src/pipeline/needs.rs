//! Memory and disk that grow with the number of classes. They are added up as soon as that number is known, before any
//! image is read.

use bytesize::ByteSize;

use crate::config::{HeadConfig, Problem, RunConfig, Stage, TrainConfig};
use crate::device::SelectedDevice;
use crate::pipeline::captions::{Encoder, ranking_problem, vector_space_problem};
use crate::pipeline::device::training_options;
use crate::pipeline::resolve::FeatureShape;
use crate::pipeline::train::{head_size, remote_disk_problem, window_problem};
use crate::runtime::HostMemory;
use crate::train::{EngineKind, HeadBytes, Options, ProjectionSize};
use crate::types::{ClassSource, HeadMethod};

/// A run whose number of classes is known.
#[derive(Clone, Copy)]
pub(crate) struct ClassNeeds<'a> {
    pub(crate) config: &'a RunConfig,
    /// Number of classes.
    pub(crate) classes: u64,
    /// Memory that other parts hold beside the heads, in bytes.
    pub(crate) held_bytes: u64,
    /// Images with a label, and their labels, if they are counted.
    pub(crate) labelled: Option<(u64, u64)>,
    pub(crate) shape: FeatureShape,
    pub(crate) device: &'a SelectedDevice,
    /// Memory of the host, if the system states it.
    pub(crate) host: Option<HostMemory>,
    /// The text encoder of a text head.
    pub(crate) encoder: Option<&'a Encoder>,
    /// True if prediction ranks the classes themselves.
    pub(crate) ranks_classes: bool,
}

impl ClassNeeds<'_> {
    /// Returns every limit that the classes exceed.
    pub(crate) fn problems(self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let (HeadConfig::Classes, Some(settings), true) =
            (self.config.head(), self.config.train(), self.config.runs(Stage::Train))
        {
            problems.extend(self.head_problem(settings));
        }
        if let (HeadConfig::Text { hidden, .. }, Some(settings), Some(encoder)) =
            (self.config.head(), self.config.train(), self.encoder)
        {
            problems.extend(self.projection_problem(u64::from(*hidden), settings, encoder.checkpoint.dim() as u64));
        }
        if self.config.runs(Stage::Train) {
            problems.extend(remote_disk_problem(self.config, self.classes, self.shape.dim, self.encoder));
            // Features may stay on a GPU.
            if let (Some((images, pairs)), None) = (self.labelled, &self.device.gpu) {
                problems.extend(window_problem(self.config, images, pairs, self.shape));
            }
        }
        if let Some(encoder) = self.encoder {
            let classes = usize::try_from(self.classes).unwrap_or(usize::MAX);
            if self.config.runs(Stage::Text) {
                problems.extend(vector_space_problem(self.config, encoder, classes));
            }
            if self.ranks_classes {
                problems.extend(ranking_problem(self.config, encoder, classes));
            }
        }
        problems
    }

    /// Returns the memory of the classifier heads on the device that trains them.
    pub(crate) fn head_bytes(self, settings: &TrainConfig) -> HeadBytes {
        head_size(self.config, settings, self.classes, self.shape.dim).bytes(self.training_options())
    }

    fn training_options(self) -> Options {
        training_options(self.device, self.shape.precision, self.config.device().kernels)
    }

    fn head_problem(self, settings: &TrainConfig) -> Option<Problem> {
        if settings.method != HeadMethod::Sgd {
            let size = head_size(self.config, settings, self.classes, self.shape.dim);
            let bytes = HeadBytes { weights: size.closed_form_bytes(), ..HeadBytes::default() };
            let host = self.host.filter(|host| bytes.total().saturating_add(self.held_bytes) > host.bytes)?;
            return Some(self.refuse(settings, bytes, &format!("the {} of {}", ByteSize(host.bytes), host.origin)));
        }
        let bytes = self.head_bytes(settings);
        let options = self.training_options();
        if let (EngineKind::Gpu | EngineKind::Own { .. }, Some(gpu)) = (options.engine, &self.device.gpu)
            && bytes.total() > gpu.free_bytes
        {
            let available = format!("the {} of free memory of GPU {}", ByteSize(gpu.free_bytes), gpu.index);
            return Some(self.refuse(settings, bytes, &available));
        }
        let on_host = match options.engine {
            EngineKind::Cpu => bytes,
            EngineKind::Gpu | EngineKind::Own { .. } => {
                let size = head_size(self.config, settings, self.classes, self.shape.dim);
                HeadBytes { weights: size.host_bytes_beside_gpu(), ..HeadBytes::default() }
            }
        };
        let host = self.host.filter(|host| on_host.total().saturating_add(self.held_bytes) > host.bytes)?;
        let available = format!("the {} of {}", ByteSize(host.bytes), host.origin);
        Some(self.refuse(settings, on_host, &available))
    }

    /// Refuses a batch of a text head whose matrices exceed the memory of the device that trains it.
    fn projection_problem(self, hidden: u64, settings: &TrainConfig, output: u64) -> Option<Problem> {
        let pairs = self.labelled.map_or(u64::MAX, |(_, pairs)| pairs);
        let batch_rows = u64::from(settings.batch_size).min(pairs);
        let (weights, batch) = ProjectionSize { input: self.shape.dim as u64, output, hidden, batch_rows }.bytes();
        let heads = settings.trials.len() as u64;
        let total = weights.saturating_mul(heads).saturating_add(batch);
        let (available, place) = match (&self.device.gpu, self.host) {
            (Some(gpu), _) => {
                (gpu.free_bytes, format!("the {} of free memory of GPU {}", ByteSize(gpu.free_bytes), gpu.index))
            }
            (None, Some(host)) => {
                let left = host.bytes.saturating_sub(self.held_bytes);
                (left, format!("the {} of {} beside the join index", ByteSize(left), host.origin))
            }
            (None, None) => return None,
        };
        (total > available).then(|| {
            Problem::new(
                "train.batch_size",
                format!(
                    "`{}` takes {} with a text head, mostly 16 bytes for each pair of an image and a caption of the batch, and the \
                     head {}: more than {place}; lower it",
                    settings.batch_size,
                    ByteSize(batch),
                    ByteSize(total - batch),
                ),
            )
        })
    }

    fn refuse(self, settings: &TrainConfig, bytes: HeadBytes, available: &str) -> Problem {
        let weights = if settings.method == HeadMethod::Sgd { "weights and momentum" } else { "sums and weights" };
        let mut terms = vec![format!("{} for {weights}", ByteSize(bytes.weights))];
        for (bytes, of) in
            [(bytes.gradient, "the gradient"), (bytes.copies, "copies of weights"), (bytes.logits, "logits")]
        {
            if bytes > 0 {
                terms.push(format!("{} for {of}", ByteSize(bytes)));
            }
        }
        if self.held_bytes > 0 {
            terms.push(format!("{} for the join index", ByteSize(self.held_bytes)));
        }
        let total = bytes.total().saturating_add(self.held_bytes);
        let heads = match settings.trials.len() {
            1 => "a head".to_owned(),
            heads => format!("{heads} heads"),
        };
        let mut ways = vec![
            "train a text head (`head.kind = \"text\"`), whose size does not depend on the classes",
            match self.config.catalog().map(|catalog| catalog.captions.classes) {
                Some(ClassSource::Train) => "take the captions of a list as classes (`captions.classes = \"list\"`)",
                _ => "shorten `captions.list`",
            },
        ];
        if settings.trials.len() > 1 {
            ways.push("try fewer settings at once");
        }
        ways.push("take a machine with more memory");
        Problem::new(
            "head.kind",
            format!(
                "{heads} of kind `classes` over {} classes and {} features needs {} ({}), more than {available}: {}",
                group_digits(self.classes),
                self.shape.dim,
                ByteSize(total),
                terms.join(", "),
                ways.join("; or ")
            ),
        )
    }
}

/// Formats a number with commas between groups of three digits.
fn group_digits(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MachineFile, PipelineFile};
    use crate::device::{GpuInfo, select_device};
    use crate::runtime::MemoryOrigin;
    use crate::types::{DeviceKind, Precision};

    fn config(train: &str, run_dir: &str) -> RunConfig {
        let text = format!(
            "[run]\ndir = '{run_dir}'\n[captions]\nclasses = 'train'\n[pairs]\nshards = ['p']\n[images]\nshards = ['i']\n\
             [model]\ncheckpoint = 'm'\n[train]\n{train}\n"
        );
        RunConfig::check(PipelineFile::parse(&text).unwrap(), &MachineFile::parse("").unwrap()).unwrap()
    }

    fn problems(config: &RunConfig, classes: u64, gpu: Option<u64>, host: u64) -> Vec<String> {
        let mut device = select_device(DeviceKind::Cpu, 0).unwrap();
        device.gpu = gpu.map(|free_bytes| GpuInfo {
            index: 1,
            name: "X".to_owned(),
            compute_capability: "8.0".to_owned(),
            memory_bytes: 80 << 30,
            free_bytes,
            problem: None,
        });
        let needs = ClassNeeds {
            config,
            classes,
            held_bytes: 200 << 20,
            labelled: Some((5_000_000, 15_000_000)),
            shape: FeatureShape { dim: 768, precision: Precision::Bf16 },
            device: &device,
            host: Some(HostMemory { bytes: host, origin: MemoryOrigin::Installed }),
            encoder: None,
            ranks_classes: true,
        };
        needs.problems().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn head_over_the_real_training_captions_is_refused_with_every_term() {
        let found = problems(&config("", "r"), 16_548_370, None, 24 << 30);
        let [problem] = found.as_slice() else { panic!("{found:?}") };
        for part in [
            "`head.kind`: a head of kind `classes` over 16,548,370 classes and 768 features needs 197.7 GiB",
            "94.8 GiB for weights and momentum, 47.4 GiB for the gradient, 47.4 GiB for copies of weights, 7.9 GiB for logits, \
             200.0 MiB for the join index",
            "more than the 24.0 GiB of memory of this machine: train a text head",
            "captions.classes = \"list\"",
        ] {
            assert!(problem.contains(part), "`{part}` is not in: {problem}");
        }
        assert!(problems(&config("", "r"), 16_548_370, None, 200 << 30).is_empty());
        assert!(problems(&config("", "r"), 92_366, None, 4 << 30).is_empty());
    }

    #[test]
    fn gpu_and_its_host_are_both_compared() {
        let one = config("", "r");
        let found = problems(&one, 2_000_000, Some(16 << 30), 64 << 30);
        assert!(found[0].contains("more than the 16.0 GiB of free memory of GPU 1"), "{found:?}");
        let found = problems(&one, 2_000_000, Some(64 << 30), 8 << 30);
        assert!(found[0].contains("more than the 8.0 GiB of memory of this machine"), "{found:?}");
        assert!(problems(&one, 2_000_000, Some(64 << 30), 64 << 30).is_empty());
    }

    #[test]
    fn sweep_counts_each_head() {
        let sweep = config("learning_rate = [0.1, 0.2, 0.3]", "r");
        let found = problems(&sweep, 1_000_000, None, 20 << 30);
        assert!(found[0].contains("3 heads") && found[0].contains("fewer settings"), "{found:?}");
        assert!(problems(&config("", "r"), 1_000_000, None, 20 << 30).is_empty());
    }

    #[test]
    fn batch_of_a_text_head_must_fit_the_memory() {
        let encoder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/text/mini");
        let text = format!("batch_size = 16384\n[head]\nkind = 'text'\n[text]\nencoder = '{encoder}'");
        let config = config(&text, "r");
        let encoder = Encoder::open(config.text().unwrap(), None).unwrap();
        let found = |host: u64, pairs: u64| {
            let needs = ClassNeeds {
                config: &config,
                classes: 1000,
                held_bytes: 1 << 30,
                labelled: Some((1000, pairs)),
                shape: FeatureShape { dim: 768, precision: Precision::Bf16 },
                device: &select_device(DeviceKind::Cpu, 0).unwrap(),
                host: Some(HostMemory { bytes: host, origin: MemoryOrigin::Installed }),
                encoder: Some(&encoder),
                ranks_classes: false,
            };
            needs.problems().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let refused = found(4 << 30, 1 << 20);
        assert!(refused[0].starts_with("`train.batch_size`: `16384` takes 4.0 GiB with a text head"), "{refused:?}");
        assert!(
            refused[0].ends_with("more than the 3.0 GiB of memory of this machine beside the join index; lower it"),
            "{refused:?}"
        );
        assert!(found(6 << 30, 1 << 20).is_empty() && found(4 << 30, 5000).is_empty());
    }

    #[test]
    fn checkpoint_on_its_way_to_a_store_must_fit_the_disk_limit() {
        let found = problems(&config("", "s3://bucket/run"), 4_000_000, None, 1 << 40);
        assert!(found[0].starts_with("`limits.disk`: `20 GiB` is less than the 23."), "{found:?}");
    }

    #[test]
    fn windows_must_fit_the_memory_limit() {
        assert!(problems(&config("shuffle_rows = 3000000", "r"), 100, None, 1 << 40).is_empty());
        let found = problems(&config("shuffle_rows = 9000000", "r"), 100, None, 1 << 40);
        assert!(found[0].starts_with("`limits.memory`: `2 GiB` has no room for the 4."), "{found:?}");
        assert!(found[0].ends_with("or lower `train.shuffle_rows` (`9000000`)"), "{found:?}");
    }

    #[test]
    fn digits_are_grouped() {
        let grouped: Vec<String> = [0, 999, 1000, 1_234_567].into_iter().map(group_digits).collect();
        assert_eq!(grouped, ["0", "999", "1,000", "1,234,567"]);
    }
}
