//! Constants: their bytes as the GPU wants them, made when they are asked for.

use std::sync::Arc;

use aether_ir::load::{self, LoadError};
use aether_ir::tensor::Bytes;
use aether_ir::{ConstSource, Func, Layout, Module, Op, TensorType, ValueId};
use rayon::prelude::*;

use crate::error::CompileError;

/// Bytes that a thread packs at once, about.
const PIECE: usize = 256 << 10;

/// Threads that pack a constant at most: with more the device waits for memory anyway.
const WORKERS: usize = 16;

/// Where a constant's bytes come from.
#[derive(Clone, Debug)]
pub enum Recipe {
    /// A constant of the module, in the layout of `ty`.
    Named(Arc<str>),
    /// Bytes that were computed when the program was made.
    Bytes(Arc<[u8]>),
}

/// A buffer that is filled before the steps that read it.
#[derive(Clone, Debug)]
pub struct Constant {
    pub ty: TensorType,
    /// Bytes in the buffer.
    pub bytes: u64,
    pub recipe: Recipe,
}

impl Constant {
    /// For messages.
    pub fn name(&self) -> &str {
        match &self.recipe {
            Recipe::Named(name) => name,
            Recipe::Bytes(_) => "(computed)",
        }
    }

    /// The bytes that [`Constant::pieces`] takes, row-major and of the right number, shared with
    /// where they lie.
    ///
    /// # Errors
    /// When they cannot be read, or do not fit the type.
    pub fn raw(&self, module: &Module, source: &dyn ConstSource) -> Result<Bytes, CompileError> {
        match &self.recipe {
            Recipe::Bytes(bytes) => Ok(bytes.clone().into()),
            Recipe::Named(name) => raw(module, source, name),
        }
    }

    /// Hands out the bytes of the buffer, in pieces of some whole words that follow each other: the
    /// offset and the bytes of each. Of a constant in planes some rows are packed at a time, by all
    /// threads.
    ///
    /// # Errors
    /// When `raw` does not fit the type, or `each` fails.
    pub fn pieces<E: From<CompileError>>(
        &self,
        raw: &[u8],
        mut each: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            let from = at;
            at += bytes.len() as u64;
            each(from, bytes)
        };
        if self.ty.layout == Layout::Planes {
            let wrong =
                |message: String| CompileError::Constant { name: self.name().into(), message };
            let k = self.ty.shape.0.last().and_then(aether_ir::Dim::as_const).unwrap_or(0) as usize;
            let dtype = self.ty.dtype;
            let (row, packed) =
                crate::planes::row_sizes(dtype, k).map_err(|e| wrong(e.to_string()))?;
            let rows = (PIECE / packed).max(1);
            // One piece for each worker at a time; together they are one piece for who takes them.
            let together = rows * rayon::current_num_threads().clamp(1, WORKERS);
            let mut out = vec![0; together.min(raw.len() / row) * packed];
            for raw in raw.chunks(together * row) {
                let out = &mut out[..raw.len() / row * packed];
                let parts = raw.par_chunks(rows * row).zip(out.par_chunks_mut(rows * packed));
                parts
                    .try_for_each(|(raw, out)| crate::planes::pack_rows(dtype, k, raw, out))
                    .map_err(|e| wrong(e.to_string()))?;
                put(out)?;
            }
            return Ok(());
        }
        let words = raw.len() / 4 * 4;
        for piece in raw[..words].chunks(PIECE) {
            put(piece)?;
        }
        if words < raw.len() || raw.is_empty() {
            let mut last = [0; 4];
            last[..raw.len() - words].copy_from_slice(&raw[words..]);
            put(&last)?;
        }
        Ok(())
    }

    /// The bytes of the buffer.
    ///
    /// # Errors
    /// When they cannot be read, or do not fit the type.
    pub fn load(&self, module: &Module, source: &dyn ConstSource) -> Result<Vec<u8>, CompileError> {
        let raw = self.raw(module, source)?;
        let mut out = Vec::with_capacity(self.bytes as usize);
        self.pieces(&raw, |_, bytes| {
            out.extend_from_slice(bytes);
            Ok::<(), CompileError>(())
        })?;
        Ok(out)
    }
}

/// The row-major bytes of a constant, checked against its type.
fn raw(module: &Module, source: &dyn ConstSource, name: &Arc<str>) -> Result<Bytes, CompileError> {
    let error = |message| CompileError::Constant { name: name.clone(), message };
    let constant = module.consts.get(name).ok_or_else(|| error("is not declared".to_owned()))?;
    let bytes = source.load(name, constant).map_err(error)?;
    let expected = constant.ty.bytes(|_| None);
    if expected != Some(bytes.len() as u64) {
        return Err(error(format!(
            "has {} bytes, which its type {} does not",
            bytes.len(),
            constant.ty
        )));
    }
    Ok(bytes)
}

/// How to make the buffer of a load-time value.
///
/// # Errors
/// When the value cannot be computed from constants.
pub fn recipe(
    module: &Module,
    source: &dyn ConstSource,
    func: &Func,
    definitions: &[Option<usize>],
    value: ValueId,
) -> Result<Recipe, CompileError> {
    let inst = definitions[value.index()].map(|i| &func.body[i]);
    let symbol = |inst: &aether_ir::Inst| inst.symbol.clone().unwrap_or_else(|| Arc::from(""));
    match inst {
        Some(inst) if inst.op == Op::Constant => Ok(Recipe::Named(symbol(inst))),
        Some(inst) if inst.op == Op::Pack => {
            let of = inst.inputs().next().and_then(|v| definitions[v.index()]);
            match of.map(|i| &func.body[i]).filter(|i| i.op == Op::Constant) {
                Some(of) => Ok(Recipe::Named(symbol(of))),
                None => Err(CompileError::Unsupported {
                    func: func.name.clone(),
                    op: Op::Pack,
                    message: "only constants can be packed".to_owned(),
                }),
            }
        }
        _ => {
            let mut constant = |name: &Arc<str>| raw(module, source, name);
            let tensor = load::evaluate(func, definitions, value, &mut constant);
            let tensor = tensor.map_err(|e| match e {
                LoadError::Constant(e) => e,
                LoadError::Op { op, message } => {
                    CompileError::Unsupported { func: func.name.clone(), op, message }
                }
            })?;
            Ok(Recipe::Bytes(tensor.bytes().as_ref().into()))
        }
    }
}
