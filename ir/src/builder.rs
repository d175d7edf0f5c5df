//! Building functions instruction by instruction, with types inferred from the op table.
//!
//! ```
//! use aether_ir::{Attrs, DType, FuncBuilder, Op, TensorType};
//!
//! let mut f = FuncBuilder::new("main");
//! let x = f.param("x", TensorType::new(DType::F32, [2u64, 2]));
//! let w = f.param("w", TensorType::new(DType::F32, [2u64, 2]));
//! let y = f.op(Op::Matmul, &[x, w], Attrs::new())?;
//! let y = f.op(Op::Softmax, &[y], Attrs::new().with("axis", -1i64))?;
//! let func = f.finish(&[y]);
//! assert_eq!(func.body.len(), 2);
//! # Ok::<(), aether_ir::BuildError>(())
//! ```

use std::sync::Arc;

use crate::attr::Attrs;
use crate::module::{Func, Inst, Operand, ValueId};
use crate::op::{InferCtx, Op};
use crate::types::TensorType;

/// An instruction does not fit its operands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("in @{func}, `{op}`: {message}")]
pub struct BuildError {
    pub func: Arc<str>,
    pub op: Op,
    pub message: String,
}

/// Builds one function.
pub struct FuncBuilder {
    func: Func,
}

impl FuncBuilder {
    /// Starts a function.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        FuncBuilder { func: Func::new(name) }
    }

    /// Goes on with a function that is there already: what is added comes after its last
    /// instruction, and its values keep their numbers.
    pub fn resume(func: Func) -> Self {
        FuncBuilder { func }
    }

    /// The function as it is so far.
    pub fn func(&self) -> &Func {
        &self.func
    }

    /// Adds a parameter.
    pub fn param(&mut self, name: &str, ty: TensorType) -> ValueId {
        let id = self.func.add_value(ty, Some(name.into()));
        self.func.params.push(id);
        id
    }

    /// The type of a value.
    pub fn ty(&self, value: ValueId) -> &TensorType {
        self.func.ty(value)
    }

    /// Whether a value is a parameter.
    pub fn is_param(&self, value: ValueId) -> bool {
        self.func.params.contains(&value)
    }

    /// Names a value in the text form.
    pub fn name(&mut self, value: ValueId, name: &str) {
        self.func.values[value.index()].name = Some(name.into());
    }

    fn infer(
        &self,
        op: Op,
        operands: &[Operand],
        attrs: &Attrs,
        declared: &[TensorType],
    ) -> Result<Vec<TensorType>, BuildError> {
        let error = |message| BuildError { func: self.func.name.clone(), op, message };
        let arity = op.info().arity;
        if !(arity.min..=arity.max).contains(&operands.len()) {
            return Err(error(format!(
                "takes {} to {} operands, found {}",
                arity.min,
                arity.max,
                operands.len()
            )));
        }
        let types: Vec<&TensorType> = operands.iter().map(|o| self.func.ty(o.value)).collect();
        (op.info().infer)(&InferCtx { operands: &types, attrs, declared }).map_err(error)
    }

    fn push(
        &mut self,
        op: Op,
        operands: Vec<Operand>,
        attrs: Attrs,
        symbol: Option<Arc<str>>,
        types: Vec<TensorType>,
    ) -> Vec<ValueId> {
        let results: Vec<ValueId> =
            types.into_iter().map(|ty| self.func.add_value(ty, None)).collect();
        let inst = Inst { op, operands, attrs, symbol, results: results.clone(), span: 0..0 };
        self.func.body.push(inst);
        results
    }

    /// Appends an op with one result whose type follows from its operands.
    pub fn op(
        &mut self,
        op: Op,
        operands: &[ValueId],
        attrs: Attrs,
    ) -> Result<ValueId, BuildError> {
        Ok(self.op_multi(op, operands, attrs, &[])?[0])
    }

    /// Appends an op with one result of the written type (`reshape`, `cast`, `splat`, …).
    pub fn op_to(
        &mut self,
        op: Op,
        operands: &[ValueId],
        attrs: Attrs,
        ty: TensorType,
    ) -> Result<ValueId, BuildError> {
        Ok(self.op_multi(op, operands, attrs, &[ty])?[0])
    }

    /// Appends an op with any number of results and donated operands.
    pub fn op_multi(
        &mut self,
        op: Op,
        operands: &[impl Into<Operand> + Copy],
        attrs: Attrs,
        declared: &[TensorType],
    ) -> Result<Vec<ValueId>, BuildError> {
        let operands: Vec<Operand> = operands.iter().map(|&o| o.into()).collect();
        let types = self.infer(op, &operands, &attrs, declared)?;
        Ok(self.push(op, operands, attrs, None, types))
    }

    /// Reads the module constant `name`.
    pub fn constant(&mut self, name: impl Into<Arc<str>>, ty: TensorType) -> ValueId {
        self.push(Op::Constant, Vec::new(), Attrs::new(), Some(name.into()), vec![ty])[0]
    }

    /// Calls a function with these result types.
    pub fn call(
        &mut self,
        callee: impl Into<Arc<str>>,
        operands: &[Operand],
        result_types: &[TensorType],
    ) -> Vec<ValueId> {
        let callee = Some(callee.into());
        self.push(Op::Call, operands.to_vec(), Attrs::new(), callee, result_types.to_vec())
    }

    /// Runs a function whose body is one loop ([`crate::fusion`]), with these result types.
    pub fn fused(
        &mut self,
        callee: impl Into<Arc<str>>,
        operands: &[Operand],
        result_types: &[TensorType],
    ) -> Vec<ValueId> {
        let callee = Some(callee.into());
        self.push(Op::Fused, operands.to_vec(), Attrs::new(), callee, result_types.to_vec())
    }

    /// Ends the function.
    pub fn finish(mut self, returns: &[ValueId]) -> Func {
        self.func.returns = returns.to_vec();
        self.func.result_types = returns.iter().map(|&v| self.func.ty(v).clone()).collect();
        self.func
    }
}

/// A donated operand.
pub fn donate(value: ValueId) -> Operand {
    Operand { value, donated: true }
}
