//! Reads and writes safetensors files.
//!
//! The format (<https://huggingface.co/docs/safetensors>) is the length of the header (u64, little-endian), the header
//! (JSON), then the tensors without gaps. Every length is compared with the length of the file before it is used, so
//! opening allocates no more than the file is long. Tensors are read one at a time. Memory mapping, which needs
//! `unsafe`, would gain nothing: each tensor is read once.

mod reader;
mod writer;

use safetensors::Dtype;

pub(super) use reader::StoredTensor;
pub(super) use reader::WeightReader;
pub(super) use writer::TensorSpec;
pub(super) use writer::write_f32;
pub(super) use writer::write_file;

/// Size of the length field in front of the header, in bytes.
const LENGTH_BYTES: u64 = 8;

/// Size of one read or write, in bytes.
const BLOCK_BYTES: usize = 1 << 20;

/// Number format of a weight tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::model) enum Format {
    F16,
    Bf16,
    F32,
}

impl Format {
    /// Returns the size of a value, in bytes.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
            Self::F32 => Dtype::F32,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::reader::INDEX;
    use super::*;
    use crate::model::error::ModelError;

    fn write_two_tensors(path: &Path) {
        let specs = vec![
            TensorSpec { name: "b".into(), format: Format::F32, shape: vec![2, 2] },
            TensorSpec { name: "a".into(), format: Format::Bf16, shape: vec![3] },
        ];
        write_file(path, specs, |name, sink| match name {
            "b" => write_f32(&[1.0, 2.0, 3.0, -4.5], sink),
            _ => sink(&[0, 0x80, 0x80, 0x3f, 0, 0x40]),
        })
        .unwrap();
    }

    #[test]
    fn written_tensors_read_back_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        write_two_tensors(&path);
        let reader = WeightReader::open_dir(dir.path()).unwrap();
        assert_eq!(reader.read(&reader.tensors()["b"]).unwrap(), [1.0, 2.0, 3.0, -4.5]);
        assert_eq!(reader.read(&reader.tensors()["a"]).unwrap(), [-0.0, 1.0, 2.0]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().len(), 2);
    }

    #[test]
    fn truncated_file_is_rejected_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        write_two_tensors(&path);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = WeightReader::open(&path).unwrap_err();
            assert!(matches!(error, ModelError::Weights { .. }), "{error}");
            assert!(error.to_string().contains("model.safetensors"), "{error}");
        }
    }

    #[test]
    fn damaged_headers_are_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let reject = |header: &str, claimed: u64, data: usize| {
            let mut bytes = claimed.to_le_bytes().to_vec();
            bytes.extend(header.as_bytes());
            bytes.resize(bytes.len() + data, 0);
            std::fs::write(&path, bytes).unwrap();
            WeightReader::open(&path).unwrap_err().to_string()
        };
        let plain = |header: &str, data| reject(header, header.len() as u64, data);
        assert!(reject("{}", u64::MAX, 0).contains("claims `18446744073709551615` bytes"));
        assert!(reject("{}", 99_000_000, 0).contains("claims `99000000` bytes"));
        assert!(plain("{\"a\": 3}", 0).contains("header is damaged"));
        assert!(plain("nonsense", 0).contains("header is damaged"));
        let tensor = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"a": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}}}"#)
        };
        assert!(plain(&tensor("F32", "[2]", "[0, 12]"), 12).contains("header is damaged"));
        assert!(plain(&tensor("F32", "[2]", "[4, 12]"), 12).contains("header is damaged"));
        assert!(plain(&tensor("F32", "[4294967296, 4294967296]", "[0, 12]"), 12).contains("header is damaged"));
        assert!(plain(&tensor("F32", "[2]", "[0, 8]"), 9).contains("the file has `9`"));
        assert!(plain(&tensor("I64", "[1]", "[0, 8]"), 8).contains("`a` has dtype `I64`"));
    }

    #[test]
    fn wrong_index_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        write_two_tensors(&dir.path().join("s1.safetensors"));
        let reject = |map: &str| {
            std::fs::write(dir.path().join(INDEX), format!(r#"{{"weight_map": {map}}}"#)).unwrap();
            WeightReader::open_dir(dir.path()).unwrap_err().to_string()
        };
        assert!(reject(r#"{"a": "../s1.safetensors"}"#).contains("is not a file name"));
        assert!(reject(r#"{"c": "s1.safetensors"}"#).contains("`c` is not in shard `s1.safetensors`"));
        assert!(reject(r#"{"a": "s2.safetensors"}"#).contains("cannot read"));
        std::fs::copy(dir.path().join("s1.safetensors"), dir.path().join("s2.safetensors")).unwrap();
        assert!(reject(r#"{"a": "s1.safetensors", "b": "s2.safetensors"}"#).contains("already in another shard"));
    }

    #[test]
    fn missing_weights_error_gives_advice() {
        let dir = tempfile::tempdir().unwrap();
        let error = WeightReader::open_dir(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("holds neither `model.safetensors` nor `model.safetensors.index.json`"), "{error}");
        std::fs::write(dir.path().join("pytorch_model.bin"), "x").unwrap();
        let error = WeightReader::open_dir(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("convert its pytorch_model.bin to safetensors first"), "{error}");
    }

    #[test]
    fn pointer_page_and_json_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let error = |content: &str| {
            std::fs::write(&path, content).unwrap();
            WeightReader::open_dir(dir.path()).unwrap_err().to_string()
        };
        let pointer = error("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 346293852\n");
        assert!(pointer.ends_with("model.safetensors` is a Git LFS pointer, not the weights: run `git lfs pull`"));
        assert!(error("<!doctype html>\n<title>Sign in</title>").contains("is an HTML page, not the weights"));
        assert!(error(r#"{"error": "Access to model is restricted"}"#).contains("is a JSON document, not the weights"));
        assert!(error("{}").contains("is a JSON document, not the weights"));
        assert!(error("nothing of the kind").contains("truncated, or not safetensors"));
    }
}
