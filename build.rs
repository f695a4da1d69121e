//! With the feature `cuda`, compiles the device code. Without it there is nothing to do.

#[cfg(feature = "cuda")]
#[path = "kernels/compile.rs"]
mod compile;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    compile::main();
}
