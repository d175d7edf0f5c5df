//! What a body of `fused` looks like: one loop over a space of elements.
//!
//! The function that `fused` names is an ordinary function with an ordinary meaning. What makes it
//! one kernel is its form, which [`Fusion::of`] finds and the verifier demands (V33):
//!
//! - its instructions are elementwise ops, casts, selects, broadcasts, splats, counts and
//!   reductions, at most [`MAX_BODY`], and nothing is given away;
//! - there is one *space*: the shape of what is reduced, or of the results when nothing is. Every
//!   value computed before a reduction broadcasts to it (it is *wide*);
//! - all reductions take values of the whole space and reduce the same neighbouring axes. Their
//!   results, and what is computed from them elementwise, have the space's shape without those
//!   axes, or with 1 in their place (they are *narrow*);
//! - a narrow value may be read by wide ones when the reduced axes are the last and were kept, as
//!   in softmax. Wide values so computed belong to a later *pass* over the reduced axes;
//! - it returns values that it computes: wide ones of the whole space, and narrow ones.

use std::ops::Range;

use crate::dim::Dim;
use crate::module::{Func, Inst, ValueId};
use crate::op::Op;
use crate::types::{Layout, Shape, TensorType};

/// Most instructions of a fused body.
pub const MAX_BODY: usize = 128;

/// What an op is to a fused body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// One element of the result from one element of each operand.
    Map,
    /// Elements that are computed from their place alone.
    Source,
    /// Many elements to one.
    Reduce,
}

impl Role {
    /// The role of an op; `None` for ops that a fused body cannot hold.
    pub fn of(op: Op) -> Option<Role> {
        match op {
            Op::Splat | Op::Iota => Some(Role::Source),
            Op::ReduceSum | Op::ReduceMean | Op::ReduceProd | Op::ReduceMax | Op::ReduceMin => {
                Some(Role::Reduce)
            }
            Op::Neg | Op::Abs | Op::Sign | Op::Exp | Op::Log | Op::Sqrt | Op::Rsqrt => {
                Some(Role::Map)
            }
            Op::Sin | Op::Cos | Op::Tanh | Op::Sigmoid | Op::Relu | Op::Gelu | Op::GeluTanh => {
                Some(Role::Map)
            }
            Op::Silu | Op::Erf | Op::Floor | Op::Ceil | Op::Round | Op::Not => Some(Role::Map),
            Op::Add | Op::Sub | Op::Mul | Op::Div | Op::Pow | Op::Max | Op::Min => Some(Role::Map),
            Op::Eq | Op::Ne | Op::Lt | Op::Le | Op::Gt | Op::Ge | Op::And | Op::Or => {
                Some(Role::Map)
            }
            Op::Select | Op::Cast | Op::Broadcast => Some(Role::Map),
            _ => None,
        }
    }
}

/// Where in the loop a value is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// For every element of the space, first in this pass.
    Wide { pass: usize },
    /// Once for each group of elements that is reduced, before this pass.
    Narrow { pass: usize },
}

impl Place {
    fn pass(self) -> usize {
        match self {
            Place::Wide { pass } | Place::Narrow { pass } => pass,
        }
    }
}

/// The form of a fused body.
#[derive(Clone, Debug, PartialEq)]
pub struct Fusion {
    /// The space of elements.
    pub space: Shape,
    /// The axes of it that are reduced.
    pub reduced: Option<Range<usize>>,
    /// Where each value is computed, by value index; parameters are wide.
    pub places: Vec<Place>,
    /// Number of passes over the reduced axes.
    pub passes: usize,
}

/// A body that is not one loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotOneLoop {
    /// Index of the instruction, unless it concerns the function as a whole.
    pub inst: Option<usize>,
    pub message: String,
}

fn whole<T>(message: impl Into<String>) -> Result<T, NotOneLoop> {
    Err(NotOneLoop { inst: None, message: message.into() })
}

impl Fusion {
    /// The form of a function whose instructions keep their type rules.
    ///
    /// # Errors
    /// What keeps the function from being one loop.
    pub fn of(func: &Func) -> Result<Fusion, NotOneLoop> {
        if func.body.is_empty() {
            return whole("it computes nothing");
        }
        if func.body.len() > MAX_BODY {
            return whole(format!("it has more than {MAX_BODY} instructions"));
        }
        for &p in &func.params {
            let ty = func.ty(p);
            if ty.dtype.is_quantized() || ty.layout != Layout::RowMajor {
                return whole(format!("its parameter of type {ty} is not made of single elements"));
            }
        }
        let mut reduction: Option<(Shape, Range<usize>)> = None;
        for (at, inst) in func.body.iter().enumerate() {
            let fail = |message: String| Err(NotOneLoop { inst: Some(at), message });
            match Role::of(inst.op) {
                None => return fail(format!("`{}` does not work element by element", inst.op)),
                _ if inst.operands.iter().any(|o| o.donated) => {
                    return fail("nothing can be given away inside of it".to_owned());
                }
                Some(Role::Reduce) => {
                    let shape = &func.ty(inst.operands[0].value).shape;
                    let Some(axes) = reduced_axes(inst, shape) else {
                        return fail("the reduced axes are not next to each other".to_owned());
                    };
                    match &reduction {
                        None => reduction = Some((shape.clone(), axes)),
                        Some((space, range)) if space == shape && *range == axes => {}
                        Some((space, range)) => {
                            return fail(format!(
                                "it reduces axes {axes:?} of {shape}, an earlier reduction axes \
                                 {range:?} of {space}"
                            ));
                        }
                    }
                }
                Some(Role::Map | Role::Source) => {}
            }
        }
        let (space, reduced) = match reduction {
            Some((space, axes)) => (space, Some(axes)),
            None => match func.returns.first() {
                Some(&v) => (func.ty(v).shape.clone(), None),
                None => return whole("it returns nothing"),
            },
        };
        let mut fusion = Fusion { space, reduced, places: Vec::new(), passes: 1 };
        fusion.place(func)?;
        fusion.returns(func)?;
        Ok(fusion)
    }

    /// The space without the reduced axes, kept as 1 or dropped.
    fn narrow_shape(&self, kept: bool) -> Shape {
        let Some(axes) = &self.reduced else { return self.space.clone() };
        let dims = self.space.0.iter().enumerate().filter_map(|(i, d)| match axes.contains(&i) {
            false => Some(d.clone()),
            true => kept.then(|| Dim::new(1)),
        });
        Shape(dims.collect())
    }

    /// Whether the reduced axes are the last ones.
    pub fn reduces_last(&self) -> bool {
        self.reduced.as_ref().is_some_and(|axes| axes.end == self.space.rank())
    }

    fn place(&mut self, func: &Func) -> Result<(), NotOneLoop> {
        self.places = vec![Place::Wide { pass: 0 }; func.values.len()];
        let kept = self.narrow_shape(true);
        let dropped = self.narrow_shape(false);
        let fits = |ty: &TensorType| ty.shape.broadcast(&self.space).as_ref() == Some(&self.space);
        if let Some(&p) = func.params.iter().find(|p| !fits(func.ty(**p))) {
            return whole(format!("{} does not broadcast to {}", func.ty(p), self.space));
        }
        for (at, inst) in func.body.iter().enumerate() {
            let fail = |message: String| Err(NotOneLoop { inst: Some(at), message });
            let result = inst.results[0];
            let ty = func.ty(result);
            let pass = inst.inputs().map(|v| self.places[v.index()].pass()).max().unwrap_or(0);
            let mut narrow =
                inst.inputs().filter(|v| matches!(self.places[v.index()], Place::Narrow { .. }));
            let first_narrow = narrow.next();
            self.places[result.index()] = match (Role::of(inst.op), first_narrow) {
                (Some(Role::Reduce), None) => Place::Narrow { pass: pass + 1 },
                (Some(Role::Reduce), Some(_)) => {
                    return fail("a reduction of what is reduced already".to_owned());
                }
                (_, None) if fits(ty) => Place::Wide { pass },
                (_, None) => return fail(format!("{ty} does not broadcast to {}", self.space)),
                // Once per group, if the others are too.
                (_, Some(of)) if ty.shape == func.ty(of).shape => {
                    let fits = |&v: &ValueId| {
                        matches!(self.places[v.index()], Place::Narrow { .. })
                            || func.ty(v).shape.0.iter().all(|d| d.is(1))
                    };
                    match inst.inputs().find(|v| !fits(v)) {
                        Some(v) => {
                            return fail(format!(
                                "{} is neither a single element nor reduced",
                                func.ty(v)
                            ));
                        }
                        None => Place::Narrow { pass },
                    }
                }
                (_, Some(_)) => {
                    let readable = |&v: &ValueId| match self.places[v.index()] {
                        Place::Wide { .. } => true,
                        Place::Narrow { .. } => func.ty(v).shape == kept || dropped.0.is_empty(),
                    };
                    if !self.reduces_last() || !inst.inputs().all(|v| readable(&v)) || !fits(ty) {
                        return fail(
                            "a reduction is read back: possible only when it keeps its axes and \
                             they are the last"
                                .to_owned(),
                        );
                    }
                    Place::Wide { pass }
                }
            };
            if let Place::Wide { pass } = self.places[result.index()] {
                self.passes = self.passes.max(pass + 1);
            }
        }
        Ok(())
    }

    fn returns(&self, func: &Func) -> Result<(), NotOneLoop> {
        for v in &func.returns {
            if func.params.contains(v) {
                return whole("it returns a parameter");
            }
            let ty = func.ty(*v);
            let wide = matches!(self.places[v.index()], Place::Wide { .. });
            if wide && ty.shape != self.space {
                return whole(format!("it returns {ty}, while it runs over {}", self.space));
            }
        }
        Ok(())
    }
}

/// The axes that a reduction takes away, when they are neighbours.
pub fn reduced_axes(inst: &Inst, shape: &Shape) -> Option<Range<usize>> {
    let axes = inst.attrs.ints("axes")?;
    let mut indices: Vec<usize> = axes.iter().map(|&a| shape.axis(a)).collect::<Option<_>>()?;
    indices.sort_unstable();
    let (first, last) = (*indices.first()?, *indices.last()?);
    (last - first + 1 == indices.len()).then_some(first..last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse_and_verify;

    fn form(body: &str, signature: &str) -> Result<Fusion, NotOneLoop> {
        let text = format!("module @m {{\n  func @f{signature} {{\n{body}\n  }}\n}}\n");
        let module = parse_and_verify(&text)
            .unwrap_or_else(|d| panic!("{}", crate::diag::render(&d, &text, "body")));
        Fusion::of(&module.funcs["f"])
    }

    #[test]
    fn passes_are_counted_over_what_is_read_back() {
        let fusion = form(
            "    %t = reduce_max %x {axes = [1], keepdims = true} : tensor<4x1xf32>
    %y = sub %x, %t : tensor<4x8xf32>
    %e = exp %y : tensor<4x8xf32>
    %s = reduce_sum %e {axes = [-1], keepdims = true} : tensor<4x1xf32>
    %l = log %s : tensor<4x1xf32>
    %z = sub %y, %l : tensor<4x8xf32>
    return %z, %l",
            "(%x: tensor<4x8xf32>) -> (tensor<4x8xf32>, tensor<4x1xf32>)",
        )
        .unwrap();
        assert_eq!((fusion.space, fusion.reduced), (Shape::of(&[4, 8]), Some(1..2)));
        assert_eq!(fusion.passes, 3);
        let (wide, narrow) = (|pass| Place::Wide { pass }, |pass| Place::Narrow { pass });
        let want = [wide(0), narrow(1), wide(1), wide(1), narrow(2), narrow(2), wide(2)];
        assert_eq!(fusion.places, want);
    }

    #[test]
    fn chains_and_columns_take_one_pass() {
        let chain = form(
            "    %a = iota {axis = 0} : tensor<8xf32>
    %b = mul %x, %a : tensor<4x8xf32>
    %c = cast %b : tensor<4x8xi32>
    return %c",
            "(%x: tensor<4x8xf32>) -> tensor<4x8xi32>",
        );
        let chain = chain.unwrap();
        assert_eq!((chain.space, chain.reduced, chain.passes), (Shape::of(&[4, 8]), None, 1));
        let columns = form(
            "    %a = reduce_sum %x {axes = [0, 1]} : tensor<8xf32>
    %b = sqrt %a : tensor<8xf32>
    return %b",
            "(%x: tensor<2x4x8xf32>) -> tensor<8xf32>",
        );
        assert_eq!(columns.unwrap().reduced, Some(0..2));
    }

    #[test]
    fn rows_and_columns_of_one_length_are_told_apart() {
        // A row of sums looks like a row of the operand, and is none.
        let mixed = form(
            "    %a = reduce_sum %x {axes = [1]} : tensor<4xf32>
    %b = add %x, %a : tensor<4x4xf32>
    return %b",
            "(%x: tensor<4x4xf32>) -> tensor<4x4xf32>",
        );
        assert_eq!(mixed.unwrap_err().inst, Some(1));
    }
}
