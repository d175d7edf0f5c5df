//! Constants: their bytes as the GPU wants them, made when they are asked for.

use std::sync::Arc;

use aether_ir::load::{self, LoadError};
use aether_ir::{ConstSource, Func, Layout, Module, Op, TensorType, ValueId};

use crate::error::CompileError;
use crate::program::buffer_bytes;

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

    fn planes(&self, raw: &[u8]) -> Result<Vec<u8>, String> {
        let k = self.ty.shape.0.last().and_then(aether_ir::Dim::as_const).unwrap_or(0);
        let mut out = vec![0; self.ty.bytes(|_| None).unwrap_or(0) as usize];
        crate::planes::pack_rows(self.ty.dtype, k as usize, raw, &mut out)
            .map_err(|e| e.to_string())?;
        Ok(out)
    }

    /// The bytes of the buffer.
    ///
    /// # Errors
    /// When they cannot be read, or do not fit the type.
    pub fn load(&self, module: &Module, source: &dyn ConstSource) -> Result<Vec<u8>, CompileError> {
        let mut out = match &self.recipe {
            Recipe::Bytes(bytes) => bytes.to_vec(),
            Recipe::Named(name) => {
                let raw = raw(module, source, name)?;
                match self.ty.layout {
                    Layout::Planes => self.planes(&raw).map_err(|message| {
                        CompileError::Constant { name: name.clone(), message }
                    })?,
                    _ => raw.to_vec(),
                }
            }
        };
        out.resize(buffer_bytes(out.len() as u64) as usize, 0);
        Ok(out)
    }
}

/// The row-major bytes of a constant, checked against its type.
fn raw(
    module: &Module,
    source: &dyn ConstSource,
    name: &Arc<str>,
) -> Result<aether_ir::tensor::Bytes, CompileError> {
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
