//! The sequences a watcher has seen, as intervals: almost all of them hang together, so a handful of pairs says it all.

/// Sequences from 1 on, each in or out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IntervalSet {
    /// First and last of each, ascending; between two of them at least one sequence is missing.
    intervals: Vec<(u64, u64)>,
}

impl IntervalSet {
    /// Everything up to `last`.
    pub fn up_to(last: u64) -> Self {
        Self { intervals: if last == 0 { Vec::new() } else { vec![(1, last)] } }
    }

    /// Adds `first..=last` and calls `is_new` for each part of it that was not in yet, ascending.
    pub fn insert(&mut self, first: u64, last: u64, mut is_new: impl FnMut(u64, u64)) {
        debug_assert!(0 < first && first <= last, "{first}..={last} is no interval");
        // Most often it is behind all others, or continues the last.
        match self.intervals.last_mut() {
            Some((_, end)) if *end + 1 == first => {
                *end = last;
                return is_new(first, last);
            }
            Some((_, end)) if *end >= first => {}
            _ => {
                self.intervals.push((first, last));
                return is_new(first, last);
            }
        }
        // Those that overlap the new one or touch it become one.
        let from = self.intervals.partition_point(|(_, end)| end + 1 < first);
        let to = self.intervals.partition_point(|(start, _)| *start <= last + 1);
        let (mut merged, mut next) = ((first, last), first);
        for (start, end) in &self.intervals[from..to] {
            if next < *start {
                is_new(next, start - 1);
            }
            next = next.max(end + 1);
            merged = (merged.0.min(*start), merged.1.max(*end));
        }
        if next <= last {
            is_new(next, last);
        }
        self.intervals.splice(from..to, [merged]);
    }

    /// True if the sequence is in.
    #[cfg(test)]
    pub fn contains(&self, seq: u64) -> bool {
        let at = self.intervals.partition_point(|(_, end)| *end < seq);
        self.intervals.get(at).is_some_and(|(start, _)| *start <= seq)
    }

    /// The highest that is in; 0 if none is.
    pub fn last(&self) -> u64 {
        self.intervals.last().map_or(0, |(_, end)| *end)
    }

    /// The first part of `1..=last` that is missing.
    pub fn first_gap(&self, last: u64) -> Option<(u64, u64)> {
        let mut next = 1;
        for (start, end) in &self.intervals {
            if next > last || *start > next {
                break;
            }
            next = end + 1;
        }
        if next > last {
            return None;
        }
        let behind = self.intervals.iter().find(|(start, _)| *start > next);
        Some((next, behind.map_or(last, |(start, _)| last.min(start - 1))))
    }

    /// How many are in.
    pub fn len(&self) -> u64 {
        self.intervals.iter().map(|(start, end)| end - start + 1).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pacer::Random;
    use std::collections::BTreeSet;

    fn insert(set: &mut IntervalSet, first: u64, last: u64) -> Vec<u64> {
        let mut new = Vec::new();
        set.insert(first, last, |from, to| new.extend(from..=to));
        new
    }

    #[test]
    fn it_does_what_a_plain_set_does() {
        let mut random = Random::new(7);
        for _ in 0..300 {
            let (mut set, mut plain) = (IntervalSet::default(), BTreeSet::new());
            for _ in 0..40 {
                let first = 1 + random.below(60);
                let last = first + random.below(12);
                let expected: Vec<u64> = (first..=last).filter(|seq| plain.insert(*seq)).collect();
                assert_eq!(insert(&mut set, first, last), expected);
                assert!((1..=80).all(|seq| set.contains(seq) == plain.contains(&seq)), "{set:?}");
                assert_eq!((set.len(), set.last()), (plain.len() as u64, *plain.last().unwrap()));
                let gap = (1..=70).find(|seq| !plain.contains(seq));
                assert_eq!(set.first_gap(70).map(|(from, _)| from), gap, "{set:?}");
                if let Some((from, to)) = set.first_gap(70) {
                    assert!((from..=to).all(|seq| !plain.contains(&seq)) && (to == 70 || plain.contains(&(to + 1))));
                }
                assert!(set.intervals.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{set:?} is not merged");
            }
        }
    }

    #[test]
    fn a_set_that_begins_in_the_past_has_no_gap_there() {
        let mut set = IntervalSet::up_to(100);
        assert_eq!(set.first_gap(100), None);
        assert_eq!(set.first_gap(103), Some((101, 103)));
        assert_eq!(insert(&mut set, 95, 102), [101, 102]);
        assert_eq!(set, IntervalSet::up_to(102));
        assert_eq!(IntervalSet::up_to(0).first_gap(0), None);
    }
}
