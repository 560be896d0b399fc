//! The kind of head and its text encoder: `[head]` and `[text]`.

use super::super::raw::{RawPipeline, RawText};
use super::{Problems, check_checkpoint};
use crate::types::{Balance, Correction, HeadKind, Pool, Precision};

/// Checked `[head]` and `[text]`: the kind of head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadConfig {
    /// Linear classifier with one output per class.
    Classes,
    /// Projection into the space of a text encoder.
    Text {
        /// Width of the hidden layer; 0 for a linear projection.
        hidden: u32,
        /// The text encoder.
        encoder: TextConfig,
    },
    /// The pair of towers of the checkpoint, without training.
    Paired {
        /// The text encoder: by default the checkpoint's text tower.
        encoder: TextConfig,
    },
}

/// Value of `text.encoder` for the text tower of `model.checkpoint`.
pub(in super::super) const PAIRED_ENCODER: &str = "paired";

impl HeadConfig {
    /// Tells whether the head ranks captions by their vectors, and is not a classifier.
    pub fn is_text(&self) -> bool {
        !matches!(self, Self::Classes)
    }
}

/// Checked `[text]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextConfig {
    /// Directory in Hugging Face layout, or a valid `hf:ORG/NAME[@REVISION]`.
    pub encoder: String,
    /// Text before every caption; `None` for the encoder's default prompt.
    pub prefix: Option<String>,
    /// Leading values of a vector that are kept, at least 1; `None` for those that the encoder says.
    pub truncate_dim: Option<u32>,
    /// Precision of the stored vectors.
    pub precision: Precision,
}

impl TextConfig {
    /// Tells whether the encoder is the text tower of `model.checkpoint`.
    pub fn is_paired(&self) -> bool {
        self.encoder == PAIRED_ENCODER
    }
}

/// Checks the kind of head, and that no key of the other kind is set.
pub(in super::super) fn check_head(pipeline: &RawPipeline, problems: &mut Problems) -> HeadConfig {
    let kind = pipeline.head.kind;
    let is_text = kind != HeadKind::Classes;
    problems.refuse_if(
        kind == HeadKind::Text && pipeline.text.is_none(),
        "text",
        "is required with `head.kind = \"text\"`",
    );
    let encoder = pipeline.text.as_ref().map(|text| check_text(text, problems));
    if kind == HeadKind::Paired {
        check_paired(pipeline, problems);
    }
    let hidden = pipeline.head.hidden;
    problems.refuse_if(hidden > 65_536, "head.hidden", format!("`{hidden}` must be at most 65536"));
    let mut text_only = |used: bool, key: &str| {
        problems.refuse_if(used && !is_text, key, "works only with `head.kind = \"text\"`: remove it, or set that");
    };
    text_only(pipeline.text.is_some(), "text");
    text_only(hidden > 0, "head.hidden");
    if let Some(predict) = &pipeline.predict {
        text_only(!predict.captions.is_empty(), "predict.captions");
        text_only(predict.file_names, "predict.file_names");
        text_only(predict.correction != Correction::None, "predict.correction");
        text_only(!predict.blend.is_empty(), "predict.blend");
    }
    if let Some(train) = &pipeline.train {
        text_only(train.balance != Balance::None, "train.balance");
    }
    match (kind, encoder) {
        (HeadKind::Text, Some(encoder)) => HeadConfig::Text { hidden, encoder },
        (HeadKind::Paired, encoder) => {
            let own = || check_text(&RawText { encoder: PAIRED_ENCODER.to_owned(), ..RawText::default() }, problems);
            HeadConfig::Paired { encoder: encoder.unwrap_or_else(own) }
        }
        _ => HeadConfig::Classes,
    }
}

/// Checks what ranking without training excludes and needs.
fn check_paired(pipeline: &RawPipeline, problems: &mut Problems) {
    let kind = "`head.kind = \"paired\"`";
    problems.refuse_if(
        pipeline.train.is_some(),
        "train",
        format!("does not go with {kind}, which needs no training: remove it, or set `head.kind = \"text\"` and `text.encoder = \"paired\"`"),
    );
    problems.refuse_if(pipeline.head.hidden > 0, "head.hidden", format!("does not work with {kind}: remove it"));
    let Some(model) = &pipeline.model else {
        problems.refuse_if(pipeline.predict.is_none(), "model", format!("is required with {kind}"));
        return;
    };
    problems.refuse_if(
        !matches!(model.pool, Pool::Default | Pool::Head),
        "model.pool",
        format!("`{}` must be `head` with {kind}: remove it", model.pool),
    );
    problems.refuse_if(
        model.layer.0 != [-1],
        "model.layer",
        format!("must be -1 with {kind}, since the towers were paired by their last blocks: remove it"),
    );
    let Some(predict) = &pipeline.predict else { return };
    let list = pipeline.captions.as_ref().map(|captions| captions.list.as_str()).unwrap_or_default();
    problems.refuse_if(
        predict.captions.is_empty() && list.is_empty(),
        "predict.captions",
        format!("is required with {kind}: name the file of captions to rank"),
    );
    problems.refuse_if(!predict.blend.is_empty(), "predict.blend", format!("does not work with {kind}: remove it"));
}

/// Fills in what follows from a paired text tower: the encoder of a paired head, and `head` as the default pooling, whose
/// features are in the space of the tower's vectors.
pub(in super::super) fn set_paired_defaults(pipeline: &mut RawPipeline) {
    let kind = pipeline.head.kind;
    if let Some(text) = pipeline.text.as_mut().filter(|text| kind == HeadKind::Paired && text.encoder.is_empty()) {
        PAIRED_ENCODER.clone_into(&mut text.encoder);
    }
    let paired_text = pipeline.text.as_ref().is_some_and(|text| text.encoder == PAIRED_ENCODER);
    let is_paired = kind == HeadKind::Paired || kind == HeadKind::Text && paired_text;
    if let Some(model) = pipeline.model.as_mut().filter(|model| is_paired && model.pool == Pool::Default) {
        model.pool = Pool::Head;
    }
}

fn check_text(text: &RawText, problems: &mut Problems) -> TextConfig {
    let RawText { encoder, prefix, truncate_dim, precision } = text.clone();
    check_checkpoint("text.encoder", &encoder, problems);
    problems.refuse_if(
        truncate_dim == Some(0),
        "text.truncate_dim",
        "`0` must be at least 1; remove the key to keep all",
    );
    TextConfig { encoder, prefix, truncate_dim, precision }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MachineFile, PipelineFile, RunConfig};

    #[test]
    fn paired_head_uses_tower_and_pooling_of_the_checkpoint() {
        let parse = |text: &str| {
            let file = PipelineFile::parse(&format!("[run]\ndir='r'\n[model]\ncheckpoint='m'\n{text}")).unwrap();
            RunConfig::check(file, &MachineFile::default())
        };
        let predict = "[predict]\nimages=['i']\nids='t'\ncaptions='c'\n";
        for text in ["", "[text]\nprecision='f32'\n"] {
            let config = parse(&format!("[head]\nkind='paired'\n{text}{predict}")).unwrap();
            assert!(config.text().unwrap().is_paired());
            assert_eq!(config.model().unwrap().pool, Pool::Head);
        }
        let refused = |text: &str| parse(text).unwrap_err().to_string();
        let text = refused("[head]\nkind='paired'\n[predict]\nimages=['i']\nids='t'\n");
        assert!(text.contains("`predict.captions`: is required with `head.kind = \"paired\"`"), "{text}");
        let text = refused(&format!("layer=[1, 2]\npool='mean'\n[head]\nkind='paired'\nhidden=3\n[train]\n{predict}"));
        for key in ["`model.layer`", "`model.pool`", "`head.hidden`", "`train`"] {
            assert!(text.contains(key), "{key} is missing in:\n{text}");
        }
    }
}
