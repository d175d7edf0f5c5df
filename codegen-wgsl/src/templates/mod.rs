//! The heavy kernels: WGSL text from Rust functions, one file for each subject.
//!
//! A template is described by plain data (sizes, types, epilogue). Its `launches` writes the
//! shaders for an adapter. How it meets the instruction is a [`Site`]: what each operand is bound
//! to, in the order that the template names, and the symbols of the module.
//!
//! Every index that a shader computes stays inside its binding for any content of the buffers
//! and any value of the symbols, given bindings of the described sizes.

pub mod attention;
pub mod attention_coop;
pub mod attention_tiles;
pub mod blocks;
pub mod coop;
pub mod dense;
pub mod gather;
pub mod matvec;
pub mod norm;
pub mod pick;
pub mod prepare;
pub mod product;
pub mod tall;
pub mod text;
pub mod tiled;

use aether_ir::Symbol;
use indexmap::IndexSet;

use crate::adapter::Adapter;
use crate::kernel::{Access, Bind};

/// What an operand is bound to and how. Two operands with the same `bind` are the same range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    pub bind: Bind,
    pub access: Access,
}

/// Where a template is used.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    pub adapter: &'a Adapter,
    /// The module's symbols in their order of declaration.
    pub symbols: &'a IndexSet<Symbol>,
    /// In the order that the template names.
    pub operands: &'a [Operand],
}
