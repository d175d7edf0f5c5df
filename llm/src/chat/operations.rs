//! Jinja's operators, filters, tests, functions and methods, metered.
//!
//! What minijinja and its Python methods do is left to them. Before, the size of what they would
//! make is computed where it can exceed what they are given; afterwards it is charged.

use std::borrow::Cow;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{AutoEscape, Environment, Error, Output, State, Value, filters, functions, tests};
use minijinja_contrib::pycompat;

use super::limits::{
    ELEMENT, MOST_TEXT, charge, holds_others, is_data, made, printed, refuse, text_of, tick,
    too_long, weigh,
};

type Result<T> = std::result::Result<T, Error>;

/// Longest set of characters to strip: each is compared with each of the text.
const MOST_STRIPPED: usize = 1000;

/// Puts all operations into an environment.
pub(super) fn install(environment: &mut Environment<'_>) {
    environment.set_formatter(print);
    for (name, filter) in all_filters() {
        environment.add_filter(name, move |state: &State, args: Rest<Value>| {
            before_filter(name, &args)?;
            made(filter.call(state, &args)?)
        });
    }
    for name in ["chain", "zip", "lines", "split", "bool"] {
        // minijinja's own; Jinja has none of these names.
        environment.remove_filter(name);
    }
    for (name, test) in deep_tests() {
        environment.add_test(name, move |state: &State, args: Rest<Value>| {
            tick()?;
            args.iter().try_for_each(weigh)?;
            Ok::<bool, Error>(test.call(state, &args)?.is_true())
        });
    }
    for name in ["==", "!=", "<", "<=", ">", ">=", "in"] {
        environment.add_filter(name, move |state: &State, left: &Value, right: &Value| {
            compare(state, left, name, right)
        });
    }
    environment.add_filter("compare", compare_chain);
    environment.add_filter("+", add);
    environment.add_filter("*", multiply);
    environment.add_filter("~", concat);
    environment.add_filter("made", |value: &Value| made(value.clone()));
    environment.add_filter("built", built);
    environment.add_filter("stored", |value: &Value| match is_data(value) {
        true => Ok(value.clone()),
        false => Err(no_data()),
    });
    environment.add_filter("key", |value: &Value| {
        tick()?;
        weigh(value)?;
        Ok::<Value, Error>(value.clone())
    });

    environment.remove_global("debug");
    environment.add_function("range", |state: &State, args: Rest<Value>| {
        made(Value::from_function(functions::range).call(state, &args)?)
    });
    environment.add_function("dict", |state: &State, args: Rest<Value>| {
        built(&Value::from_function(functions::dict).call(state, &args)?)
    });
    environment.add_function("namespace", |state: &State, args: Rest<Value>| {
        for arg in args.iter() {
            let pairs = arg.as_object().and_then(|object| object.try_iter_pairs());
            if !pairs.into_iter().flatten().all(|(_, value)| is_data(&value)) {
                return Err(no_data());
            }
        }
        Value::from_function(functions::namespace).call(state, &args)
    });
    environment.set_unknown_method_callback(method);
}

fn no_data() -> Error {
    refuse("namespaces, macros and loops cannot be kept in lists, dicts and namespaces")
}

/// Prints a value.
fn print(out: &mut Output, state: &State, value: &Value) -> Result<()> {
    let text = text_of(value)?;
    if state.auto_escape() == AutoEscape::None {
        printed(text.len())?;
        return Ok(out.write_str(&text)?);
    }
    // An escaped character has six bytes at most.
    printed(text.len().saturating_mul(6))?;
    minijinja::escape_formatter(out, state, value)
}

/// A list or dict that was written out.
fn built(value: &Value) -> Result<Value> {
    tick()?;
    let items = |item: Value| is_data(&item);
    let data = match value.kind() {
        ValueKind::Map => {
            let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
            pairs.into_iter().flatten().all(|(_, item)| items(item))
        }
        _ => value.try_iter()?.all(items),
    };
    if !data {
        return Err(no_data());
    }
    weigh(value)?;
    made(value.clone())
}

fn compare_chain(state: &State, first: Value, rest: Rest<Value>) -> Result<bool> {
    let mut left = &first;
    for pair in rest.chunks_exact(2) {
        let op = pair[0].as_str().unwrap_or_default();
        let holds = match op {
            "not in" => !compare(state, left, "in", &pair[1])?,
            op => compare(state, left, op, &pair[1])?,
        };
        if !holds {
            return Ok(false);
        }
        left = &pair[1];
    }
    Ok(true)
}

fn compare(state: &State, left: &Value, op: &str, right: &Value) -> Result<bool> {
    tick()?;
    if holds_others(right) && (op == "in" || holds_others(left)) {
        weigh(left)?;
        weigh(right)?;
    }
    Ok(match op {
        "==" => left == right,
        "!=" => left != right,
        "<" => left < right,
        "<=" => left <= right,
        ">" => left > right,
        ">=" => left >= right,
        _ => {
            weigh(left)?;
            tests::is_in(state, left, right)?
        }
    })
}

/// Both as integers, or both as floats when one is.
enum Numbers {
    Integers(i128, i128),
    Floats(f64, f64),
}

fn numbers(left: &Value, right: &Value) -> Option<Numbers> {
    let is_float = |value: &Value| value.is_number() && !value.is_integer();
    if is_float(left) || is_float(right) {
        let float = |value: &Value| f64::try_from(value.clone()).ok();
        return Some(Numbers::Floats(float(left)?, float(right)?));
    }
    let integer = |value: &Value| i128::try_from(value.clone()).ok();
    Some(Numbers::Integers(integer(left)?, integer(right)?))
}

fn arithmetic(
    left: &Value,
    op: &str,
    right: &Value,
    integers: fn(i128, i128) -> Option<i128>,
    floats: fn(f64, f64) -> f64,
) -> Result<Value> {
    match numbers(left, right) {
        Some(Numbers::Integers(a, b)) => {
            let result = integers(a, b)
                .ok_or_else(|| refuse(format!("unable to calculate {a} {op} {b}")))?;
            Ok(i64::try_from(result).map_or_else(|_| Value::from(result), Value::from))
        }
        Some(Numbers::Floats(a, b)) => Ok(Value::from(floats(a, b))),
        None => Err(refuse(format!(
            "tried to use {op} operator on unsupported types {} and {}",
            left.kind(),
            right.kind()
        ))),
    }
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

fn add(left: &Value, right: &Value) -> Result<Value> {
    if let (Some(a), Some(b)) = (left.as_str(), right.as_str()) {
        return joined(a, b);
    }
    if is_list(left) && is_list(right) {
        tick()?;
        let mut items = Vec::new();
        for item in left.try_iter()?.chain(right.try_iter()?) {
            charge(ELEMENT)?;
            items.push(item);
        }
        return Ok(Value::from(items));
    }
    arithmetic(left, "+", right, i128::checked_add, |a, b| a + b)
}

fn concat(left: &Value, right: &Value) -> Result<Value> {
    joined(&text_of(left)?, &text_of(right)?)
}

fn joined(left: &str, right: &str) -> Result<Value> {
    tick()?;
    let bytes = left.len() + right.len();
    if bytes > MOST_TEXT {
        return Err(too_long());
    }
    charge(bytes)?;
    Ok(Value::from([left, right].concat()))
}

fn multiply(left: &Value, right: &Value) -> Result<Value> {
    let is_repeated = |value: &Value| value.as_str().is_some() || is_list(value);
    let (value, times) = match (is_repeated(left), is_repeated(right)) {
        (true, _) => (left, right),
        (_, true) => (right, left),
        _ => return arithmetic(left, "*", right, i128::checked_mul, |a, b| a * b),
    };
    tick()?;
    let times = times.as_usize().ok_or_else(|| {
        refuse("strings, sequences and iterables can only be multiplied with integers")
    })?;
    if let Some(text) = value.as_str() {
        let bytes = text.len().saturating_mul(times);
        if bytes > MOST_TEXT {
            return Err(too_long());
        }
        charge(bytes)?;
        return Ok(Value::from(text.repeat(times)));
    }
    let items: Vec<Value> = value.try_iter()?.collect();
    charge(items.len().saturating_mul(times).saturating_mul(ELEMENT))?;
    let repeated = std::iter::repeat_n(items, times).flatten();
    Ok(Value::from(repeated.collect::<Vec<_>>()))
}

/// Whether a text of so many bytes can be made.
fn fits(bytes: usize) -> Result<()> {
    if bytes > MOST_TEXT { Err(too_long()) } else { Ok(()) }
}

fn text(value: Option<&Value>) -> &str {
    value.and_then(Value::as_str).unwrap_or_default()
}

/// The largest integer among the arguments, named ones too.
fn largest_integer(args: &[Value]) -> usize {
    let mut largest = args.iter().filter_map(Value::as_usize).max().unwrap_or(0);
    if let Some(kwargs) = args.last().and_then(|last| Kwargs::try_from(last.clone()).ok()) {
        let named = kwargs.args().filter_map(|name| kwargs.peek::<Value>(name).ok());
        largest = largest.max(named.filter_map(|value| value.as_usize()).max().unwrap_or(0));
    }
    largest
}

/// What a filter would make has a bound.
fn before_filter(name: &str, args: &[Value]) -> Result<()> {
    tick()?;
    let Some(value) = args.first() else { return Ok(()) };
    let rest = args.get(1..).unwrap_or_default();
    match name {
        // These look at one element, or at none.
        "length" | "count" | "first" | "last" | "default" | "d" | "attr" | "items" => return Ok(()),
        "string" | "pprint" | "safe" | "escape" | "e" => {
            // What stands for a character has six bytes at most, or ten in debug form.
            let times = if matches!(name, "string" | "safe") { 1 } else { 10 };
            fits(text_of(value)?.len().saturating_mul(times))?;
        }
        "replace" => before_replace(text(Some(value)), text(rest.first()), text(rest.get(1)))?,
        "indent" => {
            let text = text(Some(value));
            let lines = text.matches('\n').count() + 1;
            fits(largest_integer(rest).saturating_mul(lines + 1).saturating_add(text.len()))?;
        }
        "join" => before_join(value, text(rest.first()))?,
        "format" => before_format(text(Some(value)), rest)?,
        "batch" | "slice" => fits(largest_integer(rest).saturating_mul(ELEMENT))?,
        "trim" => before_strip(rest)?,
        _ => {}
    }
    for arg in args {
        weigh(arg)?;
    }
    let of_text = ["lower", "upper", "title", "capitalize", "replace", "reverse", "trim", "indent"];
    let others =
        ["int", "float", "abs", "round", "string", "pprint", "safe", "escape", "e", "format"];
    if let Some(text) = value.as_str()
        && !of_text.contains(&name)
        && !others.contains(&name)
    {
        // A text is a list of its characters for all others.
        charge(text.chars().count().saturating_mul(ELEMENT))?;
    }
    Ok(())
}

fn before_replace(text: &str, old: &str, new: &str) -> Result<()> {
    let times = text.matches(old).count();
    fits(times.saturating_mul(new.len()).saturating_add(text.len()))
}

fn before_join(values: &Value, separator: &str) -> Result<()> {
    weigh(values)?;
    let mut bytes = 0usize;
    for item in values.try_iter()? {
        bytes = bytes.saturating_add(separator.len()).saturating_add(text_of(&item)?.len());
        fits(bytes)?;
    }
    Ok(())
}

/// A text with directives: their widths and precisions stand in it, or among the arguments when a
/// `*` or a brace within braces says so.
fn before_format(text: &str, args: &[Value]) -> Result<()> {
    let digits = text.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty());
    let widths = digits.map(|run| run.parse().unwrap_or(usize::MAX)).fold(0, usize::saturating_add);
    let directives = text.matches(['%', '{']).count();
    let mut each = 0usize;
    for arg in args {
        each = each.saturating_add(text_of(arg)?.len());
    }
    let mut braces = 0usize;
    let nested = text.chars().any(|c| {
        braces = match c {
            '{' => braces + 1,
            '}' => braces.saturating_sub(1),
            _ => braces,
        };
        braces > 1
    });
    if nested || text.contains('*') {
        each = each.saturating_add(largest_integer(args));
    }
    fits(directives.saturating_mul(each).saturating_add(widths).saturating_add(text.len()))
}

fn before_strip(args: &[Value]) -> Result<()> {
    if text(args.first()).len() > MOST_STRIPPED {
        return Err(refuse(format!("more than {MOST_STRIPPED} bytes of characters to strip")));
    }
    Ok(())
}

/// Python's methods.
fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value> {
    tick()?;
    for arg in args {
        weigh(arg)?;
    }
    let first = args.first();
    match (value.as_str(), name) {
        (Some(text), "join") => {
            if let Some(values) = first {
                before_join(values, text)?;
            }
        }
        (Some(of), "replace") => before_replace(of, text(first), text(args.get(1)))?,
        (Some(text), "format") => before_format(text, args)?,
        (Some(_), "strip" | "lstrip" | "rstrip") => before_strip(args)?,
        (Some(_), "count") if first.is_some_and(|what| what.as_str() == Some("")) => {
            return Err(refuse("count: the text to count is empty"));
        }
        (Some(of), "split") => {
            let parts = match first.and_then(Value::as_str) {
                Some("") => return Err(refuse("split: the separator is empty")),
                Some(separator) => of.matches(separator).count() + 1,
                None => of.split_whitespace().count(),
            };
            charge(parts.saturating_mul(ELEMENT).saturating_add(of.len()))?;
        }
        (Some(text), "splitlines") => {
            let lines = text.matches('\n').count() + 1;
            charge(lines.saturating_mul(ELEMENT).saturating_add(text.len()))?;
        }
        (None, "count") => weigh(value)?,
        _ => {}
    }
    made(pycompat::unknown_method_callback(state, value, name, args)?)
}

/// The filters that Jinja has too. What is built from several values is checked for its depth.
fn all_filters() -> Vec<(&'static str, Value)> {
    fn function<F, Rv, Args>(f: F) -> Value
    where
        F: functions::Function<Rv, Args>,
        Rv: minijinja::value::FunctionResult,
        Args: for<'a> minijinja::value::FunctionArgs<'a>,
    {
        Value::from_function(f)
    }
    let nested = |inner: Value| {
        Value::from_function(move |state: &State, args: Rest<Value>| -> Result<Value> {
            let value = inner.call(state, &args)?;
            weigh(&value)?;
            Ok(value)
        })
    };
    vec![
        ("safe", function(filters::safe)),
        ("escape", function(filters::escape)),
        ("e", function(filters::escape)),
        ("lower", function(filters::lower)),
        ("upper", function(filters::upper)),
        ("title", function(|text: Cow<'_, str>| filters::title(text))),
        ("capitalize", function(filters::capitalize)),
        ("replace", function(filters::replace)),
        ("length", function(filters::length)),
        ("count", function(filters::length)),
        ("dictsort", nested(function(filters::dictsort))),
        ("items", nested(function(filters::items))),
        ("reverse", function(filters::reverse)),
        ("trim", function(filters::trim)),
        ("join", function(filters::join)),
        ("default", function(filters::default)),
        ("d", function(filters::default)),
        ("round", function(filters::round)),
        ("abs", function(filters::abs)),
        ("int", function(filters::int)),
        ("float", function(filters::float)),
        ("attr", function(filters::attr)),
        ("first", function(filters::first)),
        ("last", function(filters::last)),
        ("min", function(filters::min)),
        ("max", function(filters::max)),
        ("sort", function(filters::sort)),
        ("list", function(filters::list)),
        ("string", function(filters::string)),
        ("batch", nested(function(filters::batch))),
        ("slice", nested(function(filters::slice))),
        ("sum", function(filters::sum)),
        ("indent", function(filters::indent)),
        ("select", function(filters::select)),
        ("reject", function(filters::reject)),
        ("selectattr", function(filters::selectattr)),
        ("rejectattr", function(filters::rejectattr)),
        ("map", nested(function(filters::map))),
        ("groupby", nested(function(filters::groupby))),
        ("unique", function(filters::unique)),
        ("pprint", function(filters::pprint)),
        ("format", function(filters::format)),
        ("tojson", function(super::filters::to_json)),
    ]
}

/// The tests that look into values.
fn deep_tests() -> Vec<(&'static str, Value)> {
    let mut all = vec![
        ("in", Value::from_function(tests::is_in)),
        ("startingwith", Value::from_function(tests::is_startingwith)),
        ("endingwith", Value::from_function(tests::is_endingwith)),
        ("lower", Value::from_function(tests::is_lower)),
        ("upper", Value::from_function(tests::is_upper)),
    ];
    let comparisons: [(&[&str], Value); 6] = [
        (&["eq", "equalto", "=="], Value::from_function(tests::is_eq)),
        (&["ne", "!="], Value::from_function(tests::is_ne)),
        (&["lt", "lessthan", "<"], Value::from_function(tests::is_lt)),
        (&["le", "<="], Value::from_function(tests::is_le)),
        (&["gt", "greaterthan", ">"], Value::from_function(tests::is_gt)),
        (&["ge", ">="], Value::from_function(tests::is_ge)),
    ];
    for (names, test) in comparisons {
        all.extend(names.iter().map(|name| (*name, test.clone())));
    }
    all
}
