//! What a rule is: the vector-Jacobian product of one op.

use std::cell::RefCell;

use aether_ir::{Attrs, Inst, ValueId};

use super::emit::{Emitter, Val};

/// How an op is differentiated.
pub(crate) enum Derivative {
    /// Elementwise in one operand: the operand's gradient from the result's gradient, the operand
    /// and the result.
    Unary(for<'e> fn(Val<'e>, Val<'e>, Val<'e>) -> Val<'e>),
    /// Any other formula.
    Rule(Rule),
    /// The op's results written once more with ops that have formulas; these are differentiated.
    Composed(Composition),
    /// No operand has a gradient: the op is locally constant, or its results are no real numbers.
    Zero,
    /// Carried out by the reverse sweep itself.
    Structural,
    /// Has no rule, for this reason.
    Refused(&'static str),
}

/// Writes the gradients of an instruction's operands, or says why it cannot.
pub(crate) type Rule = fn(&Vjp) -> Result<(), String>;

/// Writes the results of an instruction with other ops, or says why it cannot.
pub(crate) type Composition = for<'e> fn(&Vjp<'e>) -> Result<Vec<Val<'e>>, String>;

/// One instruction as its rule sees it.
pub(crate) struct Vjp<'e> {
    pub(crate) e: &'e Emitter,
    pub(crate) inst: &'e Inst,
    /// By result.
    cotangents: Vec<Option<ValueId>>,
    /// By operand: whether its gradient is asked for.
    needs: Vec<bool>,
    given: RefCell<Vec<(usize, ValueId)>>,
}

impl<'e> Vjp<'e> {
    pub(crate) fn new(
        e: &'e Emitter,
        inst: &'e Inst,
        cotangents: Vec<Option<ValueId>>,
        needs: Vec<bool>,
    ) -> Self {
        Vjp { e, inst, cotangents, needs, given: RefCell::default() }
    }

    /// What the rule gave: operands and their gradients.
    pub(crate) fn given(self) -> Vec<(usize, ValueId)> {
        self.given.into_inner()
    }

    pub(crate) fn attrs(&self) -> &'e Attrs {
        &self.inst.attrs
    }

    /// Number of operands.
    pub(crate) fn len(&self) -> usize {
        self.needs.len()
    }

    /// Operand `i`.
    pub(crate) fn x(&self, i: usize) -> Val<'e> {
        self.e.val(self.inst.operands[i].value)
    }

    /// Whether there is an operand `i`.
    pub(crate) fn has(&self, i: usize) -> bool {
        i < self.inst.operands.len()
    }

    /// Result `i`.
    pub(crate) fn y(&self, i: usize) -> Val<'e> {
        self.e.val(self.inst.results[i])
    }

    /// The gradient with respect to result `i`; `None` where nothing depends on it.
    pub(crate) fn cotangent(&self, i: usize) -> Option<Val<'e>> {
        self.cotangents[i].map(|id| self.e.val(id))
    }

    /// The gradient with respect to the only result.
    pub(crate) fn g(&self) -> Val<'e> {
        // A rule is asked only when some result has one.
        self.cotangents.iter().flatten().next().map_or_else(|| self.y(0), |&id| self.e.val(id))
    }

    /// Whether the gradient of operand `i` is asked for.
    pub(crate) fn needs(&self, i: usize) -> bool {
        self.needs[i]
    }

    /// Adds to the gradient of operand `i`. Axes along which the operand was broadcast are summed,
    /// and the element type becomes the operand's.
    pub(crate) fn give(&self, i: usize, gradient: Val) {
        if self.needs[i] {
            let x = self.x(i);
            let gradient = self.e.val(gradient.id()).sum_to(&x.shape()).cast(x.dtype());
            self.given.borrow_mut().push((i, gradient.id()));
        }
    }
}
