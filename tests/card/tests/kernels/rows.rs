//! Norms, pooling and patches.

use crate::card::{Arg, Card};
use crate::nvrtc::Source;
use crate::values::{check, noise};

const EPSILON: f32 = 1e-6;

fn normalised<T: Copy + Into<f64>>(row: &[T], weight: &[f32], bias: &[f32]) -> Vec<f64> {
    let count = row.len() as f64;
    let mean = row.iter().map(|value| (*value).into()).sum::<f64>() / count;
    let variance = row.iter().map(|value| ((*value).into() - mean).powi(2)).sum::<f64>() / count;
    let factor = 1.0 / (variance + f64::from(EPSILON)).sqrt();
    let scaled = row.iter().zip(weight).zip(bias);
    scaled
        .map(|((value, weight), bias)| ((*value).into() - mean) * factor * f64::from(*weight) + f64::from(*bias))
        .collect()
}

fn norm(hidden: usize) -> Source {
    Source::new(&["card/common.cu", "model/kernels/row.cu", "model/kernels/norm.cu"], &[("HIDDEN", hidden as u32)])
}

#[test]
fn norms_are_right_for_all_widths() {
    for hidden in [8, 64, 192, 384, 768, 1000, 1024, 1408, 1536, 2048] {
        let rows = 11;
        let (states, weight, bias) = (noise(1, rows * hidden), noise(2, hidden), noise(3, hidden));
        let mut card = Card::new();
        let (from, w, b) = (card.bf16(&states), card.f32(&weight), card.f32(&bias));
        // In place.
        let args = [
            Arg::Pointer(from),
            Arg::Pointer(w),
            Arg::Pointer(b),
            Arg::Pointer(from),
            Arg::Info(vec![rows as u32, EPSILON.to_bits(), hidden as u32, 0]),
        ];
        card.run(&norm(hidden), rows.div_ceil(8), 256, 0, &args);
        let exact: Vec<f64> = states.chunks(hidden).flat_map(|row| normalised(row, &weight, &bias)).collect();
        check(&format!("norm of {hidden}"), &card.read(from, rows * hidden), &exact, 1e-5);
    }
}

#[test]
fn norms_take_rows_that_lie_apart() {
    let (rows, hidden, pitch) = (11, 192, 5 * 192);
    let (states, weight, bias) = (noise(1, rows * pitch), noise(2, hidden), noise(3, hidden));
    let mut card = Card::new();
    let (from, w, b, out) = (card.bf16(&states), card.f32(&weight), card.f32(&bias), card.results(rows * hidden));
    let info = Arg::Info(vec![rows as u32, EPSILON.to_bits(), pitch as u32, 0]);
    let [from, w, b, to] = [from, w, b, out].map(Arg::Pointer);
    card.run(&norm(hidden), rows.div_ceil(8), 256, 0, &[from, w, b, to, info]);
    let exact: Vec<f64> = states.chunks(pitch).flat_map(|row| normalised(&row[..hidden], &weight, &bias)).collect();
    check("norm of rows apart", &card.read(out, rows * hidden), &exact, 1e-5);
}

#[test]
fn pools_are_right() {
    for (hidden, tokens, leading) in [(64, 17, 1), (768, 6, 5), (1536, 10, 2), (192, 4, 0)] {
        for pooling in 0..6 {
            let images = 3;
            let parts = if [2, 5].contains(&pooling) { 2 } else { 1 };
            let (column, pitch) = (8, hidden * parts + 16);
            let (states, weight, bias) = (noise(1, images * tokens * hidden), noise(2, hidden), noise(3, hidden));
            let mut card = Card::new();
            let (from, w, b, out) =
                (card.bf16(&states), card.f32(&weight), card.f32(&bias), card.bf16(&vec![0.5; images * pitch]));
            let source = Source::new(
                &["card/common.cu", "model/kernels/row.cu", "model/kernels/pool.cu"],
                &[("HIDDEN", hidden as u32), ("POOLING", pooling)],
            );
            let info = [tokens as u32, leading as u32, pitch as u32, column as u32, EPSILON.to_bits(), 0];
            let pointers = [from, w, b, out].map(Arg::Pointer);
            card.run(
                &source,
                images,
                128,
                0,
                &[pointers.into_iter().collect::<Vec<_>>(), vec![Arg::Info(info.to_vec())]]
                    .into_iter()
                    .flatten()
                    .collect::<Vec<_>>(),
            );
            let mut exact = Vec::new();
            for image in states.chunks(tokens * hidden) {
                let rows: Vec<Vec<f64>> = image
                    .chunks(hidden)
                    .map(|row| {
                        if pooling >= 3 {
                            row.iter().map(|value| f64::from(*value)).collect()
                        } else {
                            normalised(row, &weight, &bias)
                        }
                    })
                    .collect();
                let mut mean: Vec<f64> = (0..hidden)
                    .map(|at| rows[leading..].iter().map(|row| row[at]).sum::<f64>() / (tokens - leading) as f64)
                    .collect();
                if pooling >= 4 {
                    mean = normalised(&mean, &weight, &bias);
                }
                exact.extend([0.5; 8]);
                if pooling == 0 || pooling == 2 {
                    exact.extend(&rows[0]);
                } else if pooling == 5 {
                    exact.extend(normalised(&rows[0], &weight, &bias));
                }
                if pooling != 0 {
                    exact.extend(mean);
                }
                exact.extend([0.5; 8]);
            }
            check(&format!("pooling {pooling} of {tokens} × {hidden}"), &card.read(out, images * pitch), &exact, 1e-5);
        }
    }
}

#[test]
fn patches_are_cut_and_normalised() {
    for (side, patch, pitch, leading) in [(32, 16, 768, 1), (30, 14, 640, 5), (9, 4, 64, 0)] {
        let (images, grid, hidden) = (3, side / patch, 64);
        let tokens = leading + grid * grid;
        let pixels: Vec<u8> = (0..images * side * side * 3).map(|at| (at * 37 % 251) as u8).collect();
        let first = noise(5, leading.max(1) * hidden);
        let (scale, shift) = ([0.01_f32, 0.02, 0.03], [-1.0_f32, 0.5, 0.25]);
        let mut card = Card::new();
        let (from, lead) = (card.bytes(&pixels), card.f32(&first));
        let (out, states) =
            (card.results(images * grid * grid * pitch), card.bf16(&vec![0.5; images * tokens * hidden]));
        let mut info: Vec<u32> =
            [images, side, patch, grid, pitch, hidden, leading, tokens].map(|size| size as u32).to_vec();
        info.extend(scale.iter().chain(&shift).map(|value| value.to_bits()));
        let threads = images * grid * grid * pitch / 8 + images * leading * hidden / 8;
        let source = Source::new(&["card/common.cu", "model/kernels/patches.cu"], &[]);
        let mut args: Vec<Arg> = [from, lead, out, states].into_iter().map(Arg::Pointer).collect();
        args.push(Arg::Info(info));
        card.run(&source, threads.div_ceil(256), 256, 0, &args);
        let mut exact = Vec::new();
        for cell in 0..images * grid * grid {
            let (image, y, x) = (cell / (grid * grid), cell / grid % grid, cell % grid);
            for at in 0..pitch {
                let (line, column, channel) = (at / (3 * patch), at / 3 % patch, at % 3);
                let pixel = ((image * side + y * patch + line) * side + x * patch + column) * 3 + channel;
                exact.push(if line < patch {
                    f64::from(pixels[pixel]) * f64::from(scale[channel]) + f64::from(shift[channel])
                } else {
                    0.0
                });
            }
        }
        check(&format!("patches of {patch}"), &card.read(out, exact.len()), &exact, 1e-6);
        let expected: Vec<f64> = (0..images * tokens * hidden)
            .map(|at| if at / hidden % tokens < leading { f64::from(first[at % (tokens * hidden)]) } else { 0.5 })
            .collect();
        check("leading tokens", &card.read(states, expected.len()), &expected, 0.0);
    }
}
