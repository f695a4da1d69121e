//! The floating-point environment of a thread: rounding, flush-to-zero, exception masks.
//!
//! A host, or any library that it links, built with `-ffast-math` sets flush-to-zero for the whole process, and
//! `fesetround` changes every rounding. Both would change our bits, so each entry point and each worker computes
//! under [`FloatEnvironment::enter`].

/// While this lives, the thread computes in IEEE default mode; the host's mode comes back on drop.
pub struct FloatEnvironment {
    host: u64,
}

/// Round to nearest, no flush-to-zero, no denormals-are-zero, all exceptions masked.
#[cfg(target_arch = "x86_64")]
const DEFAULT: u64 = 0x1F80;
#[cfg(not(target_arch = "x86_64"))]
const DEFAULT: u64 = 0;

impl FloatEnvironment {
    /// Saves the thread's mode and sets the default one.
    #[must_use = "the host's mode comes back when this is dropped"]
    pub fn enter() -> Self {
        let host = get();
        if host != DEFAULT {
            set(DEFAULT);
        }
        FloatEnvironment { host }
    }
}

impl Drop for FloatEnvironment {
    fn drop(&mut self) {
        // Only the control bits: the exception flags that we may have raised are nobody's business.
        if get() != self.host {
            set(self.host);
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn get() -> u64 {
    let mut mxcsr = 0u32;
    // SAFETY: stores MXCSR to a local.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &mut mxcsr, options(nostack, preserves_flags)) };
    mxcsr as u64
}

#[cfg(target_arch = "x86_64")]
fn set(value: u64) {
    let mxcsr = value as u32;
    // SAFETY: the value is either the default, which compiled code assumes, or what `get` read from this thread.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &mxcsr, options(nostack, readonly, preserves_flags)) };
}

#[cfg(target_arch = "aarch64")]
fn get() -> u64 {
    let fpcr;
    // SAFETY: reads FPCR.
    unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) fpcr, options(nomem, nostack, preserves_flags)) };
    fpcr
}

#[cfg(target_arch = "aarch64")]
fn set(value: u64) {
    // SAFETY: the value is either the default, which compiled code assumes, or what `get` read from this thread.
    unsafe { std::arch::asm!("msr fpcr, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn get() -> u64 {
    DEFAULT
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn set(_value: u64) {}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_default_mode_holds_inside_and_the_hosts_comes_back() {
        let before = get();
        let host = DEFAULT | 0x8040 | 0x4000; // FTZ, DAZ, round up.
        set(host);
        let denormal = std::hint::black_box(1e-40f32);
        let inside = {
            let _environment = FloatEnvironment::enter();
            (std::hint::black_box(denormal) * 0.5, get() & !0x3F)
        };
        let after = get();
        set(before);
        assert_eq!(inside, (0.5e-40, DEFAULT));
        assert_eq!(after, host);
    }
}
