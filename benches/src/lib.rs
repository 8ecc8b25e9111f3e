//! Micro-benchmarks of Tidegate live in `benches/`, named `<part>_<action>`; this library is empty.
