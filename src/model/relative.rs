//! Relative position biases of attention scores: a learned value for each distance between two patches, and for each
//! head.

use crate::model::position::interpolate_bilinear;

/// Entries of a `BEiT` table after those of the distances: CLS to patch, patch to CLS, CLS to CLS.
const CLS_ENTRIES: usize = 3;

/// Returns the bias among the CLS token and `to²` patches, `[heads, 1 + to², 1 + to²]`.
///
/// `table` is `[(2 · from − 1)² + 3, heads]`. Another grid than the table's interpolates it bilinearly.
pub(super) fn bias_with_cls(table: &[f32], heads: usize, from: usize, to: usize) -> Vec<f32> {
    let (old, new) = (2 * from - 1, 2 * to - 1);
    let (distances, cls) = table.split_at(old * old * heads);
    let mut resized = if from == to { distances.to_vec() } else { interpolate_bilinear(distances, old, new, heads) };
    resized.extend_from_slice(cls);
    let entries = new * new + CLS_ENTRIES;
    gather(&resized, heads, 1 + to * to, |query, key| match (query, key) {
        (0, 0) => entries - 1,
        (_, 0) => entries - 2,
        (0, _) => entries - 3,
        (query, key) => distance_entry(query - 1, key - 1, to),
    })
}

/// Returns the bias among the tokens of a window, `[heads, window², window²]`.
///
/// `table` is `[(2 · window − 1)², heads]`.
pub(super) fn window_bias(table: &[f32], heads: usize, window: usize) -> Vec<f32> {
    gather(table, heads, window * window, |query, key| distance_entry(query, key, window))
}

/// Returns the table's entry for the distance between two cells of a square grid.
fn distance_entry(query: usize, key: usize, side: usize) -> usize {
    let rows = query / side + side - 1 - key / side;
    let columns = query % side + side - 1 - key % side;
    rows * (2 * side - 1) + columns
}

/// Looks up `[heads, tokens, tokens]` in a table, `[entries, heads]`.
fn gather(table: &[f32], heads: usize, tokens: usize, entry: impl Fn(usize, usize) -> usize) -> Vec<f32> {
    let mut bias = Vec::with_capacity(heads * tokens * tokens);
    for head in 0..heads {
        for query in 0..tokens {
            bias.extend((0..tokens).map(|key| table[entry(query, key) * heads + head]));
        }
    }
    bias
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_distances_share_an_entry() {
        let table: Vec<f32> = (0..9).map(|entry| entry as f32).collect();
        let bias = window_bias(&table, 1, 2);
        // The centre of the table is the distance 0.
        assert!([0, 5, 10, 15].iter().all(|place| (bias[*place] - 4.0).abs() < 1e-6));
        // From (0, 0) to (1, 1) is row −1, column −1; the way back is its opposite.
        assert_eq!((bias[3], bias[12]), (0.0, 8.0));
        assert_eq!((bias[1], bias[11]), (3.0, 3.0));
    }

    #[test]
    fn cls_has_entries_of_its_own() {
        let table: Vec<f32> = (0..12).map(|entry| entry as f32).collect();
        let bias = bias_with_cls(&table, 1, 2, 2);
        assert_eq!((bias[0], bias[1], bias[5], bias[6]), (11.0, 9.0, 10.0, 4.0));
        assert_eq!(bias_with_cls(&table, 1, 2, 3).len(), 100);
    }
}
