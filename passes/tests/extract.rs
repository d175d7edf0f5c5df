//! Extraction against exhaustive search on small random e-graphs.

use std::collections::HashMap;

use aether_ir::{Attrs, DType, Func, FuncBuilder, Op, TensorType, ValueId};
use aether_passes::egraph::pattern::canonical;
use aether_passes::egraph::{Merged, Node, extract, merged};
use egg::Id;

/// Costs far enough apart that sharing and detours both pay at times.
fn cost(node: &Node) -> f64 {
    match node.as_op() {
        None => 0.0,
        Some((Op::Neg, _)) => 1.0,
        Some((Op::Exp, _)) => 3.0,
        Some((Op::Add, _)) => 2.0,
        Some((Op::Mul, _)) => 5.0,
        Some(_) => 9.0,
    }
}

fn op(rng: &mut fastrand::Rng) -> (Op, usize) {
    [(Op::Neg, 1), (Op::Exp, 1), (Op::Sin, 1), (Op::Add, 2), (Op::Mul, 2)][rng.usize(..5)]
}

/// A function of scalars, and its graph with random other nodes declared equal to some values.
fn random(rng: &mut fastrand::Rng) -> (Func, Merged) {
    let mut f = FuncBuilder::new("main");
    let scalar = TensorType::scalar(DType::F32);
    let mut values: Vec<ValueId> =
        (0..3).map(|i| f.param(&format!("p{i}"), scalar.clone())).collect();
    for _ in 0..rng.usize(3..=7) {
        let (op, arity) = op(rng);
        let operands: Vec<ValueId> =
            (0..arity).map(|_| values[rng.usize(..values.len())]).collect();
        values.push(f.op(op, &operands, Attrs::new()).unwrap());
    }
    let returns = [values[values.len() - 1], values[values.len() - 2]];
    let func = f.finish(&returns);
    let mut merged = merged(&func, &|_| false, &|_| None);
    let mut classes: Vec<Id> = values.iter().map(|v| merged.class_of[v.index()]).collect();
    for _ in 0..rng.usize(2..=6) {
        let (op, arity) = op(rng);
        let at = rng.usize(3..values.len());
        // Of earlier values, or of what an earlier alternative has added.
        let pick = |rng: &mut fastrand::Rng| match rng.bool() {
            true => classes[rng.usize(..at)],
            false => classes[rng.usize(..classes.len())],
        };
        let children: Vec<Id> = (0..arity).map(|_| pick(rng)).collect();
        let node = canonical(&merged.graph, op, &Attrs::new(), Vec::new(), children);
        let id = merged.graph.add(node);
        if rng.bool() {
            classes.push(id);
        } else {
            merged.graph.union(classes[at], id);
        }
        merged.graph.rebuild();
    }
    (func, merged)
}

/// The least cost of an acyclic choice, by trying everything.
struct Search<'a> {
    merged: &'a Merged,
    chosen: HashMap<Id, Node>,
    best: f64,
}

impl Search<'_> {
    fn run(&mut self, needed: &[Id], so_far: f64) {
        if so_far >= self.best {
            return;
        }
        let graph = &self.merged.graph;
        let open = needed.iter().map(|&id| graph.find(id)).find(|id| !self.chosen.contains_key(id));
        let Some(class) = open else {
            if needed.iter().all(|&id| self.ends(graph.find(id), &mut Vec::new())) {
                self.best = so_far;
            }
            return;
        };
        for node in &graph[class].nodes {
            self.chosen.insert(class, node.clone());
            let more = [needed, &node.children].concat();
            self.run(&more, so_far + cost(node));
        }
        self.chosen.remove(&class);
    }

    /// Whether the choice below a class has no cycle.
    fn ends(&self, class: Id, path: &mut Vec<Id>) -> bool {
        if path.contains(&class) {
            return false;
        }
        path.push(class);
        let children = self.chosen[&class].children.iter();
        let ends = children.map(|&c| self.merged.graph.find(c)).all(|c| self.ends(c, path));
        path.pop();
        ends
    }
}

#[test]
fn extraction_is_near_the_optimum() {
    let mut rng = fastrand::Rng::with_seed(5);
    let (mut optimal, mut found_sum, mut best_sum) = (0, 0.0, 0.0);
    let rounds = 500;
    for _ in 0..rounds {
        let (func, merged) = random(&mut rng);
        let roots: Vec<Id> = func.returns.iter().map(|v| merged.class_of[v.index()]).collect();
        let mut search = Search { merged: &merged, chosen: HashMap::new(), best: f64::INFINITY };
        search.run(&roots, 0.0);
        let chosen = extract(&func, &merged, &|_, _, node| cost(node));
        let found = chosen.cost();
        assert!(found >= search.best - 1e-9, "{found} is less than the least {}", search.best);
        optimal += usize::from(found <= search.best + 1e-9);
        found_sum += found;
        best_sum += search.best;
    }
    let excess = found_sum / best_sum - 1.0;
    assert!(optimal * 100 >= rounds * 90, "{optimal} of {rounds} are optimal");
    assert!(excess < 0.02, "{excess} above the optimum");
}
