//! Dimensions: numbers, symbols with a declared range, and polynomials over them.
//!
//! A dimension is kept as a polynomial in canonical form (monomials sorted, equal ones merged,
//! zero ones dropped), so two dimensions are equal exactly when they are equal for every value
//! of their symbols. Concatenation adds dimensions, flattening multiplies them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Add, Mul, Sub};
use std::str::FromStr;
use std::sync::Arc;

use indexmap::IndexMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name of a dimension that is known only when a function runs.
pub type Symbol = Arc<str>;

/// A dimension: the sum of `coefficient * product of symbols`.
///
/// The constant part is the monomial without symbols. Most dimensions are one number.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim(Repr);

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Repr {
    Const(i64),
    Poly(BTreeMap<Vec<Symbol>, i64>),
}

/// The inclusive range a symbol is declared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SymbolRange {
    pub min: u64,
    pub max: u64,
}

/// Values of symbols for one run.
pub type Bindings = IndexMap<Symbol, u64>;

impl Dim {
    /// A number.
    pub fn new(n: u64) -> Self {
        Dim(Repr::Const(i64::try_from(n).unwrap_or(i64::MAX)))
    }

    /// A symbol.
    pub fn symbol(name: impl Into<Symbol>) -> Self {
        Dim(Repr::Poly(BTreeMap::from([(vec![name.into()], 1)])))
    }

    /// The number, when no symbol takes part.
    pub fn as_const(&self) -> Option<u64> {
        match self.0 {
            Repr::Const(n) => u64::try_from(n).ok(),
            Repr::Poly(_) => None,
        }
    }

    /// Whether this is the number `n`.
    pub fn is(&self, n: u64) -> bool {
        self.as_const() == Some(n)
    }

    /// Whether this is the symbol `name` alone. Allocates nothing.
    pub fn is_symbol(&self, name: &str) -> bool {
        match &self.0 {
            Repr::Const(_) => false,
            Repr::Poly(terms) => {
                terms.len() == 1
                    && terms
                        .iter()
                        .all(|(symbols, c)| *c == 1 && symbols.len() == 1 && &*symbols[0] == name)
            }
        }
    }

    /// Every symbol that occurs, in order, without repetition.
    pub fn symbols(&self) -> Vec<Symbol> {
        match &self.0 {
            Repr::Const(_) => Vec::new(),
            Repr::Poly(terms) => {
                let mut all: Vec<Symbol> = terms.keys().flatten().cloned().collect();
                all.sort();
                all.dedup();
                all
            }
        }
    }

    /// Number of terms, and the most symbols that one term multiplies: what arithmetic on the
    /// dimension costs.
    pub fn complexity(&self) -> (usize, usize) {
        match &self.0 {
            Repr::Const(_) => (1, 0),
            Repr::Poly(terms) => (terms.len(), terms.keys().map(Vec::len).max().unwrap_or(0)),
        }
    }

    /// The sum's terms: the symbols that one multiplies, with their coefficient.
    pub fn monomials(&self) -> impl Iterator<Item = (Vec<Symbol>, i64)> {
        self.terms().into_iter()
    }

    fn terms(&self) -> BTreeMap<Vec<Symbol>, i64> {
        match &self.0 {
            Repr::Const(n) => BTreeMap::from([(Vec::new(), *n)]),
            Repr::Poly(terms) => terms.clone(),
        }
    }

    fn from_terms(mut terms: BTreeMap<Vec<Symbol>, i64>) -> Self {
        terms.retain(|_, c| *c != 0);
        match terms.len() {
            0 => Dim(Repr::Const(0)),
            1 if terms.contains_key(&Vec::new() as &Vec<Symbol>) => {
                Dim(Repr::Const(terms.into_values().next().unwrap_or(0)))
            }
            _ => Dim(Repr::Poly(terms)),
        }
    }

    /// The value under `value_of`, or `None` when a symbol is unbound, the arithmetic overflows
    /// or the result is negative.
    pub fn eval(&self, mut value_of: impl FnMut(&str) -> Option<u64>) -> Option<u64> {
        match &self.0 {
            Repr::Const(n) => u64::try_from(*n).ok(),
            Repr::Poly(terms) => {
                let mut sum: i64 = 0;
                for (symbols, coefficient) in terms {
                    let mut product = *coefficient;
                    for s in symbols {
                        product = product.checked_mul(i64::try_from(value_of(s)?).ok()?)?;
                    }
                    sum = sum.checked_add(product)?;
                }
                u64::try_from(sum).ok()
            }
        }
    }

    /// An upper bound over the symbols' ranges: positive terms at their maximum, negative ones
    /// at their minimum. `None` when a symbol is undeclared or the arithmetic overflows.
    pub fn upper_bound(&self, ranges: &IndexMap<Symbol, SymbolRange>) -> Option<u64> {
        match &self.0 {
            Repr::Const(n) => u64::try_from(*n).ok(),
            Repr::Poly(terms) => {
                let mut sum: i64 = 0;
                for (symbols, coefficient) in terms {
                    let mut product = *coefficient;
                    for s in symbols {
                        let range = ranges.get(s)?;
                        let bound = if *coefficient >= 0 { range.max } else { range.min };
                        product = product.checked_mul(i64::try_from(bound).ok()?)?;
                    }
                    sum = sum.checked_add(product)?;
                }
                u64::try_from(sum.max(0)).ok()
            }
        }
    }

    /// The dimension with a symbol replaced by a number.
    #[must_use]
    pub fn with(&self, name: &str, value: u64) -> Dim {
        let mut terms: BTreeMap<Vec<Symbol>, i64> = BTreeMap::new();
        for (symbols, coefficient) in self.terms() {
            let (known, left): (Vec<Symbol>, Vec<Symbol>) =
                symbols.into_iter().partition(|s| &**s == name);
            let power = i64::try_from(value).unwrap_or(i64::MAX);
            let coefficient = known.iter().fold(coefficient, |c, _| c.saturating_mul(power));
            let sum = terms.entry(left).or_default();
            *sum = sum.saturating_add(coefficient);
        }
        Dim::from_terms(terms)
    }

    /// The exact quotient, when `other` is a number that divides every coefficient, or when both
    /// sides are equal.
    pub fn exact_div(&self, other: &Dim) -> Option<Dim> {
        if self == other {
            return Some(Dim::new(1));
        }
        let d = i64::try_from(other.as_const()?).ok()?;
        if d == 0 {
            return None;
        }
        let mut terms = self.terms();
        for c in terms.values_mut() {
            if *c % d != 0 {
                return None;
            }
            *c /= d;
        }
        Some(Dim::from_terms(terms))
    }
}

impl From<u64> for Dim {
    fn from(n: u64) -> Self {
        Dim::new(n)
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Self {
        Dim::new(n as u64)
    }
}

impl From<&str> for Dim {
    fn from(name: &str) -> Self {
        Dim::symbol(name)
    }
}

impl Add for &Dim {
    type Output = Dim;

    fn add(self, other: &Dim) -> Dim {
        let mut terms = self.terms();
        for (symbols, c) in other.terms() {
            let slot = terms.entry(symbols).or_insert(0);
            *slot = slot.saturating_add(c);
        }
        Dim::from_terms(terms)
    }
}

impl Sub for &Dim {
    type Output = Dim;

    fn sub(self, other: &Dim) -> Dim {
        let minus_one = Dim(Repr::Const(-1));
        self + &(&minus_one * other)
    }
}

impl Mul for &Dim {
    type Output = Dim;

    fn mul(self, other: &Dim) -> Dim {
        let mut terms = BTreeMap::new();
        let right = other.terms();
        for (a, ca) in self.terms() {
            for (b, cb) in &right {
                let mut symbols = a.clone();
                symbols.extend(b.iter().cloned());
                symbols.sort();
                let slot: &mut i64 = terms.entry(symbols).or_insert(0);
                *slot = slot.saturating_add(ca.saturating_mul(*cb));
            }
        }
        Dim::from_terms(terms)
    }
}

/// The expression without brackets: `8`, `s`, `s+p`, `2*s*t-1`.
impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Const(n) => write!(f, "{n}"),
            Repr::Poly(terms) => {
                // Symbols first, the number last, as people write it.
                let (number, symbolic): (Vec<_>, Vec<_>) =
                    terms.iter().partition(|(symbols, _)| symbols.is_empty());
                for (i, (symbols, c)) in symbolic.into_iter().chain(number).enumerate() {
                    if *c < 0 {
                        f.write_str("-")?;
                    } else if i > 0 {
                        f.write_str("+")?;
                    }
                    let magnitude = c.unsigned_abs();
                    if symbols.is_empty() {
                        write!(f, "{magnitude}")?;
                        continue;
                    }
                    if magnitude != 1 {
                        write!(f, "{magnitude}*")?;
                    }
                    f.write_str(&symbols.join("*"))?;
                }
                Ok(())
            }
        }
    }
}

/// The text is no dimension.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no dimension: expected sums of products such as `s+p`, `2*s-1`")]
pub struct ParseDimError(pub String);

/// Reads what [`Display`](fmt::Display) writes: terms joined by `+` and `-`, factors by `*`.
impl FromStr for Dim {
    type Err = ParseDimError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseDimError(text.to_owned());
        let mut sum = BTreeMap::new();
        let mut rest = text.trim();
        let mut sign = 1;
        if let Some(r) = rest.strip_prefix('-') {
            (rest, sign) = (r, -1);
        }
        loop {
            let end = rest.find(['+', '-']).unwrap_or(rest.len());
            let mut coefficient: i64 = sign;
            let mut symbols = Vec::new();
            for factor in rest[..end].split('*').map(str::trim) {
                if factor.starts_with(|c: char| c.is_ascii_digit()) {
                    let n: i64 = factor.parse().map_err(|_| error())?;
                    coefficient = coefficient.checked_mul(n).ok_or_else(error)?;
                } else if is_symbol_name(factor) {
                    symbols.push(Symbol::from(factor));
                } else {
                    return Err(error());
                }
            }
            symbols.sort();
            let slot: &mut i64 = sum.entry(symbols).or_insert(0);
            *slot = slot.checked_add(coefficient).ok_or_else(error)?;
            if end == rest.len() {
                break;
            }
            sign = if rest.as_bytes()[end] == b'-' { -1 } else { 1 };
            rest = &rest[end + 1..];
        }
        Ok(Dim::from_terms(sum))
    }
}

/// Whether a text can name a symbol: a letter or `_`, then letters, digits and `_`.
pub fn is_symbol_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A number, or the expression as a string.
impl Serialize for Dim {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.as_const() {
            Some(n) => serializer.serialize_u64(n),
            None => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Dim {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(n) => Ok(Dim::new(n)),
            Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_become_numbers() {
        let table = [("s", "4"), ("3*s+t", "t+12"), ("s*s-s", "12"), ("s*t", "4*t"), ("7", "7")];
        for (text, want) in table {
            let dim: Dim = text.parse().unwrap();
            assert_eq!(dim.with("s", 4), want.parse().unwrap(), "{text}");
        }
    }

    #[test]
    fn canonical_form_decides_equality() {
        let s = Dim::symbol("s");
        let p = Dim::symbol("p");
        assert_eq!(&s + &p, &p + &s);
        assert_eq!(&(&s * &Dim::new(9)) * &Dim::new(64), &s * &Dim::new(576));
        assert_eq!(&(&s + &p) - &p, s);
        assert_eq!((&s - &s).as_const(), Some(0));
        assert_eq!((&(&s + &p) - &Dim::new(1)).to_string(), "p+s-1");
        assert_eq!((&(&s * &p) * &Dim::new(2)).to_string(), "2*p*s");
    }

    #[test]
    fn text_round_trips() {
        for text in ["s", "s+p", "2*s*t-1", "-s+7", "12"] {
            let dim: Dim = text.parse().unwrap();
            assert_eq!(dim.to_string().parse::<Dim>(), Ok(dim), "{text}");
        }
        for bad in ["", "s+", "s**2", "2s", "9999999999999999999", "a b"] {
            assert!(bad.parse::<Dim>().is_err(), "{bad}");
        }
    }

    #[test]
    fn bounds_and_values() {
        let d = &Dim::symbol("s") - &Dim::new(1);
        let ranges = IndexMap::from([(Symbol::from("s"), SymbolRange { min: 1, max: 512 })]);
        assert_eq!(d.upper_bound(&ranges), Some(511));
        assert_eq!(d.eval(|_| Some(1)), Some(0));
        assert_eq!(d.eval(|_| Some(0)), None);
        assert_eq!(Dim::symbol("t").upper_bound(&ranges), None);
    }
}
