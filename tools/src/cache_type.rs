//! `--cache-type-k` and `--cache-type-v`.

use aether_ir::DType;
use clap::{Args, ValueEnum};

/// Element type of a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CacheType {
    F32,
    #[default]
    F16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
}

impl CacheType {
    fn dtype(self) -> DType {
        match self {
            CacheType::F32 => DType::F32,
            CacheType::F16 => DType::F16,
            CacheType::Q8_0 => DType::Q8_0,
            CacheType::Q4_0 => DType::Q4_0,
        }
    }
}

/// Options of every command that runs a model.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct CacheArgs {
    /// Type of the cache of keys; q8_0 takes half the memory of f16, q4_0 a good quarter
    #[arg(long, value_name = "TYPE", value_enum, default_value_t, visible_alias = "ctk")]
    pub cache_type_k: CacheType,
    /// Type of the cache of values
    #[arg(long, value_name = "TYPE", value_enum, default_value_t, visible_alias = "ctv")]
    pub cache_type_v: CacheType,
}

impl CacheArgs {
    /// For [`LoadOptions::cache_types`](aether_llm::engine::LoadOptions::cache_types).
    pub fn types(self) -> (DType, DType) {
        (self.cache_type_k.dtype(), self.cache_type_v.dtype())
    }
}
