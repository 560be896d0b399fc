//! Values: bf16, noise, and comparison.

/// Rounds to the nearest bf16, ties to even.
pub fn to_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16
}

pub fn from_bits(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

pub fn round(value: f32) -> f32 {
    from_bits(to_bits(value))
}

/// Values in [-1, 1) that are exact in bf16.
pub fn noise(seed: u32, count: usize) -> Vec<f32> {
    let mixed = |at: u32| {
        (at ^ seed.wrapping_mul(0x51ED_270B)).wrapping_mul(0x9E37_79B1).rotate_left(15).wrapping_mul(0x85EB_CA77)
    };
    (0..count as u32).map(|at| round((f64::from(mixed(at) >> 8) / f64::from(1 << 23) - 1.0) as f32)).collect()
}

/// Checks results in bf16: each within one rounding, and `slack` for what f32 and approximations lose.
pub fn check(what: &str, found: &[f32], exact: &[f64], slack: f64) {
    assert_eq!(found.len(), exact.len(), "{what}");
    for (at, (found, exact)) in found.iter().zip(exact).enumerate() {
        let difference = (f64::from(*found) - exact).abs();
        // False for NaN.
        let near = difference <= exact.abs() / 256.0 + slack;
        assert!(near, "{what}: value {at} is {found}, not {exact}");
    }
}
