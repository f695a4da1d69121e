//! x86-64 kernel tables.

pub mod avx2;
