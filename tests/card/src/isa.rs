//! PTX instructions as closures over the 32 lanes of a warp.
//!
//! A function is translated once, when it is first launched. An instruction that is not supported refuses the launch: nothing is skipped.

mod arithmetic;
mod atomic;
mod bits;
pub mod build;
mod compare;
mod convert;
mod dispatch;
pub mod lanewise;
mod memory;
mod select;
mod warp;

use std::collections::HashMap;

use crate::exec::Lanes;
use crate::isa::build::Build;
use crate::ptx::{Class, Func, Item, Program, Statement};

pub type Result<T> = std::result::Result<T, String>;

/// Executes an instruction for the lanes of a mask.
pub type Exec = Box<dyn Fn(&mut Lanes, u32) + Send + Sync>;

/// Effect of an instruction on the scheduling of its warp.
pub enum Kind {
    Plain(Exec),
    /// All lanes of a mask execute together. The register holds the mask; without one, it is all live lanes.
    Converged(Exec, Option<u32>),
    /// A test that may have to be repeated: `mbarrier.try_wait`.
    Poll(Exec),
    Branch(usize),
    Exit,
    /// Registers of the barrier's number and of its number of threads.
    Barrier(u32, Option<u32>),
}

pub struct Inst {
    /// Register of the predicate, and whether it is negated.
    pub guard: Option<(u32, bool)>,
    pub kind: Kind,
    pub line: usize,
    pub text: String,
    /// Registers that a `wgmma` of the function uses, and whether this instruction, another one, writes them.
    pub watched: Box<[(u32, bool)]>,
}

/// A translated function.
pub struct Code {
    pub insts: Vec<Inst>,
    /// Bytes of registers of a warp.
    pub register_bytes: usize,
    pub consts: Vec<(u32, Class, u64)>,
    pub specials: Vec<(u32, String)>,
    pub shared: usize,
    pub local: usize,
    /// Number of registers that `wgmma` uses.
    pub watched: usize,
    /// True if its blocks must run in order, as they may see each other.
    pub ordered: bool,
}

impl std::fmt::Debug for Code {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} instructions", self.insts.len())
    }
}

/// Translates a function.
pub fn compile(program: &Program, func: &Func) -> Result<Code> {
    let mut build = Build::new(program, func);
    let mut labels = HashMap::new();
    let mut count = 0;
    for item in &func.items {
        match item {
            Item::Label(name) => drop(labels.insert(name.clone(), count)),
            Item::Inst(_) => count += 1,
            _ => {}
        }
    }
    let mut insts = Vec::with_capacity(count);
    let mut touched = Vec::with_capacity(count);
    for item in &func.items {
        match item {
            Item::Open => build.scopes.push(HashMap::new()),
            Item::Close => drop(build.scopes.pop()),
            Item::Reg(name, class) => {
                let at = build.slot(*class);
                build.scopes.last_mut().ok_or("scopes")?.insert(name.clone(), (at, *class));
            }
            Item::Label(_) => {}
            Item::Inst(statement) => {
                let guard = match &statement.guard {
                    Some((name, negated)) => {
                        Some((build.find(name).ok_or_else(|| format!("guard {name}"))?.0, *negated))
                    }
                    None => None,
                };
                let text = statement.op.join(".");
                let kind = dispatch::translate(&mut build, statement, &labels)
                    .map_err(|why| format!("line {}: {text} {:?}: {why}", statement.line, statement.operands))?;
                // `wgmma` looks after its registers itself.
                let own = std::mem::take(&mut build.touched);
                touched.push(if statement.op[0] == "wgmma" { Vec::new() } else { own });
                insts.push(Inst { guard, kind, line: statement.line, text, watched: Box::default() });
            }
        }
    }
    let text = "end".to_owned();
    insts.push(Inst { guard: None, kind: Kind::Exit, line: 0, text, watched: Box::default() });
    for (inst, touched) in insts.iter_mut().zip(touched).filter(|_| !build.watched.is_empty()) {
        let known = touched.iter().filter_map(|(at, written)| Some((*build.watched.get(at)?, *written)));
        inst.watched = known.collect();
    }
    let consts = build.consts.iter().map(|((class, value), at)| (*at, *class, *value)).collect();
    let specials = build.specials.iter().map(|(name, at)| (*at, name.clone())).collect();
    Ok(Code {
        insts,
        register_bytes: build.next as usize,
        consts,
        specials,
        shared: func.shared,
        local: func.local,
        watched: build.watched.len(),
        ordered: func.items.iter().any(|item| matches!(item, Item::Inst(statement) if meets_blocks(statement))),
    })
}

/// Returns whether an instruction has one of some words. `shared::cta` counts as `shared`.
fn has_any(inst: &Statement, words: &[&str]) -> bool {
    inst.op.iter().any(|part| words.contains(&part.split("::").next().unwrap_or("")))
}

/// Returns whether other threads may make the same access at the same time, for a load or a store. `mmio` stands with `relaxed`.
fn unordered(inst: &Statement) -> bool {
    has_any(inst, &["volatile", "relaxed", "acquire", "release"])
}

/// Returns whether an instruction lets blocks see each other: atomics, and loads and stores of the kinds that look for words of other
/// threads, unless they are of shared memory.
fn meets_blocks(inst: &Statement) -> bool {
    let meets = unordered(inst) || has_any(inst, &["cv", "wt"]) || matches!(inst.op[0].as_str(), "atom" | "red");
    meets && !has_any(inst, &["shared"]) && !matches!(inst.op[0].as_str(), "mbarrier" | "fence" | "membar")
}
