//! Opens safetensors files and reads their tensors.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::path::Path;
use std::path::PathBuf;

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;

use super::BLOCK_BYTES;
use super::Format;
use super::LENGTH_BYTES;
use crate::model::error::ModelError;
use crate::model::json::parse_json;
use crate::model::json::recognise_wrong_content;

/// Upper bound on the length of a header, in bytes, from the format's specification.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bytes of a file that are read to recognise its content.
const RECOGNISED_BYTES: usize = 1 << 10;

/// Upper bound on the shape mismatches that one error lists.
const LISTED: usize = 12;

/// Name of an unsharded weight file.
const SINGLE: &str = "model.safetensors";

/// Name of the index of sharded weight files.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Location, format and shape of a tensor in a weight file.
#[derive(Debug, Clone)]
pub(in crate::model) struct StoredTensor {
    file: usize,
    offset: u64,
    pub(in crate::model) format: Format,
    pub(in crate::model) shape: Vec<usize>,
}

impl StoredTensor {
    /// Returns the number of values.
    pub(in crate::model) fn elements(&self) -> usize {
        // No overflow: opening the file checked the size in bytes.
        self.shape.iter().product()
    }

    /// Returns the size in the file, in bytes.
    pub(in crate::model) fn bytes(&self) -> u64 {
        self.elements() as u64 * self.format.bytes() as u64
    }
}

/// Reader of one or more safetensors files; tensors are found by their names in the files.
#[derive(Debug, Clone)]
pub(in crate::model) struct WeightReader {
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, StoredTensor>,
}

#[derive(Debug, Deserialize)]
struct RawIndex {
    weight_map: BTreeMap<String, String>,
}

impl WeightReader {
    /// Opens `model.safetensors`, or else the shards that `model.safetensors.index.json` lists, as transformers does.
    pub(in crate::model) fn open_dir(dir: &Path) -> Result<Self, ModelError> {
        let single = dir.join(SINGLE);
        if single.is_file() {
            return Self::open(&single);
        }
        let index = dir.join(INDEX);
        if !index.is_file() {
            let pickled =
                ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|name| dir.join(name).is_file());
            let hint = if pickled { "; convert its pytorch_model.bin to safetensors first" } else { "" };
            return Err(ModelError::NoWeights { dir: dir.to_owned(), hint });
        }
        let text = std::fs::read(&index).map_err(ModelError::read(&index))?;
        let raw: RawIndex = parse_json(&text, &index)?;
        let mut names: Vec<&String> = raw.weight_map.values().collect();
        names.sort_unstable();
        names.dedup();
        let mut reader = Self { files: Vec::new(), tensors: BTreeMap::new() };
        for name in names {
            // A downloaded index must not refer to files outside its own directory.
            if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\\']) {
                return Err(ModelError::weights(&index, format!("shard `{name}` is not a file name")));
            }
            reader.add_file(&dir.join(name))?;
        }
        for (key, name) in &raw.weight_map {
            let found = reader.tensors.get(key).and_then(|tensor| reader.files[tensor.file].file_name());
            if found.is_none_or(|found| found != name.as_str()) {
                return Err(ModelError::weights(&index, format!("`{key}` is not in shard `{name}`")));
            }
        }
        Ok(reader)
    }

    /// Compares tensors with the expected names and shapes; maps each published name to the name in the file.
    ///
    /// `keys`: published name and name in the file of each tensor to compare.
    ///
    /// # Errors
    /// When a tensor is missing, unexpected or duplicate, or has another shape.
    pub(in crate::model) fn match_names<'a>(
        &self,
        dir: &Path,
        expected: BTreeMap<String, Vec<usize>>,
        keys: impl IntoIterator<Item = (String, &'a String)>,
    ) -> Result<BTreeMap<String, String>, ModelError> {
        let (mut names, mut unexpected, mut mismatches) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (key, name) in keys {
            match expected.get(&key) {
                Some(shape) if !names.contains_key(&key) => {
                    let found = &self.tensors[name].shape;
                    if shape != found {
                        mismatches.push(format!("`{name}` is `{found:?}`, expected `{shape:?}`"));
                    }
                    names.insert(key, name.clone());
                }
                _ => unexpected.push(name.clone()),
            }
        }
        let missing: Vec<String> = expected.into_keys().filter(|key| !names.contains_key(key)).collect();
        if !missing.is_empty() || !unexpected.is_empty() {
            return Err(ModelError::Keys { dir: dir.to_owned(), missing, unexpected });
        }
        if !mismatches.is_empty() {
            let more = mismatches.len().saturating_sub(LISTED);
            mismatches.truncate(LISTED);
            if more > 0 {
                mismatches.push(format!("and {more} more"));
            }
            return Err(ModelError::Shapes { dir: dir.to_owned(), mismatches });
        }
        Ok(names)
    }

    /// Opens a single file.
    pub(in crate::model) fn open(path: &Path) -> Result<Self, ModelError> {
        let mut reader = Self { files: Vec::new(), tensors: BTreeMap::new() };
        reader.add_file(path)?;
        Ok(reader)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), ModelError> {
        let (metadata, data_start) = read_header(path)?;
        let file = self.files.len();
        self.files.push(path.to_owned());
        // Sorted, because the map's order is random: of several errors the same one is reported each time.
        let tensors: BTreeMap<String, &TensorInfo> = metadata.tensors().into_iter().collect();
        for (name, info) in tensors {
            // Older versions of transformers saved integers beside the weights that follow from the configuration.
            if name.ends_with("position_ids") || name.ends_with("relative_position_index") {
                continue;
            }
            let format = match info.dtype {
                Dtype::F16 => Format::F16,
                Dtype::BF16 => Format::Bf16,
                Dtype::F32 => Format::F32,
                // Masks that older versions of GPT-2 saved.
                Dtype::BOOL | Dtype::U8 if name.ends_with("attn.bias") || name.ends_with("attention.bias") => continue,
                other => {
                    let reason = format!("`{name}` has dtype `{other:?}`; supported are `F32`, `F16` and `BF16`");
                    return Err(ModelError::weights(path, reason));
                }
            };
            let offset = data_start + info.data_offsets.0 as u64;
            let tensor = StoredTensor { file, offset, format, shape: info.shape.clone() };
            if self.tensors.insert(name.clone(), tensor).is_some() {
                return Err(ModelError::weights(path, format!("`{name}` is already in another shard")));
            }
        }
        Ok(())
    }

    /// Returns all tensors by their names in the files.
    pub(in crate::model) fn tensors(&self) -> &BTreeMap<String, StoredTensor> {
        &self.tensors
    }

    /// Returns the path of the file that holds a tensor.
    pub(in crate::model) fn file(&self, tensor: &StoredTensor) -> &Path {
        &self.files[tensor.file]
    }

    /// Returns the paths of the weight files in a fixed order; the index of sharded files comes first.
    pub(in crate::model) fn files(&self, dir: &Path) -> Vec<PathBuf> {
        let index = dir.join(INDEX);
        let sharded = self.files.iter().all(|file| *file != dir.join(SINGLE));
        sharded.then_some(index).into_iter().chain(self.files.iter().cloned()).collect()
    }

    /// Passes the bytes of a tensor to `consume` in blocks of complete values.
    pub(in crate::model) fn stream(
        &self,
        tensor: &StoredTensor,
        mut consume: impl FnMut(&[u8]) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let path = &self.files[tensor.file];
        let mut file = File::open(path).map_err(ModelError::read(path))?;
        file.seek(SeekFrom::Start(tensor.offset)).map_err(ModelError::read(path))?;
        let mut left = tensor.bytes();
        let mut block = vec![0; BLOCK_BYTES.min(left as usize)];
        while left > 0 {
            let length = left.min(BLOCK_BYTES as u64);
            let part = &mut block[..length as usize];
            file.read_exact(part).map_err(ModelError::read(path))?;
            consume(part)?;
            left -= length;
        }
        Ok(())
    }

    /// Appends the values of a tensor to `values`, as f32.
    pub(in crate::model) fn read_into(&self, tensor: &StoredTensor, values: &mut Vec<f32>) -> Result<(), ModelError> {
        values.reserve(tensor.elements());
        self.stream(tensor, |block| {
            match tensor.format {
                Format::F16 => {
                    values.extend(block.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()));
                }
                Format::Bf16 => {
                    values.extend(block.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()));
                }
                Format::F32 => values.extend(block.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
            }
            Ok(())
        })
    }

    /// Returns the values of a tensor as f32.
    pub(in crate::model) fn read(&self, tensor: &StoredTensor) -> Result<Vec<f32>, ModelError> {
        let mut values = Vec::new();
        self.read_into(tensor, &mut values)?;
        Ok(values)
    }
}

/// Reads and checks a header; returns it with the offset of the first tensor.
fn read_header(path: &Path) -> Result<(Metadata, u64), ModelError> {
    let mut file = File::open(path).map_err(ModelError::read(path))?;
    let file_bytes = file.metadata().map_err(ModelError::read(path))?.len();
    if file_bytes < LENGTH_BYTES {
        reject_wrong_content(path)?;
        return Err(ModelError::weights(path, format!("`{file_bytes}` bytes are too few for a safetensors file")));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut length).map_err(ModelError::read(path))?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES.min(file_bytes - LENGTH_BYTES) {
        reject_wrong_content(path)?;
        let reason = format!(
            "its header claims `{header_bytes}` bytes, the file has `{file_bytes}`: truncated, or not safetensors"
        );
        return Err(ModelError::weights(path, reason));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header).map_err(ModelError::read(path))?;
    // Deserialising checks that offsets have no gaps and match shapes and dtypes.
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|cause| ModelError::weights(path, format!("its header is damaged: {cause}")))?;
    let data_start = LENGTH_BYTES + header_bytes;
    let data_bytes = file_bytes - data_start;
    if metadata.data_len() as u64 != data_bytes {
        let reason = format!(
            "its header describes `{}` bytes of tensors, the file has `{data_bytes}`: truncated?",
            metadata.data_len()
        );
        return Err(ModelError::weights(path, reason));
    }
    Ok((metadata, data_start))
}

/// Rejects a file that starts like a Git LFS pointer, an HTML page or a JSON document.
fn reject_wrong_content(path: &Path) -> Result<(), ModelError> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(ModelError::read(path))?;
    file.take(RECOGNISED_BYTES as u64).read_to_end(&mut start).map_err(ModelError::read(path))?;
    // A safetensors file has zero bytes in its length field, text has none.
    let is_text = !start.contains(&0);
    let is_json = is_text && matches!(start.trim_ascii_start().first(), Some(b'{' | b'['));
    let json = is_json.then_some(("a JSON document", "download the file again, and check its address and your access"));
    match recognise_wrong_content(&start).or(json) {
        Some((content, advice)) => {
            Err(ModelError::WrongContent { path: path.to_owned(), content, expected: "the weights", advice })
        }
        None => Ok(()),
    }
}
