//! Instructions as e-graph nodes, and the types that ride along.
//!
//! A node's head is the op with its attributes as text, `matmul{transpose_b=true}`, so patterns
//! are written as they are read. Where the type rule takes the result type from the text (`cast`,
//! `reshape`), the type is part of the head. Instructions that must stay as they are (calls,
//! several results, donated operands) are leaves that stand for their value.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use aether_ir::op::InferCtx;
use aether_ir::{Attr, Attrs, Func, Inst, Op, TensorType, ValueId};
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
    Leaf(TensorType),
    Op {
        op: Op,
        attrs: Attrs,
        declared: Vec<TensorType>,
    },
    /// A pattern's head, known by its key alone.
    Pattern,
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
        let key = format!("%{}", value.0).into();
        Node { head: Arc::new(Head { key, meaning: Meaning::Leaf(ty.clone()) }), children: vec![] }
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
        let declared = match inst.op {
            Op::Splat
            | Op::Iota
            | Op::Cast
            | Op::Quantize
            | Op::Reshape
            | Op::Broadcast
            | Op::Pack => vec![func.ty(*result).clone()],
            _ => Vec::new(),
        };
        let children = inst.inputs().map(class).collect();
        Some(Node::op(inst.op, inst.attrs.clone(), declared, children))
    }

    /// The op and its attributes, when it is no leaf.
    pub fn as_op(&self) -> Option<(Op, &Attrs)> {
        match &self.head.meaning {
            Meaning::Op { op, attrs, .. } => Some((*op, attrs)),
            Meaning::Leaf(_) | Meaning::Pattern => None,
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
            Meaning::Leaf(ty) => Some(ty.clone()),
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
