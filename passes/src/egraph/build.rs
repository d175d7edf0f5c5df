//! From a function to its e-graph.

use aether_ir::{DType, Func, TensorType, ValueId};
use egg::Id;

use super::lang::{Graph, Node, Types};

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
