//! Splits a module into functions and these into items.

use std::collections::HashMap;

use super::text::{Declaration, clean, declaration, operand, split_top};
use super::{Func, Item, Operand, Program, Statement, Symbol, class};

/// Parses a module.
pub fn parse(text: &str) -> Result<Program, String> {
    let text = clean(text);
    let mut program = Program {
        funcs: Vec::new(),
        compiled: Vec::new(),
        image: Vec::new(),
        symbols: HashMap::new(),
        dynamic_align: 0,
    };
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        // At module scope: a declaration up to `;`, or a function up to its `}`.
        let rest = &text[at..];
        let semicolon = rest.find(';');
        let brace = rest.find('{');
        let head_end = match (semicolon, brace) {
            (None, None) => break,
            (Some(s), None) => s,
            (None, Some(b)) => b,
            (Some(s), Some(b)) => {
                if s < b || rest[..b].contains('=') {
                    s
                } else {
                    b
                }
            }
        };
        let head = rest[..head_end].trim();
        if rest.as_bytes()[head_end] == b';' {
            for space in ["global", "const", "shared"] {
                if head.contains(&format!(".{space} ")) {
                    let Declaration { name, align, size, init } = declaration(head);
                    if space == "shared" {
                        // `.extern .shared`: the dynamic part, behind all that is static.
                        program.dynamic_align = program.dynamic_align.max(align);
                        program.symbols.insert(name, Symbol { space: "dynamic".to_owned(), offset: 0, size });
                    } else {
                        let offset = program.image.len().next_multiple_of(align.max(16));
                        program.image.resize(offset + size, 0);
                        if let Some(init) = init {
                            program.image[offset..offset + init.len()].copy_from_slice(&init);
                        }
                        program.symbols.insert(name, Symbol { space: "global".to_owned(), offset, size });
                    }
                }
            }
            at += head_end + 1;
            continue;
        }
        // A function: its body up to the brace that closes it.
        let open = at + head_end;
        let mut depth = 0;
        let mut close = open;
        for (index, byte) in bytes.iter().enumerate().skip(open) {
            match byte {
                b'{' => depth += 1,
                b'}' => {
                    depth -= 1;
                    if depth == 0 {
                        close = index;
                        break;
                    }
                }
                _ => {}
            }
        }
        let first_line = text[..open].matches('\n').count() + 1;
        if let Some(signature) = head.split(".entry ").nth(1) {
            program.funcs.push(function(signature, &text[open + 1..close], first_line)?);
            program.compiled.push(std::sync::OnceLock::new());
        }
        at = close + 1;
    }
    Ok(program)
}

fn function(signature: &str, body: &str, first_line: usize) -> Result<Func, String> {
    let name = signature.split(['(', '\n', ' ']).next().unwrap_or("").trim().to_owned();
    let mut func =
        Func { name, items: Vec::new(), params: HashMap::new(), symbols: HashMap::new(), shared: 0, local: 0 };
    if let (Some(open), Some(close)) = (signature.find('('), signature.find(')')) {
        let mut end = 0usize;
        for param in split_top(&signature[open + 1..close]) {
            // Words behind `.ptr` describe the memory it points to.
            let own = param.split(".ptr").next().unwrap_or(param).replace(".param ", "");
            let name = param.split_whitespace().last().unwrap_or("");
            let text = if param.contains(".ptr") { format!("{own} {name}") } else { own };
            let Declaration { name, align, size, .. } = declaration(&text);
            let offset = end.next_multiple_of(align.max(1));
            func.params.insert(name, offset);
            end = offset + size;
        }
    }
    let mut pending = String::new();
    let mut line = first_line;
    let mut chars = body.chars().peekable();
    // Inside an instruction's vector, or not.
    let mut inside = 0;
    while let Some(c) = chars.next() {
        if c == '\n' {
            line += 1;
        }
        match c {
            '{' if pending.trim().is_empty() => func.items.push(Item::Open),
            '}' if pending.trim().is_empty() && inside == 0 => func.items.push(Item::Close),
            '{' | '[' | '(' => {
                inside += 1;
                pending.push(c);
            }
            '}' | ']' | ')' => {
                inside -= 1;
                pending.push(c);
            }
            ':' if inside == 0
                && chars.peek() != Some(&':')
                && !pending.ends_with(':')
                && !pending.trim().contains(char::is_whitespace)
                && !pending.trim().contains('.') =>
            {
                func.items.push(Item::Label(pending.trim().to_owned()));
                pending.clear();
            }
            ';' => {
                statement(&mut func, pending.trim(), line)?;
                pending.clear();
            }
            c => pending.push(if c == '\n' || c == '\t' { ' ' } else { c }),
        }
    }
    Ok(func)
}

fn statement(func: &mut Func, text: &str, line: usize) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    // Inline assembly may write `.reg.b16` without a space.
    if let Some(rest) = text.strip_prefix(".reg").filter(|rest| rest.starts_with(['.', ' '])) {
        let rest = rest.trim();
        let (kind, names) = rest.split_once(' ').ok_or("a register without a name")?;
        let class = class(kind.trim_start_matches('.'))?;
        for name in names.split(',').map(str::trim) {
            match name.split_once('<') {
                Some((stem, count)) => {
                    let count: usize = count.trim_end_matches('>').parse().map_err(|_| format!("registers {name}"))?;
                    for index in 0..count {
                        func.items.push(Item::Reg(format!("{stem}{index}"), class));
                    }
                }
                None => func.items.push(Item::Reg(name.to_owned(), class)),
            }
        }
        return Ok(());
    }
    for space in ["shared", "local"] {
        if text.starts_with(&format!(".{space} ")) {
            let Declaration { name, align, size, .. } = declaration(text);
            let end = if space == "shared" { &mut func.shared } else { &mut func.local };
            let offset = end.next_multiple_of(align.max(1));
            *end = offset + size;
            func.symbols.insert(name, Symbol { space: space.to_owned(), offset, size });
            return Ok(());
        }
    }
    if text.starts_with('.') {
        // `.pragma`, `.branchtargets` and the like.
        return Ok(());
    }
    let (guard, text) = match text.strip_prefix('@') {
        Some(rest) => {
            let (guard, rest) = rest.trim().split_once(char::is_whitespace).ok_or("a guard alone")?;
            let (negated, name) = match guard.strip_prefix('!') {
                Some(name) => (true, name),
                None => (false, guard),
            };
            (Some((name.to_owned(), negated)), rest.trim())
        }
        None => (None, text),
    };
    let (op, rest) = match text.split_once(char::is_whitespace) {
        Some((op, rest)) => (op, rest.trim()),
        None => (text, ""),
    };
    let op: Vec<String> = op.split('.').map(ToOwned::to_owned).collect();
    let operands = if op[0] == "call" {
        vec![Operand::Name(rest.to_owned())]
    } else {
        split_top(rest).into_iter().map(operand).collect::<Result<_, _>>()?
    };
    func.items.push(Item::Inst(Statement { guard, op, operands, line }));
    Ok(())
}
