//! The form of `@main` that the engine calls, read from its types: a module that was edited by
//! hand runs as long as it keeps this form.

use aether_ir::{DType, Dim, Module, TensorType};

use super::EngineError;
use crate::arch::MAIN;

/// Sizes of a model's `@main`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    /// Tokens that the caches hold.
    pub context: usize,
    /// Most tokens of a call.
    pub batch: usize,
    /// Most rows of logits of a call.
    pub rows: usize,
    pub vocab: usize,
    /// Shape and bytes of each cache.
    pub caches: Vec<(Vec<usize>, usize)>,
}

/// Parameters before the caches.
pub(super) const FIXED: usize = 3;

impl Interface {
    pub fn of(module: &Module) -> Result<Interface, EngineError> {
        let wrong = |message: String| EngineError::Interface(message);
        let func = module
            .funcs
            .get(MAIN)
            .ok_or_else(|| wrong("the module has no such function".to_owned()))?;
        let params: Vec<&TensorType> = func.params.iter().map(|&p| func.ty(p)).collect();
        let [tokens, past, rows, caches @ ..] = params.as_slice() else {
            return Err(wrong("it should take tokens, past, rows and the caches".to_owned()));
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
        if past.dtype != DType::I32 || past.rank() != 0 {
            return Err(wrong(format!("past should be tensor<i32>, but is {past}")));
        }
        let mut shapes = Vec::with_capacity(caches.len());
        for ty in caches {
            let shape = ty.shape.as_const().filter(|s| s.len() == 3);
            let bytes = ty.bytes(|_| None).and_then(|b| usize::try_from(b).ok());
            let Some((shape, bytes)) = shape.zip(bytes) else {
                return Err(wrong(format!("a cache should have three fixed axes, but is {ty}")));
            };
            shapes.push((shape.into_iter().map(|d| d as usize).collect::<Vec<_>>(), bytes));
        }
        let context = shapes.first().map_or(0, |(shape, _)| shape[0]);
        if context == 0 || shapes.iter().any(|(shape, _)| shape[0] != context) {
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
        if !kept.iter().eq(caches.iter().copied()) {
            return Err(wrong("it should return its caches, in their order".to_owned()));
        }
        Ok(Interface {
            context,
            batch: batch.min(context),
            rows: most_rows,
            vocab: vocab as usize,
            caches: shapes,
        })
    }
}
