//! The e-graph language that the rewriting passes share: a function as an e-graph ([`build`]),
//! its nodes and their types ([`lang`]), and the choice of what is computed ([`select`]).

pub mod build;
pub mod lang;
pub mod select;

pub use build::build;
pub use lang::{Graph, Node, Types};
