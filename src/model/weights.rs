//! Safetensors files: headers checked at open, one tensor read at a time, files written as a stream.
//!
//! Format: <https://huggingface.co/docs/safetensors>: the header's length (u64, little-endian), the
//! header (JSON), then the tensors without gaps. Opening allocates no more than the file is long, since every
//! length is first compared with the file's. Memory mapping, which needs `unsafe`, is not used: a backbone
//! is read once, tensor by tensor.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;

use crate::model::config::parse_json;
use crate::model::error::ModelError;

/// The format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const LENGTH_BYTES: u64 = 8;
/// Bytes read or written at once.
const BLOCK_BYTES: usize = 1 << 20;

/// Shape mismatches listed in one error.
const LISTED: usize = 12;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The number formats that weights may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Format {
    F16,
    Bf16,
    F32,
}

impl Format {
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

/// Where a tensor lies.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    file: usize,
    offset: u64,
    pub(super) format: Format,
    pub(super) shape: Vec<usize>,
}

impl Entry {
    pub(super) fn elements(&self) -> usize {
        // The header was checked: the product fits, and so does its number of bytes.
        self.shape.iter().product()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.elements() as u64 * self.format.bytes() as u64
    }
}

/// The tensors of one or more safetensors files, by the names in the files.
#[derive(Debug, Clone)]
pub(super) struct Store {
    files: Vec<PathBuf>,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Deserialize)]
struct RawIndex {
    weight_map: BTreeMap<String, String>,
}

impl Store {
    /// Opens `model.safetensors`, or else the shards of `model.safetensors.index.json`, as transformers does.
    pub(super) fn open_dir(dir: &Path) -> Result<Self, ModelError> {
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
        let mut store = Self { files: Vec::new(), entries: BTreeMap::new() };
        for name in names {
            // A shard lies beside its index: nothing in a downloaded file may point elsewhere.
            if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\\']) {
                return Err(ModelError::weights(&index, format!("shard `{name}` is not a file name")));
            }
            store.add(&dir.join(name))?;
        }
        for (key, name) in &raw.weight_map {
            let found = store.entries.get(key).and_then(|entry| store.files[entry.file].file_name());
            if found.is_none_or(|found| found != name.as_str()) {
                return Err(ModelError::weights(&index, format!("`{key}` is not in shard `{name}`")));
            }
        }
        Ok(store)
    }

    /// Compares what is here with what a configuration asks for, by published names; returns the name in the file of each.
    ///
    /// `keys`: published name and name in the file, of the tensors that have to be a part.
    ///
    /// # Errors
    /// When one is missing, has no place, is there twice, or has another shape.
    pub(super) fn matched<'a>(
        &self,
        dir: &Path,
        expected: BTreeMap<String, Vec<usize>>,
        keys: impl IntoIterator<Item = (String, &'a String)>,
    ) -> Result<BTreeMap<String, String>, ModelError> {
        let (mut names, mut unexpected, mut mismatches) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (key, name) in keys {
            match expected.get(&key) {
                Some(shape) if !names.contains_key(&key) => {
                    let found = &self.entries[name].shape;
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

    /// Opens one file.
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        let mut store = Self { files: Vec::new(), entries: BTreeMap::new() };
        store.add(path)?;
        Ok(store)
    }

    fn add(&mut self, path: &Path) -> Result<(), ModelError> {
        let (metadata, data_start) = read_header(path)?;
        let file = self.files.len();
        self.files.push(path.to_owned());
        // Sorted, so that which of several errors is reported does not depend on hash order.
        let tensors: BTreeMap<String, &TensorInfo> = metadata.tensors().into_iter().collect();
        for (name, info) in tensors {
            // Whole numbers from 0 on, which older versions of transformers saved beside the weights.
            if name.ends_with("position_ids") {
                continue;
            }
            let format = match info.dtype {
                Dtype::F16 => Format::F16,
                Dtype::BF16 => Format::Bf16,
                Dtype::F32 => Format::F32,
                other => {
                    let reason = format!("`{name}` has dtype `{other:?}`; supported are `F32`, `F16` and `BF16`");
                    return Err(ModelError::weights(path, reason));
                }
            };
            let offset = data_start + info.data_offsets.0 as u64;
            let entry = Entry { file, offset, format, shape: info.shape.clone() };
            if self.entries.insert(name.clone(), entry).is_some() {
                return Err(ModelError::weights(path, format!("`{name}` is already in another shard")));
            }
        }
        Ok(())
    }

    /// All tensors, by name.
    pub(super) fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// The weight files and, when there are shards, their index, in a fixed order.
    pub(super) fn files(&self, dir: &Path) -> Vec<PathBuf> {
        let index = dir.join(INDEX);
        let sharded = self.files.iter().all(|file| *file != dir.join(SINGLE));
        sharded.then_some(index).into_iter().chain(self.files.iter().cloned()).collect()
    }

    /// Hands a tensor's bytes to `take` in blocks of whole values.
    pub(super) fn stream(
        &self,
        entry: &Entry,
        mut take: impl FnMut(&[u8]) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let path = &self.files[entry.file];
        let mut file = File::open(path).map_err(ModelError::read(path))?;
        file.seek(SeekFrom::Start(entry.offset)).map_err(ModelError::read(path))?;
        let mut left = entry.bytes();
        let mut block = vec![0; BLOCK_BYTES.min(left as usize)];
        while left > 0 {
            let length = left.min(BLOCK_BYTES as u64);
            let part = &mut block[..length as usize];
            file.read_exact(part).map_err(ModelError::read(path))?;
            take(part)?;
            left -= length;
        }
        Ok(())
    }

    /// Appends a tensor's values as f32 to `values`.
    pub(super) fn read_into(&self, entry: &Entry, values: &mut Vec<f32>) -> Result<(), ModelError> {
        values.reserve(entry.elements());
        self.stream(entry, |block| {
            match entry.format {
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

    /// A tensor's values as f32.
    pub(super) fn read(&self, entry: &Entry) -> Result<Vec<f32>, ModelError> {
        let mut values = Vec::new();
        self.read_into(entry, &mut values)?;
        Ok(values)
    }
}

/// Reads and checks a header; gives it with the position of the first tensor's first byte.
fn read_header(path: &Path) -> Result<(Metadata, u64), ModelError> {
    let mut file = File::open(path).map_err(ModelError::read(path))?;
    let file_bytes = file.metadata().map_err(ModelError::read(path))?.len();
    if file_bytes < LENGTH_BYTES {
        return Err(ModelError::weights(path, format!("`{file_bytes}` bytes are too few for a safetensors file")));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut length).map_err(ModelError::read(path))?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES.min(file_bytes - LENGTH_BYTES) {
        let reason = format!(
            "its header claims `{header_bytes}` bytes, the file has `{file_bytes}`: truncated, or not safetensors"
        );
        return Err(ModelError::weights(path, reason));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header).map_err(ModelError::read(path))?;
    // This checks that offsets are without gaps and that they fit shapes and dtypes.
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

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) format: Format,
    pub(super) shape: Vec<usize>,
}

/// Writes a safetensors file: `fill` is called for each tensor, in the order of the file, and writes its bytes.
///
/// The file appears under `path` only when it is complete. Order: wider formats first, so that each tensor is
/// aligned, then by name. The metadata is `{"format": "pt"}`, which transformers asks for.
pub(super) fn write(
    path: &Path,
    mut tensors: Vec<Planned>,
    mut fill: impl FnMut(&str, &mut dyn FnMut(&[u8]) -> Result<(), ModelError>) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    tensors.sort_by(|a, b| b.format.bytes().cmp(&a.format.bytes()).then_with(|| a.name.cmp(&b.name)));
    let mut end = 0;
    let infos = tensors.iter().map(|tensor| {
        let start = end;
        end += tensor.shape.iter().product::<usize>() * tensor.format.bytes();
        let info = TensorInfo { dtype: tensor.format.dtype(), shape: tensor.shape.clone(), data_offsets: (start, end) };
        (tensor.name.clone(), info)
    });
    let infos = infos.collect();
    let note = std::iter::once(("format".to_owned(), "pt".to_owned())).collect();
    let metadata = Metadata::new(Some(note), infos).map_err(|cause| ModelError::weights(path, cause.to_string()))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|cause| ModelError::weights(path, cause.to_string()))?;
    header.resize(header.len().next_multiple_of(LENGTH_BYTES as usize), b' ');

    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let created = File::create(&partial).map_err(ModelError::write(&partial))?;
    let mut out = BufWriter::with_capacity(BLOCK_BYTES, created);
    let mut written = 0_u64;
    let mut put = |bytes: &[u8]| {
        written += bytes.len() as u64;
        out.write_all(bytes).map_err(ModelError::write(&partial))
    };
    put(&(header.len() as u64).to_le_bytes())?;
    put(&header)?;
    for tensor in &tensors {
        fill(&tensor.name, &mut put)?;
    }
    let expected = LENGTH_BYTES + header.len() as u64 + end as u64;
    if written != expected {
        return Err(ModelError::weights(&partial, format!("`{written}` bytes were written, `{expected}` planned")));
    }
    let complete = out.into_inner().map_err(|cause| ModelError::write(&partial)(cause.into_error()))?;
    complete.sync_all().map_err(ModelError::write(&partial))?;
    std::fs::rename(&partial, path).map_err(ModelError::write(path))
}

/// Writes f32 values, little-endian, in blocks.
pub(super) fn put_f32(values: &[f32], put: &mut dyn FnMut(&[u8]) -> Result<(), ModelError>) -> Result<(), ModelError> {
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    for part in values.chunks(BLOCK_BYTES / 4) {
        block.clear();
        block.extend(part.iter().flat_map(|value| value.to_le_bytes()));
        put(&block)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_tensors(path: &Path) {
        let plan = vec![
            Planned { name: "b".into(), format: Format::F32, shape: vec![2, 2] },
            Planned { name: "a".into(), format: Format::Bf16, shape: vec![3] },
        ];
        write(path, plan, |name, put| match name {
            "b" => put_f32(&[1.0, 2.0, 3.0, -4.5], put),
            _ => put(&[0, 0x80, 0x80, 0x3f, 0, 0x40]),
        })
        .unwrap();
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        two_tensors(&path);
        let store = Store::open_dir(dir.path()).unwrap();
        assert_eq!(store.read(&store.entries()["b"]).unwrap(), [1.0, 2.0, 3.0, -4.5]);
        assert_eq!(store.read(&store.entries()["a"]).unwrap(), [-0.0, 1.0, 2.0]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().len(), 2);
    }

    #[test]
    fn every_truncation_is_refused_and_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        two_tensors(&path);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = Store::open(&path).unwrap_err();
            assert!(matches!(error, ModelError::Weights { .. }), "{error}");
            assert!(error.to_string().contains("model.safetensors"), "{error}");
        }
    }

    #[test]
    fn damaged_headers_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let refuse = |header: &str, claimed: u64, data: usize| {
            let mut bytes = claimed.to_le_bytes().to_vec();
            bytes.extend(header.as_bytes());
            bytes.resize(bytes.len() + data, 0);
            std::fs::write(&path, bytes).unwrap();
            Store::open(&path).unwrap_err().to_string()
        };
        let plain = |header: &str, data| refuse(header, header.len() as u64, data);
        assert!(refuse("{}", u64::MAX, 0).contains("claims `18446744073709551615` bytes"));
        assert!(refuse("{}", 99_000_000, 0).contains("claims `99000000` bytes"));
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
    fn an_index_that_lies_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        two_tensors(&dir.path().join("s1.safetensors"));
        let refuse = |map: &str| {
            std::fs::write(dir.path().join(INDEX), format!(r#"{{"weight_map": {map}}}"#)).unwrap();
            Store::open_dir(dir.path()).unwrap_err().to_string()
        };
        assert!(refuse(r#"{"a": "../s1.safetensors"}"#).contains("is not a file name"));
        assert!(refuse(r#"{"c": "s1.safetensors"}"#).contains("`c` is not in shard `s1.safetensors`"));
        assert!(refuse(r#"{"a": "s2.safetensors"}"#).contains("cannot read"));
        std::fs::copy(dir.path().join("s1.safetensors"), dir.path().join("s2.safetensors")).unwrap();
        assert!(refuse(r#"{"a": "s1.safetensors", "b": "s2.safetensors"}"#).contains("already in another shard"));
    }

    #[test]
    fn a_directory_without_weights_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = Store::open_dir(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("holds neither `model.safetensors` nor `model.safetensors.index.json`"), "{error}");
        std::fs::write(dir.path().join("pytorch_model.bin"), "x").unwrap();
        let error = Store::open_dir(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("convert its pytorch_model.bin to safetensors first"), "{error}");
    }
}
