//! Compares the results of kernels that compute the same product.
//!
//! When a program tunes a matrix product, it runs several kernels on the same inputs and keeps the fastest. A wrong kernel that is
//! slow this time may be the fastest elsewhere. The driver sees launches only, so it takes two of them for candidates of one product
//! if both kernels are named as products, have the same inputs (addresses and bytes), and write results of the same size.

use std::collections::HashMap;

use crate::call;
use crate::half::{Bf16, F16};

/// Part of a kernel's name that marks it as a matrix product.
const FAMILY: &str = "matmul";

/// Largest accepted relative distance of two results, in the Euclidean norm. Both round to the format and sum in their own order.
const LIMIT: f64 = 0.02;

/// Bytes at the start of each input that identify its contents. More could belong to the next tensor of the same page.
const SAMPLE_BYTES: u64 = 256;

/// Largest result that is kept, and the largest number of them.
const MAX_RESULT_BYTES: u64 = 1 << 22;
const MAX_RESULTS: usize = 256;

/// Global memory that a launch has written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Written {
    first: u64,
    end: u64,
    bytes: u64,
}

impl Written {
    /// Adds a write.
    pub fn add(&mut self, at: u64, bytes: usize) {
        let end = at + bytes as u64;
        (self.first, self.end) = if self.bytes == 0 { (at, end) } else { (self.first.min(at), self.end.max(end)) };
        self.bytes += bytes as u64;
    }

    /// Adds other writes.
    pub fn join(&mut self, other: Self) {
        if other.bytes > 0 {
            self.add(other.first, (other.end - other.first) as usize);
            self.bytes -= other.end - other.first;
            self.bytes += other.bytes;
        }
    }

    /// Range of the writes, if they cover it.
    fn range(self) -> Option<(u64, u64)> {
        let length = self.end - self.first;
        (self.bytes >= length && (1..=MAX_RESULT_BYTES).contains(&length)).then_some((self.first, length))
    }
}

/// Format of a result, from the name of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Format {
    Bf16,
    F16,
    F32,
}

/// Inputs of a product and the size of its result.
#[derive(PartialEq, Eq, Hash)]
struct Product {
    inputs: Vec<(u64, u64)>,
    result_bytes: u64,
}

/// Output of a kernel.
struct Computed {
    kernel: String,
    format: Format,
    values: Vec<f32>,
}

/// Results of products by their inputs.
#[derive(Default)]
pub struct Candidates {
    results: HashMap<Product, Computed>,
    /// Pairs of different kernels that were compared.
    pub compared: u64,
}

impl Candidates {
    /// Compares the result of a finished launch with that of an earlier kernel on the same inputs, and says how they differ.
    ///
    /// `kernel`: module and name. `arguments`: addresses of its tensors, and the ends of their allocations. `written`: see [`Written`].
    ///
    /// # Safety
    /// Arguments and written memory are allocated.
    pub unsafe fn add(&mut self, kernel: &str, arguments: &[(u64, u64)], written: Written) -> Option<String> {
        let (first, result_bytes) = written.range()?;
        let format = format(kernel)?;
        let mut inputs: Vec<(u64, u64)> = arguments
            .iter()
            .filter(|(at, _)| !(first..first + result_bytes).contains(at))
            // SAFETY: the caller's promise.
            .map(|(at, end)| (*at, digest(unsafe { bytes(*at, (*end - *at).min(SAMPLE_BYTES)) })))
            .collect();
        inputs.sort_unstable();
        inputs.dedup();
        // SAFETY: the caller's promise.
        let bytes = unsafe { bytes(first, result_bytes) };
        let format = if is_wide(bytes, format) { Format::F32 } else { format };
        let values = values(bytes, format);
        let computed = Computed { kernel: kernel.to_owned(), format, values };
        let product = Product { inputs, result_bytes };
        match self.results.get(&product) {
            Some(other) if other.kernel == kernel => None,
            Some(other) => {
                self.compared += 1;
                computed.compare(other)
            }
            None => {
                if self.results.len() < MAX_RESULTS {
                    self.results.insert(product, computed);
                }
                None
            }
        }
    }
}

impl Computed {
    /// Says how a result differs from that of another kernel.
    fn compare(&self, other: &Self) -> Option<String> {
        let Self { kernel, format, values } = self;
        let (mine, theirs) = (describe(values), describe(&other.values));
        if *format != other.format {
            // Values that are not finite can make one of them look wider or narrower than it is.
            return Some(format!(
                "is {format:?}, and {} on the same inputs {:?} ({mine}; {theirs})",
                other.kernel, other.format
            ));
        }
        let found = distance(values, &other.values);
        call!("compared {kernel} with {}: {found:.1e}", other.kernel);
        (found > LIMIT)
            .then(|| format!("differs by {found:.1e} from {} on the same inputs ({mine}; {theirs})", other.kernel))
    }
}

/// Returns the format of a product's result; `None` for other kernels.
fn format(kernel: &str) -> Option<Format> {
    let name = &kernel[kernel.find(FAMILY)?..];
    // `matmul_entry_lhs_bf16_…_acc_bf16_acc_size_8`: the accumulator's name is that of the result's format.
    let result = name.split("_acc_").nth(1)?;
    if result.starts_with("bf16") {
        Some(Format::Bf16)
    } else if result.starts_with("f16") {
        Some(Format::F16)
    } else {
        result.starts_with("f32").then_some(Format::F32)
    }
}

/// Returns whether a result named as one of two bytes a value holds f32: a product that is fused with a conversion does not name it. The
/// lower halves of f32 values have any exponent, so about half of them are beyond usual numbers.
fn is_wide(bytes: &[u8], format: Format) -> bool {
    if format == Format::F32 {
        return false;
    }
    let halves = values(bytes, Format::Bf16);
    let wild = |value: &f32| !value.is_finite() || (*value != 0.0 && !(1e-20..1e20).contains(&value.abs()));
    let count = |start: usize| halves.iter().skip(start).step_by(2).filter(|value| wild(value)).count();
    halves.len().is_multiple_of(2) && 8 * count(0) > halves.len() && count(0) > 2 * count(1)
}

/// # Safety
/// The range is allocated.
unsafe fn bytes<'a>(at: u64, count: u64) -> &'a [u8] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(at as *const u8, count as usize) }
}

fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn values(bytes: &[u8], format: Format) -> Vec<f32> {
    let half = |pair: &[u8]| u16::from_le_bytes([pair[0], pair[1]]);
    match format {
        Format::Bf16 => bytes.chunks_exact(2).map(|pair| Bf16(half(pair)).to_f32()).collect(),
        Format::F16 => bytes.chunks_exact(2).map(|pair| F16(half(pair)).to_f32()).collect(),
        Format::F32 => {
            bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect()
        }
    }
}

/// Relative distance. Equal values that are not finite do not count; others make it infinite.
fn distance(one: &[f32], other: &[f32]) -> f64 {
    let (mut sum, mut norm) = (0.0, 0.0);
    for (one, other) in one.iter().zip(other) {
        if one.is_finite() && other.is_finite() {
            sum += (f64::from(*one) - f64::from(*other)).powi(2);
            norm += f64::from(*one).powi(2).max(f64::from(*other).powi(2));
        } else if one != other && !(one.is_nan() && other.is_nan()) {
            return f64::INFINITY;
        }
    }
    if sum == 0.0 { 0.0 } else { (sum / norm).sqrt() }
}

/// Counts what is no usual number, for messages.
fn describe(values: &[f32]) -> String {
    let count = |test: fn(&f32) -> bool| values.iter().filter(|value| test(value)).count();
    let (odd, zero) = (count(|value| !value.is_finite()), count(|value| *value == 0.0));
    format!("{} values, {zero} zero, {odd} not finite", values.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_is_relative_and_notices_nan_on_one_side() {
        assert_eq!(distance(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
        assert_eq!(distance(&[0.0], &[2.0]), 1.0);
        assert_eq!(distance(&[f32::NAN, 1.0], &[f32::NAN, 1.0]), 0.0);
        assert_eq!(distance(&[f32::NAN], &[1.0]), f64::INFINITY);
        assert_eq!(distance(&[f32::INFINITY], &[f32::NEG_INFINITY]), f64::INFINITY);
    }

    #[test]
    fn format_comes_from_the_name_of_the_result() {
        assert_eq!(format("x matmul_entry_lhs_f32_lhs_size_1_acc_bf16_acc_size_8"), Some(Format::Bf16));
        assert_eq!(format("x matmul_entry_lhs_bf16_acc_f32_acc_size_1"), Some(Format::F32));
        assert_eq!(format("x reduce_kernel_acc_f32"), None);
    }

    #[test]
    fn wide_results_are_told_by_their_lower_halves() {
        let wide: Vec<u8> = (1u16..200).flat_map(|at| (f32::from(at) / 7.0).sin().to_le_bytes()).collect();
        let narrow: Vec<u8> = wide.chunks_exact(4).flat_map(|four| [four[2], four[3]]).collect();
        for format in [Format::Bf16, Format::F16] {
            assert!(is_wide(&wide, format) && !is_wide(&narrow[..396], format), "{format:?}");
        }
        assert!(!is_wide(&wide, Format::F32) && !is_wide(&[], Format::Bf16));
        assert!(values(&wide, Format::Bf16).iter().any(|value| !value.is_finite()));
    }

    #[test]
    fn results_in_other_formats_are_reported() {
        let right: Vec<u8> = (1u16..200).flat_map(|at| f32::from(at).sin().to_le_bytes()).collect();
        let narrow: Vec<u8> = right.chunks_exact(4).flat_map(|four| [four[2], four[3]]).collect();
        // NaN in every second value.
        let broken: Vec<u8> = narrow.chunks_exact(4).flat_map(|four| [0xC0, 0x7F, four[2], four[3]]).collect();
        let input = [1u8; 64];
        let mut candidates = Candidates::default();
        let mut add = |kernel: &str, result: &[u8]| {
            let (at, ends) =
                (result.as_ptr() as u64, |bytes: &[u8]| (bytes.as_ptr() as u64, bytes.as_ptr_range().end as u64));
            let mut written = Written::default();
            written.add(at, result.len());
            // SAFETY: the vectors and the array live.
            unsafe { candidates.add(kernel, &[ends(&input), ends(result)], written) }
        };
        let narrow = &narrow[..broken.len()];
        assert_eq!(add("a matmul_acc_bf16_acc_size_1", narrow), None);
        assert_eq!(add("b matmul_acc_bf16_acc_size_1", narrow), None);
        let report = add("c matmul_acc_bf16_acc_size_1", &broken).unwrap();
        assert!(report.starts_with("is F32, and a matmul_acc_bf16_acc_size_1 on the same inputs Bf16"), "{report}");
    }

    #[test]
    fn writes_with_gaps_are_no_result() {
        let mut written = Written::default();
        written.add(4096, 16);
        written.add(4112, 16);
        assert_eq!(written.range(), Some((4096, 32)));
        written.add(8192, 16);
        assert_eq!(written.range(), None);
    }
}
