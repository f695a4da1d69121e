//! Architectures are data: one forward pass, one table row each.

/// What sets an architecture apart from the others.
pub struct Architecture {
    /// `general.architecture`, and the prefix of its metadata keys.
    pub name: &'static str,
    /// Pairs that RoPE rotates: adjacent (GGUF permutes the rows of q and k of this one) or half a head apart.
    pub rope_adjacent: bool,
    /// RMSNorm on each head of q and k, before RoPE.
    pub qk_norm: bool,
}

/// The only list.
pub static ALL: &[Architecture] = &[
    // Llama 2, 3, 3.1, 3.2; Mistral; SmolLM, SmolLM2.
    Architecture { name: "llama", rope_adjacent: true, qk_norm: false },
    // Qwen2, Qwen2.5, with biases on q, k, v.
    Architecture { name: "qwen2", rope_adjacent: false, qk_norm: false },
    Architecture { name: "qwen3", rope_adjacent: false, qk_norm: true },
];

/// The architecture of this name.
pub fn find(name: &str) -> Option<&'static Architecture> {
    ALL.iter().find(|architecture| architecture.name == name)
}
