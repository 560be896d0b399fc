//! Closures that compute each lane of a warp on its own.

use super::Exec;
use crate::half::{Half, Pair, Val, WARP};

/// Runs a block for each lane of a mask.
macro_rules! each {
    ($mask:expr, $lane:ident, $body:block) => {
        if $mask == u32::MAX {
            for $lane in 0..WARP $body
        } else {
            for $lane in 0..WARP {
                if $mask >> $lane & 1 == 1 $body
            }
        }
    };
}
pub(crate) use each;

/// Values of a register in all lanes.
///
/// # Safety
/// It is a register of this width.
#[inline(always)]
unsafe fn all<T: Val>(at: *const u8) -> [T; WARP] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut values = [T::load(at, 0); WARP];
        for (lane, value) in values.iter_mut().enumerate() {
            *value = T::load(at, lane);
        }
        values
    }
}

/// Writes what `f` gives for each lane, all of which are computed before the first is written: registers may be the same ones.
///
/// # Safety
/// `d` is a register of this width.
#[inline(always)]
unsafe fn write_all<D: Val>(d: *mut u8, f: impl Fn(usize) -> D) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut values = [f(0); WARP];
        for (lane, value) in values.iter_mut().enumerate().skip(1) {
            *value = f(lane);
        }
        for (lane, value) in values.iter().enumerate() {
            D::store(d, lane, *value);
        }
    }
}

pub fn unary<D: Val + 'static, A: Val + 'static>(d: u32, a: u32, f: impl Fn(A) -> D + Send + Sync + 'static) -> Exec {
    Box::new(move |lanes, mask| unsafe {
        let (d, a) = (lanes.regs.add(d as usize), lanes.regs.add(a as usize));
        if mask == u32::MAX {
            let a = all::<A>(a);
            write_all(d, |lane| f(a[lane]));
        } else {
            each!(mask, lane, { D::store(d, lane, f(A::load(a, lane))) });
        }
    })
}

pub fn binary<D: Val + 'static, A: Val + 'static, B: Val + 'static>(
    [d, a, b]: [u32; 3],
    f: impl Fn(A, B) -> D + Send + Sync + 'static,
) -> Exec {
    Box::new(move |lanes, mask| unsafe {
        let (d, a, b) = (lanes.regs.add(d as usize), lanes.regs.add(a as usize), lanes.regs.add(b as usize));
        if mask == u32::MAX {
            let (a, b) = (all::<A>(a), all::<B>(b));
            write_all(d, |lane| f(a[lane], b[lane]));
        } else {
            each!(mask, lane, { D::store(d, lane, f(A::load(a, lane), B::load(b, lane))) });
        }
    })
}

pub fn ternary<D: Val + 'static, A: Val + 'static, B: Val + 'static, C: Val + 'static>(
    [d, a, b, c]: [u32; 4],
    f: impl Fn(A, B, C) -> D + Send + Sync + 'static,
) -> Exec {
    Box::new(move |lanes, mask| unsafe {
        let (d, a) = (lanes.regs.add(d as usize), lanes.regs.add(a as usize));
        let (b, c) = (lanes.regs.add(b as usize), lanes.regs.add(c as usize));
        if mask == u32::MAX {
            let (a, b, c) = (all::<A>(a), all::<B>(b), all::<C>(c));
            write_all(d, |lane| f(a[lane], b[lane], c[lane]));
        } else {
            each!(mask, lane, { D::store(d, lane, f(A::load(a, lane), B::load(b, lane), C::load(c, lane))) });
        }
    })
}

/// A predicate of two values, joined with another where there is one.
pub fn compare<T: Val + 'static>(
    d: [Option<u32>; 2],
    [a, b]: [u32; 2],
    join: Option<(Join, u32, bool)>,
    f: impl Fn(T, T) -> bool + Send + Sync + 'static,
) -> Exec {
    Box::new(move |lanes, mask| unsafe {
        let (a, b) = (lanes.regs.add(a as usize), lanes.regs.add(b as usize));
        let mut found = 0u32;
        each!(mask, lane, { found |= u32::from(f(T::load(a, lane), T::load(b, lane))) << lane });
        let (mut yes, mut no) = (found, !found);
        if let Some((join, c, negated)) = join {
            let c = lanes.pred(c, negated);
            (yes, no) = match join {
                Join::And => (yes & c, no & c),
                Join::Or => (yes | c, no | c),
                Join::Xor => (yes ^ c, no ^ c),
            };
        }
        if let Some(d) = d[0] {
            lanes.set_pred(d, mask, yes);
        }
        if let Some(d) = d[1] {
            lanes.set_pred(d, mask, no);
        }
    })
}

#[derive(Clone, Copy)]
pub enum Join {
    And,
    Or,
    Xor,
}
pub fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0f32.copysign(value) } else { value }
}

pub fn saturate(value: f32) -> f32 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) }
}

/// Closures for floats of one width, with `.ftz` and `.sat`.
macro_rules! float_bin {
    ($regs:expr, $has:expr, $f:expr) => {{
        let f = $f;
        if $has("sat") {
            binary::<f32, f32, f32>($regs, move |a, b| saturate(f(a, b)))
        } else if $has("ftz") {
            binary::<f32, f32, f32>($regs, move |a, b| flush(f(flush(a), flush(b))))
        } else {
            binary::<f32, f32, f32>($regs, f)
        }
    }};
}
pub(crate) use float_bin;

pub fn half_bin<H: Half + 'static>(
    regs: [u32; 3],
    pair: bool,
    f: impl Fn(f32, f32) -> f32 + Send + Sync + 'static,
) -> Exec
where
    Pair<H>: Val,
{
    if pair {
        binary::<Pair<H>, Pair<H>, Pair<H>>(regs, move |a, b| {
            Pair(H::narrow(f(a.0.wide(), b.0.wide())), H::narrow(f(a.1.wide(), b.1.wide())))
        })
    } else {
        binary::<H, H, H>(regs, move |a, b| H::narrow(f(a.wide(), b.wide())))
    }
}

pub fn half_un<H: Half + 'static>(d: u32, a: u32, pair: bool, f: impl Fn(f32) -> f32 + Send + Sync + 'static) -> Exec
where
    Pair<H>: Val,
{
    if pair {
        unary::<Pair<H>, Pair<H>>(d, a, move |a| Pair(H::narrow(f(a.0.wide())), H::narrow(f(a.1.wide()))))
    } else {
        unary::<H, H>(d, a, move |a| H::narrow(f(a.wide())))
    }
}

pub fn half_fma<H: Half + 'static>(regs: [u32; 4], pair: bool, relu: bool) -> Exec
where
    Pair<H>: Val,
{
    // The product of two halves is exact in f64, and so is nearly every sum.
    let f = move |a: f32, b: f32, c: f32| {
        let exact = f64::from(a) * f64::from(b) + f64::from(c);
        let exact = if relu && exact < 0.0 { 0.0 } else { exact };
        exact as f32
    };
    if pair {
        ternary::<Pair<H>, Pair<H>, Pair<H>, Pair<H>>(regs, move |a, b, c| {
            Pair(H::narrow(f(a.0.wide(), b.0.wide(), c.0.wide())), H::narrow(f(a.1.wide(), b.1.wide(), c.1.wide())))
        })
    } else {
        ternary::<H, H, H, H>(regs, move |a, b, c| H::narrow(f(a.wide(), b.wide(), c.wide())))
    }
}
