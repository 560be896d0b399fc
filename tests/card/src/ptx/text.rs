//! Pieces of PTX text: comments, lists, numbers, operands and declarations.

use super::{Operand, size};

/// Starts of lines that say nothing about what a kernel does.
const SKIPPED: [&str; 5] = [".loc", ".file", ".version", ".target", ".address_size"];

/// Removes comments, single-line directives and debug sections.
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_section = false;
    let mut in_comment = false;
    for line in text.lines() {
        let mut line = line;
        if in_comment {
            match line.find("*/") {
                Some(at) => {
                    line = &line[at + 2..];
                    in_comment = false;
                }
                None => {
                    out.push('\n');
                    continue;
                }
            }
        }
        let mut line = line.split("//").next().unwrap_or("").to_owned();
        while let Some(at) = line.find("/*") {
            match line[at..].find("*/") {
                Some(end) => line.replace_range(at..at + end + 2, ""),
                None => {
                    line.truncate(at);
                    in_comment = true;
                }
            }
        }
        let trimmed = line.trim();
        if in_section {
            in_section = !trimmed.starts_with('}');
        } else if trimmed.starts_with(".section") {
            in_section = true;
        } else if trimmed.starts_with(".local") || !SKIPPED.iter().any(|word| trimmed.starts_with(word)) {
            out.push_str(&line);
        }
        out.push('\n');
    }
    out
}

pub fn split_top(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0i32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    let last = text[from..].trim();
    if !last.is_empty() {
        parts.push(last);
    }
    parts
}

pub fn int(text: &str) -> Option<i64> {
    let text = text.trim();
    let (negative, body) = match text.strip_prefix('-') {
        Some(rest) => (true, rest.trim()),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let body = body.trim_end_matches('U');
    let value = if let Some(hex) = body.strip_prefix("0x").or_else(|| body.strip_prefix("0X")) {
        u64::from_str_radix(hex, 16).ok()? as i64
    } else {
        body.parse::<u64>().ok()? as i64
    };
    Some(if negative { value.wrapping_neg() } else { value })
}

pub fn operand(text: &str) -> Result<Operand, String> {
    let text = text.trim();
    if text == "_" {
        return Ok(Operand::Sink);
    }
    if let Some(body) = text.strip_prefix('{') {
        let body = body.strip_suffix('}').ok_or("a vector without an end")?;
        return Ok(Operand::Vector(split_top(body).into_iter().map(operand).collect::<Result<_, _>>()?));
    }
    if let Some(body) = text.strip_prefix('[') {
        let body = body.strip_suffix(']').ok_or("an address without an end")?;
        let parts = split_top(body);
        let mut more = Vec::new();
        for part in &parts[1..] {
            match operand(part)? {
                Operand::Vector(parts) => more.extend(parts),
                other => more.push(other),
            }
        }
        let (base, offset) = match parts[0].find(['+', '-']) {
            Some(at) if at > 0 => {
                let rest = parts[0][at..].trim().trim_start_matches('+').trim();
                (parts[0][..at].trim(), int(rest).ok_or_else(|| format!("offset {rest}"))?)
            }
            _ => (parts[0], 0),
        };
        return Ok(Operand::Address(base.to_owned(), offset, more));
    }
    if let Some((one, other)) = text.split_once('|') {
        return Ok(Operand::Pair(Box::new(operand(one)?), Box::new(operand(other)?)));
    }
    if let Some(name) = text.strip_prefix('!') {
        return Ok(Operand::Not(name.trim().to_owned()));
    }
    if let Some(bits) = text.strip_prefix("0f").or_else(|| text.strip_prefix("0F")) {
        return Ok(Operand::F32(u32::from_str_radix(bits, 16).map_err(|_| format!("number {text}"))?));
    }
    if let Some(bits) = text.strip_prefix("0d").or_else(|| text.strip_prefix("0D")) {
        return Ok(Operand::F64(u64::from_str_radix(bits, 16).map_err(|_| format!("number {text}"))?));
    }
    if let Some(value) = int(text) {
        return Ok(Operand::Int(value));
    }
    if let Some((base, offset)) = text.split_once('+')
        && let Some(offset) = int(offset)
    {
        return Ok(Operand::Address(base.trim().to_owned(), offset, Vec::new()));
    }
    Ok(Operand::Name(text.to_owned()))
}

/// A declared variable.
pub struct Declaration {
    pub name: String,
    pub align: usize,
    /// Bytes of the variable.
    pub size: usize,
    pub init: Option<Vec<u8>>,
}

/// Parses `.shared .align 16 .b8 name[128]`, with or without an initial value behind `=`.
pub fn declaration(text: &str) -> Declaration {
    let (head, init) = match text.split_once('=') {
        Some((head, init)) => (head.trim(), Some(init.trim())),
        None => (text.trim(), None),
    };
    let words: Vec<&str> = head.split_whitespace().collect();
    let align = words.windows(2).find(|pair| pair[0] == ".align").and_then(|pair| pair[1].parse().ok());
    let name_at = words.len() - 1;
    let name = words[name_at];
    let kind = words[..name_at]
        .iter()
        .rev()
        .find(|word| word.starts_with('.') && **word != ".align")
        .map_or("b8", |word| &word[1..]);
    let width = size(kind);
    let (name, count) = match name.split_once('[') {
        Some((name, rest)) => (name, rest.trim_end_matches(']').parse().unwrap_or(0)),
        None => (name, 1usize),
    };
    let init = init.map(|init| {
        let mut bytes = Vec::new();
        for value in init.trim_matches(['{', '}']).split(',') {
            let value = match operand(value.trim()) {
                Ok(Operand::Int(value)) => value as u64,
                Ok(Operand::F32(bits)) => u64::from(bits),
                Ok(Operand::F64(bits)) => bits,
                _ => 0,
            };
            bytes.extend(&value.to_le_bytes()[..width]);
        }
        bytes
    });
    Declaration { name: name.to_owned(), align: align.unwrap_or(width), size: width * count, init }
}
