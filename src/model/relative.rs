//! Relative position biases of attention scores: a learned value for each distance between two patches, and for each
//! head.

use crate::model::position::interpolate_bilinear;

/// Returns the bias among the CLS token and `to²` patches, `[heads, 1 + to², 1 + to²]`.
///
/// `table` is `[(2 · from − 1)² + 3, heads]`. Another grid than the table's interpolates it bilinearly.
pub(super) fn bias_with_cls(table: &[f32], heads: usize, from: usize, to: usize) -> Vec<f32> {
    let (mut resized, cls) = resize(table, heads, from, to);
    resized.extend_from_slice(cls);
    let entries = resized.len() / heads;
    gather(&resized, heads, 1 + to * to, |query, key| match (query, key) {
        (0, 0) => entries - 1,
        (_, 0) => entries - 2,
        (0, _) => entries - 3,
        (query, key) => distance_entry(query - 1, key - 1, to),
    })
}

/// Returns the entries of a table for the distances of `to²` patches, `[(2 · to − 1)², heads]`, and those after them: CLS to
/// patch, patch to CLS, CLS to CLS.
fn resize(table: &[f32], heads: usize, from: usize, to: usize) -> (Vec<f32>, &[f32]) {
    let (old, new) = (2 * from - 1, 2 * to - 1);
    let (distances, cls) = table.split_at(old * old * heads);
    let resized = if from == to { distances.to_vec() } else { interpolate_bilinear(distances, old, new, heads) };
    (resized, cls)
}

/// Returns the bias of [`bias_with_cls`] as one table for each head, `[heads, entries]`, whose entries [`compute_places`] finds.
pub(super) fn resize_tables(table: &[f32], heads: usize, from: usize, to: usize) -> Vec<f32> {
    let (distances, cls) = resize(table, heads, from, to);
    let [from_cls, to_cls, within_cls] = [0, 1, 2].map(|entry| &cls[entry * heads..(entry + 1) * heads]);
    let rows = [to_cls, within_cls].into_iter().chain(distances.chunks_exact(heads)).chain([from_cls]);
    let rows: Vec<&[f32]> = rows.collect();
    (0..heads).flat_map(|head| rows.iter().map(move |row| row[head])).collect()
}

/// Returns a place of each query and a place of each key, the CLS token first. The bias of a query and a key is entry
/// `clamp(place of the query − place of the key, 0, entries − 1)` of [`resize_tables`].
pub(super) fn compute_places(side: usize) -> [Vec<i32>; 2] {
    let span = 2 * side - 1;
    let patch = |cell: usize| cell / side * span + cell % side;
    // Differences of two patches lie between 2 and last − 1.
    let (last, most) = (span * span + 2, patch(side * side - 1));
    // The key is so far behind each patch that their differences are 0 or less, the query so far ahead that they are `last` or more.
    let key = last + most;
    let with_cls = |cls: usize, first: usize| -> Vec<i32> {
        [cls].into_iter().chain((0..side * side).map(|cell| first + patch(cell))).map(|place| place as i32).collect()
    };
    [with_cls(key + 1, 2 + most), with_cls(key, 0)]
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

    #[test]
    fn places_find_the_same_bias() {
        for (from, to, heads) in [(1, 1, 1), (2, 2, 3), (3, 5, 2), (4, 3, 1), (3, 1, 2)] {
            let table: Vec<f32> = (0..((2 * from - 1_usize).pow(2) + 3) * heads).map(|entry| entry as f32).collect();
            let (tables, [queries, keys]) = (resize_tables(&table, heads, from, to), compute_places(to));
            let last = tables.len() / heads - 1;
            let entry = |query: i32, key: i32| usize::try_from(query - key).unwrap_or(0).min(last);
            let mut found = Vec::new();
            for head in tables.chunks_exact(last + 1) {
                for query in &queries {
                    found.extend(keys.iter().map(|key| head[entry(*query, *key)]));
                }
            }
            assert_eq!(found, bias_with_cls(&table, heads, from, to), "{from}² to {to}² patches");
        }
    }
}
