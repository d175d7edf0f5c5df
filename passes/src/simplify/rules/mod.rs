//! The rules, a file per family. Each file has its rules first and below them the small functions
//! that compute attributes.

mod activation;
mod arithmetic;
mod cast;
mod logic;
mod movement;
mod narrow;
mod norm;
mod product;
mod reduce;
mod slice;

use aether_ir::DType;

use super::rule::{Compute, Cond, Rule};

static FAMILIES: [&[Rule]; 10] = [
    arithmetic::RULES,
    logic::RULES,
    cast::RULES,
    movement::RULES,
    slice::RULES,
    reduce::RULES,
    product::RULES,
    activation::RULES,
    norm::RULES,
    narrow::RULES,
];

/// Every rule, in the order in which they are tried.
pub fn all() -> impl Iterator<Item = &'static Rule> {
    FAMILIES.iter().copied().flatten()
}

/// The type of `?c`.
const TYPE_OF_C: Compute = Compute::Type(|view| view.ty("?c").cloned());

/// The whole is of type `bool`.
const BOOL_ROOT: Cond =
    Cond::Holds("the result is bool", |view| Some(view.root()?.dtype == DType::Bool));
