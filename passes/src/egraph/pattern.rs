//! Patterns over e-graph nodes: what a rewrite looks for and what it puts there.
//!
//! They are written as the IR is, in prefix form:
//!
//! | text | stands for |
//! |---|---|
//! | `?x` | any class |
//! | `?xs..` | all remaining operands (last in its list) |
//! | `0.5` | a class whose elements are all that number; to the right of a rule a `splat` of it |
//! | `(neg ?x)` | the op without attributes |
//! | `(matmul{transpose_b=true} ?x ?w)` | the op with exactly these attributes |
//! | `(transpose{?p} ?x)` | the op with any attributes, bound as a whole to `?p` |
//! | `(cast:?m ?x)` | as `(cast ?x)`; `?m` is the class, or to the right of a rule the type |
//! | `(@unary ?x)` | any op of a [`Family`], the same one wherever the name stands |
//!
//! Attributes are matched in canonical form ([`canonical`]): defaults are left out, axes count from
//! the front. Operands of commutative ops match in either order, so that neither e-graph nor
//! rules need commutativity.

use aether_ir::{Attr, Attrs, DType, Op, TensorType};
use egg::Id;

use super::lang::{Graph, Node, infer, number};

/// Ops that a pattern can name together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// One element from one element, of the same type.
    Unary,
    /// One element from two.
    Binary,
    /// Reductions over axes.
    Reduce,
}

impl Family {
    /// The ops of the family.
    pub fn ops(self) -> &'static [Op] {
        use Op::*;
        match self {
            Family::Unary => &[
                Neg, Abs, Sign, Exp, Log, Sqrt, Rsqrt, Sin, Cos, Tanh, Sigmoid, Relu, Gelu,
                GeluTanh, Silu, Erf, Floor, Ceil, Round, Not,
            ],
            Family::Binary => &[Add, Sub, Mul, Div, Pow, Max, Min, Eq, Ne, Lt, Le, Gt, Ge, And, Or],
            Family::Reduce => &[ReduceSum, ReduceMean, ReduceProd, ReduceMax, ReduceMin],
        }
    }
}

/// A parsed pattern.
#[derive(Clone, Debug)]
pub enum Term {
    Var(&'static str),
    Rest(&'static str),
    Number(f64),
    Op { head: Head, attrs: AttrTerm, ty: Option<&'static str>, children: Vec<Term> },
}

/// The op of a pattern's node.
#[derive(Clone, Copy, Debug)]
pub enum Head {
    Is(Op),
    Any(&'static str, Family),
}

/// The attributes of a pattern's node.
#[derive(Clone, Debug)]
pub enum AttrTerm {
    Exactly(Attrs),
    Bind(&'static str),
}

/// What a name of a pattern stands for.
#[derive(Clone, Debug, PartialEq)]
pub enum Bound {
    Class(Id),
    Classes(Vec<Id>),
    Attrs(Attrs),
    Op(Op),
    Type(TensorType),
}

/// A place where a pattern fits.
#[derive(Clone, Debug)]
pub struct Match {
    /// The class of the pattern's root.
    pub root: Id,
    bound: Vec<(&'static str, Bound)>,
    /// The nodes that were matched, in the order of the pattern's heads, with their operands in
    /// the order of the pattern, and whether that is not their own.
    nodes: Vec<(Node, bool)>,
}

/// Most ways in which one pattern is matched at one node.
const MAX_MATCHES: usize = 16;

/// Whether the operands of an op may be exchanged without a change in any bit. Those of `max` and
/// `min` may not: of 0 and -0 they give the second.
pub fn commutes(op: Op) -> bool {
    use Op::*;
    matches!(op, Add | Mul | Eq | Ne | And | Or)
}

/// The node with its attributes in canonical form (defaults left out, axes from the front and
/// sorted where their order says nothing) and, when its op commutes, its operands in the order of
/// their classes, numbers last.
pub fn canonical(
    graph: &Graph,
    op: Op,
    attrs: &Attrs,
    declared: Vec<TensorType>,
    mut children: Vec<Id>,
) -> Node {
    if commutes(op) && children.len() == 2 {
        children.sort_by_key(|&c| (number(graph, c).is_some(), graph.find(c)));
    }
    let rank = match (declared.first(), children.first()) {
        (Some(ty), None) => ty.rank(),
        (_, Some(&x)) => graph[x].data.as_ref().map_or(0, TensorType::rank),
        (None, None) => 0,
    };
    let front = |axis: i64| if axis < 0 { axis + rank as i64 } else { axis };
    let mut out = Attrs::new();
    for spec in op.info().attrs {
        let Some(attr) = attrs.get(spec.name) else { continue };
        let attr = match (spec.name, attr) {
            ("transpose_b" | "keepdims", Attr::Bool(false)) => continue,
            ("steps", Attr::Ints(steps)) if steps.iter().all(|&s| s == 1) => continue,
            ("axis", Attr::Int(axis)) => Attr::Int(front(*axis)),
            ("axes", Attr::Ints(axes)) => {
                let mut axes: Vec<i64> = axes.iter().map(|&a| front(a)).collect();
                axes.sort_unstable();
                Attr::Ints(axes)
            }
            _ => attr.clone(),
        };
        out = out.with(spec.name, attr);
    }
    Node::op(op, out, declared, children)
}

impl Match {
    /// What a name stands for.
    pub fn get(&self, name: &str) -> Option<&Bound> {
        self.bound.iter().find(|(n, _)| *n == name).map(|(_, b)| b)
    }

    /// Gives a name a meaning.
    pub fn bind(&mut self, name: &'static str, bound: Bound) {
        self.bound.push((name, bound));
    }

    /// The class of a name.
    pub fn class(&self, name: &str) -> Option<Id> {
        match self.get(name) {
            Some(Bound::Class(id)) => Some(*id),
            _ => None,
        }
    }

    /// Binds a name or compares with what it is bound to already.
    fn accept(&mut self, name: &'static str, bound: Bound) -> bool {
        match self.get(name) {
            Some(known) => *known == bound,
            None => {
                self.bind(name, bound);
                true
            }
        }
    }
}

impl Term {
    /// Reads a pattern.
    ///
    /// # Errors
    /// Says what was expected where.
    pub fn parse(text: &'static str) -> Result<Term, String> {
        let mut parser = Parser { text, at: 0 };
        let term = parser.term()?;
        match parser.rest().is_empty() {
            true => Ok(term),
            false => Err(parser.expected("the end")),
        }
    }

    /// The ops that the pattern's root may have; none for a variable.
    pub fn root_ops(&self) -> Vec<Op> {
        match self {
            Term::Op { head: Head::Is(op), .. } => vec![*op],
            Term::Op { head: Head::Any(_, family), .. } => family.ops().to_vec(),
            _ => Vec::new(),
        }
    }

    /// The ways in which the pattern fits with `node` of the class `root` at its root.
    pub fn search(&self, graph: &Graph, root: Id, node: &Node) -> Vec<Match> {
        let start = Match { root, bound: Vec::new(), nodes: Vec::new() };
        let mut found = Vec::new();
        self.match_node(graph, root, node, &start, &mut found);
        found
    }

    fn match_class(&self, graph: &Graph, class: Id, so_far: &Match, found: &mut Vec<Match>) {
        match self {
            Term::Var(name) => {
                let mut m = so_far.clone();
                if m.accept(name, Bound::Class(class)) {
                    found.push(m);
                }
            }
            Term::Number(n) => {
                if number(graph, class).is_some_and(|v| v.is(*n)) {
                    found.push(so_far.clone());
                }
            }
            Term::Rest(_) => {}
            Term::Op { .. } => {
                for node in &graph[class].nodes {
                    self.match_node(graph, class, node, so_far, found);
                }
            }
        }
    }

    fn match_node(
        &self,
        graph: &Graph,
        class: Id,
        node: &Node,
        so_far: &Match,
        found: &mut Vec<Match>,
    ) {
        let Term::Op { head, attrs, ty, children } = self else { return };
        let Some((op, node_attrs)) = node.as_op() else { return };
        let mut m = so_far.clone();
        let head_fits = match head {
            Head::Is(want) => op == *want,
            Head::Any(name, family) => family.ops().contains(&op) && m.accept(name, Bound::Op(op)),
        };
        let attrs_fit = |m: &mut Match| match attrs {
            AttrTerm::Exactly(want) => want == node_attrs,
            AttrTerm::Bind(name) => m.accept(name, Bound::Attrs(node_attrs.clone())),
        };
        if !head_fits
            || !attrs_fit(&mut m)
            || ty.is_some_and(|name| !m.accept(name, Bound::Class(class)))
        {
            return;
        }
        let operands: Vec<Id> = node.children.iter().map(|&c| graph.find(c)).collect();
        let mut orders = vec![(operands.clone(), false)];
        if commutes(op) && operands.len() == 2 && operands[0] != operands[1] {
            orders.push((vec![operands[1], operands[0]], true));
        }
        for (order, swapped) in orders {
            let mut m = m.clone();
            m.nodes.push((node.with_children(order.clone()), swapped));
            match_operands(graph, children, &order, m, found);
            if found.len() >= MAX_MATCHES {
                found.truncate(MAX_MATCHES);
                return;
            }
        }
    }

    /// Adds what the pattern stands for, with `ty` as the type of its root. `None` when a type
    /// rule refuses a node.
    pub fn instantiate(&self, graph: &mut Graph, m: &Match, ty: &TensorType) -> Option<Id> {
        let id = self.add(graph, m, Some(ty), ty.dtype)?;
        let found = graph[id].data.clone()?;
        if found == *ty {
            return Some(id);
        }
        // A rule that drops an operand may have dropped what made the shape.
        let fits = found.dtype == ty.dtype
            && found.layout == ty.layout
            && found.shape.broadcast(&ty.shape).as_ref() == Some(&ty.shape);
        let node = canonical(graph, Op::Broadcast, &Attrs::new(), vec![ty.clone()], vec![id]);
        fits.then(|| put(graph, node))
    }

    fn add(
        &self,
        graph: &mut Graph,
        m: &Match,
        ty: Option<&TensorType>,
        dtype: DType,
    ) -> Option<Id> {
        match self {
            Term::Var(name) => m.class(name),
            Term::Rest(_) => None,
            Term::Number(n) => {
                let ty = ty.cloned().unwrap_or_else(|| TensorType::scalar(dtype));
                let value =
                    if ty.dtype.is_float() { Attr::Float(*n) } else { Attr::Int(*n as i64) };
                let attrs = Attrs::new().with("value", value);
                Some(put(graph, Node::op(Op::Splat, attrs, vec![ty], Vec::new())))
            }
            Term::Op { head, attrs, ty: named, children } => {
                let op = match head {
                    Head::Is(op) => *op,
                    Head::Any(name, _) => match m.get(name)? {
                        Bound::Op(op) => *op,
                        _ => return None,
                    },
                };
                let attrs = match attrs {
                    AttrTerm::Exactly(attrs) => attrs.clone(),
                    AttrTerm::Bind(name) => match m.get(name)? {
                        Bound::Attrs(attrs) => attrs.clone(),
                        _ => return None,
                    },
                };
                // A number takes the element type of what stands beside it.
                let beside = children.iter().find_map(|c| match c {
                    Term::Var(name) => graph[m.class(name)?].data.as_ref().map(|ty| ty.dtype),
                    _ => None,
                });
                let dtype = beside.unwrap_or(dtype);
                let mut operands = Vec::with_capacity(children.len());
                for child in children {
                    if let Term::Rest(name) = child {
                        let Bound::Classes(rest) = m.get(name)? else { return None };
                        operands.extend_from_slice(rest);
                    } else {
                        operands.push(child.add(graph, m, None, dtype)?);
                    }
                }
                let declared = match (named, ty) {
                    (Some(name), _) => match m.get(name)? {
                        Bound::Type(ty) => Some(ty.clone()),
                        _ => return None,
                    },
                    (None, ty) => ty.cloned(),
                };
                let declared: Vec<TensorType> =
                    declared.into_iter().filter(|_| takes_type(op)).collect();
                infer(graph, op, &attrs, &declared, &operands)?;
                let node = canonical(graph, op, &attrs, declared, operands);
                Some(put(graph, node))
            }
        }
    }

    /// Adds the matched term itself, node by node, for explanations.
    pub fn matched(&self, graph: &mut Graph, m: &Match) -> Option<Id> {
        self.add_matched(graph, &mut m.nodes.iter(), m.root)
    }

    fn add_matched(
        &self,
        graph: &mut Graph,
        nodes: &mut std::slice::Iter<(Node, bool)>,
        class: Id,
    ) -> Option<Id> {
        let Term::Op { children, .. } = self else { return Some(class) };
        let (node, swapped) = nodes.next()?;
        let mut operands = node.children.clone();
        for (term, operand) in children.iter().zip(&mut operands) {
            *operand = term.add_matched(graph, nodes, *operand)?;
        }
        if *swapped {
            operands.reverse();
        }
        Some(graph.add_uncanonical(node.with_children(operands)))
    }
}

/// Adds a node; where explanations are kept, as the very term that it is.
fn put(graph: &mut Graph, node: Node) -> Id {
    if graph.are_explanations_enabled() { graph.add_uncanonical(node) } else { graph.add(node) }
}

/// Whether the result type of an op stands in the text and not in its operands.
pub fn takes_type(op: Op) -> bool {
    matches!(op, Op::Splat | Op::Iota | Op::Cast | Op::Reshape | Op::Broadcast | Op::Pack)
}

fn match_operands(
    graph: &Graph,
    terms: &[Term],
    operands: &[Id],
    start: Match,
    found: &mut Vec<Match>,
) {
    let (terms, rest) = match terms.split_last() {
        Some((Term::Rest(name), before)) => (before, Some(*name)),
        _ => (terms, None),
    };
    if operands.len() < terms.len() || (rest.is_none() && operands.len() != terms.len()) {
        return;
    }
    let mut partial = vec![start];
    for (term, &operand) in terms.iter().zip(operands) {
        let mut next = Vec::new();
        for m in &partial {
            term.match_class(graph, operand, m, &mut next);
        }
        next.truncate(MAX_MATCHES);
        partial = next;
    }
    for mut m in partial {
        let fits = rest
            .is_none_or(|name| m.accept(name, Bound::Classes(operands[terms.len()..].to_vec())));
        if fits {
            found.push(m);
        }
    }
}

struct Parser {
    text: &'static str,
    at: usize,
}

impl Parser {
    fn rest(&self) -> &'static str {
        self.text[self.at..].trim_start()
    }

    fn expected(&self, what: &str) -> String {
        let found = self.rest().split_whitespace().next().unwrap_or("the end");
        format!("expected {what}, found `{found}` in `{}`", self.text)
    }

    fn eat(&mut self, token: &str) -> bool {
        let rest = self.rest();
        let found = rest.starts_with(token);
        if found {
            self.at = self.text.len() - rest.len() + token.len();
        }
        found
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.eat(token) { Ok(()) } else { Err(self.expected(&format!("`{token}`"))) }
    }

    fn word(&mut self) -> &'static str {
        let rest = self.rest();
        let len = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && !"_?@-.\"".contains(c))
            .unwrap_or(rest.len());
        self.at = self.text.len() - rest.len() + len;
        &rest[..len]
    }

    fn term(&mut self) -> Result<Term, String> {
        if !self.eat("(") {
            let word = self.word();
            return match (word.strip_suffix(".."), word.starts_with('?')) {
                (Some(name), true) => Ok(Term::Rest(name)),
                (None, true) => Ok(Term::Var(word)),
                _ => word.parse().map(Term::Number).map_err(|_| self.expected("a term")),
            };
        }
        let name = self.word();
        let head = match name {
            "@unary" => Head::Any(name, Family::Unary),
            "@binary" => Head::Any(name, Family::Binary),
            "@reduce" => Head::Any(name, Family::Reduce),
            _ => Head::Is(Op::from_name(name).ok_or_else(|| format!("unknown op `{name}`"))?),
        };
        let mut attrs = AttrTerm::Exactly(Attrs::new());
        if self.eat("{") {
            let word = self.word();
            if word.starts_with('?') {
                attrs = AttrTerm::Bind(word);
            } else {
                let mut exactly = Attrs::new();
                let mut name = word;
                loop {
                    self.expect("=")?;
                    exactly = exactly.with(name, attr(self.word()));
                    if !self.eat(",") {
                        break;
                    }
                    name = self.word();
                }
                attrs = AttrTerm::Exactly(exactly);
            }
            self.expect("}")?;
        }
        let ty = if self.eat(":") { Some(self.word()) } else { None };
        let mut children = Vec::new();
        while !self.eat(")") {
            if self.rest().is_empty() {
                return Err(self.expected("`)`"));
            }
            children.push(self.term()?);
        }
        Ok(Term::Op { head, attrs, ty, children })
    }
}

fn attr(word: &str) -> Attr {
    match word {
        "true" => Attr::Bool(true),
        "false" => Attr::Bool(false),
        _ => match (word.parse::<i64>(), word.parse::<f64>()) {
            (Ok(n), _) => Attr::Int(n),
            (_, Ok(n)) => Attr::Float(n),
            _ => Attr::from(word.trim_matches('"')),
        },
    }
}
