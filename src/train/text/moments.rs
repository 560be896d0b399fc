//! Running mean and standard deviation of feature vectors.

/// Running mean and variance of each component of a stream of vectors.
#[derive(Debug, Clone, Default)]
pub struct RunningMoments {
    rows: u64,
    mean: Vec<f64>,
    /// Sums of squared distances from the mean.
    squares: Vec<f64>,
}

impl RunningMoments {
    /// Adds a vector with the algorithm of Welford (1962).
    pub fn add(&mut self, row: &[f32]) {
        self.mean.resize(row.len(), 0.0);
        self.squares.resize(row.len(), 0.0);
        self.rows += 1;
        let count = self.rows as f64;
        for ((mean, squares), value) in self.mean.iter_mut().zip(&mut self.squares).zip(row) {
            let value = f64::from(*value);
            let before = value - *mean;
            *mean += before / count;
            *squares += before * (value - *mean);
        }
    }

    /// Returns the number of vectors.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Returns the mean of each component.
    pub fn mean(&self) -> Vec<f32> {
        self.mean.iter().map(|mean| *mean as f32).collect()
    }

    /// Returns the standard deviation of each component; 1 for a constant component.
    pub fn std(&self) -> Vec<f32> {
        let deviation = |squares: &f64| (squares / self.rows.max(1) as f64).sqrt() as f32;
        self.squares.iter().map(deviation).map(|std| if std > 1e-6 { std } else { 1.0 }).collect()
    }
}
