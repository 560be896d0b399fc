//! Reads and writes f32 tensors as one safetensors file, as a stream.
//!
//! The format is the header's length (8 bytes, little-endian), a JSON header, then the values, row-major
//! (<https://github.com/huggingface/safetensors#format>). The `safetensors` crate writes and checks the header. Values
//! are streamed here, so that memory never holds a second copy.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::{CheckpointError, io};

/// Number of values converted at a time, 64 KiB.
const BLOCK_VALUES: usize = 16 * 1024;
/// Upper bound on the header, in bytes. Two tensors take about 200 bytes; another program may add metadata.
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// Name, shape and values of a tensor to write.
pub(super) type NamedTensor<'a> = (&'a str, &'a [usize], &'a [f32]);

/// Writes a durable file; rejects values that are not finite.
pub(super) fn write(path: &Path, tensors: &[NamedTensor<'_>]) -> Result<(), CheckpointError> {
    let mut infos = Vec::with_capacity(tensors.len());
    let mut end = 0;
    for (name, shape, values) in tensors {
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let reason = format!("value `{at}` of `{name}` is `{}`", values[at]);
            return Err(CheckpointError::Head { reason });
        }
        let start = end;
        end += size_of_val(*values);
        let info = TensorInfo { dtype: Dtype::F32, shape: shape.to_vec(), data_offsets: (start, end) };
        infos.push(((*name).to_owned(), info));
    }
    // transformers requires this entry. It must be the only one, because the order of the map is random.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let invalid = |reason: String| CheckpointError::Head { reason };
    let metadata = Metadata::new(Some(format), infos).map_err(|error| invalid(error.to_string()))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| invalid(error.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let file = File::create(path).map_err(io("create", path))?;
    write_stream(&file, &header, tensors).map_err(io("write", path))?;
    file.sync_all().map_err(io("sync", path))
}

/// Writes header and values.
fn write_stream(file: &File, header: &[u8], tensors: &[NamedTensor<'_>]) -> io::Result<()> {
    let mut output = BufWriter::with_capacity(4 * BLOCK_VALUES, file);
    output.write_all(&(header.len() as u64).to_le_bytes())?;
    output.write_all(header)?;
    for (_, _, values) in tensors {
        for value in *values {
            output.write_all(&value.to_le_bytes())?;
        }
    }
    output.flush()
}

/// Tensor read from a file.
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f32>,
}

/// Reads a file that holds exactly the f32 tensors `names`; returns them in this order.
///
/// `check` validates the shapes before memory for values is allocated.
pub(super) fn read(
    path: &Path,
    names: &[&str],
    check: impl FnOnce(&[&[usize]]) -> Result<(), String>,
) -> Result<Vec<Tensor>, CheckpointError> {
    let damaged = |reason: String| CheckpointError::Content { path: path.to_owned(), reason };
    let mut file = File::open(path).map_err(io("open", path))?;
    let file_bytes = file.metadata().map_err(io("read", path))?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(io("read", path))?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES || header_bytes + 8 > file_bytes {
        return Err(damaged(format!("its header claims `{header_bytes}` bytes")));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header).map_err(io("read", path))?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| damaged(error.to_string()))?;

    let (mut found, mut expected) = (metadata.offset_keys(), names.to_vec());
    found.sort_unstable();
    expected.sort_unstable();
    if found != expected {
        return Err(damaged(format!(
            "it holds the tensors `{}`, expected `{}`",
            found.join("`, `"),
            expected.join("`, `")
        )));
    }
    let info = |name: &str| {
        let info = metadata.info(name).ok_or_else(|| damaged(format!("it lacks `{name}`")))?;
        if info.dtype != Dtype::F32 {
            let reason = format!("`{name}` is of type `{:?}`, expected `F32`", info.dtype);
            return Err(damaged(reason));
        }
        Ok(info)
    };
    let infos: Vec<&TensorInfo> = names.iter().map(|name| info(name)).collect::<Result<_, _>>()?;
    check(&infos.iter().map(|info| info.shape.as_slice()).collect::<Vec<_>>()).map_err(damaged)?;
    // Deserialising checked offsets against shapes. The file's length must match before memory is allocated.
    let expected = 8 + header_bytes + metadata.data_len() as u64;
    if file_bytes != expected {
        return Err(damaged(format!("it is `{file_bytes}` bytes long, its header asks for `{expected}`")));
    }
    let tensor = |(name, info): (&&str, &&TensorInfo)| Tensor {
        name: (*name).to_owned(),
        shape: info.shape.clone(),
        values: Vec::new(),
    };
    let mut tensors: Vec<Tensor> = names.iter().zip(&infos).map(tensor).collect();
    for name in metadata.offset_keys() {
        let Some(tensor) = tensors.iter_mut().find(|tensor| tensor.name == name) else { continue };
        let count = tensor.shape.iter().product();
        read_values(&mut file, count, &mut tensor.values).map_err(io("read", path))?;
        if let Some(at) = tensor.values.iter().position(|value| !value.is_finite()) {
            let reason = format!("value `{at}` of `{name}` is `{}`", tensor.values[at]);
            return Err(damaged(reason));
        }
    }
    Ok(tensors)
}

/// Reads `count` values.
fn read_values(file: &mut File, count: usize, values: &mut Vec<f32>) -> io::Result<()> {
    values.reserve_exact(count);
    let mut buffer = vec![0; 4 * BLOCK_VALUES.min(count)];
    let mut left = count;
    while left > 0 {
        let block = left.min(BLOCK_VALUES);
        let bytes = &mut buffer[..4 * block];
        file.read_exact(bytes)?;
        let (words, _) = bytes.as_chunks::<4>();
        values.extend(words.iter().map(|&word| f32::from_le_bytes(word)));
        left -= block;
    }
    Ok(())
}
