//! Modules of PTX: loaded, kept beside the logs, assembled if asked for, and searched for the limits of their launches.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::log::log;
use crate::settings::settings;
use crate::state::{INVALID_VALUE, OUT_OF_RESOURCES};
use crate::{card, problem, ptx};

pub struct Module {
    pub name: String,
    pub entries: Vec<Entry>,
    pub program: Option<Result<ptx::Program, String>>,
}

pub struct Entry {
    pub name: String,
    /// Offset and size of each parameter.
    pub params: Vec<(usize, usize)>,
    pub most_threads: u32,
    pub registers: u32,
    pub static_shared: u32,
}

pub struct Function {
    pub module: Arc<Module>,
    pub index: usize,
    pub most_shared: AtomicU32,
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Module {
    pub fn load(image: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(image).map_err(|_| "it is no PTX".to_owned())?;
        let target = text.lines().find_map(|line| line.trim().strip_prefix(".target ")).unwrap_or("?").to_owned();
        let sm = format!("sm_{}{}", card::card().major, card::card().minor);
        // Code for an architecture's own features runs on it alone; other code on later ones too.
        let target_word = target.split([',', ' ']).next().unwrap_or("?");
        let fits = match target_word.strip_suffix(['a', 'f']) {
            Some(exact) => exact == sm,
            None => number(target_word) <= number(&sm),
        };
        if !fits {
            return Err(format!("it is for {target}, and the card is {sm}"));
        }
        let name = format!("{:016x}", fnv(image));
        let mut path = None;
        if let Some(dir) = &log().dir {
            let file = dir.join("modules").join(format!("{name}.ptx"));
            if !file.exists() {
                std::fs::write(&file, image).ok();
            }
            path = Some(file);
        }
        let mut entries = entries(text)?;
        if let (Some(assembler), Some(path)) = (&settings().ptxas, path) {
            assemble(assembler, &path, target_word, &mut entries)?;
        }
        let program = settings().execute.then(|| ptx::parse(text));
        if let Some(Err(why)) = &program {
            problem!("module {name} cannot be executed: {why}");
        }
        Ok(Self { name, entries, program })
    }
}

fn number(sm: &str) -> u32 {
    sm.trim_start_matches("sm_").trim_end_matches(char::is_alphabetic).parse().unwrap_or(0)
}

/// Assembles a module as the driver does: one that does not assemble is refused. Registers count at launch.
fn assemble(assembler: &Path, path: &Path, target: &str, entries: &mut [Entry]) -> Result<(), String> {
    let cubin = path.with_extension("cubin");
    let report = path.with_extension("ptxas");
    if !report.exists() {
        let done = Command::new(assembler)
            .args(["-v", &format!("-arch={target}"), "-o"])
            .args([cubin.as_path(), path])
            .output()
            .map_err(|error| format!("ptxas does not start: {error}"))?;
        let text = String::from_utf8_lossy(&done.stderr).into_owned();
        if !done.status.success() {
            return Err(format!("ptxas: {}", text.trim()));
        }
        std::fs::write(&report, text).ok();
    }
    let text = std::fs::read_to_string(&report).unwrap_or_default();
    for entry in entries {
        let behind = text.split(&format!("entry function '{}'", entry.name)).nth(1).unwrap_or("");
        let before = |word: &str| {
            let at = behind.find(word)?;
            behind[..at].trim_end().rsplit(' ').next()?.parse().ok()
        };
        entry.registers = before("registers").unwrap_or(0);
    }
    Ok(())
}

/// Finds the entries and their parameters.
fn entries(text: &str) -> Result<Vec<Entry>, String> {
    let mut found = Vec::new();
    for part in text.split(".entry ").skip(1) {
        let name = part.split(['(', '\n', ' ']).next().unwrap_or("").trim().to_owned();
        let open = part.find('(');
        let body = part.find('{').ok_or("an entry without a body")?;
        let (list, attributes) = match open {
            Some(open) if open < body => {
                let close = part.find(')').ok_or("parameters without an end")?;
                (&part[open + 1..close], &part[close + 1..body])
            }
            _ => ("", &part[..body]),
        };
        let (mut params, mut end) = (Vec::new(), 0usize);
        for param in list.split(',').filter(|param| !param.trim().is_empty()) {
            // Words behind `.ptr` describe the memory it points to.
            let own = param.split(".ptr").next().unwrap_or(param);
            let words: Vec<&str> = own.split_whitespace().collect();
            let mut align = None;
            for pair in words.windows(2) {
                if pair[0] == ".align" {
                    align = pair[1].parse().ok();
                }
            }
            let kind = words
                .iter()
                .rev()
                .find(|word| word.starts_with('.') && !word.starts_with(".align") && **word != ".param")
                .copied()
                .unwrap_or(".b64");
            let width = kind.trim_start_matches(|c: char| !c.is_ascii_digit()).parse::<usize>().unwrap_or(64) / 8;
            let count = param
                .rsplit_once('[')
                .and_then(|(_, count)| count.trim_end().trim_end_matches(']').parse::<usize>().ok());
            let size = width * count.unwrap_or(1);
            let align: usize = align.unwrap_or(width);
            let offset = end.next_multiple_of(align);
            params.push((offset, size));
            end = offset + size;
        }
        let most = |word: &str| -> Option<u32> {
            let rest = attributes.split(word).nth(1)?;
            let line = rest.lines().next()?;
            Some(line.split(',').filter_map(|count| count.trim().parse::<u32>().ok()).product())
        };
        let most_threads = most(".maxntid").or_else(|| most(".reqntid")).unwrap_or(1024);
        let mut static_shared = 0u32;
        for line in part.lines().map(str::trim).filter(|line| line.starts_with(".shared ")) {
            let count =
                line.rsplit_once('[').and_then(|(_, count)| count.trim_end_matches([';', ']']).parse::<u32>().ok());
            static_shared += count.unwrap_or(8);
        }
        found.push(Entry { name, params, most_threads, registers: 0, static_shared });
    }
    Ok(found)
}

impl Function {
    pub fn find(module: &Arc<Module>, name: &str) -> Option<Self> {
        let index = module.entries.iter().position(|entry| entry.name == name)?;
        // Static and dynamic memory together, unless a program asks for more.
        let most = 49_152_u32.saturating_sub(module.entries[index].static_shared);
        Some(Self { module: Arc::clone(module), index, most_shared: AtomicU32::new(most) })
    }

    pub fn entry(&self) -> &Entry {
        &self.module.entries[self.index]
    }

    pub fn name(&self) -> &str {
        &self.entry().name
    }

    pub fn static_shared(&self) -> u32 {
        self.entry().static_shared
    }

    pub fn params(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.entry().params.iter().copied()
    }

    pub fn param_bytes(&self) -> usize {
        self.entry().params.iter().map(|(offset, size)| offset + size).max().unwrap_or(0)
    }

    pub fn may_launch(&self, grid: [u32; 3], block: [u32; 3], shared: u32) -> Result<(), (i32, String)> {
        let entry = self.entry();
        let threads = block.iter().map(|side| u64::from(*side)).product::<u64>();
        if grid.contains(&0) || block.contains(&0) {
            return Err((INVALID_VALUE, format!("nothing to do: grid {grid:?}, block {block:?}")));
        }
        if threads > u64::from(entry.most_threads) || block[0] > 1024 || block[1] > 1024 || block[2] > 64 {
            return Err((INVALID_VALUE, format!("{threads} threads, at most {}", entry.most_threads)));
        }
        if grid[1] > 65_535 || grid[2] > 65_535 || grid[0] > i32::MAX as u32 {
            return Err((INVALID_VALUE, format!("grid {grid:?}")));
        }
        if shared > self.most_shared.load(Ordering::SeqCst) {
            return Err((
                INVALID_VALUE,
                format!(
                    "{shared} bytes of shared memory beside {} static ones, and fewer were asked for",
                    entry.static_shared
                ),
            ));
        }
        // Registers are allocated to warps in units of 256.
        let warps = threads.div_ceil(32);
        let registers = u64::from(entry.registers).next_multiple_of(8) * 32 * warps.next_multiple_of(4);
        if registers > 65_536 {
            return Err((OUT_OF_RESOURCES, format!("{} registers for each of {threads} threads", entry.registers)));
        }
        Ok(())
    }
}
