//! Bytes written as hex, so that a reader can check them against the layout by eye.

/// The bytes of a hex literal; blanks and line breaks in it are free.
pub(crate) fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).unwrap_or_else(|| panic!("{c:?} is not a hex digit")))
        .collect();
    assert!(digits.len().is_multiple_of(2), "half a byte at the end of {hex:?}");
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}
