//! Instructions as e-graph nodes, and the types that ride along.
//!
//! A node's head is the op with its attributes as text, `matmul{transpose_b=true}`, so patterns
//! are written as they are read. Where the type rule takes the result type from the text (`cast`,
//! `reshape`), the type is part of the head. Instructions that must stay as they are (calls,
//! several results, donated operands) are leaves that stand for their value; a leaf may be known
//! to hold one number throughout.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use aether_ir::op::InferCtx;
use aether_ir::{Attr, Attrs, DType, Func, Inst, Op, Tensor, TensorType, ValueId};
use egg::{Analysis, DidMerge, EGraph, FromOp, Id, Language};

/// The e-graph of one function.
pub type Graph = EGraph<Node, Types>;

/// What a node is, apart from its children. Equal when the key is.
#[derive(Clone, Debug)]
pub struct Head {
    key: Arc<str>,
    meaning: Meaning,
}

#[derive(Clone, Debug)]
enum Meaning {
    /// A value that the graph does not look into.
    Leaf {
        value: ValueId,
        ty: TensorType,
        number: Option<Number>,
    },
    Op {
        op: Op,
        attrs: Attrs,
        declared: Vec<TensorType>,
    },
    /// A pattern's head, known by its key alone.
    Pattern,
}

/// A number that all elements of a value are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// Of a floating-point type.
    Float(f64),
    /// Of an integer type or `bool` (0 or 1).
    Int(i64),
}

impl Number {
    /// The first element of a tensor, whatever its plain type.
    pub fn of(tensor: &Tensor) -> Option<Number> {
        if tensor.dtype().is_quantized() {
            return None;
        }
        if tensor.dtype().is_float() {
            return tensor.to_f64_vec().ok()?.first().map(|&v| Number::Float(v));
        }
        tensor.to_i64_vec().ok()?.first().map(|&v| Number::Int(v))
    }

    /// The `value` attribute of a splat as its elements hold it.
    pub fn of_splat(dtype: DType, value: &Attr) -> Option<Number> {
        match value {
            Attr::Int(v) if dtype == DType::I64 => Some(Number::Int(*v)),
            Attr::Int(v) => Number::of(&Tensor::splat(dtype, &[], *v as f64).ok()?),
            Attr::Float(v) => Number::of(&Tensor::splat(dtype, &[], *v).ok()?),
            _ => None,
        }
    }

    /// The value as f64, rounded beyond 2^53.
    pub fn as_f64(self) -> f64 {
        match self {
            Number::Float(v) => v,
            Number::Int(v) => v as f64,
        }
    }

    /// The attribute of a splat of it.
    pub fn attr(self) -> Attr {
        match self {
            Number::Float(v) => Attr::Float(v),
            Number::Int(v) => Attr::Int(v),
        }
    }

    /// Whether it is exactly the number `n`; 0 is -0.
    pub fn is(self, n: f64) -> bool {
        match self {
            Number::Float(v) => v == n,
            Number::Int(v) => n.fract() == 0.0 && n.abs() < 1e15 && v == n as i64,
        }
    }
}

/// The number that all elements of a class are, when one of its nodes says so.
pub fn number(graph: &Graph, class: Id) -> Option<Number> {
    graph[class].nodes.iter().find_map(|node| match &node.head.meaning {
        Meaning::Leaf { number, .. } => *number,
        Meaning::Op { op: Op::Splat, attrs, declared } => {
            Number::of_splat(declared.first()?.dtype, attrs.get("value")?)
        }
        _ => None,
    })
}

/// An e-node.
#[derive(Clone, Debug)]
pub struct Node {
    pub head: Arc<Head>,
    pub children: Vec<Id>,
}

impl Node {
    /// A value as it is.
    pub fn leaf(value: ValueId, ty: &TensorType) -> Self {
        Node::known_leaf(value, ty, None)
    }

    /// A value as it is, all of whose elements are `number` when that is known.
    pub fn known_leaf(value: ValueId, ty: &TensorType, number: Option<Number>) -> Self {
        let key = format!("%{}", value.0).into();
        let meaning = Meaning::Leaf { value, ty: ty.clone(), number };
        Node { head: Arc::new(Head { key, meaning }), children: vec![] }
    }

    /// The same node over other classes.
    #[must_use]
    pub fn with_children(&self, children: Vec<Id>) -> Self {
        Node { head: self.head.clone(), children }
    }

    /// The value that a leaf stands for.
    pub fn as_leaf(&self) -> Option<ValueId> {
        match &self.head.meaning {
            Meaning::Leaf { value, .. } => Some(*value),
            _ => None,
        }
    }

    /// The result types that stand in the head.
    pub fn declared(&self) -> &[TensorType] {
        match &self.head.meaning {
            Meaning::Op { declared, .. } => declared,
            _ => &[],
        }
    }

    /// An op over classes.
    pub fn op(op: Op, attrs: Attrs, declared: Vec<TensorType>, children: Vec<Id>) -> Self {
        let mut key = key_of(op, &attrs);
        for ty in &declared {
            key.push_str(&format!(":{ty}"));
        }
        let head = Head { key: key.into(), meaning: Meaning::Op { op, attrs, declared } };
        Node { head: Arc::new(head), children }
    }

    /// The node of an instruction over the classes of its operands, or `None` when the graph must
    /// not look into it.
    pub fn of(func: &Func, inst: &Inst, class: impl Fn(ValueId) -> Id) -> Option<Self> {
        let ([result], None) = (inst.results.as_slice(), &inst.symbol) else { return None };
        if inst.op == Op::Barrier || inst.operands.iter().any(|o| o.donated) {
            return None;
        }
        // Ops whose result type does not follow from their operands carry it in their head.
        let operands: Vec<&TensorType> = inst.inputs().map(|v| func.ty(v)).collect();
        let rule = InferCtx { operands: &operands, attrs: &inst.attrs, declared: &[] };
        let declared = match (inst.op.info().infer)(&rule) {
            Ok(types) if types.len() == 1 => Vec::new(),
            _ => vec![func.ty(*result).clone()],
        };
        let children = inst.inputs().map(class).collect();
        Some(Node::op(inst.op, inst.attrs.clone(), declared, children))
    }

    /// The op and its attributes, when it is no leaf.
    pub fn as_op(&self) -> Option<(Op, &Attrs)> {
        match &self.head.meaning {
            Meaning::Op { op, attrs, .. } => Some((*op, attrs)),
            Meaning::Leaf { .. } | Meaning::Pattern => None,
        }
    }

    /// Op and attributes as patterns write them.
    pub fn key(&self) -> &str {
        &self.head.key
    }
}

/// The head of an op without declared types.
pub fn key_of(op: Op, attrs: &Attrs) -> String {
    let mut sorted: Vec<_> = attrs.0.iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(b.0));
    let parts: Vec<String> = sorted
        .into_iter()
        .map(|(name, attr)| match attr {
            Attr::Bool(v) => format!("{name}={v}"),
            Attr::Int(v) => format!("{name}={v}"),
            // The bits tell 0 from -0 and one NaN from another.
            Attr::Float(v) => format!("{name}={v}#{:x}", v.to_bits()),
            Attr::Ints(v) => format!("{name}={v:?}"),
            Attr::Str(v) => format!("{name}={v:?}"),
        })
        .collect();
    match parts.is_empty() {
        true => op.name().to_owned(),
        false => format!("{op}{{{}}}", parts.join(",")),
    }
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.head.key == other.head.key && self.children == other.children
    }
}

impl Eq for Node {}

impl PartialOrd for Node {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Node {
    fn cmp(&self, other: &Self) -> Ordering {
        (&self.head.key, &self.children).cmp(&(&other.head.key, &other.children))
    }
}

impl Hash for Node {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.head.key.hash(state);
        self.children.hash(state);
    }
}

impl Language for Node {
    type Discriminant = Arc<str>;

    fn discriminant(&self) -> Arc<str> {
        self.head.key.clone()
    }

    fn matches(&self, other: &Self) -> bool {
        self.head.key == other.head.key && self.children.len() == other.children.len()
    }

    fn children(&self) -> &[Id] {
        &self.children
    }

    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.children
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.head.key)
    }
}

impl FromOp for Node {
    type Error = std::convert::Infallible;

    fn from_op(op: &str, children: Vec<Id>) -> Result<Self, Self::Error> {
        let head = Head { key: op.into(), meaning: Meaning::Pattern };
        Ok(Node { head: Arc::new(head), children })
    }
}

/// The analysis: the type of each class, by the ops' own type rules.
#[derive(Clone, Debug, Default)]
pub struct Types;

impl Analysis<Node> for Types {
    type Data = Option<TensorType>;

    fn make(graph: &mut Graph, node: &Node, _id: Id) -> Self::Data {
        match &node.head.meaning {
            Meaning::Leaf { ty, .. } => Some(ty.clone()),
            Meaning::Op { op, attrs, declared } => {
                infer(graph, *op, attrs, declared, &node.children)
            }
            Meaning::Pattern => None,
        }
    }

    fn merge(&mut self, a: &mut Self::Data, b: Self::Data) -> DidMerge {
        assert_eq!(*a, b, "values of different types were found equal");
        DidMerge(false, false)
    }
}

/// The type of an op over classes, when its type rule accepts them and gives one result.
pub fn infer(
    graph: &Graph,
    op: Op,
    attrs: &Attrs,
    declared: &[TensorType],
    children: &[Id],
) -> Option<TensorType> {
    let operands: Vec<&TensorType> =
        children.iter().map(|&c| graph[c].data.as_ref()).collect::<Option<_>>()?;
    let arity = op.info().arity;
    if !(arity.min..=arity.max).contains(&operands.len()) {
        return None;
    }
    let results = (op.info().infer)(&InferCtx { operands: &operands, attrs, declared }).ok()?;
    match <[TensorType; 1]>::try_from(results) {
        Ok([ty]) => Some(ty),
        Err(_) => None,
    }
}
