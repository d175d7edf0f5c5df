//! From a function to its e-graph.

use aether_ir::{DType, Func, Inst, TensorType, ValueId};
use egg::Id;

use super::lang::{Graph, Node, Number, Types, infer};
use super::pattern::canonical;

/// The e-graph of a function and the class of each value, one value per class: of two equal
/// instructions the later one is a leaf, because merging them is not this pass's business.
pub fn build(func: &Func) -> (Graph, Vec<Id>) {
    let mut graph = Graph::new(Types);
    let mut class_of: Vec<Option<Id>> = vec![None; func.values.len()];
    for &p in &func.params {
        class_of[p.index()] = Some(graph.add(Node::leaf(p, func.ty(p))));
    }
    for inst in &func.body {
        let known = inst.inputs().all(|v| class_of[v.index()].is_some());
        let class = |v: ValueId| class_of[v.index()].unwrap_or_default();
        let node = Node::of(func, inst, class)
            .filter(|node| known && graph.lookup(node.clone()).is_none());
        match node {
            Some(node) => class_of[inst.results[0].index()] = Some(graph.add(node)),
            None => {
                for &r in &inst.results {
                    class_of[r.index()] = Some(graph.add(Node::leaf(r, func.ty(r))));
                }
            }
        }
    }
    // Values that nothing defines have no class of their own and take part in nothing.
    let nowhere = graph.add(Node::leaf(ValueId(u32::MAX), &TensorType::scalar(DType::Bool)));
    let class_of = class_of.into_iter().map(|c| c.unwrap_or(nowhere)).collect();
    graph.rebuild();
    (graph, class_of)
}

/// A function as an e-graph in which equal instructions are one class.
pub struct Merged {
    pub graph: Graph,
    /// The class of each value.
    pub class_of: Vec<Id>,
    /// The node of each instruction that the graph looks into, over the classes of its operands
    /// when it was added.
    pub node_of: Vec<Option<Node>>,
}

/// Puts a function into an e-graph. Instructions for which `opaque` holds, and those that an
/// e-graph cannot look into, become leaves; `number_of` says what is known of a leaf's elements.
pub fn merged(
    func: &Func,
    opaque: &dyn Fn(&Inst) -> bool,
    number_of: &dyn Fn(&Inst) -> Option<Number>,
) -> Merged {
    merged_into(Graph::new(Types), func, opaque, number_of)
}

/// As [`merged`], into an empty graph that may keep explanations.
pub fn merged_into(
    mut graph: Graph,
    func: &Func,
    opaque: &dyn Fn(&Inst) -> bool,
    number_of: &dyn Fn(&Inst) -> Option<Number>,
) -> Merged {
    let nowhere = graph.add(Node::leaf(ValueId(u32::MAX), &TensorType::scalar(DType::Bool)));
    let mut class_of: Vec<Id> = vec![nowhere; func.values.len()];
    let mut node_of = Vec::with_capacity(func.body.len());
    for &p in &func.params {
        class_of[p.index()] = graph.add(Node::leaf(p, func.ty(p)));
    }
    for inst in &func.body {
        let node = Node::of(func, inst, |v| class_of[v.index()])
            .filter(|_| !opaque(inst))
            .and_then(|node| {
                let (op, attrs) = node.as_op()?;
                let declared = node.declared().to_vec();
                let node = canonical(&graph, op, attrs, declared, node.children.clone());
                // A module that does not verify may say another type than follows.
                let ty = infer(&graph, op, node.as_op()?.1, node.declared(), &node.children)?;
                (ty == *func.ty(inst.results[0])).then_some(node)
            });
        match &node {
            Some(node) => class_of[inst.results[0].index()] = graph.add(node.clone()),
            None => {
                let number = number_of(inst).filter(|_| inst.results.len() == 1);
                for &r in &inst.results {
                    class_of[r.index()] = graph.add(Node::known_leaf(r, func.ty(r), number));
                }
            }
        }
        node_of.push(node);
    }
    graph.rebuild();
    Merged { graph, class_of, node_of }
}
