//! Registers, constants and addresses of a function while it is translated.

use std::collections::HashMap;

use super::Result;
use crate::exec::{Lanes, PARAM_WINDOW, Space};
use crate::half::{Val, WARP};
use crate::ptx::{Class, Func, Operand, Program, size};

/// State of a translation.
pub struct Build<'a> {
    program: &'a Program,
    func: &'a Func,
    pub scopes: Vec<HashMap<String, (u32, Class)>>,
    pub next: u32,
    pub consts: HashMap<(Class, u64), u32>,
    pub specials: HashMap<String, u32>,
    /// Registers of the instruction that is translated, and whether it writes them.
    pub touched: Vec<(u32, bool)>,
    /// Number of each register that `wgmma` uses, by its place.
    pub watched: HashMap<u32, u32>,
}

fn bytes(class: Class) -> u32 {
    match class {
        Class::Pred => 8,
        Class::B16 | Class::B32 => 4 * WARP as u32,
        Class::B64 => 8 * WARP as u32,
        Class::B128 => 16 * WARP as u32,
    }
}

impl<'a> Build<'a> {
    pub fn new(program: &'a Program, func: &'a Func) -> Self {
        let (scopes, consts, specials) = (vec![HashMap::new()], HashMap::new(), HashMap::new());
        let (touched, watched) = (Vec::new(), HashMap::new());
        Self { program, func, scopes, next: 0, consts, specials, touched, watched }
    }

    /// Registers of an instruction whose operands have one class: destination and up to three sources.
    pub fn regs(&mut self, args: &[Operand], class: Class) -> Result<[u32; 4]> {
        let mut regs = [0; 4];
        for (index, arg) in args.iter().enumerate().take(4) {
            regs[index] = if index == 0 { self.reg(arg)?.0 } else { self.src(arg, class)? };
        }
        Ok(regs)
    }

    pub fn slot(&mut self, class: Class) -> u32 {
        let at = self.next.next_multiple_of(if class == Class::Pred { 8 } else { 64 });
        self.next = at + bytes(class);
        at
    }

    pub fn constant(&mut self, class: Class, value: u64) -> u32 {
        if let Some(at) = self.consts.get(&(class, value)) {
            return *at;
        }
        let at = self.slot(class);
        self.consts.insert((class, value), at);
        at
    }

    pub fn find(&self, name: &str) -> Option<(u32, Class)> {
        self.scopes.iter().rev().find_map(|scope| scope.get(name).copied())
    }

    fn special(&mut self, name: &str) -> Option<(u32, Class)> {
        let wide = matches!(name, "%clock64" | "%globaltimer" | "%gridid");
        let known = [
            "%tid.",
            "%ntid.",
            "%ctaid.",
            "%nctaid.",
            "%laneid",
            "%warpid",
            "%nwarpid",
            "%lanemask",
            "%clock",
            "%globaltimer",
            "%smid",
            "%nsmid",
            "%gridid",
            "%dynamic_smem_size",
            "%total_smem_size",
            "%cluster",
            "%ncluster",
            "%is_explicit",
        ];
        if !known.iter().any(|prefix| name.starts_with(prefix)) {
            return None;
        }
        let class = if wide { Class::B64 } else { Class::B32 };
        if let Some(at) = self.specials.get(name) {
            return Some((*at, class));
        }
        let at = self.slot(class);
        self.specials.insert(name.to_owned(), at);
        Some((at, class))
    }

    pub fn special_register(&mut self, name: &str) -> u32 {
        self.special(name).map_or(0, |(at, _)| at)
    }

    /// Numbers registers that `wgmma` uses.
    pub fn watch(&mut self, regs: &[u32]) -> Vec<u32> {
        regs.iter()
            .map(|at| {
                let next = self.watched.len() as u32;
                *self.watched.entry(*at).or_insert(next)
            })
            .collect()
    }

    /// The address of a symbol, in its space.
    fn symbol(&self, name: &str) -> Option<(u64, Space)> {
        if let Some(symbol) = self.func.symbols.get(name) {
            let space = if symbol.space == "shared" { Space::Shared } else { Space::Local };
            let base = if space == Space::Shared { crate::exec::SHARED_FIRST } else { 0 };
            return Some((base + symbol.offset as u64, space));
        }
        if let Some(offset) = self.func.params.get(name) {
            return Some((*offset as u64, Space::Param));
        }
        let symbol = self.program.symbols.get(name)?;
        Some(match symbol.space.as_str() {
            "dynamic" => (crate::exec::dynamic_first(self.func.shared, self.program.dynamic_align), Space::Shared),
            _ => (self.program.image.as_ptr() as u64 + symbol.offset as u64, Space::Global),
        })
    }

    pub fn reg(&mut self, operand: &Operand) -> Result<(u32, Class)> {
        match operand {
            Operand::Name(name) => {
                let found = self.find(name).or_else(|| self.special(name));
                let found = found.ok_or_else(|| format!("unknown register {name}"))?;
                self.touched.push((found.0, true));
                Ok(found)
            }
            Operand::Sink => Ok((self.slot(Class::B64), Class::B64)),
            other => Err(format!("{other:?} is no register")),
        }
    }

    /// A value to read.
    pub fn src(&mut self, operand: &Operand, class: Class) -> Result<u32> {
        match operand {
            Operand::Int(value) => Ok(self.constant(
                class,
                match class {
                    Class::Pred => {
                        if *value != 0 {
                            u64::from(u32::MAX)
                        } else {
                            0
                        }
                    }
                    Class::B16 => *value as u64 & 0xFFFF,
                    Class::B32 => *value as u64 & 0xFFFF_FFFF,
                    _ => *value as u64,
                },
            )),
            Operand::F32(bits) => Ok(self.constant(class, u64::from(*bits))),
            Operand::F64(bits) => Ok(self.constant(class, *bits)),
            Operand::Name(name) => {
                if let Some((at, _)) = self.find(name) {
                    self.touched.push((at, false));
                    return Ok(at);
                }
                if let Some((at, _)) = self.special(name) {
                    return Ok(at);
                }
                if name == "WARP_SZ" {
                    return Ok(self.constant(class, WARP as u64));
                }
                let (address, space) = self.symbol(name).ok_or_else(|| format!("unknown name {name}"))?;
                // `mov` of a symbol gives its address in its space; that of a parameter is only good for `cvta.param`.
                let address = if space == Space::Param { address + PARAM_WINDOW } else { address };
                Ok(self.constant(class, address))
            }
            Operand::Address(name, offset, _) => {
                let (address, _) = self.symbol(name).ok_or_else(|| format!("unknown name {name}"))?;
                Ok(self.constant(class, address.wrapping_add(*offset as u64)))
            }
            other => Err(format!("{other:?} is no value")),
        }
    }

    pub fn pred(&mut self, operand: &Operand) -> Result<(u32, bool)> {
        match operand {
            Operand::Not(name) => Ok((self.find(name).ok_or("unknown predicate")?.0, true)),
            other => Ok((self.src(other, Class::Pred)?, false)),
        }
    }

    /// Base (register of 32 or 64 bits, or none), whether it is wide, and what is added.
    pub fn address(&mut self, operand: &Operand) -> Result<Address> {
        let Operand::Address(base, offset, more) = operand else {
            return Err(format!("{operand:?} is no address"));
        };
        if let Some((at, class)) = self.find(base) {
            return Ok(Address {
                base: Some((at, class == Class::B64)),
                add: *offset as u64,
                space: None,
                more: more.clone(),
            });
        }
        if let Ok(value) = base.parse::<u64>() {
            return Ok(Address {
                base: None,
                add: value.wrapping_add(*offset as u64),
                space: None,
                more: more.clone(),
            });
        }
        let (address, space) = self.symbol(base).ok_or_else(|| format!("unknown name {base}"))?;
        Ok(Address { base: None, add: address.wrapping_add(*offset as u64), space: Some(space), more: more.clone() })
    }
}

pub struct Address {
    pub base: Option<(u32, bool)>,
    pub add: u64,
    pub space: Option<Space>,
    pub more: Vec<Operand>,
}

/// An address for each lane.
#[derive(Clone, Copy)]
pub struct At {
    base: Option<(u32, bool)>,
    add: u64,
}

impl At {
    #[inline(always)]
    pub fn get(self, lanes: &Lanes, lane: usize) -> u64 {
        match self.base {
            // SAFETY: a register of that width.
            Some((at, true)) => unsafe { u64::load(lanes.regs.add(at as usize), lane) }.wrapping_add(self.add),
            Some((at, false)) => {
                u64::from(unsafe { u32::load(lanes.regs.add(at as usize), lane) }.wrapping_add(self.add as u32))
            }
            None => self.add,
        }
    }
}

impl Address {
    pub fn at(&self) -> At {
        At { base: self.base, add: self.add }
    }
}

/// Class of the register that holds a value of a type.
pub fn class_of(kind: &str) -> Class {
    match size(kind) {
        1 | 2 => Class::B16,
        8 => Class::B64,
        16 => Class::B128,
        _ => Class::B32,
    }
}

/// State space of a memory instruction.
pub fn space_of(op: &[String], address: &Address) -> Space {
    for word in op {
        if let Some(space) = match word.split("::").next().unwrap_or("") {
            "global" => Some(Space::Global),
            "const" => Some(Space::Global),
            "shared" => Some(Space::Shared),
            "local" => Some(Space::Local),
            "param" => Some(Space::Param),
            _ => None,
        } {
            return space;
        }
    }
    // A generic access through a symbol's name is one to its space.
    address.space.unwrap_or(Space::Generic)
}
