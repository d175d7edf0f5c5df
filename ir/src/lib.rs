//! The SSA tensor IR of Aether.

pub mod attr;
pub mod builder;
pub mod diag;
pub mod dim;
pub mod dtype;
pub mod fusion;
pub mod interp;
pub mod load;
pub mod module;
pub mod op;
pub mod plan;
pub mod quant;
pub mod target;
pub mod tensor;
pub mod text;
pub mod types;
pub mod verify;

pub use attr::{Attr, Attrs};
pub use builder::{BuildError, FuncBuilder, donate};
pub use diag::{Diagnostic, Loc, SourceMap};
pub use dim::{Bindings, Dim, Symbol, SymbolRange};
pub use dtype::DType;
pub use interp::{ConstSource, FileSource, InterpError, InterpOptions, Interpreter, eval_inst};
pub use module::{Const, ConstData, Func, Inst, Module, Operand, Span, ValueId};
pub use op::Op;
pub use tensor::Tensor;
pub use text::{parse_and_verify, parse_module, print_module};
pub use types::{Layout, Shape, TensorType};
pub use verify::verify;
