//! The golden files: their bytes, and the list of them.

#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};

/// The crate's own folder.
pub fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Bytes of hex text: white space is skipped, `#` begins a comment.
pub fn parse_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .lines()
        .flat_map(|line| line.split('#').next().unwrap_or_default().chars())
        .filter(|char| !char.is_whitespace())
        .map(|char| u8::try_from(char.to_digit(16).unwrap_or_else(|| panic!("{char:?} is no hex digit"))).unwrap())
        .collect();
    assert!(digits.len().is_multiple_of(2), "half a byte in {text}");
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// Bytes of `tests/golden/<name>.hex`.
pub fn golden(name: &str) -> Vec<u8> {
    let path = golden_dir().join(format!("{name}.hex"));
    parse_hex(&std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// Names of all golden files, sorted.
pub fn golden_names() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(golden_dir())
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

fn golden_dir() -> PathBuf {
    crate_dir().join("tests/golden")
}
