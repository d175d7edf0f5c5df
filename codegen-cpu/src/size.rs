//! Dimensions as prepared closures read them: a number, or a polynomial over the run's symbols.

use aether_ir::{Dim, Symbol};
use indexmap::IndexSet;

/// Indices of a program's symbols, in declaration order.
pub type SymbolTable = IndexSet<Symbol>;

/// A dimension with its symbols resolved to slots of the run's table.
#[derive(Clone, Debug)]
pub enum Size {
    Const(usize),
    /// `slot * factor`: the common case of a token count times a width.
    Scaled {
        slot: usize,
        factor: usize,
    },
    /// Anything else.
    General {
        dim: Dim,
        symbols: SymbolTable,
    },
}

impl Size {
    /// Resolves a dimension.
    pub fn new(dim: &Dim, symbols: &SymbolTable) -> Size {
        if let Some(n) = dim.as_const() {
            return Size::Const(n as usize);
        }
        if let [name] = dim.symbols().as_slice() {
            let at = |n: u64| dim.eval(|_| Some(n));
            let slot = symbols.get_index_of(name);
            // A polynomial in one symbol is linear through the origin when these points are.
            if let (Some(slot), Some(0), Some(one)) = (slot, at(0), at(1))
                && at(2) == Some(2 * one)
                && at(3) == Some(3 * one)
            {
                return Size::Scaled { slot, factor: one as usize };
            }
        }
        Size::General { dim: dim.clone(), symbols: symbols.clone() }
    }

    /// The value in this run. Values were checked against the symbols' ranges on entry, so the
    /// arithmetic cannot overflow; an undeclared symbol, which the verifier refuses, counts as 0.
    pub fn get(&self, values: &[usize]) -> usize {
        match self {
            Size::Const(n) => *n,
            Size::Scaled { slot, factor } => values[*slot] * factor,
            Size::General { dim, symbols } => dim
                .eval(|name| symbols.get_index_of(name).map(|i| values[i] as u64))
                .unwrap_or(0) as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_agree_with_the_dimension() {
        let symbols: SymbolTable = ["s".into(), "t".into()].into_iter().collect();
        for (text, want) in
            [("7", 7), ("s", 5), ("3*s", 15), ("s+1", 6), ("s*s", 25), ("s*t", 10), ("s-t", 3)]
        {
            let size = Size::new(&text.parse().unwrap(), &symbols);
            assert_eq!(size.get(&[5, 2]), want, "{text}");
        }
        assert!(matches!(
            Size::new(&"3*s".parse().unwrap(), &symbols),
            Size::Scaled { slot: 0, factor: 3 }
        ));
        assert!(matches!(Size::new(&"s*s".parse().unwrap(), &symbols), Size::General { .. }));
    }
}
