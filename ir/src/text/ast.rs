//! The syntax tree that the grammar builds: text with places, nothing resolved.

use crate::module::Span;

/// A word of the text and its place.
#[derive(Clone, Copy, Debug)]
pub struct Word<'s> {
    pub text: &'s str,
    pub at: (usize, usize),
}

impl Word<'_> {
    /// The place as a span. The parser refuses texts whose offsets do not fit.
    pub fn span(&self) -> Span {
        span(self.at)
    }
}

/// Byte offsets as a span.
pub fn span(at: (usize, usize)) -> Span {
    let fit = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    fit(at.0)..fit(at.1)
}

/// `module @name { … }`
#[derive(Debug)]
pub struct Module<'s> {
    pub name: Word<'s>,
    pub items: Vec<Item<'s>>,
}

/// What stands in a module. Broken statements leave nothing.
#[derive(Debug)]
pub enum Item<'s> {
    Sym(Sym<'s>),
    Const(Const<'s>),
    Func(Func<'s>),
    Broken,
}

/// `sym name in min..=max`
#[derive(Debug)]
pub struct Sym<'s> {
    pub name: Word<'s>,
    pub min: Word<'s>,
    pub max: Word<'s>,
    pub at: (usize, usize),
}

/// `const @name : type = data`
#[derive(Debug)]
pub struct Const<'s> {
    pub name: Word<'s>,
    pub ty: Type<'s>,
    pub data: Data<'s>,
    pub data_at: (usize, usize),
    pub at: (usize, usize),
}

/// Where a constant's bytes are.
#[derive(Debug)]
pub enum Data<'s> {
    File { path: Word<'s>, offset: Word<'s>, bytes: Word<'s>, sha256: Option<Word<'s>> },
    List(Vec<Word<'s>>),
    Hex(Word<'s>),
}

/// `tensor<…>`
#[derive(Debug)]
pub struct Type<'s> {
    pub dims: Vec<Word<'s>>,
    pub dtype: Word<'s>,
    pub layout: Option<Word<'s>>,
    pub at: (usize, usize),
}

/// A function; `head` is `None` when it could not be read.
#[derive(Debug)]
pub struct Func<'s> {
    pub head: Option<Head<'s>>,
    pub body: Vec<Stmt<'s>>,
    /// The closing brace.
    pub end: (usize, usize),
}

/// `func @name(params) -> results`
#[derive(Debug)]
pub struct Head<'s> {
    pub name: Word<'s>,
    pub params: Vec<(Word<'s>, Type<'s>)>,
    pub results: Vec<Type<'s>>,
    pub at: (usize, usize),
}

/// A line of a function.
#[derive(Debug)]
pub enum Stmt<'s> {
    Inst(Inst<'s>),
    Return { values: Vec<Word<'s>>, at: (usize, usize) },
    Broken,
}

/// `%results = op @symbol operands {attributes} : types`
#[derive(Debug)]
pub struct Inst<'s> {
    pub results: Vec<Word<'s>>,
    pub op: Word<'s>,
    pub symbol: Option<Word<'s>>,
    pub operands: Vec<Operand<'s>>,
    pub attrs: Vec<(Word<'s>, Value<'s>)>,
    pub types: Vec<Type<'s>>,
    pub at: (usize, usize),
}

/// An operand.
#[derive(Debug)]
pub struct Operand<'s> {
    pub value: Word<'s>,
    pub donated: bool,
}

/// An attribute's value.
#[derive(Debug)]
pub enum Value<'s> {
    Int(Word<'s>),
    Float(Word<'s>),
    Str(Word<'s>),
    Bool(bool),
    Ints(Vec<Word<'s>>),
}
