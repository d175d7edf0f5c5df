//! Compute shaders and how they are launched.
//!
//! A shader's entry is `main`. Its storage buffers are bindings 1, 2, … of group 0; binding 0 is
//! the uniform of the run's symbols, which a shader declares only if it reads it
//! ([`SYMBOLS`]). Every binding begins at an address that is a multiple of 256 bytes.
//!
//! Values that a program writes are always bound for reading and writing, because they share one
//! buffer, of which WebGPU allows only one kind of use in a dispatch; constants are bound for
//! reading alone. The same range is bound once in a dispatch.

use std::sync::Arc;

use aether_ir::Dim;

/// The declaration of the symbols' uniform: 32-bit numbers in the module's order of declaration,
/// four in a vector.
pub const SYMBOLS: &str = "@group(0) @binding(0) var<uniform> symbols: array<vec4<u32>, 16>;\n";

/// Most symbols of a module.
pub const MAX_SYMBOLS: usize = 64;

/// What a shader asks of the adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Needs {
    pub f16: bool,
    pub subgroups: bool,
    pub cooperative_matrix: bool,
}

/// How a shader uses a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    Read,
    ReadWrite,
}

/// A compute shader. Two that are equal are one pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shader {
    /// For labels and profiles, such as `matvec_q4_k`.
    pub name: &'static str,
    pub wgsl: Arc<str>,
    pub needs: Needs,
    /// Bindings 1, 2, …
    pub bindings: Vec<Access>,
    /// Whether every index stays inside its binding for all values of the symbols in their ranges
    /// and whatever the buffers hold, so that checks can be left out.
    pub in_bounds: bool,
}

/// What is bound, seen from the instruction that a launch belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bind {
    Operand(usize),
    Result(usize),
    /// A range of the instruction's scratch.
    Scratch {
        offset: u64,
        bytes: u64,
    },
    /// Where a shader says what it ran into ([`crate::Fault`]).
    Status,
}

/// Workgroups along an axis: `ceil(count / per)`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Groups {
    pub count: Dim,
    pub per: u32,
}

impl Groups {
    /// One group for each `per` of `count`.
    pub fn of(count: impl Into<Dim>, per: u32) -> Groups {
        Groups { count: count.into(), per }
    }

    /// One group.
    pub fn one() -> Groups {
        Groups::of(1u64, 1)
    }
}

/// One dispatch of an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    pub shader: Shader,
    pub binds: Vec<Bind>,
    pub groups: [Groups; 3],
}
