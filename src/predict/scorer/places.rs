//! Ranks of given classes among all classes.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::{Scorer, check_labels, check_length};
use crate::predict::PredictError;
use crate::predict::tiles::{cast_to, download, tile_ranges, upload};

/// A row of features and the class whose rank is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlaceQuery {
    /// Row of the features.
    pub row: u32,
    /// Class.
    pub class: u32,
}

/// Rank of a class, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Among all classes.
    pub all: u32,
    /// Among the classes of its group; equal to `all` without groups.
    pub within: u32,
}

impl<B: Backend> Scorer<B> {
    /// Returns the rank of each query's class in the ranking of its row of `features`, `[rows, dim]`; `None` if its logit is
    /// no number. `groups` has the group of each class, if ranks within groups are wanted.
    ///
    /// # Errors
    /// When a length does not match, a row or a class does not exist, or the device fails.
    pub fn places(
        &self,
        features: &[f32],
        rows: usize,
        queries: &[PlaceQuery],
        groups: Option<&[u32]>,
    ) -> Result<Vec<Option<Place>>, PredictError> {
        check_length("features", features.len(), rows.saturating_mul(self.dim))?;
        if let Some(groups) = groups {
            check_length("groups", groups.len(), self.classes)?;
        }
        let classes: Vec<u32> = queries.iter().map(|query| query.class).collect();
        check_labels(&classes, self.classes)?;
        if let Some(query) = queries.iter().find(|query| query.row as usize >= rows) {
            check_length("rows", query.row as usize + 1, rows)?;
        }
        let mut places = Vec::with_capacity(queries.len());
        for range in tile_ranges(queries.len(), self.tiling.rows) {
            let queries = &queries[range];
            let values: Vec<f32> = queries
                .iter()
                .flat_map(|query| &features[query.row as usize * self.dim..][..self.dim])
                .copied()
                .collect();
            let inputs = cast_to(upload(&values, queries.len(), self.dim, &self.device), self.compute.dtype());
            let own = self.own_logits(&inputs, queries)?;
            let before = self.count_before(&inputs, queries, &own, groups)?;
            let place = |(own, [all, within]): (f32, [u32; 2])| {
                (!own.is_nan()).then_some(Place { all: all + 1, within: within + 1 })
            };
            places.extend(own.into_iter().zip(before).map(place));
        }
        Ok(places)
    }

    /// Returns the logit of each query's class.
    fn own_logits(&self, inputs: &Tensor<B, 2>, queries: &[PlaceQuery]) -> Result<Vec<f32>, PredictError> {
        let mut own = vec![0.0; queries.len()];
        for (first, logits) in self.tiles(inputs) {
            let width = logits.dims()[1];
            let within = |query: &PlaceQuery| query.class.wrapping_sub(first) as usize;
            if queries.iter().all(|query| within(query) >= width) {
                continue;
            }
            // A class in another tile is clamped to the last column; the gathered value is ignored.
            let columns: Vec<i64> = queries.iter().map(|query| within(query).min(width - 1) as i64).collect();
            let columns = Tensor::<B, 2, Int>::from_data(TensorData::new(columns, [queries.len(), 1]), &self.device);
            let gathered = download(logits.gather(1, columns))?;
            for ((own, query), value) in own.iter_mut().zip(queries).zip(gathered) {
                if within(query) < width {
                    *own = value;
                }
            }
        }
        Ok(own)
    }

    /// Counts the classes that rank before each query's class, in all and in its group.
    fn count_before(
        &self,
        inputs: &Tensor<B, 2>,
        queries: &[PlaceQuery],
        own: &[f32],
        groups: Option<&[u32]>,
    ) -> Result<Vec<[u32; 2]>, PredictError> {
        let mut counts = vec![[0_u32; 2]; queries.len()];
        let own = upload::<B>(own, queries.len(), 1, &self.device);
        for (first, logits) in self.tiles(inputs) {
            let width = logits.dims()[1];
            let column = |values: Vec<i64>| {
                let rows = values.len();
                Tensor::<B, 2, Int>::from_data(TensorData::new(values, [rows, 1]), &self.device)
            };
            let row = |values: Vec<i64>| {
                let columns = values.len();
                Tensor::<B, 2, Int>::from_data(TensorData::new(values, [1, columns]), &self.device)
            };
            let shape = [queries.len(), width];
            let class = column(queries.iter().map(|query| i64::from(query.class) - i64::from(first)).collect());
            let (class, place) = (class.expand(shape), row((0..width as i64).collect()).expand(shape));
            let own = own.clone().expand(shape);
            // Of equal logits the lower class ranks first. The class itself is neither lower nor higher.
            let lower = place.clone().lower(class.clone()).float();
            let higher = place.greater(class).float();
            let before =
                logits.clone().greater_equal(own.clone()).float() * lower + logits.greater(own).float() * higher;
            let mut sums = before.clone().sum_dim(1);
            if let Some(groups) = groups {
                // Integers of devices have 32 bits with a sign.
                let group = |class: usize| i64::from(groups[class] as i32);
                let tile = (first as usize..first as usize + width).map(group).collect();
                let group_of = |query: &PlaceQuery| group(query.class as usize);
                let group = column(queries.iter().map(group_of).collect()).expand(shape);
                let same = row(tile).expand(shape).equal(group).float();
                sums = Tensor::cat(vec![sums, (before * same).sum_dim(1)], 1);
            }
            let sums = download(sums)?;
            let wide = if groups.is_some() { 2 } else { 1 };
            for (count, sum) in counts.iter_mut().zip(sums.chunks_exact(wide)) {
                // Sums of a tile are below 2²⁴, so they are exact in f32.
                count[0] += sum[0] as u32;
                count[1] += sum[wide - 1] as u32;
            }
        }
        Ok(counts)
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::backend::BackendTypes;
    use proptest::prelude::*;

    use super::*;
    use crate::predict::tiles::{Compute, Tiling};

    fn scorer(weight: &[f32], rows: usize, tile: usize) -> Scorer<Flex> {
        let tiling = Tiling { rows, classes: tile };
        let device = <Flex as BackendTypes>::Device::default();
        let bias = vec![0.0; weight.len()];
        Scorer::new(weight, &bias, bias.len(), 1, tiling, Compute::F32, &device).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn place_is_the_position_in_the_ranking(
            weight in prop::collection::vec((-2i8..3).prop_map(f32::from), 1..30),
            features in prop::collection::vec((-2i8..3).prop_map(f32::from), 1..8),
            rows in 1usize..6, tile in 1usize..12,
        ) {
            let scorer = scorer(&weight, rows, tile);
            let ranked = scorer.top_k(&features, features.len(), weight.len()).unwrap();
            let every = (0..features.len() as u32).flat_map(|row| (0..weight.len() as u32).map(move |class| (row, class)));
            let queries: Vec<PlaceQuery> = every.map(|(row, class)| PlaceQuery { row, class }).collect();
            let groups: Vec<u32> = (0..weight.len() as u32).map(|class| (class % 3).wrapping_sub(1)).collect();
            let places = scorer.places(&features, features.len(), &queries, Some(&groups)).unwrap();
            for (query, place) in queries.iter().zip(places) {
                let order = &ranked[query.row as usize].classes;
                let all = order.iter().position(|class| *class == query.class).unwrap() + 1;
                let group = |class: &u32| class % 3 == query.class % 3;
                let own = order.iter().filter(|class| group(class));
                let within = own.into_iter().position(|class| *class == query.class).unwrap() + 1;
                prop_assert_eq!(place, Some(Place { all: all as u32, within: within as u32 }));
            }
        }
    }

    #[test]
    fn class_without_a_number_has_no_place() {
        let scorer = scorer(&[1.0, f32::NAN, 2.0], 4, 2);
        let query = |class| PlaceQuery { row: 0, class };
        let places = scorer.places(&[1.0], 1, &[query(0), query(1), query(2)], None).unwrap();
        let place = |rank| Some(Place { all: rank, within: rank });
        assert_eq!(places, [place(2), None, place(1)]);
        assert!(scorer.places(&[1.0], 1, &[query(3)], None).is_err());
        assert!(scorer.places(&[1.0], 1, &[PlaceQuery { row: 1, class: 0 }], None).is_err());
        assert!(scorer.places(&[1.0], 1, &[query(0)], Some(&[0])).is_err());
        assert!(scorer.places(&[1.0], 1, &[], None).unwrap().is_empty());
    }
}
