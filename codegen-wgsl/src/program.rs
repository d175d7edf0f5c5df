//! A compiled function: a flat list of dispatches over one arena.

use std::sync::Arc;

use aether_ir::{Symbol, SymbolRange, TensorType};
use indexmap::{IndexMap, IndexSet};

use crate::constants::Constant;
use crate::kernel::{Groups, Shader};

/// A buffer that steps bind ranges of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Buffer {
    /// The arena.
    Frame,
    /// An argument.
    Param(usize),
    /// A result that takes over no argument.
    Result(usize),
    /// A constant.
    Constant(usize),
    /// Two words, zero before a run: the greatest [`Fault`] of the run and a number that goes
    /// with it.
    Status,
}

/// A range of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Binding {
    pub buffer: Buffer,
    pub offset: u64,
    /// At the upper bounds of the symbols; a multiple of 4.
    pub bytes: u64,
}

/// One dispatch.
#[derive(Clone, Debug)]
pub struct Step {
    /// Index into [`GpuProgram::shaders`].
    pub shader: usize,
    /// As many as the shader has bindings.
    pub bindings: Vec<Binding>,
    pub groups: [Groups; 3],
    /// The path of calls and the op, for profiles and errors.
    pub label: Arc<str>,
}

/// What a shader can run into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    ZeroDivisor = 1,
    Index = 2,
    Context = 3,
}

impl Fault {
    /// The fault that a run left in the status buffer, as text; `None` when there is none.
    pub fn describe(kind: u32, value: u32) -> Option<String> {
        match kind {
            0 => None,
            1 => Some("an integer is divided by zero".to_owned()),
            2 => Some(format!("index {} is out of range", value as i32)),
            _ => Some(format!("{} tokens are more than the context holds", value as i32)),
        }
    }
}

/// A compiled function.
#[derive(Clone, Debug)]
pub struct GpuProgram {
    /// Every shader once; all are valid.
    pub shaders: IndexSet<Shader>,
    pub steps: Vec<Step>,
    pub constants: Vec<Constant>,
    pub symbols: IndexMap<Symbol, SymbolRange>,
    pub params: Vec<TensorType>,
    pub results: Vec<TensorType>,
    /// For each result the donated parameter whose buffer holds it.
    pub result_aliases: Vec<Option<usize>>,
    /// Bytes of the arena.
    pub frame_bytes: u64,
}

/// Bytes of a buffer that holds so many: whole words, at least one.
pub fn buffer_bytes(bytes: u64) -> u64 {
    bytes.max(4).next_multiple_of(4)
}
