//! What a rule is: two patterns, conditions on what they match, attributes to compute, and how
//! far its result may lie from what it replaces.

use aether_ir::{Attrs, DType, Op, TensorType};
use egg::Id;

use crate::egraph::lang::number;
use crate::egraph::{Bound, Graph, Match, Number};

/// How a rewritten value compares with the one that it replaces.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Legality {
    /// The same bits, but for the payload of a NaN.
    Exact,
    /// The same numbers; a zero may have the other sign.
    ZeroSign,
    /// Within so many roundings: units of the element type's epsilon, relative to the greatest
    /// magnitude among the operands and results. Infinities and NaN stay what they are.
    Within(f64),
    /// As [`Within`](Legality::Within) wherever the parts neither overflow nor underflow. Where
    /// they do, or meet an infinity, the whole is the limit that the parts miss (`silu` of -inf
    /// is -0 and no NaN).
    Limit(f64),
}

/// What a match must satisfy. Names are those of the rule's left side.
#[derive(Clone, Copy)]
pub enum Cond {
    /// Of a floating-point type.
    Float(&'static str),
    /// Of an integer type, `bool` excluded.
    Int(&'static str),
    /// All elements are one known number.
    Constant(&'static str),
    /// All elements are the number to within the rounding of their type.
    Near(&'static str, f64),
    /// All elements are one power of two whose reciprocal the type holds as well.
    PowerOfTwo(&'static str),
    /// No element is negative or NaN unless it comes from a NaN.
    NonNegative(&'static str),
    /// The types are equal.
    SameType(&'static str, &'static str),
    /// No dimension is a symbol.
    Static(&'static str),
    /// Anything else, with its wording.
    Holds(&'static str, fn(&View) -> Option<bool>),
}

/// What is computed from a match before the right side is built.
#[derive(Clone, Copy)]
pub enum Compute {
    /// The attributes of a node; `None` means that the rule does not apply.
    Attrs(fn(&View) -> Option<Attrs>),
    /// The type of a node.
    Type(fn(&View) -> Option<TensorType>),
    /// A class that is there.
    Class(fn(&View) -> Option<Id>),
    /// Operands of a variadic op that are there.
    Classes(fn(&View) -> Option<Vec<Id>>),
}

/// A rewrite: wherever a form fits and the conditions hold, the right side is equal.
pub struct Rule {
    pub name: &'static str,
    pub doc: &'static str,
    /// Patterns that are rewritten; each binds what the rest of the rule names.
    pub forms: &'static [&'static str],
    pub rhs: &'static str,
    pub legality: Legality,
    pub when: &'static [Cond],
    pub compute: &'static [(&'static str, Compute)],
}

/// A rule without conditions.
pub const fn rule(
    name: &'static str,
    forms: &'static [&'static str],
    rhs: &'static str,
    legality: Legality,
    doc: &'static str,
) -> Rule {
    Rule { name, doc, forms, rhs, legality, when: &[], compute: &[] }
}

impl Rule {
    /// The rule under these conditions.
    #[must_use]
    pub const fn when(mut self, when: &'static [Cond]) -> Rule {
        self.when = when;
        self
    }

    /// The rule with these names computed, each from those before it.
    #[must_use]
    pub const fn with(mut self, compute: &'static [(&'static str, Compute)]) -> Rule {
        self.compute = compute;
        self
    }
}

/// A match with the graph it is in.
pub struct View<'a> {
    pub graph: &'a Graph,
    pub found: &'a Match,
}

impl View<'_> {
    /// The type of a class by name.
    pub fn ty(&self, name: &str) -> Option<&TensorType> {
        self.ty_of(self.found.class(name)?)
    }

    /// The type of a class.
    pub fn ty_of(&self, class: Id) -> Option<&TensorType> {
        self.graph[class].data.as_ref()
    }

    /// The type of the whole.
    pub fn root(&self) -> Option<&TensorType> {
        self.ty_of(self.found.root)
    }

    /// Attributes by name.
    pub fn attrs(&self, name: &str) -> Option<&Attrs> {
        match self.found.get(name)? {
            Bound::Attrs(attrs) => Some(attrs),
            _ => None,
        }
    }

    /// An op by name.
    pub fn op(&self, name: &str) -> Option<Op> {
        match self.found.get(name)? {
            Bound::Op(op) => Some(*op),
            _ => None,
        }
    }

    /// The operands behind `..`.
    pub fn classes(&self, name: &str) -> Option<&[Id]> {
        match self.found.get(name)? {
            Bound::Classes(classes) => Some(classes),
            _ => None,
        }
    }

    /// The number that all elements are.
    pub fn number(&self, name: &str) -> Option<Number> {
        number(self.graph, self.found.class(name)?)
    }

    /// The attributes of the first node of that op in a class, with its operands.
    pub fn node(&self, class: Id, op: Op) -> Option<(&Attrs, &[Id])> {
        self.graph[class].nodes.iter().find_map(|node| {
            let (found, attrs) = node.as_op()?;
            (found == op).then_some((attrs, node.children.as_slice()))
        })
    }
}

impl Cond {
    /// Whether the condition holds.
    pub fn holds(&self, view: &View) -> bool {
        self.decide(view).unwrap_or(false)
    }

    fn decide(&self, view: &View) -> Option<bool> {
        Some(match self {
            Cond::Float(x) => view.ty(x)?.dtype.is_float(),
            Cond::Int(x) => view.ty(x)?.dtype.is_int(),
            Cond::Constant(x) => view.number(x).is_some(),
            Cond::Near(x, n) => {
                let unit = epsilon(view.ty(x)?.dtype);
                (view.number(x)?.as_f64() - n).abs() <= unit * n.abs()
            }
            Cond::PowerOfTwo(x) => is_power_of_two(view.number(x)?, view.ty(x)?.dtype),
            Cond::NonNegative(x) => non_negative(view.graph, view.found.class(x)?),
            Cond::SameType(x, y) => view.ty(x)? == view.ty(y)?,
            Cond::Static(x) => view.ty(x)?.shape.as_const().is_some(),
            Cond::Holds(_, test) => test(view)?,
        })
    }
}

/// The distance from 1 to the next number of a type; 0 for types without rounding.
pub fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::EPSILON,
        DType::F32 => f64::from(f32::EPSILON),
        DType::F16 => 1.0 / 1024.0,
        DType::Bf16 => 1.0 / 128.0,
        _ => 0.0,
    }
}

fn is_power_of_two(number: Number, dtype: DType) -> bool {
    let Number::Float(v) = number else { return false };
    // The exponents at which the number and its reciprocal are normal.
    let most = match dtype {
        DType::F16 => 14,
        DType::F32 | DType::Bf16 => 126,
        _ => 1022,
    };
    let mantissa = v.to_bits() & ((1 << 52) - 1);
    v.is_normal() && mantissa == 0 && (v.abs().log2().abs() as i32) <= most
}

/// Whether some node of the class says that no element is below zero.
fn non_negative(graph: &Graph, class: Id) -> bool {
    if let Some(n) = number(graph, class) {
        return n.as_f64() >= 0.0;
    }
    let float = graph[class].data.as_ref().is_some_and(|ty| ty.dtype.is_float());
    graph[class].nodes.iter().any(|node| match node.as_op() {
        Some((Op::Exp | Op::Sqrt | Op::Sigmoid | Op::Relu | Op::Softmax, _)) => true,
        // Integers wrap.
        Some((Op::Abs, _)) => float,
        Some((Op::Mul, _)) => float && node.children[0] == node.children[1],
        _ => false,
    })
}
