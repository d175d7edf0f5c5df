//! The form of `@main` that the engine calls, read from its types: a module that was edited by
//! hand runs as long as it keeps this form.

use aether_ir::{DType, Dim, Module, TensorType};

use super::EngineError;
use crate::arch::MAIN;

/// Sizes of a model's `@main`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    /// Tokens that the caches hold, of each slot.
    pub context: usize,
    /// Sequences that have caches; `None` in the form of one sequence.
    pub slots: Option<usize>,
    /// Most tokens of a call.
    pub batch: usize,
    /// Most rows of logits of a call.
    pub rows: usize,
    pub vocab: usize,
    /// Elements of a row of what the logits are computed from, when it is returned too.
    pub hidden: Option<usize>,
    /// Shape and bytes of each cache.
    pub caches: Vec<(Vec<usize>, usize)>,
}

/// Most parameters before the caches.
pub(super) const FIXED: usize = 4;

impl Interface {
    /// Parameters before the caches: tokens, past, rows, or tokens, positions, slots, rows.
    pub fn fixed(&self) -> usize {
        3 + usize::from(self.slots.is_some())
    }

    pub fn of(module: &Module) -> Result<Interface, EngineError> {
        let wrong = |message: String| EngineError::Interface(message);
        let func = module
            .funcs
            .get(MAIN)
            .ok_or_else(|| wrong("the module has no such function".to_owned()))?;
        let params: Vec<&TensorType> = func.params.iter().map(|&p| func.ty(p)).collect();
        let slotted = params.get(1).is_some_and(|ty| ty.rank() == 1);
        let (tokens, past, rows, caches) = match params.as_slice() {
            [tokens, positions, slots, rows, caches @ ..] if slotted => {
                if positions != tokens || slots != tokens {
                    let message = format!("positions and slots should be {tokens}, as tokens");
                    return Err(wrong(message));
                }
                (tokens, positions, rows, caches)
            }
            [tokens, past, rows, caches @ ..] => (tokens, past, rows, caches),
            _ => {
                return Err(wrong("it should take tokens, past, rows and the caches".to_owned()));
            }
        };
        let most = |ty: &TensorType, what: &str| match ty.shape.0.as_slice() {
            [dim] if ty.dtype == DType::I32 && dim.symbols().len() == 1 => {
                let symbol = &dim.symbols()[0];
                let range = module.symbols.get(symbol).filter(|r| r.min <= 1 && r.max >= 1);
                match range.filter(|_| dim.is_symbol(symbol)) {
                    Some(range) => Ok(usize::try_from(range.max).unwrap_or(usize::MAX)),
                    None => Err(wrong(format!("the range of {what} should begin at 1"))),
                }
            }
            _ => Err(wrong(format!("{what} should be tensor<[symbol]xi32>, but is {ty}"))),
        };
        let (batch, most_rows) = (most(tokens, "tokens")?, most(rows, "rows")?);
        if !slotted && (past.dtype != DType::I32 || past.rank() != 0) {
            return Err(wrong(format!("past should be tensor<i32>, but is {past}")));
        }
        let front = usize::from(slotted);
        let mut shapes = Vec::with_capacity(caches.len());
        for ty in caches {
            let shape = ty.shape.as_const().filter(|s| s.len() == 3 + front);
            let bytes = ty.bytes(|_| None).and_then(|b| usize::try_from(b).ok());
            let Some((shape, bytes)) = shape.zip(bytes) else {
                let n = 3 + front;
                return Err(wrong(format!("a cache should have {n} fixed axes, but is {ty}")));
            };
            shapes.push((shape.into_iter().map(|d| d as usize).collect::<Vec<_>>(), bytes));
        }
        let context = shapes.first().map_or(0, |(shape, _)| shape[front]);
        let slots = shapes.first().filter(|_| slotted).map(|(shape, _)| shape[0]);
        let equal = |(shape, _): &(Vec<usize>, usize)| {
            shape[front] == context && slots.is_none_or(|n| shape[0] == n)
        };
        if context == 0 || slots == Some(0) || !shapes.iter().all(equal) {
            return Err(wrong("it should take caches of equal length".to_owned()));
        }
        if i32::try_from(context).is_err() {
            return Err(EngineError::ContextSize(context));
        }
        let [logits, kept @ ..] = func.result_types.as_slice() else {
            return Err(wrong("it should return logits and the caches".to_owned()));
        };
        let vocab = match logits.shape.0.as_slice() {
            [r, vocab] if logits.dtype == DType::F32 && *r == rows.shape.0[0] => vocab.as_const(),
            _ => None,
        };
        let vocab = vocab.filter(|v| (1..=i32::MAX as u64).contains(v)).ok_or_else(|| {
            let rows = Dim::clone(&rows.shape.0[0]);
            wrong(format!("logits should be tensor<[{rows}]xVOCABxf32>, but are {logits}"))
        })?;
        let (kept, more) = kept.split_at(kept.len().min(caches.len()));
        let hidden = match more {
            [] => None,
            [ty] if ty.dtype == DType::F32
                && ty.rank() == 2
                && ty.shape.0[0] == rows.shape.0[0] =>
            {
                ty.shape.0[1].as_const().map(|n| n as usize)
            }
            _ => return Err(wrong("after the caches it may return [r]xN f32 only".to_owned())),
        };
        if !kept.iter().eq(caches.iter().copied()) {
            return Err(wrong("it should return its caches, in their order".to_owned()));
        }
        Ok(Interface {
            context,
            slots,
            batch: batch.min(context),
            rows: most_rows,
            vocab: vocab as usize,
            hidden,
            caches: shapes,
        })
    }
}
