//! What library this is.

use super::guard::guard;
use std::ffi::{CStr, CString, c_char};
use std::sync::OnceLock;

/// The interface that this header describes; the library's is edgellm_abi_version(). While 0, every minor may break.
pub const EDGELLM_ABI_MAJOR: u32 = 0;
/// Grows with every addition to the interface.
pub const EDGELLM_ABI_MINOR: u32 = 1;

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => panic!("a NUL in the version"),
};

/// EDGELLM_ABI_MAJOR << 16 | EDGELLM_ABI_MINOR of the loaded library, for a host that wants to refuse early. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn edgellm_abi_version() -> u32 {
    guard(0, || EDGELLM_ABI_MAJOR << 16 | EDGELLM_ABI_MINOR)
}

/// The version of the loaded library, for example "0.1.0". A static string, never NULL. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn edgellm_version() -> *const c_char {
    guard(c"".as_ptr(), || VERSION.as_ptr())
}

/// How the library was built, as a JSON object: {"version", "features": [..], "target", "kernels": [..], "cuda": [..]};
/// "kernels" are the tables that this CPU can run, best first, and "cuda", which is there with that feature, what the
/// device code was compiled for, as in "sm_87". A static string, never NULL. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn edgellm_build_info() -> *const c_char {
    guard(c"{}".as_ptr(), || {
        static INFO: OnceLock<CString> = OnceLock::new();
        INFO.get_or_init(|| CString::new(build_info().to_string()).unwrap_or_default()).as_ptr()
    })
}

fn build_info() -> serde_json::Value {
    let features = [("chat", cfg!(feature = "chat")), ("cuda", cfg!(feature = "cuda"))];
    let features: Vec<_> = features.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect();
    #[allow(unused_mut)] // Without CUDA there is nothing to add.
    let mut info = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "features": features,
        "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        "kernels": crate::cpu::available().map(|kernels| kernels.name()).collect::<Vec<_>>(),
    });
    #[cfg(feature = "cuda")]
    {
        info["cuda"] = crate::cuda::module::archs().into();
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_has_the_version_of_the_package() {
        assert_eq!(EDGELLM_ABI_MAJOR.to_string(), env!("CARGO_PKG_VERSION_MAJOR"));
        assert_eq!(EDGELLM_ABI_MINOR.to_string(), env!("CARGO_PKG_VERSION_MINOR"));
        assert_eq!(VERSION.to_str(), Ok(env!("CARGO_PKG_VERSION")));
        assert_eq!(build_info()["version"], env!("CARGO_PKG_VERSION"));
    }
}
