//! Finds the name somebody probably meant.

/// The candidate with the fewest edits from `name`, if it is close enough to be a slip.
pub(super) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a String>) -> Option<&'a str> {
    // One slip in three characters; more is another word.
    let edits_max = name.chars().count() / 3;
    candidates
        .map(|candidate| (edits(name, candidate), candidate.as_str()))
        .filter(|(edits, _)| *edits <= edits_max)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, by rows.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word_and_another_word_does_not() {
        let keys = ["limits.frame_bytes_max".to_owned(), "listen.tcp".to_owned()];
        assert_eq!(nearest("limit.frame_byte_max", keys.iter()), Some("limits.frame_bytes_max"));
        assert_eq!(nearest("listen.tpc", keys.iter()), Some("listen.tcp"));
        assert_eq!(nearest("colour", keys.iter()), None);
    }
}
