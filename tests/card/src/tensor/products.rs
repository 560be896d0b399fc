//! Products by `wgmma` that a warp has issued and not waited for.
//!
//! They read their operands and write their sums as late as they may: when the warp waits for them. Until then, other instructions
//! must leave their registers alone, and `wgmma.fence` must stand between such an instruction and a `wgmma` that uses the same
//! register. Sums that several `wgmma` of one shape add up are in order by themselves.

use std::sync::Arc;

use super::wgmma::Shape;
use crate::copies::Pending;
use crate::exec::Lanes;
use crate::isa::Inst;
use crate::races::Moment;

/// A product that is under way.
pub struct Product {
    pub shape: Arc<Shape>,
    /// Descriptor of the left matrix, unless registers hold it.
    pub left: u64,
    pub right: u64,
    /// True if it adds to the sums.
    pub adds: bool,
    /// Clocks of the warp when it issued the product; none without a search for races.
    pub moment: Option<Box<Moment>>,
}

/// Uses of a register.
#[derive(Debug, Clone, Copy, Default)]
struct Register {
    /// Products under way that write it.
    sums: u32,
    /// Products under way that read it as a part of their left matrix.
    parts: u32,
    /// True if another instruction has used it since the last `wgmma.fence`.
    touched: bool,
    /// Columns of the `wgmma` that have written it since the last `wgmma.fence`.
    columns: usize,
}

/// Products of a warp, and their registers.
pub struct Products {
    pub pending: Pending<Product>,
    /// Number of `wgmma` so far.
    pub issued: u64,
    registers: Vec<Register>,
    fenced: bool,
}

impl Products {
    pub fn new(registers: usize) -> Self {
        Self { pending: Pending::default(), issued: 0, registers: vec![Register::default(); registers], fenced: false }
    }

    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// `wgmma.fence`.
    pub fn fence(&mut self) {
        self.fenced = true;
        for register in &mut self.registers {
            (register.touched, register.columns) = (false, 0);
        }
    }

    /// Adds a product; `why` its registers are not in order.
    pub fn issue(&mut self, product: Product) -> Option<&'static str> {
        let mut why = (!self.fenced).then_some("stands before the first wgmma.fence");
        let columns = product.shape.columns;
        for number in &product.shape.sums_watched {
            let register = &mut self.registers[*number as usize];
            if register.touched || (register.columns != 0 && register.columns != columns) {
                why = why.or(Some("adds to registers that were used before, without wgmma.fence"));
            }
            if register.parts > 0 {
                why = why.or(Some("writes registers that a wgmma under way reads"));
            }
            register.columns = columns;
            register.sums += 1;
        }
        for number in &product.shape.left_watched {
            let register = &mut self.registers[*number as usize];
            if register.touched || register.columns != 0 {
                why = why.or(Some("reads registers that were used before, without wgmma.fence"));
            }
            if register.sums > 0 {
                why = why.or(Some("reads registers that a wgmma under way writes"));
            }
            register.parts += 1;
        }
        self.issued += 1;
        self.pending.open.push(product);
        why
    }

    /// A product is complete.
    fn retire(&mut self, shape: &Shape) {
        for number in &shape.sums_watched {
            self.registers[*number as usize].sums -= 1;
        }
        for number in &shape.left_watched {
            self.registers[*number as usize].parts -= 1;
        }
    }
}

impl Lanes {
    /// Notes that an instruction other than `wgmma` uses registers of `wgmma`.
    pub fn touch_registers(&mut self, inst: &Inst) {
        let mut under_way = false;
        for (number, written) in &inst.watched {
            let register = &mut self.products.registers[*number as usize];
            under_way |= register.sums > 0 || (*written && register.parts > 0);
            register.touched = true;
        }
        if under_way {
            self.note(format!("line {}: {} uses a register of a wgmma that was not waited for", inst.line, inst.text));
        }
    }

    /// Completes products until at most `leave` groups are under way.
    pub fn wait_for_products(&mut self, leave: usize) {
        while let Some(group) = self.products.pending.next_group(leave) {
            for product in group {
                let shape = Arc::clone(&product.shape);
                shape.multiply(self, &product);
                self.products.retire(&shape);
            }
        }
    }
}
