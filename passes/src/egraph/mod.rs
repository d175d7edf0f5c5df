//! The e-graph language that the rewriting passes share.
//!
//! A function becomes an e-graph ([`build`]) of nodes that are ops over classes, with a type for
//! each class ([`lang`]). Rules look for [`pattern`]s in it. What is computed in the end is chosen
//! by cost, with shared work counted once ([`extract`]), and becomes a function again ([`emit`]).
//! [`select`] is the choice of `fuse`, among instructions alone.

pub mod build;
pub mod emit;
pub mod extract;
pub mod lang;
pub mod pattern;
pub mod select;

pub use build::{Merged, build, merged};
pub use extract::{Extraction, extract};
pub use lang::{Graph, Node, Number, Types};
pub use pattern::{Bound, Family, Match, Term};
