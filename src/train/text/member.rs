//! A head of an ensemble: the values of a feature that it reads, and its seed.

use std::ops::Range;

use super::head::Columns;

/// A head of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct MemberSpec {
    /// Block of the backbone whose feature the head reads; `None` if it reads all values.
    pub layer: Option<i32>,
    /// Values of a feature that the head reads; `None` for all.
    span: Option<Range<usize>>,
    /// Seed of its initial weights and of dropped inputs.
    pub seed: u64,
}

impl MemberSpec {
    /// Describes a head that reads the values `span` of a feature, or all, which are those of block `layer`.
    pub fn new(layer: Option<i32>, span: Option<Range<usize>>, seed: u64) -> Self {
        Self { layer, span, seed }
    }

    /// Returns the columns of features of `of` values that the head reads; `None` for all.
    pub fn columns(&self, of: usize) -> Option<Columns> {
        self.span.as_ref().map(|span| Columns { first: span.start, of })
    }

    /// Copies the values that the head reads from rows of `dim` values.
    pub fn select(&self, values: &[f32], dim: usize) -> Vec<f32> {
        match &self.span {
            Some(span) => values.chunks_exact(dim.max(1)).flat_map(|row| &row[span.clone()]).copied().collect(),
            None => values.to_vec(),
        }
    }

    /// Returns the values of a feature of `dim` values that the head reads.
    pub fn span(&self, dim: usize) -> Range<usize> {
        self.span.clone().unwrap_or(0..dim)
    }

    /// Describes the head in a legend.
    pub fn describe(&self) -> String {
        match self.layer {
            Some(layer) => format!("layer {layer}, seed {}", self.seed),
            None => format!("seed {}", self.seed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member_reads_the_columns_of_its_layer() {
        let member = MemberSpec { layer: Some(9), span: Some(2..4), seed: 7 };
        assert_eq!(member.select(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], 5), [2.0, 3.0, 7.0, 8.0]);
        assert_eq!(member.columns(5), Some(Columns { first: 2, of: 5 }));
        assert_eq!((member.span(5), MemberSpec { span: None, ..member }.span(5)), (2..4, 0..5));
    }
}
