//! A JPEG writer for every layout that the specification allows: sampling, scans, restart intervals, progression.
//!
//! It writes a smooth image, so that any upsampling of colours gives nearly the same pixels. All scans use one Huffman
//! table, in which a symbol is its own code.

use std::f64::consts::PI;

/// Natural order of the coefficients in zigzag order.
#[rustfmt::skip]
const ZIGZAG: [usize; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// Step of every quantisation table.
const STEP: f64 = 4.0;

/// A scan: components, first and last coefficient, bit positions before and after.
#[derive(Clone, Debug)]
pub(super) struct Scan {
    pub(super) components: Vec<usize>,
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) high: u32,
    pub(super) low: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) width: usize,
    pub(super) height: usize,
    /// Sampling factors of each component.
    pub(super) sampling: Vec<(usize, usize)>,
    pub(super) progressive: bool,
    pub(super) scans: Vec<Scan>,
    /// Units between restart markers; 0 for none.
    pub(super) restart: usize,
    /// Identifiers of the components.
    pub(super) ids: Vec<u8>,
}

/// Value of a component at a position in the image, whose sides have length 1.
fn shade(component: usize, x: f64, y: f64) -> f64 {
    match component {
        0 => 128.0 + 70.0 * (PI * x).cos() * (PI * y * 0.8).cos(),
        1 => 128.0 + 40.0 * (PI * (x + y) * 0.7).cos(),
        _ => 128.0 + 40.0 * (PI * (x - y) * 0.7).sin(),
    }
}

impl Layout {
    fn most(&self) -> (usize, usize) {
        let (across, down) = (self.sampling.iter().map(|(h, _)| *h), self.sampling.iter().map(|(_, v)| *v));
        (across.max().unwrap_or(1), down.max().unwrap_or(1))
    }

    /// Units of the image, each of which holds as many blocks of a component as its factors say.
    fn units(&self) -> (usize, usize) {
        let (h, v) = self.most();
        (self.width.div_ceil(8 * h), self.height.div_ceil(8 * v))
    }

    /// Returns the quantised coefficients of each block of a component in zigzag order, for complete units.
    fn blocks(&self, component: usize) -> Vec<Vec<[i32; 64]>> {
        let ((h, v), (most_h, most_v)) = (self.sampling[component], self.most());
        let (across, down) = self.units();
        let (scale_x, scale_y) = (most_h as f64 / h as f64, most_v as f64 / v as f64);
        let sample = |x: usize, y: usize| {
            let x = ((x as f64 + 0.5) * scale_x / self.width as f64).min(1.0);
            let y = ((y as f64 + 0.5) * scale_y / self.height as f64).min(1.0);
            shade(component, x, y) - 128.0
        };
        let cosine = |at: usize, frequency: usize| ((2 * at + 1) as f64 * frequency as f64 * PI / 16.0).cos();
        let norm = |frequency: usize| if frequency == 0 { 0.125_f64.sqrt() } else { 0.5 };
        let block = |column: usize, row: usize| {
            let mut rows = [[0.0; 8]; 8];
            for (y, line) in rows.iter_mut().enumerate() {
                for (u, sum) in line.iter_mut().enumerate() {
                    *sum = norm(u) * (0..8).map(|x| sample(8 * column + x, 8 * row + y) * cosine(x, u)).sum::<f64>();
                }
            }
            ZIGZAG.map(|at| {
                let (u, v) = (at % 8, at / 8);
                let sum = norm(v) * (0..8).map(|y| rows[y][u] * cosine(y, v)).sum::<f64>();
                (sum / STEP).round() as i32
            })
        };
        (0..down * v).map(|row| (0..across * h).map(|column| block(column, row)).collect()).collect()
    }

    /// Returns the RGB of the source image.
    pub(super) fn pixels(&self) -> Vec<u8> {
        let places = (0..self.height).flat_map(|y| (0..self.width).map(move |x| (x, y)));
        let pixel = |(x, y): (usize, usize)| {
            let (x, y) = ((x as f64 + 0.5) / self.width as f64, (y as f64 + 0.5) / self.height as f64);
            let luma = shade(0, x, y);
            let (cb, cr) =
                if self.sampling.len() == 1 { (0.0, 0.0) } else { (shade(1, x, y) - 128.0, shade(2, x, y) - 128.0) };
            [luma + 1.402 * cr, luma - 0.344_136 * cb - 0.714_136 * cr, luma + 1.772 * cb]
                .map(|value| value.round().clamp(0.0, 255.0) as u8)
        };
        places.flat_map(pixel).collect()
    }

    /// Writes the file. Returns it with the offset and length of the data of its last scan.
    pub(super) fn write(&self) -> (Vec<u8>, (usize, usize)) {
        let mut out = vec![0xff, 0xd8];
        let segment = |marker: u8, body: &[u8]| {
            let mut bytes = vec![0xff, marker];
            bytes.extend((body.len() as u16 + 2).to_be_bytes());
            bytes.extend(body);
            bytes
        };
        out.extend(segment(0xdb, &[&[0][..], &[STEP as u8; 64]].concat()));
        let mut frame = vec![8];
        frame.extend((self.height as u16).to_be_bytes());
        frame.extend((self.width as u16).to_be_bytes());
        frame.push(self.sampling.len() as u8);
        for (id, (h, v)) in self.ids.iter().zip(&self.sampling) {
            frame.extend([*id, (h << 4 | v) as u8, 0]);
        }
        out.extend(segment(if self.progressive { 0xc2 } else { 0xc0 }, &frame));
        for class in [0x00, 0x10] {
            // Symbols 0 to 254 have 9 bits and 255 has 10, so that no code is all ones. A DC table holds 12 symbols at most.
            let symbols: u8 = if class == 0 { 12 } else { 255 };
            let mut table = vec![class, 0, 0, 0, 0, 0, 0, 0, 0, symbols, u8::from(symbols == 255), 0, 0, 0, 0, 0, 0];
            table.extend(0..symbols);
            table.extend((symbols == 255).then_some(255));
            out.extend(segment(0xc4, &table));
        }
        if self.restart > 0 {
            out.extend(segment(0xdd, &(self.restart as u16).to_be_bytes()));
        }
        let blocks: Vec<_> = (0..self.sampling.len()).map(|component| self.blocks(component)).collect();
        let mut place = (0, 0);
        for scan in &self.scans {
            let mut header = vec![scan.components.len() as u8];
            for component in &scan.components {
                header.extend([self.ids[*component], 0]);
            }
            header.extend([scan.first as u8, scan.last as u8, (scan.high << 4 | scan.low) as u8]);
            out.extend(segment(0xda, &header));
            let start = out.len();
            self.write_scan(scan, &blocks, &mut out);
            place = (start, out.len() - start);
        }
        out.extend([0xff, 0xd9]);
        (out, place)
    }

    fn write_scan(&self, scan: &Scan, blocks: &[Vec<Vec<[i32; 64]>>], out: &mut Vec<u8>) {
        let (across, down) = self.units();
        let mut order: Vec<Vec<(usize, &[i32; 64])>> = Vec::new();
        if let [component] = scan.components[..] {
            // A scan of one component has only the blocks that hold pixels, row by row.
            let ((h, v), (most_h, most_v)) = (self.sampling[component], self.most());
            let columns = (self.width * h).div_ceil(8 * most_h);
            for row in &blocks[component][..(self.height * v).div_ceil(8 * most_v)] {
                order.extend(row[..columns].iter().map(|block| vec![(component, block)]));
            }
        } else {
            for (row, column) in (0..down).flat_map(|row| (0..across).map(move |column| (row, column))) {
                let mut unit = Vec::new();
                for component in &scan.components {
                    let (h, v) = self.sampling[*component];
                    for (y, x) in (0..v).flat_map(|y| (0..h).map(move |x| (y, x))) {
                        unit.push((*component, &blocks[*component][row * v + y][column * h + x]));
                    }
                }
                order.push(unit);
            }
        }
        let (mut bits, mut last_dc) = (Bits::default(), vec![0; self.sampling.len()]);
        for (number, unit) in order.iter().enumerate() {
            if self.restart > 0 && number > 0 && number.is_multiple_of(self.restart) {
                bits.flush(out);
                out.extend([0xff, 0xd0 + ((number / self.restart - 1) % 8) as u8]);
                last_dc.fill(0);
            }
            for (component, block) in unit {
                if scan.first == 0 {
                    let dc = block[0] >> scan.low;
                    if scan.high > 0 {
                        bits.push((dc & 1) as u32, 1);
                    } else {
                        bits.value(0, dc - last_dc[*component]);
                        last_dc[*component] = dc;
                    }
                }
                if scan.last > 0 && scan.high > 0 {
                    bits.refine(block, scan);
                } else if scan.last > 0 {
                    bits.coefficients(block, scan);
                }
            }
        }
        bits.flush(out);
    }
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    pending: u32,
    count: u32,
}

impl Bits {
    fn push(&mut self, value: u32, width: u32) {
        for at in (0..width).rev() {
            self.pending = self.pending << 1 | (value >> at & 1);
            self.count += 1;
            if self.count == 8 {
                self.bytes.push(self.pending as u8);
                if self.pending as u8 == 0xff {
                    self.bytes.push(0);
                }
                (self.pending, self.count) = (0, 0);
            }
        }
    }

    fn symbol(&mut self, symbol: u32) {
        if symbol == 255 { self.push(255 << 1, 10) } else { self.push(symbol, 9) }
    }

    /// A symbol of a run and the size of a value, and the value.
    fn value(&mut self, run: u32, value: i32) {
        let size = 32 - value.unsigned_abs().leading_zeros();
        self.symbol(run << 4 | size);
        let value = if value < 0 { value - 1 } else { value };
        self.push(value.cast_unsigned() & ((1 << size) - 1), size);
    }

    fn coefficients(&mut self, block: &[i32; 64], scan: &Scan) {
        let mut run = 0;
        for coefficient in &block[scan.first.max(1)..=scan.last] {
            // Towards zero.
            let value = coefficient / (1 << scan.low);
            if value == 0 {
                run += 1;
                continue;
            }
            while run > 15 {
                self.symbol(0xf0);
                run -= 16;
            }
            self.value(run, value);
            run = 0;
        }
        if run > 0 {
            self.symbol(0);
        }
    }

    /// Corrections of coefficients, and those that become 1 (T.81, G.1.2.3), without runs of empty blocks.
    fn refine(&mut self, block: &[i32; 64], scan: &Scan) {
        let sizes: Vec<i32> = block.iter().map(|value| value.abs() >> scan.low).collect();
        let last_new = (scan.first..=scan.last).rev().find(|at| sizes[*at] == 1).unwrap_or(0);
        let (mut run, mut corrections) = (0, Vec::new());
        for at in scan.first..=scan.last {
            if sizes[at] == 0 {
                run += 1;
                continue;
            }
            while run > 15 && at <= last_new {
                self.symbol(0xf0);
                corrections.drain(..).for_each(|bit| self.push(bit, 1));
                run -= 16;
            }
            if sizes[at] > 1 {
                corrections.push((sizes[at] & 1) as u32);
                continue;
            }
            self.symbol(run << 4 | 1);
            self.push(u32::from(block[at] >= 0), 1);
            corrections.drain(..).for_each(|bit| self.push(bit, 1));
            run = 0;
        }
        if run > 0 || !corrections.is_empty() {
            self.symbol(0);
            corrections.drain(..).for_each(|bit| self.push(bit, 1));
        }
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        while self.count != 0 {
            self.push(1, 1);
        }
        out.append(&mut self.bytes);
    }
}
