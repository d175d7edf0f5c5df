//! The SSA module: symbols, external constants, functions, instructions.
//!
//! A function is one straight list of instructions in which every value is defined before it is
//! used, once. There are no blocks: control flow is `call` and `select`.

use std::ops::Range;
use std::sync::Arc;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::attr::Attrs;
use crate::dim::{Symbol, SymbolRange};
use crate::op::Op;
use crate::types::TensorType;

/// A place in the source text: byte offsets.
pub type Span = Range<u32>;

/// Index of a value within its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ValueId(pub u32);

impl ValueId {
    /// As an index into [`Func::values`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What is known of one SSA value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValueData {
    pub ty: TensorType,
    /// The name in the text, without `%`. Values without one are numbered when printed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Arc<str>>,
    #[serde(skip)]
    pub span: Span,
}

/// An operand: a value, given away when `donated`.
///
/// A donated value has no later use; the result may take over its buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Operand {
    pub value: ValueId,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub donated: bool,
}

impl From<ValueId> for Operand {
    fn from(value: ValueId) -> Self {
        Operand { value, donated: false }
    }
}

/// One instruction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inst {
    pub op: Op,
    pub operands: Vec<Operand>,
    #[serde(default, skip_serializing_if = "Attrs::is_empty")]
    pub attrs: Attrs,
    /// The function of a `call`, the module constant of a `constant`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symbol: Option<Arc<str>>,
    pub results: Vec<ValueId>,
    #[serde(skip)]
    pub span: Span,
}

impl Inst {
    /// The values read, in order.
    pub fn inputs(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.operands.iter().map(|o| o.value)
    }
}

/// A function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Func {
    pub name: Arc<str>,
    pub params: Vec<ValueId>,
    /// Types of what the function returns, as declared.
    pub result_types: Vec<TensorType>,
    pub values: Vec<ValueData>,
    pub body: Vec<Inst>,
    pub returns: Vec<ValueId>,
    #[serde(skip)]
    pub span: Span,
    #[serde(skip)]
    pub return_span: Span,
}

impl Func {
    /// An empty function.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Func {
            name: name.into(),
            params: Vec::new(),
            result_types: Vec::new(),
            values: Vec::new(),
            body: Vec::new(),
            returns: Vec::new(),
            span: 0..0,
            return_span: 0..0,
        }
    }

    /// Adds a value that an instruction or parameter is about to define.
    pub fn add_value(&mut self, ty: TensorType, name: Option<Arc<str>>) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        self.values.push(ValueData { ty, name, span: 0..0 });
        id
    }

    /// The type of a value.
    pub fn ty(&self, value: ValueId) -> &TensorType {
        &self.values[value.index()].ty
    }

    /// Number of times each value is used, returns counted.
    pub fn use_counts(&self) -> Vec<u32> {
        let mut counts = vec![0; self.values.len()];
        let uses = self.body.iter().flat_map(Inst::inputs).chain(self.returns.iter().copied());
        for v in uses {
            counts[v.index()] += 1;
        }
        counts
    }

    /// For each value the index of the instruction that defines it; `None` for parameters.
    pub fn definitions(&self) -> Vec<Option<usize>> {
        let mut defs = vec![None; self.values.len()];
        for (i, inst) in self.body.iter().enumerate() {
            for r in &inst.results {
                defs[r.index()] = Some(i);
            }
        }
        defs
    }
}

/// Where the bytes of a constant are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConstData {
    /// A range of a file, mapped when the module is loaded.
    File {
        path: String,
        offset: u64,
        bytes: u64,
        /// SHA-256 of the range, checked on load when verification is asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sha256: Option<String>,
    },
    /// The bytes themselves, little-endian, shared.
    Dense(Arc<[u8]>),
}

/// A constant of the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Const {
    pub ty: TensorType,
    pub data: ConstData,
    #[serde(skip)]
    pub span: Span,
}

/// A module: everything that is compiled together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Module {
    pub name: Arc<str>,
    #[serde(default)]
    pub symbols: IndexMap<Symbol, SymbolRange>,
    #[serde(default)]
    pub consts: IndexMap<Arc<str>, Const>,
    pub funcs: IndexMap<Arc<str>, Func>,
}

impl Module {
    /// An empty module.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Module {
            name: name.into(),
            symbols: IndexMap::new(),
            consts: IndexMap::new(),
            funcs: IndexMap::new(),
        }
    }

    /// Declares a dimension symbol.
    pub fn declare_symbol(&mut self, name: impl Into<Symbol>, min: u64, max: u64) {
        self.symbols.insert(name.into(), SymbolRange { min, max });
    }

    /// Adds a constant; a later one of the same name replaces it.
    pub fn add_const(&mut self, name: impl Into<Arc<str>>, ty: TensorType, data: ConstData) {
        self.consts.insert(name.into(), Const { ty, data, span: 0..0 });
    }

    /// Adds a function; a later one of the same name replaces it.
    pub fn add_func(&mut self, func: Func) {
        self.funcs.insert(func.name.clone(), func);
    }
}
