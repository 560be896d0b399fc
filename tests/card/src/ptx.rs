//! PTX as statements: functions, registers, symbols and instructions with their operands.

mod parse;
mod text;

use std::collections::HashMap;

pub use parse::parse;

#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// A name: register, special register, symbol or label.
    Name(String),
    /// `!%p1`
    Not(String),
    Int(i64),
    F32(u32),
    F64(u64),
    /// `[base+offset]`, or `[base, {coordinates}]`
    Address(String, i64, Vec<Operand>),
    Vector(Vec<Operand>),
    /// `%p1|%p2`
    Pair(Box<Operand>, Box<Operand>),
    Sink,
}

#[derive(Debug, Clone)]
pub struct Statement {
    pub guard: Option<(String, bool)>,
    /// `ld.global.v4.f32` in its parts.
    pub op: Vec<String>,
    pub operands: Vec<Operand>,
    pub line: usize,
}

impl Statement {
    /// Opcode and modifiers, the type behind them, and the operands.
    pub fn parts(&self) -> (Vec<&str>, &str, &[Operand]) {
        let op: Vec<&str> = self.op.iter().map(String::as_str).collect();
        let kind = op.last().copied().unwrap_or("");
        (op, kind, &self.operands)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    Pred,
    B16,
    B32,
    B64,
    B128,
}

#[derive(Debug, Clone)]
pub struct Symbol {
    pub space: String,
    pub offset: usize,
    pub size: usize,
}

#[derive(Debug, Clone)]
pub enum Item {
    Label(String),
    Inst(Statement),
    Reg(String, Class),
    Open,
    Close,
}

#[derive(Debug)]
pub struct Func {
    pub name: String,
    pub items: Vec<Item>,
    pub params: HashMap<String, usize>,
    pub symbols: HashMap<String, Symbol>,
    pub shared: usize,
    pub local: usize,
}

#[derive(Debug)]
pub struct Program {
    pub funcs: Vec<Func>,
    pub compiled: Vec<std::sync::OnceLock<Result<crate::isa::Code, String>>>,
    /// Bytes of the variables at module scope.
    pub image: Vec<u8>,
    pub symbols: HashMap<String, Symbol>,
    /// Alignment of dynamic shared memory that the module declares.
    pub dynamic_align: usize,
}

impl Program {
    pub fn code(&self, name: &str) -> Result<&crate::isa::Code, String> {
        let at = self.funcs.iter().position(|func| func.name == name).ok_or("no such entry")?;
        self.compiled[at].get_or_init(|| crate::isa::compile(self, &self.funcs[at])).as_ref().map_err(Clone::clone)
    }
}

fn class(kind: &str) -> Result<Class, String> {
    Ok(match kind {
        "pred" => Class::Pred,
        "b8" | "u8" | "s8" | "b16" | "u16" | "s16" | "f16" | "bf16" => Class::B16,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" | "tf32" => Class::B32,
        "b64" | "u64" | "s64" | "f64" => Class::B64,
        "b128" => Class::B128,
        other => return Err(format!("register type {other}")),
    })
}

pub fn size(kind: &str) -> usize {
    match kind {
        "b8" | "u8" | "s8" | "e4m3" | "e5m2" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b64" | "u64" | "s64" | "f64" => 8,
        "b128" => 16,
        _ => 4,
    }
}
