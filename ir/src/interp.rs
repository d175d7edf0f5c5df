//! The reference interpreter: what a module means.
//!
//! Slow and clear. Each instruction is checked against its type rule with the numbers of this run
//! and then carried out by the meaning in its row of the op table, so a module that no verifier
//! has seen gives an error at worst. Sizes, calls and steps are bounded ([`InterpOptions`]).
//! Kernels are tested against it, constant folding uses [`eval_inst`], and a bisection over
//! passes compares with it.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::attr::{Attr, Attrs};
use crate::dim::{Bindings, Symbol};
use crate::module::{Const, ConstData, Func, Inst, Module, Span, ValueId};
use crate::op::{InferCtx, Op};
use crate::tensor::{Bytes, ConcreteType, EvalCtx, EvalError, Tensor, reserve};
use crate::types::{Layout, TensorType};

/// Gives the bytes of constants.
pub trait ConstSource: Send + Sync {
    /// The row-major bytes of the constant `name`.
    ///
    /// # Errors
    /// Says what could not be read.
    fn load(&self, name: &str, constant: &Const) -> Result<Bytes, String>;
}

/// Reads constants from memory and from files, whose relative paths start at `base`.
#[derive(Clone, Debug, Default)]
pub struct FileSource {
    pub base: PathBuf,
}

impl ConstSource for FileSource {
    fn load(&self, _: &str, constant: &Const) -> Result<Bytes, String> {
        match &constant.data {
            ConstData::Dense(bytes) => Ok(bytes.clone().into()),
            ConstData::File { path, offset, bytes, .. } => {
                let path = self.base.join(path);
                let failed = |e: std::io::Error| format!("cannot read {}: {e}", path.display());
                let about = std::fs::metadata(&path).map_err(failed)?;
                if !about.is_file()
                    || offset.checked_add(*bytes).is_none_or(|end| end > about.len())
                {
                    return Err(format!(
                        "{} is no file that holds {bytes} bytes from offset {offset} on",
                        path.display()
                    ));
                }
                let size = usize::try_from(*bytes).map_err(|e| e.to_string())?;
                let mut data =
                    reserve(size).ok_or_else(|| format!("no memory for {bytes} bytes"))?;
                data.resize(size, 0);
                let mut file = File::open(&path).map_err(failed)?;
                file.seek(SeekFrom::Start(*offset)).map_err(failed)?;
                file.read_exact(&mut data).map_err(failed)?;
                Ok(data.into())
            }
        }
    }
}

/// Bounds of one run.
#[derive(Clone, Copy, Debug)]
pub struct InterpOptions {
    /// Elements of one computed value.
    pub max_elements: usize,
    /// Bytes of all computed values that live at the same time.
    pub max_live_bytes: usize,
    /// Functions that call one another.
    pub max_depth: usize,
    /// Instructions, those of called functions included.
    pub max_steps: u64,
}

impl Default for InterpOptions {
    fn default() -> Self {
        InterpOptions {
            max_elements: 1 << 28,
            max_live_bytes: 1 << 33,
            max_depth: 64,
            max_steps: 1 << 24,
        }
    }
}

/// A run could not be completed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub struct InterpError {
    /// The function it happened in.
    pub func: Arc<str>,
    /// Index and op of the instruction, unless it concerns the function as a whole.
    pub inst: Option<(usize, Op)>,
    /// The place in the text; empty for modules that were built.
    pub span: Span,
    pub message: String,
    /// The callers, innermost first: function and index of the call.
    pub callers: Vec<(Arc<str>, usize)>,
}

impl fmt::Display for InterpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "in @{}", self.func)?;
        if let Some((index, op)) = self.inst {
            write!(f, ", instruction {index} (`{op}`)")?;
        }
        for (func, index) in &self.callers {
            write!(f, ", called by @{func}, instruction {index}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Runs the functions of one module.
pub struct Interpreter<'m> {
    module: &'m Module,
    source: Box<dyn ConstSource + 'm>,
    options: InterpOptions,
    /// Constants already loaded.
    consts: Mutex<HashMap<Arc<str>, Tensor>>,
}

/// What the functions of one run share.
struct Run<'m> {
    /// The functions being run, outermost first.
    stack: Vec<&'m str>,
    steps: u64,
    live_bytes: usize,
}

/// A value and the bytes it counts for.
type Slot = Option<(Tensor, usize)>;

impl<'m> Interpreter<'m> {
    /// An interpreter that finds files of constants from the current folder.
    pub fn new(module: &'m Module) -> Self {
        Interpreter {
            module,
            source: Box::new(FileSource::default()),
            options: InterpOptions::default(),
            consts: Mutex::default(),
        }
    }

    /// The same with constants out of `source`.
    #[must_use]
    pub fn with_source(self, source: impl ConstSource + 'm) -> Self {
        Interpreter { source: Box::new(source), ..self }
    }

    /// The same with other bounds.
    #[must_use]
    pub fn with_options(self, options: InterpOptions) -> Self {
        Interpreter { options, ..self }
    }

    /// Runs a function: symbols take the lengths of the arguments' axes.
    ///
    /// # Errors
    /// When the function is unknown, the arguments do not fit, or an instruction fails.
    pub fn run(&self, func: &str, args: Vec<Tensor>) -> Result<Vec<Tensor>, InterpError> {
        self.run_bound(func, args, &Bindings::new())
    }

    /// As [`Interpreter::run`], with values for symbols that the arguments leave open.
    ///
    /// # Errors
    /// As [`Interpreter::run`].
    pub fn run_bound(
        &self,
        func: &str,
        args: Vec<Tensor>,
        bindings: &Bindings,
    ) -> Result<Vec<Tensor>, InterpError> {
        let found = self.module.funcs.get(func).ok_or_else(|| InterpError {
            func: func.into(),
            inst: None,
            span: 0..0,
            message: format!("module @{} has no such function", self.module.name),
            callers: Vec::new(),
        })?;
        let mut run = Run { stack: Vec::new(), steps: 0, live_bytes: 0 };
        self.run_func(&mut run, found, args, bindings)
    }

    fn run_func(
        &self,
        run: &mut Run<'m>,
        func: &'m Func,
        args: Vec<Tensor>,
        inherited: &Bindings,
    ) -> Result<Vec<Tensor>, InterpError> {
        let whole = |message: String| InterpError {
            func: func.name.clone(),
            inst: None,
            span: func.span.clone(),
            message,
            callers: Vec::new(),
        };
        if run.stack.contains(&&*func.name) {
            return Err(whole(format!(
                "it calls itself: {} -> {}",
                run.stack.join(" -> "),
                func.name
            )));
        }
        if run.stack.len() >= self.options.max_depth {
            return Err(whole(format!("calls are nested deeper than {}", self.options.max_depth)));
        }
        let bindings = self.bind(func, &args, inherited).map_err(whole)?;
        let last_uses = last_uses(func).map_err(whole)?;
        let mut slots: Vec<Slot> = vec![None; func.values.len()];
        for (param, arg) in func.params.iter().zip(args) {
            slots[param.index()] = Some((arg, 0));
        }
        run.stack.push(&func.name);
        for (index, inst) in func.body.iter().enumerate() {
            let failed = |message| InterpError {
                func: func.name.clone(),
                inst: Some((index, inst.op)),
                span: inst.span.clone(),
                message,
                callers: Vec::new(),
            };
            run.steps += 1;
            if run.steps > self.options.max_steps {
                return Err(failed(format!("more than {} steps", self.options.max_steps)));
            }
            let mut types = Vec::with_capacity(inst.results.len());
            for r in &inst.results {
                types.push(ConcreteType::of(func.ty(*r), &bindings).map_err(failed)?);
            }
            let operands = take_operands(run, &mut slots, inst, |v| last_uses[v.index()] <= index)
                .map_err(failed)?;
            let results = match inst.op {
                Op::Constant => vec![self.constant(inst).map_err(failed)?],
                op if op.is_call() => {
                    let callee = inst.symbol.as_deref().unwrap_or_default();
                    let callee =
                        self.module.funcs.get(callee).ok_or_else(|| {
                            failed(format!("the module has no function @{callee}"))
                        })?;
                    self.run_func(run, callee, operands, &bindings).map_err(|mut e| {
                        e.callers.push((func.name.clone(), index));
                        e
                    })?
                }
                op => {
                    let operands: Vec<&Tensor> = operands.iter().collect();
                    eval_bounded(op, &inst.attrs, &operands, &types, self.options.max_elements)
                        .map_err(|e| failed(e.0))?
                }
            };
            check_types(&results, &types).map_err(failed)?;
            for (value, result) in inst.results.iter().zip(results) {
                if last_uses[value.index()] == 0 {
                    // Never used.
                    continue;
                }
                let size = if inst.op == Op::Constant { 0 } else { result.bytes().len() };
                run.live_bytes = run.live_bytes.saturating_add(size);
                slots[value.index()] = Some((result, size));
            }
            if run.live_bytes > self.options.max_live_bytes {
                return Err(failed(format!(
                    "the values alive take {} bytes, more than {}",
                    run.live_bytes, self.options.max_live_bytes
                )));
            }
        }
        run.stack.pop();
        let mut results = Vec::with_capacity(func.returns.len());
        for value in &func.returns {
            match slots.get(value.index()) {
                Some(Some((tensor, _))) => results.push(tensor.clone()),
                _ => {
                    return Err(whole(format!(
                        "{} is returned but has no value",
                        name(func, *value)
                    )));
                }
            }
        }
        // What is returned counts with the caller.
        let freed: usize = slots.into_iter().flatten().map(|(_, size)| size).sum();
        run.live_bytes = run.live_bytes.saturating_sub(freed);
        let declared: Result<Vec<_>, _> =
            func.result_types.iter().map(|ty| ConcreteType::of(ty, &bindings)).collect();
        check_types(&results, &declared.map_err(whole)?).map_err(whole)?;
        Ok(results)
    }

    /// Values of the symbols: a parameter's axis that is one symbol binds it, all others must
    /// then agree.
    fn bind(&self, func: &Func, args: &[Tensor], inherited: &Bindings) -> Result<Bindings, String> {
        if args.len() != func.params.len() {
            return Err(format!("expected {} arguments, found {}", func.params.len(), args.len()));
        }
        let mut own = Bindings::new();
        for (&param, arg) in func.params.iter().zip(args) {
            let data = func.values.get(param.index());
            let ty = &data.ok_or_else(|| format!("parameter {} has no type", param.0))?.ty;
            if !agree(ty, arg) {
                return Err(format!("{} is {ty}, found {}", name(func, param), arg.ty()));
            }
            for (dim, &length) in ty.shape.0.iter().zip(arg.shape()) {
                let Some(symbol) = dim.symbols().into_iter().find(|s| dim.is_symbol(s)) else {
                    continue;
                };
                let bound = *own.entry(symbol.clone()).or_insert(length as u64);
                if bound != length as u64 {
                    return Err(format!(
                        "symbol `{symbol}` is {bound} in an earlier argument, but {length} in {}",
                        name(func, param)
                    ));
                }
            }
        }
        for (symbol, &value) in inherited {
            own.entry(symbol.clone()).or_insert(value);
        }
        for (symbol, &value) in &own {
            self.check_range(symbol, value)?;
        }
        for (&param, arg) in func.params.iter().zip(args) {
            let want = ConcreteType::of(func.ty(param), &own)?;
            if want != arg.ty() {
                return Err(format!("{} is {want} here, found {}", name(func, param), arg.ty()));
            }
        }
        Ok(own)
    }

    fn check_range(&self, symbol: &Symbol, value: u64) -> Result<(), String> {
        match self.module.symbols.get(symbol) {
            Some(range) if (range.min..=range.max).contains(&value) => Ok(()),
            Some(range) => Err(format!(
                "symbol `{symbol}` is {value}, outside its range {}..={}",
                range.min, range.max
            )),
            None => Err(format!("symbol `{symbol}` is not declared")),
        }
    }

    fn constant(&self, inst: &Inst) -> Result<Tensor, String> {
        let symbol = inst.symbol.clone().unwrap_or_default();
        let mut loaded = self.consts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tensor) = loaded.get(&symbol) {
            return Ok(tensor.clone());
        }
        let constant = self.module.consts.get(&symbol);
        let constant = constant.ok_or_else(|| format!("the module has no constant @{symbol}"))?;
        let ty = ConcreteType::of(&constant.ty, &Bindings::new())?;
        if ty.layout != Layout::RowMajor {
            return Err(format!(
                "constant @{symbol} is {ty}; only row-major ones can be read here"
            ));
        }
        let bytes = self.source.load(&symbol, constant).map_err(|e| format!("@{symbol}: {e}"))?;
        let tensor = Tensor::new(ty, bytes).map_err(|e| format!("@{symbol}: {e}"))?;
        loaded.insert(symbol, tensor.clone());
        Ok(tensor)
    }
}

/// Whether everything but the dimensions is equal.
fn agree(ty: &TensorType, arg: &Tensor) -> bool {
    ty.dtype == arg.dtype() && ty.layout == arg.layout() && ty.rank() == arg.shape().len()
}

/// The value as the text form names it, as far as is known here.
fn name(func: &Func, value: ValueId) -> String {
    match func.values.get(value.index()).and_then(|data| data.name.as_ref()) {
        Some(name) => format!("%{name}"),
        None => format!("value {}", value.0),
    }
}

/// For each value the index of the last instruction that reads it (`usize::MAX` when it is
/// returned, 0 when nothing does: instruction 0 can read parameters only).
fn last_uses(func: &Func) -> Result<Vec<usize>, String> {
    let mut last = vec![0; func.values.len()];
    let mut note = |value: ValueId, index: usize| match last.get_mut(value.index()) {
        Some(slot) => {
            *slot = index;
            Ok(())
        }
        None => Err(format!("value {} does not exist", value.0)),
    };
    for (index, inst) in func.body.iter().enumerate() {
        inst.inputs().try_for_each(|v| note(v, index))?;
    }
    func.returns.iter().try_for_each(|&v| note(v, usize::MAX))?;
    let exists = |v: &ValueId| v.index() < func.values.len();
    let defined = func.params.iter().chain(func.body.iter().flat_map(|inst| &inst.results));
    match defined.into_iter().find(|v| !exists(v)) {
        Some(v) => Err(format!("value {} does not exist", v.0)),
        None => Ok(last),
    }
}

/// The operands of `inst`; those that are given away or `finished` leave their slots.
fn take_operands(
    run: &mut Run,
    slots: &mut [Slot],
    inst: &Inst,
    finished: impl Fn(ValueId) -> bool,
) -> Result<Vec<Tensor>, String> {
    let mut operands = Vec::with_capacity(inst.operands.len());
    for (i, operand) in inst.operands.iter().enumerate() {
        match &slots[operand.value.index()] {
            Some((tensor, _)) => operands.push(tensor.clone()),
            None => {
                return Err(format!(
                    "operand {i} has no value: it is used before it is defined, or after it was \
                     donated"
                ));
            }
        }
    }
    for operand in &inst.operands {
        if (operand.donated || finished(operand.value))
            && let Some((_, size)) = slots[operand.value.index()].take()
        {
            run.live_bytes = run.live_bytes.saturating_sub(size);
        }
    }
    Ok(operands)
}

fn check_types(results: &[Tensor], types: &[ConcreteType]) -> Result<(), String> {
    if results.len() != types.len() {
        return Err(format!("expected {} results, found {}", types.len(), results.len()));
    }
    match results.iter().zip(types).find(|(r, ty)| r.ty() != **ty) {
        Some((result, ty)) => Err(format!("expected {ty} as result, found {}", result.ty())),
        None => Ok(()),
    }
}

/// Carries out one instruction other than `constant`, `call` and `fused`, as constant folding does.
///
/// # Errors
/// When the type rule refuses the operands or results, a result has more elements than
/// [`InterpOptions`] allow by default, or the op fails on these values.
pub fn eval_inst(
    op: Op,
    attrs: &Attrs,
    operands: &[&Tensor],
    results: &[ConcreteType],
) -> Result<Vec<Tensor>, EvalError> {
    let values = eval_bounded(op, attrs, operands, results, InterpOptions::default().max_elements)?;
    check_types(&values, results).map_err(EvalError)?;
    Ok(values)
}

fn eval_bounded(
    op: Op,
    attrs: &Attrs,
    operands: &[&Tensor],
    results: &[ConcreteType],
    max_elements: usize,
) -> Result<Vec<Tensor>, EvalError> {
    let info = op.info();
    let eval = info.eval.ok_or_else(|| EvalError(format!("`{op}` needs a module around it")))?;
    if !(info.arity.min..=info.arity.max).contains(&operands.len()) {
        return Err(EvalError(format!("`{op}` does not take {} operands", operands.len())));
    }
    for spec in info.attrs {
        match attrs.get(spec.name) {
            None if spec.required => {
                return Err(EvalError(format!("attribute `{}` is missing", spec.name)));
            }
            Some(attr) if !spec.kind.accepts(attr) => {
                return Err(EvalError(format!("`{}` must be {}", spec.name, spec.kind.name())));
            }
            _ => {}
        }
    }
    let types: Vec<TensorType> = operands.iter().map(|x| x.ty().to_type()).collect();
    let types: Vec<&TensorType> = types.iter().collect();
    let declared: Vec<TensorType> = results.iter().map(ConcreteType::to_type).collect();
    let numeric = if op == Op::Slice { whole_axes(attrs, operands) } else { None };
    let attrs = numeric.as_ref().unwrap_or(attrs);
    let inferred = (info.infer)(&InferCtx { operands: &types, attrs, declared: &declared })
        .map_err(EvalError)?;
    if inferred != declared {
        let list = |types: &[TensorType]| {
            types.iter().map(TensorType::to_string).collect::<Vec<_>>().join(", ")
        };
        return Err(EvalError(format!(
            "expected {} as result, found {}",
            list(&inferred),
            list(&declared)
        )));
    }
    for ty in results {
        if ty.numel().is_none_or(|n| n > max_elements) {
            return Err(EvalError(format!("{ty} has more than {max_elements} elements")));
        }
    }
    eval(&EvalCtx { operands, attrs, results })
}

/// The attributes of a slice with the lengths of axes that are taken whole (`0..-1`).
fn whole_axes(attrs: &Attrs, operands: &[&Tensor]) -> Option<Attrs> {
    let shape = operands.first()?.shape();
    let (starts, limits) = (attrs.ints("starts")?, attrs.ints("limits")?);
    let limits = limits.iter().enumerate().map(|(i, &limit)| match shape.get(i) {
        Some(&length) if limit == -1 && starts.get(i) == Some(&0) => length as i64,
        _ => limit,
    });
    Some(attrs.clone().with("limits", Attr::Ints(limits.collect())))
}
