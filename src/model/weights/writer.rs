//! Writes safetensors files as a stream.

use std::fs::File;
use std::io::BufWriter;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use safetensors::tensor::Metadata;
use safetensors::tensor::TensorInfo;

use super::BLOCK_BYTES;
use super::Format;
use super::LENGTH_BYTES;
use crate::model::error::ModelError;

/// Name, format and shape of a tensor to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::model) struct TensorSpec {
    pub(in crate::model) name: String,
    pub(in crate::model) format: Format,
    pub(in crate::model) shape: Vec<usize>,
}

/// Writes a safetensors file. Calls `fill` for each tensor, in file order, to write the tensor's bytes.
///
/// The file appears at `path` only when it is complete. Wider formats come first, so that every tensor is aligned;
/// equal formats are sorted by name. The metadata is `{"format": "pt"}`, which transformers requires.
pub(in crate::model) fn write_file(
    path: &Path,
    mut tensors: Vec<TensorSpec>,
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
    let mut sink = |bytes: &[u8]| {
        written += bytes.len() as u64;
        out.write_all(bytes).map_err(ModelError::write(&partial))
    };
    sink(&(header.len() as u64).to_le_bytes())?;
    sink(&header)?;
    for tensor in &tensors {
        fill(&tensor.name, &mut sink)?;
    }
    let expected = LENGTH_BYTES + header.len() as u64 + end as u64;
    if written != expected {
        return Err(ModelError::weights(&partial, format!("`{written}` bytes were written, `{expected}` planned")));
    }
    let complete = out.into_inner().map_err(|cause| ModelError::write(&partial)(cause.into_error()))?;
    complete.sync_all().map_err(ModelError::write(&partial))?;
    std::fs::rename(&partial, path).map_err(ModelError::write(path))
}

/// Writes f32 values to `sink`, little-endian, in blocks.
pub(in crate::model) fn write_f32(
    values: &[f32],
    sink: &mut dyn FnMut(&[u8]) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    for part in values.chunks(BLOCK_BYTES / 4) {
        block.clear();
        block.extend(part.iter().flat_map(|value| value.to_le_bytes()));
        sink(&block)?;
    }
    Ok(())
}
