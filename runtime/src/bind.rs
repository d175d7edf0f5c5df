//! Arguments against a program's parameters: symbols are bound by shapes.

use aether_codegen_cpu::RunError as ArgError;
use aether_ir::{Symbol, SymbolRange, TensorType};
use indexmap::IndexMap;

/// Binds every symbol by the shapes of arguments and checks the shapes against the types.
/// Allocates only for errors.
///
/// # Errors
/// When the number of arguments, a shape or a symbol's value does not fit.
pub(crate) fn bind<'a>(
    params: &[TensorType],
    symbols: &IndexMap<Symbol, SymbolRange>,
    shapes: impl ExactSizeIterator<Item = &'a [usize]> + Clone,
    values: &mut [usize],
) -> Result<(), ArgError> {
    if shapes.len() != params.len() {
        return Err(ArgError::ArgCount { expected: params.len(), found: shapes.len() });
    }
    // Ranges begin at 0 or more, so that this marks what is not bound yet.
    values.fill(usize::MAX);
    for (index, (shape, ty)) in shapes.clone().zip(params).enumerate() {
        let mismatch = || ArgError::ArgShape { index, expected: ty.clone(), found: shape.to_vec() };
        if shape.len() != ty.rank() {
            return Err(mismatch());
        }
        for (&n, dim) in shape.iter().zip(&ty.shape.0) {
            let slot = symbols.keys().position(|s| dim.is_symbol(s));
            let Some(slot) = slot.filter(|_| dim.as_const().is_none()) else { continue };
            if values[slot] != usize::MAX {
                continue;
            }
            let range = symbols[slot];
            if !(range.min..=range.max).contains(&(n as u64)) {
                return Err(ArgError::Range {
                    symbol: symbols.get_index(slot).map_or(String::new(), |(s, _)| s.to_string()),
                    value: n,
                    min: range.min,
                    max: range.max,
                });
            }
            values[slot] = n;
        }
    }
    for (index, (shape, ty)) in shapes.zip(params).enumerate() {
        let fits = shape
            .iter()
            .zip(&ty.shape.0)
            .all(|(&n, dim)| dim.eval(|name| value_of(symbols, values, name)) == Some(n as u64));
        if !fits {
            return Err(ArgError::ArgShape { index, expected: ty.clone(), found: shape.to_vec() });
        }
    }
    Ok(())
}

/// The value of a symbol.
pub(crate) fn value_of(
    symbols: &IndexMap<Symbol, SymbolRange>,
    values: &[usize],
    name: &str,
) -> Option<u64> {
    symbols.get_index_of(name).map(|slot| values[slot] as u64)
}
