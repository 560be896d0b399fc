//! Every key with its meaning and default, generated from the definitions that parse the files.

use documented::DocumentedFields;
use serde::Serialize;
use toml::Value;

use super::raw::{
    RawCaption, RawCaptions, RawChunks, RawDevice, RawHead, RawImages, RawLimits, RawMachine, RawModel, RawPairs,
    RawPipeline, RawPredict, RawPreprocess, RawRun, RawSample, RawScratch, RawStore, RawText, RawTrain,
};

/// One key of a configuration file.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// Section that holds it.
    pub section: &'static str,
    /// Name inside the section.
    pub name: &'static str,
    /// Meaning, with the unit.
    pub meaning: &'static str,
    /// Default as TOML; `None` where the key has none.
    pub default: Option<String>,
}

fn section<T: DocumentedFields + Serialize + Default>(name: &'static str, keys: &mut Vec<Key>) {
    let defaults = Value::try_from(T::default()).ok();
    for (field, meaning) in T::FIELD_NAMES.iter().zip(T::FIELD_DOCS) {
        let field = if *field == "match_rule" { "match" } else { field };
        let default = defaults.as_ref().and_then(|table| table.get(field)).map(ToString::to_string);
        keys.push(Key { section: name, name: field, meaning, default });
    }
}

/// Returns the keys of a pipeline file, in the order of the data flow.
pub fn keys_of_pipeline() -> Vec<Key> {
    let mut keys = Vec::new();
    section::<RawSample>("sample", &mut keys);
    section::<RawRun>("run", &mut keys);
    section::<RawCaptions>("captions", &mut keys);
    section::<RawPairs>("pairs", &mut keys);
    section::<RawImages>("images", &mut keys);
    section::<RawPreprocess>("preprocess", &mut keys);
    section::<RawChunks>("chunks", &mut keys);
    section::<RawModel>("model", &mut keys);
    section::<RawText>("text", &mut keys);
    section::<RawHead>("head", &mut keys);
    section::<RawTrain>("train", &mut keys);
    section::<RawPredict>("predict", &mut keys);
    section::<RawCaption>("caption", &mut keys);
    keys
}

/// Returns the keys of a machine file.
pub fn keys_of_machine() -> Vec<Key> {
    let mut keys = Vec::new();
    section::<RawLimits>("limits", &mut keys);
    section::<RawScratch>("scratch", &mut keys);
    section::<RawDevice>("device", &mut keys);
    section::<RawStore>("store", &mut keys);
    keys
}

/// Returns the whole reference as TOML with comments.
pub fn text() -> String {
    let mut out = String::new();
    let files = [
        (
            "Pipeline file (--config): what to run",
            keys_of_pipeline(),
            RawPipeline::FIELD_NAMES,
            RawPipeline::FIELD_DOCS,
        ),
        (
            "Machine file (--machine): where to run it",
            keys_of_machine(),
            RawMachine::FIELD_NAMES,
            RawMachine::FIELD_DOCS,
        ),
    ];
    for (title, keys, sections, docs) in files {
        out.push_str(&format!("# {title}\n"));
        for (section, doc) in sections.iter().zip(docs) {
            out.push('\n');
            push_comment(&mut out, doc);
            out.push_str(&format!("[{section}]\n"));
            for key in keys.iter().filter(|key| key.section == *section) {
                push_comment(&mut out, key.meaning);
                match &key.default {
                    Some(default) => {
                        out.push_str(&format!("{} = {default}\n", key.name));
                    }
                    None => {
                        out.push_str(&format!("# {} = …\n", key.name));
                    }
                }
            }
        }
        out.push('\n');
    }
    out
}

/// Appends each line of `text` as a TOML comment.
fn push_comment(out: &mut String, text: &str) {
    for line in text.lines() {
        let line = format!("# {}", line.trim());
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MachineFile, PipelineFile};

    #[test]
    fn reference_parses_as_files_of_defaults() {
        let text = text();
        let split = text.find("# Machine file").unwrap();
        let pipeline = PipelineFile::parse(&text[..split]).unwrap().0;
        assert_eq!(pipeline.train, Some(RawTrain::default()));
        assert_eq!(pipeline.model, Some(RawModel::default()));
        MachineFile::parse(&text[split..]).unwrap();
    }

    #[test]
    fn each_section_has_keys() {
        for name in RawPipeline::FIELD_NAMES {
            assert!(keys_of_pipeline().iter().any(|key| key.section == *name), "{name}");
        }
        for name in RawMachine::FIELD_NAMES {
            assert!(keys_of_machine().iter().any(|key| key.section == *name), "{name}");
        }
    }
}
