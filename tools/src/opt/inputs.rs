//! Arguments of a run from `--input` and `--sym`.
//!
//! `NAME=VALUE` names a parameter, `VALUE` alone stands for every parameter that is not named.
//! A value is a NumPy file, numbers as text (one number fills the tensor) or `random:SEED`.
//! Symbols are bound by `--sym` and by the files' shapes; those left open are small.

use std::path::Path;

use aether_ir::tensor::ConcreteType;
use aether_ir::{Bindings, DType, Module, Tensor, TensorType};
use anyhow::{Context, bail};

use crate::npy;

/// The value of a symbol that nothing binds, within its range.
const SMALL: u64 = 3;

/// The arguments of one run.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// By parameter.
    pub tensors: Vec<Tensor>,
    /// The short texts that give the same tensors again, where there are any.
    pub specs: Vec<Option<String>>,
    /// Every symbol of the module.
    pub bindings: Bindings,
}

enum Value {
    Tensor(Tensor),
    /// Numbers, in brackets or one alone.
    Numbers(Vec<f64>, bool),
    Random(u64),
}

/// Reads the arguments of `func`.
///
/// # Errors
/// When there is no such function, a parameter has no value, or a value does not fit.
pub fn read(
    module: &Module,
    func: &str,
    specs: &[String],
    syms: &[String],
) -> anyhow::Result<Inputs> {
    let found = module.funcs.get(func).with_context(|| {
        let names: Vec<String> = module.funcs.keys().map(|name| format!("@{name}")).collect();
        format!("there is no function @{func}; there are {}", names.join(", "))
    })?;
    let mut values: Vec<Option<Value>> = found.params.iter().map(|_| None).collect();
    let mut rest = None;
    let name_of = |i: usize| found.values[found.params[i].index()].name.as_deref().unwrap_or("");
    for spec in specs {
        match spec.split_once('=') {
            None => rest = Some(spec.as_str()),
            Some((name, text)) => {
                let name = name.strip_prefix('%').unwrap_or(name);
                let at = (0..values.len())
                    .find(|&i| name_of(i) == name)
                    .with_context(|| format!("@{func} has no parameter %{name}"))?;
                values[at] = Some(value(text)?);
            }
        }
    }
    let bindings = bind(module, syms, |bindings| {
        for (value, &param) in values.iter().zip(&found.params) {
            match value {
                Some(Value::Tensor(tensor)) => {
                    bind_shape(found.ty(param), tensor.shape(), bindings);
                }
                // A list is as long as the vector it stands for.
                Some(Value::Numbers(list, true)) if found.ty(param).rank() == 1 => {
                    bind_shape(found.ty(param), &[list.len()], bindings);
                }
                _ => {}
            }
        }
    })?;
    let mut tensors = Vec::with_capacity(values.len());
    let mut short = Vec::with_capacity(values.len());
    for (i, found_value) in values.into_iter().enumerate() {
        let declared = found.ty(found.params[i]);
        let value = match (found_value, rest) {
            (Some(value), _) => value,
            // Parameters drawn from one seed are not to be equal.
            (None, Some(rest)) => match value(rest)? {
                Value::Random(seed) => Value::Random(seed.wrapping_add(i as u64)),
                value => value,
            },
            (None, None) => bail!(
                "%{} has no value: give --input {0}=… ({declared}), or --input random:SEED for all",
                name_of(i)
            ),
        };
        let ty = ConcreteType::of(declared, &bindings).map_err(anyhow::Error::msg)?;
        short.push(match &value {
            Value::Random(seed) => Some(format!("random:{seed}")),
            Value::Numbers(numbers, _) => match numbers.as_slice() {
                [one] => Some(one.to_string()),
                _ => None,
            },
            Value::Tensor(_) => None,
        });
        let tensor = tensor(value, &ty).with_context(|| format!("%{} is {ty}", name_of(i)))?;
        tensors.push(tensor);
    }
    Ok(Inputs { tensors, specs: short, bindings })
}

/// A random tensor: floats in [-1, 1), integers and booleans 0 or 1, which are indices and
/// positions that nearly every module accepts.
///
/// # Errors
/// When the type has no size, or its memory cannot be had.
pub fn random(ty: &ConcreteType, seed: u64) -> anyhow::Result<Tensor> {
    let n = ty.numel().context("its size overflows")?;
    let mut rng =
        Xorshift(seed.wrapping_mul(2).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let whole = !ty.dtype.is_quantized()
        && !matches!(ty.dtype, DType::F64 | DType::F32 | DType::F16 | DType::Bf16);
    let mut values = Vec::new();
    values.try_reserve_exact(n)?;
    values.extend((0..n).map(|_| {
        let unit = rng.next() as f64 / (1u64 << 32) as f64;
        if whole { (2.0 * unit).floor() } else { 2.0 * unit - 1.0 }
    }));
    Ok(Tensor::from_f64(ty.dtype, &ty.shape, &values)?.with_layout(ty.layout))
}

/// Marsaglia's xorshift64 with the upper half given out: the same on every machine.
struct Xorshift(u64);

impl Xorshift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 32
    }
}

fn value(text: &str) -> anyhow::Result<Value> {
    let text = text.trim();
    if let Some(seed) = text.strip_prefix("random:") {
        let seed = seed.parse().with_context(|| format!("`{seed}` is no seed"))?;
        return Ok(Value::Random(seed));
    }
    if text.ends_with(".npy") {
        return Ok(Value::Tensor(npy::read(Path::new(text))?));
    }
    let list = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let numbers =
        list.unwrap_or(text).split(',').map(str::trim).filter(|n| !n.is_empty()).map(|n| match n {
            "true" => Ok(1.0),
            "false" => Ok(0.0),
            n => n.parse::<f64>().with_context(|| {
                format!("`{n}` is no number; expected FILE.npy, [1, 2, …] or random:SEED")
            }),
        });
    Ok(Value::Numbers(numbers.collect::<anyhow::Result<_>>()?, list.is_some()))
}

fn tensor(value: Value, ty: &ConcreteType) -> anyhow::Result<Tensor> {
    match value {
        Value::Tensor(tensor) if tensor.ty() == *ty => Ok(tensor),
        Value::Tensor(tensor) => bail!("the file holds {}", tensor.ty()),
        Value::Random(seed) => random(ty, seed),
        Value::Numbers(numbers, _) => {
            let n = ty.numel().context("its size overflows")?;
            let all = match numbers.as_slice() {
                [one] if n != 1 && !ty.dtype.is_quantized() => {
                    return Ok(Tensor::splat(ty.dtype, &ty.shape, *one)?);
                }
                all if all.len() == n => all,
                all => bail!("expected {n} numbers or one, found {}", all.len()),
            };
            Ok(Tensor::from_f64(ty.dtype, &ty.shape, all)?)
        }
    }
}

/// Values of all symbols: those given, then those that `shapes` binds, then small ones.
fn bind(
    module: &Module,
    syms: &[String],
    shapes: impl FnOnce(&mut Bindings),
) -> anyhow::Result<Bindings> {
    let mut bindings = Bindings::new();
    for sym in syms {
        let (name, number) =
            sym.split_once('=').with_context(|| format!("--sym {sym}: expected NAME=NUMBER"))?;
        if !module.symbols.contains_key(name) {
            bail!("--sym {sym}: the module declares no symbol `{name}`");
        }
        let number = number.parse().with_context(|| format!("--sym {sym}: no number"))?;
        bindings.insert(name.into(), number);
    }
    shapes(&mut bindings);
    for (name, range) in &module.symbols {
        bindings.entry(name.clone()).or_insert(SMALL.clamp(range.min, range.max));
    }
    Ok(bindings)
}

fn bind_shape(ty: &TensorType, shape: &[usize], bindings: &mut Bindings) {
    for (dim, &length) in ty.shape.0.iter().zip(shape) {
        if let Some(symbol) = dim.symbols().into_iter().find(|s| dim.is_symbol(s)) {
            bindings.entry(symbol).or_insert(length as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use aether_ir::parse_and_verify;

    use super::*;

    fn module() -> Module {
        let text = "module @m {\n  sym s in 1..=8\n  sym big in 5..=9\n  func @main(%x: \
                    tensor<[s]x2xf32>, %i: tensor<[big]xi32>) -> tensor<[s]x2xf32> {\n    return \
                    %x\n  }\n}\n";
        parse_and_verify(text).unwrap()
    }

    fn read_all(specs: &[&str], syms: &[&str]) -> anyhow::Result<Inputs> {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        read(&module(), "main", &own(specs), &own(syms))
    }

    #[test]
    fn values_come_from_numbers_and_seeds() {
        let inputs = read_all(&["%x=[1, 2.5, -3, 4]", "i=1"], &["s=2"]).unwrap();
        assert_eq!(inputs.tensors[0].to_f32_vec().unwrap(), [1.0, 2.5, -3.0, 4.0]);
        assert_eq!(inputs.tensors[1].to_i64_vec().unwrap(), [1; 5]);
        let six = read_all(&["x=0", "i=[0, 1, 0, 1, 0, 1]"], &[]).unwrap();
        assert_eq!(six.tensors[1].shape(), [6], "a list binds the symbol");
        let (a, b) = (read_all(&["random:7"], &[]).unwrap(), read_all(&["random:7"], &[]).unwrap());
        assert_eq!(a.tensors, b.tensors);
        assert_eq!(a.tensors[0].shape(), [3, 2]);
        assert_ne!(a.tensors, read_all(&["random:8"], &[]).unwrap().tensors);
        let numbers = a.tensors[0].to_f64_vec().unwrap();
        assert!(numbers.iter().all(|v| (-1.0..1.0).contains(v)) && numbers[0] != numbers[1]);
    }

    #[test]
    fn what_does_not_fit_is_said() {
        for (specs, syms, message) in [
            (vec!["x=[1, 2]"], vec![], "expected 6 numbers or one, found 2"),
            (vec!["x=1"], vec![], "%i has no value"),
            (vec!["y=1"], vec![], "no parameter %y"),
            (vec!["x=what"], vec![], "`what` is no number"),
            (vec!["random:0"], vec!["t=1"], "no symbol `t`"),
            (vec!["x=missing.npy"], vec![], "missing.npy"),
        ] {
            let e = format!("{:#}", read_all(&specs, &syms).unwrap_err());
            assert!(e.contains(message), "{e}");
        }
    }
}
