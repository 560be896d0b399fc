//! Raw sections → checked sections, with a list of everything that cannot work.
//!
//! Each `check_*` function reports to [`Problems`] and returns its section in any case. A section counts only if there
//! was no problem, which [`Problems::into_result`] ensures.

pub(super) mod caption;
pub(super) mod ensemble;
pub(super) mod head;
pub(super) mod images;
pub(super) mod machine;
pub(super) mod predict;
pub(super) mod train;

use std::path::{Component, Path};

use super::raw::RawPipeline;
use super::{ConfigError, HubName, Problem};

/// Refusals so far.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<Problem>);

impl Problems {
    /// Adds a refusal if `bad`.
    fn refuse_if(&mut self, bad: bool, key: &str, what: impl Into<String>) {
        if bad {
            self.0.push(Problem::new(key, what));
        }
    }

    /// Returns `value` if nothing was refused.
    pub(super) fn into_result<T>(self, value: T) -> Result<T, ConfigError> {
        if self.0.is_empty() { Ok(value) } else { Err(ConfigError(self.0)) }
    }
}

/// Checks which sections are there together.
pub(super) fn check_stages(pipeline: &RawPipeline, problems: &mut Problems) {
    let RawPipeline { captions, pairs, images, model, train, predict, .. } = pipeline;
    let mut require = |missing: bool, key: &str, what: &str| problems.refuse_if(missing, key, what);
    require(pipeline.run.dir.is_empty(), "run.dir", "is required: name the directory that the run writes to");
    require(
        captions.is_some() && pairs.is_none(),
        "pairs",
        "is required with `[captions]`: without it no image has a label",
    );
    require(
        pairs.is_some() && captions.is_none(),
        "captions",
        "is required with `[pairs]`: it says which captions are classes",
    );
    if train.is_some() {
        require(model.is_none(), "model", "is required with `[train]`");
        require(images.is_none(), "images", "is required with `[train]`");
        require(captions.is_none(), "captions", "is required with `[train]`");
    }
    require(predict.is_some() && model.is_none(), "model", "is required with `[predict]`");
    require(
        images.is_none() && captions.is_none() && predict.is_none() && pipeline.caption.is_none(),
        "",
        "the pipeline has nothing to run: add `[images]`, `[captions]`, `[predict]` or `[caption]`",
    );
}

/// Keys whose values may be names of lists.
const LISTS: [&str; 4] = ["pairs.shards", "images.shards", "predict.images", "caption.images"];

/// Keys whose values name models.
const MODELS: [&str; 3] = ["model.checkpoint", "text.encoder", "caption.checkpoint"];

/// Returns whether a shell would have replaced the beginning of a path. The program does not, so a folder named `~` would appear.
fn is_unexpanded(path: &str) -> bool {
    path == "~" || path.starts_with("~/") || path.starts_with('$') && path.contains('/')
}

/// Refuses a path that only a shell expands.
fn refuse_unexpanded(path: &str, key: &str, problems: &mut Problems) {
    problems.refuse_if(
        is_unexpanded(path),
        key,
        format!("`{path}`: `~` and variables are not expanded here: write the whole path"),
    );
}

/// Checks that the run directory can be one: not the root of the file system, and neither inside the rendered corpus
/// nor around it.
fn check_run_dir(pipeline: &RawPipeline, problems: &mut Problems) {
    let name = pipeline.run.dir.as_str();
    if name.is_empty() || name.contains("://") && !name.starts_with("file://") {
        return;
    }
    let dir = Path::new(name.strip_prefix("file://").unwrap_or(name));
    let is_root = dir.has_root() && !dir.components().any(|part| matches!(part, Component::Normal(_)));
    problems.refuse_if(
        is_root,
        "run.dir",
        format!("`{name}` is the root of the file system: name a directory for this run"),
    );
    let Some(out) = pipeline.sample.as_ref().map(|sample| Path::new(&sample.out)) else { return };
    let overlap = !out.as_os_str().is_empty() && (dir.starts_with(out) || out.starts_with(dir));
    problems.refuse_if(
        overlap,
        "run.dir",
        format!("`{name}` and `sample.out`, `{}`, must not contain each other: name two directories", out.display()),
    );
}

/// Checks that each path or URL has a scheme that its key supports.
pub(super) fn check_paths(pipeline: &RawPipeline, problems: &mut Problems) {
    check_run_dir(pipeline, problems);
    if let Some(sample) = &pipeline.sample {
        refuse_unexpanded(&sample.out, "sample.out", problems);
    }
    for (key, paths) in paths(pipeline) {
        for path in paths {
            refuse_unexpanded(path, key, problems);
            let hub = MODELS.contains(&key) && HubName::parse(path).is_some();
            // `@` before a name makes it a list of names.
            let path = if LISTS.contains(&key) { path.trim_start_matches('@') } else { path };
            let Some((scheme, _)) = path.split_once("://").filter(|_| !hub) else { continue };
            let (allowed, what): (&[&str], _) = match key {
                "run.dir" | "predict.blend" => (&["file", "s3", "s3a"], "a local path or an `s3://` URL"),
                key if MODELS.contains(&key) => (&[], "a local directory or `hf:ORG/NAME`"),
                _ => (
                    &["file", "s3", "s3a", "gs", "az", "azure", "https", "http", "hf"],
                    "a local path or a URL of s3, gs, az, https or hf",
                ),
            };
            problems.refuse_if(!allowed.contains(&scheme), key, format!("`{path}` must be {what}"));
        }
    }
}

/// Lists every key that holds paths, with its paths.
fn paths(pipeline: &RawPipeline) -> Vec<(&'static str, Vec<&str>)> {
    fn strs(list: &[String]) -> Vec<&str> {
        list.iter().map(String::as_str).collect()
    }
    let mut found = vec![("run.dir", vec![pipeline.run.dir.as_str()])];
    if let Some(captions) = &pipeline.captions {
        found.push(("captions.list", vec![captions.list.as_str()]));
    }
    if let Some(pairs) = &pipeline.pairs {
        found.push(("pairs.shards", strs(&pairs.shards)));
    }
    if let Some(images) = &pipeline.images {
        found.push(("images.shards", strs(&images.shards)));
    }
    if let Some(model) = &pipeline.model {
        found.push(("model.checkpoint", vec![model.checkpoint.as_str()]));
    }
    if let Some(text) = &pipeline.text {
        found.push(("text.encoder", vec![text.encoder.as_str()]));
    }
    if let Some(predict) = &pipeline.predict {
        found.push(("predict.images", strs(&predict.images)));
        found.push(("predict.ids", vec![predict.ids.as_str()]));
        found.push(("predict.truth", vec![predict.truth.as_str()]));
        found.push(("predict.captions", vec![predict.captions.as_str()]));
        found.push(("predict.blend", vec![predict.blend.as_str()]));
    }
    if let Some(caption) = &pipeline.caption {
        found.push(("caption.checkpoint", vec![caption.checkpoint.as_str()]));
        found.push(("caption.images", strs(&caption.images)));
        found.push(("caption.ids", vec![caption.ids.as_str()]));
        found.push(("caption.references", vec![caption.references.as_str()]));
    }
    found
}

/// Checks a directory or hub name of a model.
fn check_checkpoint(key: &str, checkpoint: &str, problems: &mut Problems) {
    problems.refuse_if(
        checkpoint.is_empty(),
        key,
        "is required: name a directory in Hugging Face layout, or `hf:ORG/NAME`",
    );
    if let Some(Err(why)) = HubName::parse(checkpoint) {
        problems.refuse_if(true, key, why);
    }
}

/// Returns the text, or `None` where it is empty, which means that the key is absent.
fn non_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use crate::config::{MachineFile, PipelineFile, RunConfig};

    fn problems(pipeline: &str, machine: &str) -> String {
        RunConfig::check(PipelineFile::parse(pipeline).unwrap(), &MachineFile::parse(machine).unwrap())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let text = problems(
            "[captions]\n[images]\n[chunks]\nrows = 0\n[train]\nepochs = 0\nlearning_rate = -1.0\nmomentum = 1.0\n",
            "[limits]\nmax_bad_fraction = 0.0\n",
        );
        for key in [
            "run.dir",
            "captions.list",
            "`pairs`",
            "images.shards",
            "chunks.rows",
            "`model`",
            "train.epochs",
            "train.learning_rate",
            "train.momentum",
            "limits.max_bad_fraction",
        ] {
            assert!(text.contains(key), "{key} is missing in:\n{text}");
        }
    }

    #[test]
    fn submission_stays_in_the_run_directory() {
        let reserved = ["training.csv", "Training.CSV", "report.json", "run.toml", "x.csv.csv", "-x.csv", "x\n.csv"];
        for output in ["/tmp/x.csv", "../x.csv", "a/b.csv", "x.txt", ""].into_iter().chain(reserved) {
            let text = problems(
                &format!(
                    "[run]\ndir='r'\n[model]\ncheckpoint='m'\n[predict]\nimages=['i']\nids='t'\noutput={output:?}\n"
                ),
                "",
            );
            assert!(text.contains("predict.output"), "{output}: {text}");
        }
    }

    #[test]
    fn absurd_run_directory_is_refused() {
        for (dir, expected) in [
            ("/", "root of the file system"),
            ("file:///", "root of the file system"),
            ("/..", "root of the file system"),
            ("~", "not expanded"),
            ("~/runs", "not expanded"),
            ("$HOME/runs", "not expanded"),
            ("corpus/run", "must not contain each other"),
            (".", ""),
        ] {
            let text = format!("[sample]\nout='corpus'\n[run]\ndir='{dir}'\n[images]\nshards=['i']\n");
            let found = RunConfig::check(PipelineFile::parse(&text).unwrap(), &MachineFile::default());
            match found {
                Ok(_) => assert!(expected.is_empty(), "{dir}"),
                Err(error) => assert!(!expected.is_empty() && error.to_string().contains(expected), "{dir}: {error}"),
            }
        }
    }

    #[test]
    fn published_features_go_with_neither_checkpoint_nor_views() {
        let start = "[run]\ndir='r'\n[images]\nshards=['i']\n[model]\nfeatures='published'\n";
        let config = RunConfig::check(PipelineFile::parse(start).unwrap(), &MachineFile::default()).unwrap();
        assert_eq!(config.published_dim(), Some(2048));
        let text = problems(
            &format!(
                "{}feature_dim=0\ncheckpoint='m'\nlayer=3\npool='cls'\n[captions]\nclasses='train'\n[pairs]\nshards=['p']\n[train]\nviews=2\n",
                start.replace("shards=['i']", "shards=['i']\nformat='parquet'")
            ),
            "",
        );
        for key in
            ["model.checkpoint", "model.layer", "model.pool", "train.views", "images.format", "model.feature_dim"]
        {
            assert!(text.contains(&format!("`{key}`")), "{key} is missing in:\n{text}");
        }
        let paired = format!("{start}[head]\nkind='paired'\n[predict]\nimages=['i']\ncaptions='c'\n");
        let text = problems(&paired, "");
        assert!(text.starts_with("`head.kind`: `paired` does not go with") && text.lines().count() == 1, "{text}");
        let text = problems(&start.replace("features='published'", "checkpoint='m'\nfeature_dim=7"), "");
        assert!(text.starts_with("`model.feature_dim`: goes with `features = \"published\"` alone"), "{text}");
    }

    #[test]
    fn checkpoint_is_a_directory_or_a_hub_name() {
        let pipeline =
            |checkpoint: &str| format!("[run]\ndir='r'\n[images]\nshards=['i']\n[model]\ncheckpoint='{checkpoint}'\n");
        for checkpoint in ["models/vit", "hf:google/vit-base@main", "hf:gpt2"] {
            let file = PipelineFile::parse(&pipeline(checkpoint)).unwrap();
            RunConfig::check(file, &MachineFile::default()).unwrap();
        }
        for checkpoint in ["hf:a/b/c", "hf://google/vit", "s3://bucket/vit"] {
            let text = problems(&pipeline(checkpoint), "");
            assert!(
                text.starts_with(&format!("`model.checkpoint`: `{checkpoint}`")) && text.lines().count() == 1,
                "{text}"
            );
        }
    }
}
