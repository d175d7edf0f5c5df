//! The text form: the primary form of a module, which a person can read, edit and write.
//!
//! ```text
//! module @demo {
//!   sym s in 1..=512
//!   const @w : tensor<2x2xf32> = dense<[1.0, 2.0, 3.0, 4.5]>
//!   func @main(%x: tensor<[s]x2xf32>) -> tensor<[s]x2xf32> {
//!     %w = constant @w : tensor<2x2xf32>
//!     %0 = matmul %x, %w {transpose_b = true} : tensor<[s]x2xf32>
//!     return %0
//!   }
//! }
//! ```
//!
//! An instruction is `%results = op @symbol operands {attributes} : types`; each part that is
//! empty is left out. Parsing what was printed gives the same module, and printing what was parsed
//! gives the same text if that was printed before ([`print_module`] says what the canonical form is).
//! Instructions, declarations and closing braces begin on a line of their own; other line breaks
//! may stand anywhere but within a type. Comments run from `//` to the end of the line.

mod ast;
mod lexer;
mod lower;
mod name;
mod parse;
mod print;
mod scalar;

pub use lexer::is_keyword;
pub use parse::{MAX_DIAGNOSTICS, MAX_SOURCE, parse_and_verify, parse_module, parse_with_map};
pub use print::{
    LIST_MAX, explain, print_module, print_module as print, print_with_map, value_names,
};

use crate::module::Module;

/// Forgets all places in the text, for comparing modules that came from different texts.
pub fn strip_spans(module: &mut Module) {
    for c in module.consts.values_mut() {
        c.span = 0..0;
    }
    for func in module.funcs.values_mut() {
        func.span = 0..0;
        func.return_span = 0..0;
        func.values.iter_mut().for_each(|v| v.span = 0..0);
        func.body.iter_mut().for_each(|i| i.span = 0..0);
    }
}
