//! Architectures are data: one forward pass, one table row each.

use crate::backend::Activation;

/// What sets an architecture apart from the others.
pub struct Architecture {
    /// `general.architecture`, and the prefix of its metadata keys.
    pub name: &'static str,
    /// Pairs that RoPE rotates: adjacent (GGUF permutes the rows of q and k of this one) or half a head apart.
    pub rope_adjacent: bool,
    /// RMSNorm on each head of q and k, before RoPE.
    pub qk_norm: bool,
    /// RMSNorm before the output projection and before the down projection.
    pub sub_norms: bool,
    /// What the gate of the feed-forward goes through.
    pub activation: Activation,
}

const LLAMA: Architecture =
    Architecture { name: "llama", rope_adjacent: true, qk_norm: false, sub_norms: false, activation: Activation::Silu };
const BITNET: Architecture = Architecture {
    name: "bitnet-b1.58",
    rope_adjacent: false,
    sub_norms: true,
    activation: Activation::Relu2,
    ..LLAMA
};

/// The only list.
pub static ALL: &[Architecture] = &[
    // Llama 2, 3, 3.1, 3.2; Mistral; SmolLM, SmolLM2.
    LLAMA,
    // Qwen2, Qwen2.5, with biases on q, k, v.
    Architecture { name: "qwen2", rope_adjacent: false, ..LLAMA },
    Architecture { name: "qwen3", rope_adjacent: false, qk_norm: true, ..LLAMA },
    // BitNet b1.58 2B4T (Ma et al., 2025).
    BITNET,
    Architecture { name: "bitnet-25", ..BITNET },
    // The first BitNet b1.58 (1bitLLM), and what llama.cpp calls BitNet.
    Architecture { name: "bitnet", activation: Activation::Silu, ..BITNET },
];

/// The architecture of this name.
pub fn find(name: &str) -> Option<&'static Architecture> {
    ALL.iter().find(|architecture| architecture.name == name)
}
