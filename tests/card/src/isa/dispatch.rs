//! Chooses the translation of an instruction by its opcode.

use std::collections::HashMap;

use super::lanewise::each;
use super::{Exec, Kind, Result, arithmetic, atomic, bits, compare, convert, memory, select, warp};
use crate::half::{Val, WARP};
use crate::isa::build::Build;
use crate::ptx::{Class, Operand, Statement};
use crate::{copies, tensor};

/// Translates an instruction; `labels` gives the instruction behind each label.
pub fn translate(build: &mut Build, inst: &Statement, labels: &HashMap<String, usize>) -> Result<Kind> {
    let (op, _, args) = inst.parts();
    let has = |word: &str| op[1..].contains(&word);
    let plain = |exec: Exec| Ok(Kind::Plain(exec));
    let unsupported = || Err::<Kind, String>("is not supported".to_owned());
    match op[0] {
        "bra" => {
            let Operand::Name(label) = &args[0] else { return unsupported() };
            Ok(Kind::Branch(*labels.get(label).ok_or("no such label")?))
        }
        "exit" | "ret" => Ok(Kind::Exit),
        "trap" | "brkpt" => plain(Box::new(|lanes, _| lanes.fail("trap".to_owned()))),
        "bar" | "barrier" => {
            if op.contains(&"warp") {
                let mask = build.src(&args[0], Class::B32)?;
                let order: Exec = Box::new(|lanes, _| {
                    lanes.races(|races, warp| {
                        races.sync_lanes(warp);
                        None
                    });
                });
                return Ok(Kind::Converged(order, Some(mask)));
            }
            if op.contains(&"cluster") {
                // Clusters of one block.
                return plain(Box::new(|_, _| ()));
            }
            if has("red") || has("arrive") {
                return unsupported();
            }
            let id = build.src(&args[0], Class::B32)?;
            let count = args.get(1).map(|count| build.src(count, Class::B32)).transpose()?;
            Ok(Kind::Barrier(id, count))
        }
        "fence" if has("proxy") || has("mbarrier_init") => {
            let (inits, words) = (has("mbarrier_init"), ["async", "async::generic"]);
            // Only fences of the asynchronous proxy that cover shared memory.
            if !inits && (!words.iter().any(|word| has(word)) || has("global")) {
                return plain(Box::new(|_, _| ()));
            }
            plain(Box::new(move |lanes, _| {
                lanes.races(|races, warp| {
                    if inits {
                        races.fence_inits(warp)
                    } else {
                        races.fence(warp)
                    }
                    None
                });
            }))
        }
        "membar" | "fence" | "prefetch" | "prefetchu" | "discard" | "applypriority" | "nanosleep"
        | "griddepcontrol" | "setmaxnreg" | "pmevent" => plain(Box::new(|_, _| ())),
        "createpolicy" => {
            let d = build.reg(&args[0])?.0;
            plain(Box::new(move |lanes, mask| unsafe {
                let d = lanes.regs.add(d as usize);
                each!(mask, lane, { u64::store(d, lane, 0) });
            }))
        }
        "mov" => memory::mov(build, inst).map(Kind::Plain),
        "ld" | "ldu" => memory::load(build, inst).map(Kind::Plain),
        "st" => memory::store(build, inst).map(Kind::Plain),
        "atom" | "red" if has("async") => unsupported(),
        "atom" | "red" => atomic::atomic(build, inst, op[0] == "red").map(Kind::Plain),
        "cvt" => convert::cvt(build, inst).map(Kind::Plain),
        "setp" | "set" => compare::setp(build, inst).map(Kind::Plain),
        "cvta" | "selp" | "slct" | "copysign" | "testp" | "isspacep" | "mapa" | "dp4a" => select::select(build, inst),
        "and" | "or" | "xor" | "not" | "lop3" | "shl" | "shr" | "shf" => bits::logic(build, inst),
        "popc" | "clz" | "brev" | "bfind" | "bfe" | "bfi" | "bmsk" | "prmt" => bits::fields(build, inst),
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "abs" | "neg" | "sad" | "mul24"
        | "mad24" | "addc" | "subc" | "madc" => arithmetic::arithmetic(build, inst).map(Kind::Plain),
        "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" => {
            arithmetic::function(build, inst).map(Kind::Plain)
        }
        "shfl" => warp::shuffle(build, inst),
        "vote" | "activemask" | "match" | "redux" | "elect" => warp::collective(build, inst),
        "mma" => tensor::mma(build, inst).map(|exec| Kind::Converged(exec, None)),
        "wmma" => tensor::wmma(build, inst).map(|exec| Kind::Converged(exec, None)),
        "wgmma" => tensor::wgmma(build, inst).map(|exec| Kind::Converged(exec, None)),
        "ldmatrix" => tensor::ldmatrix(build, inst).map(|exec| Kind::Converged(exec, None)),
        "stmatrix" => tensor::stmatrix(build, inst).map(|exec| Kind::Converged(exec, None)),
        "cp" => copies::cp(build, inst).map(Kind::Plain),
        "mbarrier" => copies::mbarrier(build, inst),
        _ => unsupported(),
    }
}
