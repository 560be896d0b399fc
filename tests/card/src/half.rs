//! Half-precision formats, and values in the registers of a warp.

pub const WARP: usize = 32;

#[derive(Clone, Copy, PartialEq)]
pub struct Bf16(pub u16);
#[derive(Clone, Copy, PartialEq)]
pub struct F16(pub u16);

impl Bf16 {
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
    #[inline(always)]
    pub fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        if value.is_nan() {
            return Self(0x7FFF);
        }
        Self(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16)
    }
    pub fn from_f32_rz(value: f32) -> Self {
        if value.is_nan() { Self(0x7FFF) } else { Self((value.to_bits() >> 16) as u16) }
    }
}

impl F16 {
    #[inline]
    pub fn to_f32(self) -> f32 {
        let (sign, exponent, mantissa) =
            (u32::from(self.0 >> 15), i32::from(self.0 >> 10 & 31), u32::from(self.0 & 1023));
        let magnitude = match exponent {
            0 => mantissa as f32 * 2f32.powi(-24),
            31 => {
                if mantissa == 0 {
                    f32::INFINITY
                } else {
                    f32::NAN
                }
            }
            _ => f32::from_bits(((exponent + 112) as u32) << 23 | mantissa << 13),
        };
        if sign == 1 { -magnitude } else { magnitude }
    }
    pub fn from_f32(value: f32) -> Self {
        let sign = ((value.to_bits() >> 16) & 0x8000) as u16;
        if value.is_nan() {
            return Self(0x7FFF);
        }
        let magnitude = value.abs();
        if magnitude >= 65520.0 {
            return Self(sign | 0x7C00);
        }
        if magnitude < 2f32.powi(-14) {
            // Subnormal: multiples of 2⁻²⁴, ties to even.
            let steps = (f64::from(magnitude) * 16_777_216.0).round_ties_even() as u16;
            return Self(sign | steps);
        }
        let bits = magnitude.to_bits();
        let rounded = bits + 0xFFF + (bits >> 13 & 1);
        Self(sign | ((rounded >> 13) - (112 << 10)) as u16)
    }
}

pub fn e4m3_to_f32(value: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(value >> 3 & 15), f32::from(value & 7));
    let magnitude = if exponent == 15 && value & 7 == 7 {
        f32::NAN
    } else if exponent == 0 {
        mantissa * 2f32.powi(-9)
    } else {
        (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7)
    };
    if value >> 7 == 1 { -magnitude } else { magnitude }
}

/// A value that a register holds for each lane. Registers of 16 and 32 bits have 4 bytes a lane.
pub trait Val: Copy {
    /// # Safety
    /// `at` is a register of this width.
    unsafe fn load(at: *const u8, lane: usize) -> Self;
    /// # Safety
    /// As for `load`.
    unsafe fn store(at: *mut u8, lane: usize, value: Self);
}

macro_rules! val {
    ($type:ty, $slot:ty, $load:expr, $store:expr) => {
        impl Val for $type {
            #[inline(always)]
            unsafe fn load(at: *const u8, lane: usize) -> Self {
                let raw: $slot = unsafe { *at.cast::<$slot>().add(lane) };
                ($load)(raw)
            }
            #[inline(always)]
            unsafe fn store(at: *mut u8, lane: usize, value: Self) {
                let raw: $slot = ($store)(value);
                unsafe { *at.cast::<$slot>().add(lane) = raw };
            }
        }
    };
}

val!(u32, u32, |raw| raw, |value| value);
val!(i32, u32, |raw| raw as i32, |value| value as u32);
val!(f32, u32, f32::from_bits, f32::to_bits);
val!(u64, u64, |raw| raw, |value| value);
val!(i64, u64, |raw| raw as i64, |value| value as u64);
val!(f64, u64, f64::from_bits, f64::to_bits);
val!(u16, u32, |raw| raw as u16, u32::from);
val!(i16, u32, |raw| raw as i16, |value| u32::from(value as u16));
val!(u8, u32, |raw| raw as u8, u32::from);
val!(i8, u32, |raw| raw as i8, |value| u32::from(value as u8));
val!(Bf16, u32, |raw| Bf16(raw as u16), |value: Bf16| u32::from(value.0));
val!(F16, u32, |raw| F16(raw as u16), |value: F16| u32::from(value.0));

/// Two values of 16 bits in a register.
#[derive(Clone, Copy)]
pub struct Pair<T>(pub T, pub T);

macro_rules! pair {
    ($half:ident) => {
        impl Val for Pair<$half> {
            #[inline(always)]
            unsafe fn load(at: *const u8, lane: usize) -> Self {
                let raw = unsafe { *at.cast::<u32>().add(lane) };
                Self($half(raw as u16), $half((raw >> 16) as u16))
            }
            #[inline(always)]
            unsafe fn store(at: *mut u8, lane: usize, value: Self) {
                unsafe { *at.cast::<u32>().add(lane) = u32::from(value.0.0) | u32::from(value.1.0) << 16 };
            }
        }
    };
}
pair!(Bf16);
pair!(F16);

/// A half-precision format: computed in f32, rounded once.
pub trait Half: Val {
    fn from_bits(bits: u16) -> Self;
    /// The value of the low half of a word.
    #[inline(always)]
    fn low(word: u32) -> f32 {
        Self::from_bits(word as u16).wide()
    }
    /// The value of the high half of a word.
    #[inline(always)]
    fn high(word: u32) -> f32 {
        Self::from_bits((word >> 16) as u16).wide()
    }
    fn wide(self) -> f32;
    fn narrow(value: f32) -> Self;
}
impl Half for Bf16 {
    #[inline(always)]
    fn high(word: u32) -> f32 {
        f32::from_bits(word & 0xFFFF_0000)
    }
    #[inline(always)]
    fn from_bits(bits: u16) -> Self {
        Self(bits)
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        Self::from_f32(value)
    }
}
impl Half for F16 {
    #[inline(always)]
    fn from_bits(bits: u16) -> Self {
        Self(bits)
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        Self::from_f32(value)
    }
}
