//! The memory plan: where each value of each function lives.
//!
//! Every function has a frame; a call's frame lies inside its caller's. Results are written where
//! the caller wants them: a returned value is [`Storage::Result`], bound by the caller to a range
//! of its own frame or to its own result. Passes make the plan, code generators read it.
//!
//! **Results.** Result `i` of a function is in one of three places: the caller's buffer, when some
//! value is `Result(i)`; the caller's buffer after a copy, when `i` is listed in
//! [`FuncPlan::copies`] (a parameter, a constant, or a value that is returned twice); otherwise
//! the returned value's root is `Param(j)`: the result *is* the buffer of parameter `j`, which the
//! caller gave away, and the call's result is `Alias` of operand `j`.
//!
//! **In place.** An instruction whose result is `Alias` of one of its operands writes over that
//! operand (`reshape` and `broadcast` write nothing: both are the same bytes). When a donated
//! operand could not be taken over (it is a constant, or not every caller gives it away), the
//! result has storage of its own: the generator copies the operand there first, then writes. The
//! buffer of an entry's parameter is written only if the entry's body donates the parameter.
//!
//! **Load time.** Every value computed from constants alone, at any function, is `Const`; its
//! instructions run once, when the module is loaded. An instruction all of whose results are
//! `Unused` never runs.

use std::sync::Arc;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::module::ValueId;

/// Alignment of every range in a frame, in bytes.
pub const ALIGNMENT: u64 = 256;

/// Where a value's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// The buffer of a parameter.
    Param(usize),
    /// A constant of the module, or a value computed from constants alone when the module is
    /// loaded.
    Const,
    /// A range of the function's frame.
    Frame { offset: u64, bytes: u64 },
    /// The caller's buffer for this result.
    Result(usize),
    /// The bytes of another value: a reshape, or a result that takes over a donated operand.
    Alias(ValueId),
    /// Never read.
    Unused,
}

/// A range of the frame used only while one instruction runs: scratch, or a callee's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Temporary {
    /// Index into the body.
    pub inst: usize,
    pub offset: u64,
    pub bytes: u64,
}

/// The plan of one function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FuncPlan {
    /// By value index.
    pub storage: Vec<Storage>,
    /// At most one per instruction, in body order.
    pub temporaries: Vec<Temporary>,
    /// Results that are copied into the caller's buffer when the function returns, as the index
    /// of the result and the value, by rising index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<(usize, ValueId)>,
    /// Bytes of the frame, callees' frames included.
    pub frame_bytes: u64,
    /// The greatest sum of bytes alive at one instruction: no plan can be smaller.
    pub lower_bound: u64,
}

impl FuncPlan {
    /// The value whose storage `value` shares: itself when it is no alias.
    pub fn root(&self, value: ValueId) -> ValueId {
        let mut v = value;
        while let Storage::Alias(of) = self.storage[v.index()] {
            v = of;
        }
        v
    }

    /// The temporary range of an instruction.
    pub fn temporary(&self, inst: usize) -> Option<&Temporary> {
        let i = self.temporaries.binary_search_by_key(&inst, |t| t.inst).ok()?;
        Some(&self.temporaries[i])
    }
}

/// The plan of a module, by function.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryPlan {
    pub funcs: IndexMap<Arc<str>, FuncPlan>,
}
