//! The worked examples of docs/protocol.md and docs/format.md.

use std::collections::BTreeMap;

/// docs/protocol.md.
pub const PROTOCOL: &str = include_str!("../../docs/protocol.md");
/// docs/format.md.
pub const FORMAT: &str = include_str!("../../docs/format.md");

/// The bytes of every example on a page, by name: fenced blocks that begin with "```hex NAME". Of
/// each line the part before a semicolon counts; `[NAME]` stands for an earlier example.
///
/// # Panics
///
/// If a block is not hex, or not closed.
pub fn examples(page: &str) -> BTreeMap<&str, Vec<u8>> {
    let mut examples: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    for block in page.split("```hex ").skip(1) {
        let (name, rest) = block.split_once('\n').expect("a block has lines");
        let (text, _) = rest.split_once("```").expect("a block is closed");
        let mut bytes = Vec::new();
        for line in text.lines() {
            let code = line.split(';').next().unwrap_or_default().trim();
            match code.strip_prefix('[').and_then(|code| code.strip_suffix(']')) {
                Some(earlier) => bytes.extend_from_slice(&examples[earlier]),
                None => bytes.extend(hex(code)),
            }
        }
        examples.insert(name, bytes);
    }
    examples
}

/// The bytes of a hex literal; blanks and line breaks in it are free.
///
/// # Panics
///
/// If it is not hex.
pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).unwrap_or_else(|| panic!("{c:?} is not a hex digit")))
        .collect();
    assert!(digits.len().is_multiple_of(2), "half a byte at the end of {text:?}");
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}
