//! The CUDA backend.

#[allow(dead_code)] // The backend that repacks with it comes next.
mod tiles;
