//! Vectors with a group and a text for each row, in files without a name.

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use half::bf16;

use crate::types::Precision;

/// Bytes of a buffer between a writer and its file.
const BUFFER_BYTES: usize = 1 << 20;

/// Writes the rows of a [`VectorFile`].
#[derive(Debug)]
pub struct VectorWriter {
    dim: usize,
    precision: Precision,
    rows: u32,
    text_bytes: u64,
    vectors: BufWriter<File>,
    groups: BufWriter<File>,
    /// End of each text in `texts`.
    ends: BufWriter<File>,
    texts: BufWriter<File>,
}

/// Vectors of one length, with a group and a text for each row.
#[derive(Debug)]
pub struct VectorFile {
    pub(super) dim: usize,
    pub(super) precision: Precision,
    pub(super) rows: u32,
    pub(super) vectors: File,
    pub(super) groups: File,
    ends: File,
    texts: File,
}

/// Creates a file that has no name.
fn create_unnamed(dir: &Path) -> io::Result<BufWriter<File>> {
    let path = dir.join(format!("wikicap-search-{}", uuid::Uuid::new_v4()));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    // The open file stays usable. The system frees it when it is closed.
    std::fs::remove_file(&path)?;
    Ok(BufWriter::with_capacity(BUFFER_BYTES, file))
}

/// Returns the bytes of a stored value.
pub(super) fn value_bytes(precision: Precision) -> usize {
    match precision {
        Precision::Bf16 => 2,
        Precision::F32 => 4,
    }
}

impl VectorWriter {
    /// Creates the files in `dir`, for vectors of `dim` values that are stored in `precision`.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn create(dir: &Path, dim: usize, precision: Precision) -> io::Result<Self> {
        let file = || create_unnamed(dir);
        let (vectors, groups, ends, texts) = (file()?, file()?, file()?, file()?);
        Ok(Self { dim, precision, rows: 0, text_bytes: 0, vectors, groups, ends, texts })
    }

    /// Adds a row. A vector of another length is an error.
    ///
    /// # Errors
    /// When the disk is full or cannot be written, or there are more rows than `u32` can number.
    pub fn push(&mut self, vector: &[f32], group: u16, text: &[u8]) -> io::Result<()> {
        if vector.len() != self.dim {
            let what = format!("a vector has {} values, not {}", vector.len(), self.dim);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        match self.precision {
            Precision::Bf16 => {
                vector.iter().try_for_each(|value| self.vectors.write_all(&bf16::from_f32(*value).to_le_bytes()))?;
            }
            Precision::F32 => vector.iter().try_for_each(|value| self.vectors.write_all(&value.to_le_bytes()))?,
        }
        self.groups.write_all(&group.to_le_bytes())?;
        self.texts.write_all(text)?;
        self.text_bytes += text.len() as u64;
        self.ends.write_all(&self.text_bytes.to_le_bytes())?;
        let more = self.rows.checked_add(1).filter(|rows| *rows < u32::MAX);
        self.rows = more.ok_or_else(|| io::Error::other("there are more rows than 32 bits can number"))?;
        Ok(())
    }

    /// Returns the number of rows so far.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Completes the files.
    ///
    /// # Errors
    /// When the disk is full or cannot be written.
    pub fn finish(self) -> io::Result<VectorFile> {
        let finish = |writer: BufWriter<File>| writer.into_inner().map_err(io::IntoInnerError::into_error);
        Ok(VectorFile {
            dim: self.dim,
            precision: self.precision,
            rows: self.rows,
            vectors: finish(self.vectors)?,
            groups: finish(self.groups)?,
            ends: finish(self.ends)?,
            texts: finish(self.texts)?,
        })
    }
}

impl VectorFile {
    /// Returns the number of rows.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Returns the length of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Returns the bytes of a stored vector.
    pub(super) fn row_bytes(&self) -> usize {
        self.dim * value_bytes(self.precision)
    }

    /// Reads the vector of a row.
    ///
    /// # Errors
    /// When the row is out of range or the disk fails.
    pub fn vector(&self, row: u32) -> io::Result<Vec<f32>> {
        let mut bytes = vec![0; self.row_bytes()];
        self.vectors.read_exact_at(&mut bytes, u64::from(row) * self.row_bytes() as u64)?;
        Ok(match self.precision {
            Precision::Bf16 => {
                bytes.as_chunks::<2>().0.iter().map(|pair| bf16::from_le_bytes(*pair).to_f32()).collect()
            }
            Precision::F32 => bytes.as_chunks::<4>().0.iter().map(|quad| f32::from_le_bytes(*quad)).collect(),
        })
    }

    /// Reads the group of a row.
    ///
    /// # Errors
    /// As [`Self::vector`].
    pub fn group(&self, row: u32) -> io::Result<u16> {
        let mut bytes = [0; 2];
        self.groups.read_exact_at(&mut bytes, 2 * u64::from(row))?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Reads the text of a row.
    ///
    /// # Errors
    /// As [`Self::vector`].
    pub fn text(&self, row: u32) -> io::Result<Vec<u8>> {
        let end = |row: u32| {
            let mut bytes = [0; 8];
            self.ends.read_exact_at(&mut bytes, 8 * u64::from(row))?;
            Ok::<u64, io::Error>(u64::from_le_bytes(bytes))
        };
        let first = if row == 0 { 0 } else { end(row - 1)? };
        let mut text = vec![0; (end(row)? - first) as usize];
        self.texts.read_exact_at(&mut text, first)?;
        Ok(text)
    }

    /// Passes the text of each row to `visit`, in order.
    ///
    /// # Errors
    /// Those of `visit`; or when the disk fails.
    pub fn visit_texts(&self, mut visit: impl FnMut(u32, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let (mut ends, mut texts) = (Positioned::new(&self.ends), Positioned::new(&self.texts));
        let (mut first, mut text) = (0, Vec::new());
        for row in 0..self.rows {
            let mut bytes = [0; 8];
            ends.read_exact(&mut bytes)?;
            let end = u64::from_le_bytes(bytes);
            text.resize((end - first) as usize, 0);
            texts.read_exact(&mut text)?;
            visit(row, &text)?;
            first = end;
        }
        Ok(())
    }
}

/// Reads a shared file from its start, independently of other readers.
struct Positioned<'a> {
    file: &'a File,
    at: u64,
}

impl<'a> Positioned<'a> {
    fn new(file: &'a File) -> io::BufReader<Self> {
        io::BufReader::with_capacity(1 << 16, Self { file, at: 0 })
    }
}

impl io::Read for Positioned<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(out, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        for precision in [Precision::Bf16, Precision::F32] {
            let mut writer = VectorWriter::create(dir.path(), 3, precision).unwrap();
            writer.push(&[1.0, -2.5, 0.0], 7, "ü".as_bytes()).unwrap();
            writer.push(&[0.5, 4.0, 8.0], 65_535, b"").unwrap();
            assert!(writer.push(&[1.0], 0, b"").is_err());
            let file = writer.finish().unwrap();
            assert_eq!((file.rows(), file.vector(1).unwrap()), (2, vec![0.5, 4.0, 8.0]));
            assert_eq!((file.group(0).unwrap(), file.group(1).unwrap()), (7, 65_535));
            let mut texts = Vec::new();
            file.visit_texts(|row, text| {
                texts.push(text.to_vec());
                assert_eq!(file.text(row)?, text);
                Ok(())
            })
            .unwrap();
            assert_eq!(texts, ["ü".as_bytes().to_vec(), Vec::new()]);
            assert!(file.vector(2).is_err() && file.text(2).is_err());
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a file has a name");
    }
}
