//! Applying rules to an e-graph until they find nothing new.
//!
//! Limits are counts, so the result is the same on every machine.

use std::collections::HashMap;

use aether_ir::Op;
use egg::Id;

use super::rule::{Compute, Rule, View};
use crate::egraph::{Bound, Graph, Match, Node, Term};
use crate::pass::PassError;

/// Most rounds of matching.
pub const MAX_ROUNDS: usize = 12;
/// Most nodes: so many times those of the function, plus [`SPARE_NODES`].
pub const GROWTH: usize = 4;
/// See [`GROWTH`].
pub const SPARE_NODES: usize = 1000;

/// A rule ready to be matched.
pub struct Compiled {
    pub rule: &'static Rule,
    forms: Vec<Term>,
    rhs: Term,
}

/// Rules by the op at the root of their forms.
pub struct RuleSet {
    rules: Vec<Compiled>,
    by_root: HashMap<Op, Vec<(usize, usize)>>,
}

/// What one application found equal.
pub struct Applied {
    pub rule: &'static str,
    pub class: Id,
    /// The node that the rule matched at its root.
    pub from: Node,
    /// The node that it added; `None` when the right side was there already.
    pub to: Option<Node>,
}

impl RuleSet {
    /// Reads the patterns of the rules.
    ///
    /// # Errors
    /// Names the rule whose pattern is wrong.
    pub fn new(rules: impl IntoIterator<Item = &'static Rule>) -> Result<Self, PassError> {
        let mut set = RuleSet { rules: Vec::new(), by_root: HashMap::new() };
        for rule in rules {
            let read = |text: &'static str| {
                Term::parse(text)
                    .map_err(|e| PassError::Module(format!("rule `{}`: {e}", rule.name)))
            };
            let forms = rule.forms.iter().map(|f| read(f)).collect::<Result<Vec<_>, _>>()?;
            for (f, form) in forms.iter().enumerate() {
                for op in form.root_ops() {
                    set.by_root.entry(op).or_default().push((set.rules.len(), f));
                }
            }
            set.rules.push(Compiled { rule, forms, rhs: read(rule.rhs)? });
        }
        Ok(set)
    }

    /// All places at which a rule applies, in the order of classes, nodes, rules. The second
    /// number is the rule's, the third the form's.
    fn search(&self, graph: &Graph) -> Vec<(Match, usize, usize, Node)> {
        let mut classes: Vec<Id> = graph.classes().map(|class| class.id).collect();
        classes.sort_unstable();
        let mut found = Vec::new();
        for class in classes {
            for node in &graph[class].nodes {
                let candidates = node.as_op().and_then(|(op, _)| self.by_root.get(&op));
                for &(r, f) in candidates.into_iter().flatten() {
                    for m in self.rules[r].forms[f].search(graph, class, node) {
                        if let Some(m) = complete(self.rules[r].rule, graph, m) {
                            found.push((m, r, f, node.clone()));
                        }
                    }
                }
            }
        }
        found
    }

    /// Applies the rules; `take` is asked before each application that finds something new, and
    /// its refusal ends it all.
    pub fn saturate(
        &self,
        graph: &mut Graph,
        take: &mut dyn FnMut(&'static str) -> bool,
    ) -> Vec<Applied> {
        let mut log = Vec::new();
        let most = graph.total_number_of_nodes() * GROWTH + SPARE_NODES;
        for _ in 0..MAX_ROUNDS {
            let before = log.len();
            for (m, r, f, node) in self.search(graph) {
                if graph.total_number_of_nodes() > most {
                    break;
                }
                match self.apply(graph, &m, r, f, node, take) {
                    Ok(applied) => log.extend(applied),
                    Err(Stopped) => {
                        graph.rebuild();
                        return log;
                    }
                }
            }
            graph.rebuild();
            if log.len() == before || graph.total_number_of_nodes() > most {
                break;
            }
        }
        log
    }

    /// Applies one rule once, at the root of the class.
    pub fn apply_once(&self, graph: &mut Graph, class: Id) -> Option<Applied> {
        let class = graph.find(class);
        for (m, r, f, node) in self.search(graph) {
            if m.root == class
                && let Ok(Some(applied)) = self.apply(graph, &m, r, f, node, &mut |_| true)
            {
                graph.rebuild();
                return Some(applied);
            }
        }
        None
    }

    fn apply(
        &self,
        graph: &mut Graph,
        m: &Match,
        r: usize,
        f: usize,
        from: Node,
        take: &mut dyn FnMut(&'static str) -> bool,
    ) -> Result<Option<Applied>, Stopped> {
        let rule = &self.rules[r];
        let Some(ty) = graph[m.root].data.clone() else { return Ok(None) };
        let classes = graph.number_of_classes();
        let Some(id) = rule.rhs.instantiate(graph, m, &ty) else { return Ok(None) };
        if graph.find(id) == graph.find(m.root) {
            return Ok(None);
        }
        if !take(rule.rule.name) {
            return Err(Stopped);
        }
        let added = graph.number_of_classes() > classes;
        let to = added.then(|| graph.id_to_node(id).clone());
        if graph.are_explanations_enabled() {
            let matched = rule.forms[f].matched(graph, m).unwrap_or(m.root);
            graph.union_trusted(matched, id, rule.rule.name);
        } else {
            graph.union(m.root, id);
        }
        Ok(Some(Applied { rule: rule.rule.name, class: m.root, from, to }))
    }
}

/// No more rewrites are allowed.
struct Stopped;

/// The match with what the rule computes, when its conditions hold.
fn complete(rule: &Rule, graph: &Graph, mut m: Match) -> Option<Match> {
    if !rule.when.iter().all(|cond| cond.holds(&View { graph, found: &m })) {
        return None;
    }
    for &(name, compute) in rule.compute {
        let view = View { graph, found: &m };
        let bound = match compute {
            Compute::Attrs(f) => Bound::Attrs(f(&view)?),
            Compute::Type(f) => Bound::Type(f(&view)?),
            Compute::Class(f) => Bound::Class(f(&view)?),
            Compute::Classes(f) => Bound::Classes(f(&view)?),
        };
        m.bind(name, bound);
    }
    Some(m)
}
