//! Extraction: which node of each class is computed.
//!
//! The cost of a choice is that of the graph it spans, in which a shared value counts once. The
//! function as it stands is the first choice. A class then changes to another of its nodes when
//! that lowers the cost of the whole: what the new node needs and the graph has not yet is added,
//! what nothing needs any more goes, both found by reference counts in the neighbourhood alone
//! (as in DAG-aware rewriting of logic networks: Mishchenko, Chatterjee and Brayton 2006). Only
//! classes that the roots reach are ever looked at. Sweeps from the roots to the inputs go on
//! until nothing changes; every change lowers the cost, so this ends.
//!
//! Cycles cannot arise: every class has a rank above those of the classes that its node is over.

use std::collections::HashMap;

use aether_ir::{Func, ValueId};
use egg::Id;

use super::build::Merged;
use super::lang::Node;

/// Most sweeps over the graph.
const MAX_SWEEPS: usize = 32;
/// Least gain, in the unit of costs, that is no rounding error.
const LEAST_GAIN: f64 = 1e-13;
/// Ranks between two instructions, for what is put between them.
const RANK_STEP: u64 = 1 << 24;
/// Most new classes on a path between two old ones.
const MAX_DEPTH: usize = 64;
/// Passes over the graph in which costs of unused classes are estimated.
const ESTIMATE_PASSES: usize = 4;

/// What a node costs by itself.
pub type CostOf<'a> = dyn Fn(&Merged, Id, &Node) -> f64 + 'a;

/// A node that a class may choose.
struct Candidate {
    node: Node,
    children: Vec<usize>,
    cost: f64,
    /// Where a leaf stands; nothing can be put before it.
    leaf: Option<u64>,
}

#[derive(Default)]
struct Class {
    candidates: Vec<Candidate>,
    choice: Option<usize>,
    /// Uses by chosen nodes, and by what is never rewritten.
    refs: u32,
    rank: u64,
    /// What it would about cost to compute the class, were it not there.
    estimate: f64,
    busy: bool,
}

/// The chosen nodes.
pub struct Extraction {
    ids: Vec<Id>,
    index: HashMap<Id, usize>,
    classes: Vec<Class>,
}

/// Chooses a node for every class that `func`, from which `merged` was built, needs.
pub fn extract(func: &Func, merged: &Merged, cost_of: &CostOf) -> Extraction {
    let mut extraction = Extraction::new(func, merged, cost_of);
    extraction.start(func, merged);
    for _ in 0..MAX_SWEEPS {
        if !extraction.sweep() {
            break;
        }
    }
    extraction
}

impl Extraction {
    fn new(func: &Func, merged: &Merged, cost_of: &CostOf) -> Self {
        let mut ranks: HashMap<ValueId, u64> = func.params.iter().map(|&p| (p, 0)).collect();
        for (at, inst) in func.body.iter().enumerate() {
            ranks.extend(inst.results.iter().map(|&r| (r, (at as u64 + 1) * RANK_STEP)));
        }
        let graph = &merged.graph;
        let mut ids: Vec<Id> = graph.classes().map(|class| class.id).collect();
        ids.sort_unstable();
        let index: HashMap<Id, usize> = ids.iter().enumerate().map(|(i, &id)| (id, i)).collect();
        let mut classes = Vec::with_capacity(ids.len());
        for &id in &ids {
            let mut candidates: Vec<Candidate> = graph[id]
                .nodes
                .iter()
                .filter(|node| graph[id].data.is_some() && !node.children.contains(&id))
                .map(|node| Candidate {
                    children: node.children.iter().map(|&c| index[&graph.find(c)]).collect(),
                    cost: cost_of(merged, id, node),
                    leaf: node.as_leaf().map(|v| ranks.get(&v).copied().unwrap_or(u64::MAX)),
                    node: node.clone(),
                })
                .collect();
            candidates.sort_by(|a, b| a.cost.total_cmp(&b.cost).then_with(|| a.node.cmp(&b.node)));
            classes.push(Class { candidates, estimate: f64::INFINITY, ..Class::default() });
        }
        let mut extraction = Extraction { ids, index, classes };
        for _ in 0..ESTIMATE_PASSES {
            for i in 0..extraction.classes.len() {
                let best = (0..extraction.classes[i].candidates.len())
                    .map(|n| extraction.estimated(i, n))
                    .fold(f64::INFINITY, f64::min);
                extraction.classes[i].estimate = best;
            }
        }
        extraction
    }

    /// What a candidate would cost with all of its operands that are not there.
    fn estimated(&self, class: usize, n: usize) -> f64 {
        let candidate = &self.classes[class].candidates[n];
        let missing = |&c: &usize| match self.classes[c].refs {
            0 => self.classes[c].estimate,
            _ => 0.0,
        };
        candidate.cost + candidate.children.iter().map(missing).sum::<f64>()
    }

    fn dense(&self, merged: &Merged, id: Id) -> usize {
        self.index[&merged.graph.find(id)]
    }

    /// Takes the function as it stands; of equal values the first is kept.
    fn start(&mut self, func: &Func, merged: &Merged) {
        for &p in &func.params {
            self.take_leaf(merged, p, 0);
        }
        for (at, inst) in func.body.iter().enumerate() {
            let rank = (at as u64 + 1) * RANK_STEP;
            let Some(node) = &merged.node_of[at] else {
                inst.results.iter().for_each(|&r| self.take_leaf(merged, r, rank));
                continue;
            };
            let class = self.dense(merged, merged.class_of[inst.results[0].index()]);
            if self.classes[class].choice.is_none() {
                let node = node.with_children(found(merged, node));
                let own = self.classes[class].candidates.iter().position(|c| c.node == node);
                self.classes[class].choice = own;
                self.classes[class].rank = rank;
            }
        }
        let opaque = func.body.iter().zip(&merged.node_of).filter(|(_, node)| node.is_none());
        let kept = opaque.flat_map(|(inst, _)| inst.inputs()).chain(func.returns.iter().copied());
        for v in kept {
            self.reference(self.dense(merged, merged.class_of[v.index()]));
        }
    }

    fn take_leaf(&mut self, merged: &Merged, v: ValueId, rank: u64) {
        let i = self.dense(merged, merged.class_of[v.index()]);
        let class = &mut self.classes[i];
        if class.choice.is_none() {
            class.choice = class.candidates.iter().position(|c| c.node.as_leaf() == Some(v));
            class.rank = rank;
        }
    }

    fn chosen(&self, class: usize) -> Option<&Candidate> {
        let class = &self.classes[class];
        class.choice.and_then(|n| class.candidates.get(n))
    }

    /// One more use of a class whose node is chosen; returns the cost of what comes to life.
    fn reference(&mut self, class: usize) -> f64 {
        let (mut added, mut work) = (0.0, vec![class]);
        while let Some(c) = work.pop() {
            self.classes[c].refs += 1;
            if self.classes[c].refs == 1
                && let Some(chosen) = self.chosen(c)
            {
                added += chosen.cost;
                work.extend(&chosen.children);
            }
        }
        added
    }

    /// One use less; returns the cost of what dies.
    fn release(&mut self, class: usize) -> f64 {
        let (mut freed, mut work) = (0.0, vec![class]);
        while let Some(c) = work.pop() {
            self.classes[c].refs -= 1;
            if self.classes[c].refs == 0
                && let Some(chosen) = self.chosen(c)
            {
                freed += chosen.cost;
                work.extend(&chosen.children);
            }
        }
        freed
    }

    /// Uses all children, choosing nodes for those that are not there; every rank must lie below
    /// `limit`. Returns the added cost, or `None` with nothing changed.
    fn enliven(&mut self, children: &[usize], limit: u64, depth: usize) -> Option<f64> {
        let mut added = 0.0;
        for (done, &child) in children.iter().enumerate() {
            match self.enliven_one(child, limit, depth) {
                Some(cost) => added += cost,
                None => {
                    children[..done].iter().for_each(|&c| {
                        self.release(c);
                    });
                    return None;
                }
            }
        }
        Some(added)
    }

    fn enliven_one(&mut self, class: usize, limit: u64, depth: usize) -> Option<f64> {
        if self.classes[class].refs > 0 {
            let fits = self.classes[class].rank < limit;
            self.classes[class].refs += u32::from(fits);
            return fits.then_some(0.0);
        }
        if self.classes[class].busy || depth > MAX_DEPTH {
            return None;
        }
        self.classes[class].busy = true;
        let mut order: Vec<usize> = (0..self.classes[class].candidates.len()).collect();
        order.sort_by(|&a, &b| self.estimated(class, a).total_cmp(&self.estimated(class, b)));
        let mut result = None;
        for n in order {
            let candidate = &self.classes[class].candidates[n];
            let (cost, leaf) = (candidate.cost, candidate.leaf);
            let children = candidate.children.clone();
            let Some(added) = self.enliven(&children, limit, depth + 1) else { continue };
            let below = children.iter().map(|&c| self.classes[c].rank).max();
            let rank = leaf.unwrap_or(below.unwrap_or(0) + 1);
            if rank >= limit {
                children.iter().for_each(|&c| {
                    self.release(c);
                });
                continue;
            }
            self.classes[class].rank = rank;
            self.classes[class].choice = Some(n);
            self.classes[class].refs = 1;
            result = Some(added + cost);
            break;
        }
        self.classes[class].busy = false;
        result
    }

    /// Looks at every class in use, those near the roots first; whether any choice changed.
    fn sweep(&mut self) -> bool {
        let mut order: Vec<usize> = (0..self.classes.len())
            .filter(|&c| self.classes[c].refs > 0 && self.classes[c].candidates.len() > 1)
            .collect();
        order.sort_by_key(|&c| (std::cmp::Reverse(self.classes[c].rank), c));
        let mut changed = false;
        for class in order {
            if self.classes[class].refs > 0 {
                changed |= self.improve(class);
            }
        }
        changed
    }

    /// Changes to the node that saves most.
    fn improve(&mut self, class: usize) -> bool {
        let Some(current) = self.classes[class].choice else { return false };
        let mut best = (LEAST_GAIN, current);
        for n in (0..self.classes[class].candidates.len()).filter(|&n| n != current) {
            if let Some(gain) = self.switch(class, current, n) {
                if gain > best.0 {
                    best = (gain, n);
                }
                self.switch_back(class, current, n);
            }
        }
        if best.1 == current {
            return false;
        }
        self.switch(class, current, best.1).is_some()
    }

    /// Changes from one node to another; returns what that saves, or `None` with nothing changed
    /// when the other cannot be taken.
    fn switch(&mut self, class: usize, from: usize, to: usize) -> Option<f64> {
        let limit = self.classes[class].rank;
        let children = self.classes[class].candidates[to].children.clone();
        if self.classes[class].candidates[to].leaf.is_some_and(|place| place > limit) {
            return None;
        }
        let added = self.enliven(&children, limit, 0)?;
        let old = self.classes[class].candidates[from].children.clone();
        let freed: f64 = old.iter().map(|&c| self.release(c)).sum();
        let class = &mut self.classes[class];
        class.choice = Some(to);
        Some(freed + class.candidates[from].cost - added - class.candidates[to].cost)
    }

    fn switch_back(&mut self, class: usize, from: usize, to: usize) {
        for c in self.classes[class].candidates[from].children.clone() {
            self.reference(c);
        }
        for c in self.classes[class].candidates[to].children.clone() {
            self.release(c);
        }
        self.classes[class].choice = Some(from);
    }

    /// The node chosen for a class, when something needs it.
    pub fn node(&self, merged: &Merged, id: Id) -> Option<&Node> {
        let class = self.dense(merged, id);
        (self.classes[class].refs > 0).then(|| self.chosen(class).map(|c| &c.node)).flatten()
    }

    /// The cost of all chosen nodes.
    pub fn cost(&self) -> f64 {
        let used = (0..self.ids.len()).filter(|&c| self.classes[c].refs > 0);
        used.filter_map(|c| self.chosen(c)).map(|c| c.cost).sum()
    }
}

/// The operands of a node as classes of the graph as it is now.
pub fn found(merged: &Merged, node: &Node) -> Vec<Id> {
    node.children.iter().map(|&c| merged.graph.find(c)).collect()
}
