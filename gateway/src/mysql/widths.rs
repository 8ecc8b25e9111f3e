//! Statements over many rows, in a few fixed widths.
//!
//! In comes a number of rows, out go the widths whose sum it is and their SQL. Always: a statement's text depends on its
//! width alone and widths are powers of two, so that a connection keeps ten prepared statements of a kind and not one
//! for every number of rows there is. (The driver's own batches are one statement per row on MySQL.)

use tidegate_core::limits::INGEST_BATCH_MAX;

/// The widest statement: a largest batch is one.
pub(super) const WIDTH_MAX: usize = 512;

const KINDS: usize = WIDTH_MAX.ilog2() as usize + 1;

const _: () = assert!(WIDTH_MAX.is_power_of_two());
const _: () = assert!(WIDTH_MAX >= INGEST_BATCH_MAX, "a largest batch goes in one statement");

/// One statement in all its widths.
#[derive(Debug)]
pub(super) struct Widths([String; KINDS]);

impl Widths {
    /// `head`, then `unit` as often as the width says with `separator` between, then `tail`.
    pub(super) fn new(head: &str, unit: &str, separator: &str, tail: &str) -> Self {
        Self(std::array::from_fn(|power| format!("{head}{}{tail}", vec![unit; 1 << power].join(separator))))
    }

    /// The SQL of a width that is a power of two up to [`WIDTH_MAX`].
    pub(super) fn sql(&self, width: usize) -> &str {
        &self.0[width.ilog2() as usize]
    }
}

/// The widest width that `rows` fill; for statements that must not repeat a row.
pub(super) fn filled(rows: usize) -> usize {
    1 << rows.min(WIDTH_MAX).ilog2()
}

/// The narrowest width that takes `rows`, at most `widest`; for lists that may repeat an entry.
pub(super) fn padded(rows: usize, widest: usize) -> usize {
    rows.next_power_of_two().min(widest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_rows_is_a_sum_of_widths() {
        for rows in 1..=2000_usize {
            let (mut left, mut statements) = (rows, 0);
            while left > 0 {
                left -= filled(left);
                statements += 1;
            }
            assert!(statements <= rows / WIDTH_MAX + KINDS, "{rows} rows took {statements} statements");
            let padded = padded(rows, WIDTH_MAX);
            assert!(padded.is_power_of_two() && padded <= WIDTH_MAX && (padded >= rows || padded == WIDTH_MAX));
        }
    }

    #[test]
    fn a_statement_has_its_unit_as_often_as_it_is_wide() {
        let insert = Widths::new("INSERT INTO t VALUES ", "(?,?)", ",", " END");
        assert_eq!(insert.sql(1), "INSERT INTO t VALUES (?,?) END");
        assert_eq!(insert.sql(4), "INSERT INTO t VALUES (?,?),(?,?),(?,?),(?,?) END");
        assert_eq!(insert.sql(512).matches("(?,?)").count(), 512);
    }
}
