//! A template's syntax tree with what makes values, or looks into them, sent through the meter.
//!
//! Operators become filters under their own names (`a ~ b` is `a | ~(b)`), which
//! [`operations`](super::operations) defines; lists and dicts pass through `made`, raw text is
//! printed as a constant. Names such as `~` cannot be written as filters in a template. Done before
//! code is generated, so that constants are not folded without being paid for.

use minijinja::Value;
use minijinja::machinery::ast::{self, BinOpKind, CallArg, CompareOpKind, Expr, Spanned, Stmt};
use minijinja::machinery::{Span, Token, WhitespaceConfig, tokenize};
use minijinja::syntax::SyntaxConfig;

use super::limits::refuse;

/// Most tokens of one tag that are no commas and no values: operators stand in one another, and
/// each is a level of the tree.
const MOST_CHAIN: usize = 1000;
/// Most branches of conditions; each stands in the one before.
const MOST_BRANCHES: usize = 1000;

type Result<T> = std::result::Result<T, minijinja::Error>;

/// Refuses a text whose tree would be too deep. The parser bounds brackets and blocks itself.
pub(super) fn check_depth(source: &str, whitespace: WhitespaceConfig) -> Result<()> {
    let (mut chain, mut branches) = (0, 0);
    for token in tokenize(source, false, SyntaxConfig, whitespace) {
        match token?.0 {
            Token::VariableStart | Token::BlockStart => chain = 0,
            Token::Comma | Token::Str(_) | Token::String(_) | Token::Int(_) | Token::Float(_) => {}
            Token::Ident("elif") => branches += 1,
            _ => chain += 1,
        }
        if chain > MOST_CHAIN {
            return Err(refuse(format!("a tag has more than {MOST_CHAIN} operators and names")));
        }
        if branches > MOST_BRANCHES {
            return Err(refuse(format!("it has more than {MOST_BRANCHES} branches `elif`")));
        }
    }
    Ok(())
}

/// The tree of a template, metered.
pub(super) fn rewrite<'a>(stmt: &Stmt<'a>) -> Result<Stmt<'a>> {
    Ok(match stmt {
        Stmt::Template(s) => {
            Stmt::Template(Spanned::new(ast::Template { children: body(&s.children)? }, s.span()))
        }
        Stmt::EmitExpr(s) => emit(expr(&s.expr)?, s.span()),
        Stmt::EmitRaw(s) => emit(constant(Value::from(s.raw), s.span()), s.span()),
        Stmt::ForLoop(s) => {
            let node = ast::ForLoop {
                target: copy(&s.target)?,
                iter: expr(&s.iter)?,
                filter_expr: s.filter_expr.as_ref().map(expr).transpose()?,
                recursive: s.recursive,
                body: body(&s.body)?,
                else_body: body(&s.else_body)?,
            };
            Stmt::ForLoop(Spanned::new(node, s.span()))
        }
        Stmt::IfCond(s) => {
            let node = ast::IfCond {
                expr: expr(&s.expr)?,
                true_body: body(&s.true_body)?,
                false_body: body(&s.false_body)?,
            };
            Stmt::IfCond(Spanned::new(node, s.span()))
        }
        Stmt::WithBlock(s) => {
            let assign = |(target, value): &(Expr<'a>, Expr<'a>)| Ok((copy(target)?, expr(value)?));
            let assignments = s.assignments.iter().map(assign).collect::<Result<_>>()?;
            Stmt::WithBlock(Spanned::new(
                ast::WithBlock { assignments, body: body(&s.body)? },
                s.span(),
            ))
        }
        Stmt::Set(s) => {
            let mut value = expr(&s.expr)?;
            if matches!(s.target, Expr::GetAttr(_)) {
                value = filter("stored", value, Vec::new(), s.span());
            }
            Stmt::Set(Spanned::new(ast::Set { target: copy(&s.target)?, expr: value }, s.span()))
        }
        Stmt::SetBlock(s) => {
            let node = ast::SetBlock {
                target: copy(&s.target)?,
                filter: s.filter.as_ref().map(expr).transpose()?,
                body: body(&s.body)?,
            };
            Stmt::SetBlock(Spanned::new(node, s.span()))
        }
        Stmt::AutoEscape(s) => {
            let node = ast::AutoEscape { enabled: expr(&s.enabled)?, body: body(&s.body)? };
            Stmt::AutoEscape(Spanned::new(node, s.span()))
        }
        Stmt::FilterBlock(s) => {
            let node = ast::FilterBlock { filter: expr(&s.filter)?, body: body(&s.body)? };
            Stmt::FilterBlock(Spanned::new(node, s.span()))
        }
        Stmt::Block(s) => {
            let node = ast::Block { name: s.name, required: s.required, body: body(&s.body)? };
            Stmt::Block(Spanned::new(node, s.span()))
        }
        Stmt::Import(s) => return Err(other_template("import", s.span())),
        Stmt::FromImport(s) => return Err(other_template("from", s.span())),
        Stmt::Extends(s) => return Err(other_template("extends", s.span())),
        Stmt::Include(s) => return Err(other_template("include", s.span())),
        Stmt::Macro(s) => Stmt::Macro(define(s)?),
        Stmt::CallBlock(s) => {
            let node = ast::CallBlock { call: call(&s.call)?, macro_decl: define(&s.macro_decl)? };
            Stmt::CallBlock(Spanned::new(node, s.span()))
        }
        Stmt::Continue(s) => Stmt::Continue(Spanned::new(ast::Continue, s.span())),
        Stmt::Break(s) => Stmt::Break(Spanned::new(ast::Break, s.span())),
        Stmt::Do(s) => Stmt::Do(Spanned::new(ast::Do { call: call(&s.call)? }, s.span())),
    })
}

fn other_template(tag: &str, span: Span) -> minijinja::Error {
    let line = span.start_line;
    refuse(format!("{{% {tag} %}}: a chat template has no other template beside it (line {line})"))
}

fn body<'a>(stmts: &[Stmt<'a>]) -> Result<Vec<Stmt<'a>>> {
    stmts.iter().map(rewrite).collect()
}

fn emit(expr: Expr<'_>, span: Span) -> Stmt<'_> {
    Stmt::EmitExpr(Spanned::new(ast::EmitExpr { expr }, span))
}

fn constant<'a>(value: Value, span: Span) -> Expr<'a> {
    Expr::Const(Spanned::new(ast::Const { value }, span))
}

fn filter<'a>(name: &'static str, on: Expr<'a>, args: Vec<Expr<'a>>, span: Span) -> Expr<'a> {
    let args = args.into_iter().map(CallArg::Pos).collect();
    Expr::Filter(Spanned::new(ast::Filter { name, expr: Some(on), args }, span))
}

fn define<'a>(s: &Spanned<ast::Macro<'a>>) -> Result<Spanned<ast::Macro<'a>>> {
    let node = ast::Macro {
        name: s.name,
        args: s.args.iter().map(copy).collect::<Result<_>>()?,
        defaults: s.defaults.iter().map(expr).collect::<Result<_>>()?,
        body: body(&s.body)?,
    };
    Ok(Spanned::new(node, s.span()))
}

fn call<'a>(s: &Spanned<ast::Call<'a>>) -> Result<Spanned<ast::Call<'a>>> {
    Ok(Spanned::new(ast::Call { expr: expr(&s.expr)?, args: arguments(&s.args)? }, s.span()))
}

fn arguments<'a>(args: &[CallArg<'a>]) -> Result<Vec<CallArg<'a>>> {
    args.iter()
        .map(|arg| match arg {
            CallArg::Pos(value) => Ok(CallArg::Pos(expr(value)?)),
            CallArg::Kwarg(name, value) => Ok(CallArg::Kwarg(name, expr(value)?)),
            CallArg::PosSplat(value) | CallArg::KwargSplat(value) => Err(refuse(format!(
                "arguments with `*` are not supported (line {})",
                value.span().start_line
            ))),
        })
        .collect()
}

/// What is assigned to: names, attributes and tuples of them.
fn copy<'a>(target: &Expr<'a>) -> Result<Expr<'a>> {
    Ok(match target {
        Expr::List(s) => {
            let items = s.items.iter().map(copy).collect::<Result<_>>()?;
            Expr::List(Spanned::new(ast::List { items }, s.span()))
        }
        other => expr(other)?,
    })
}

fn expr<'a>(of: &Expr<'a>) -> Result<Expr<'a>> {
    let optional = |e: &Option<Expr<'a>>| e.as_ref().map(expr).transpose();
    Ok(match of {
        Expr::Var(s) => Expr::Var(Spanned::new(ast::Var { id: s.id }, s.span())),
        Expr::Const(s) => constant(s.value.clone(), s.span()),
        Expr::Slice(s) => {
            let node = ast::Slice {
                expr: expr(&s.expr)?,
                start: optional(&s.start)?,
                stop: optional(&s.stop)?,
                step: optional(&s.step)?,
            };
            filter("made", Expr::Slice(Spanned::new(node, s.span())), Vec::new(), s.span())
        }
        Expr::UnaryOp(s) => {
            // It cannot be copied.
            let op = if matches!(s.op, ast::UnaryOpKind::Not) {
                ast::UnaryOpKind::Not
            } else {
                ast::UnaryOpKind::Neg
            };
            Expr::UnaryOp(Spanned::new(ast::UnaryOp { op, expr: expr(&s.expr)? }, s.span()))
        }
        Expr::BinOp(s) => {
            let (left, right) = (expr(&s.left)?, expr(&s.right)?);
            match metered(s.op) {
                Some(name) => filter(name, left, vec![right], s.span()),
                None => Expr::BinOp(Spanned::new(ast::BinOp { op: s.op, left, right }, s.span())),
            }
        }
        Expr::Compare(s) => {
            let mut args = Vec::new();
            for op in &s.ops {
                args.push(constant(Value::from(comparison(op.op)), s.span()));
                args.push(expr(&op.expr)?);
            }
            filter("compare", expr(&s.expr)?, args, s.span())
        }
        Expr::IfExpr(s) => {
            let node = ast::IfExpr {
                test_expr: expr(&s.test_expr)?,
                true_expr: expr(&s.true_expr)?,
                false_expr: optional(&s.false_expr)?,
            };
            Expr::IfExpr(Spanned::new(node, s.span()))
        }
        Expr::Filter(s) => {
            let node =
                ast::Filter { name: s.name, expr: optional(&s.expr)?, args: arguments(&s.args)? };
            Expr::Filter(Spanned::new(node, s.span()))
        }
        Expr::Test(s) => {
            let node = ast::Test { name: s.name, expr: expr(&s.expr)?, args: arguments(&s.args)? };
            Expr::Test(Spanned::new(node, s.span()))
        }
        Expr::GetAttr(s) => Expr::GetAttr(Spanned::new(
            ast::GetAttr { expr: expr(&s.expr)?, name: s.name },
            s.span(),
        )),
        Expr::GetItem(s) => {
            let mut subscript_expr = expr(&s.subscript_expr)?;
            if !matches!(subscript_expr, Expr::Const(_)) {
                subscript_expr = filter("key", subscript_expr, Vec::new(), s.span());
            }
            let node = ast::GetItem { expr: expr(&s.expr)?, subscript_expr };
            Expr::GetItem(Spanned::new(node, s.span()))
        }
        Expr::Call(s) => Expr::Call(call(s)?),
        Expr::List(s) => {
            let items = s.items.iter().map(expr).collect::<Result<_>>()?;
            let list = Expr::List(Spanned::new(ast::List { items }, s.span()));
            filter("built", list, Vec::new(), s.span())
        }
        Expr::Map(s) => {
            let keys = s.keys.iter().map(expr).collect::<Result<_>>()?;
            let values = s.values.iter().map(expr).collect::<Result<_>>()?;
            let map = Expr::Map(Spanned::new(ast::Map { keys, values }, s.span()));
            filter("built", map, Vec::new(), s.span())
        }
    })
}

/// The filter in place of an operator; operators of numbers alone, and those that only pick one of
/// their operands, stay.
fn metered(op: BinOpKind) -> Option<&'static str> {
    Some(match op {
        BinOpKind::Add => "+",
        BinOpKind::Mul => "*",
        BinOpKind::Concat => "~",
        BinOpKind::Eq => "==",
        BinOpKind::Ne => "!=",
        BinOpKind::Lt => "<",
        BinOpKind::Lte => "<=",
        BinOpKind::Gt => ">",
        BinOpKind::Gte => ">=",
        BinOpKind::In => "in",
        BinOpKind::ScAnd
        | BinOpKind::ScOr
        | BinOpKind::Sub
        | BinOpKind::Div
        | BinOpKind::FloorDiv
        | BinOpKind::Rem
        | BinOpKind::Pow => return None,
    })
}

fn comparison(op: CompareOpKind) -> &'static str {
    match op {
        CompareOpKind::Eq => "==",
        CompareOpKind::Ne => "!=",
        CompareOpKind::Lt => "<",
        CompareOpKind::Lte => "<=",
        CompareOpKind::Gt => ">",
        CompareOpKind::Gte => ">=",
        CompareOpKind::In => "in",
        CompareOpKind::NotIn => "not in",
    }
}
