//! What a template may use: a meter of memory and time for each rendering.
//!
//! minijinja counts instructions, and one instruction can make a value of any size. So whatever
//! makes values is charged for them before or as they are made ([`charge`]), and every step of a
//! template that looks into values first asks for the time ([`tick`]). A step only ever sees values
//! that were paid for, so it takes bounded time itself. A rendering has a thread of its own, and the
//! meter is that thread's.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::{self, Write};
use std::time::{Duration, Instant};

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// Most bytes of the values that a rendering makes, all of them together, freed ones too.
pub(super) const MOST_BYTES: usize = 512 << 20;
/// Most bytes of one text, the prompt among them.
pub(super) const MOST_TEXT: usize = 32 << 20;
/// Most bytes that are printed, into the prompt and into variables together.
const MOST_PRINTED: usize = 4 * MOST_TEXT;
/// Longest time of a rendering.
pub(super) const MOST_TIME: Duration = Duration::from_secs(10);
/// Most lists and dicts in one another.
const MOST_DEPTH: usize = 200;
/// What an element of a list or dict is charged, in bytes.
pub(super) const ELEMENT: usize = 48;

#[derive(Clone, Copy)]
struct Meter {
    left: usize,
    printable: usize,
    until: Option<Instant>,
}

thread_local! {
    static METER: Cell<Meter> = const { Cell::new(FULL) };
}

const FULL: Meter = Meter { left: MOST_BYTES, printable: MOST_PRINTED, until: None };

/// Sets this thread's meter to the full limits.
pub(super) fn begin() {
    METER.set(Meter { until: Instant::now().checked_add(MOST_TIME), ..FULL });
}

pub(super) fn refuse(message: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// The error of a text beyond [`MOST_TEXT`].
pub(super) fn too_long() -> Error {
    refuse(format!("it makes a text of more than {MOST_TEXT} bytes"))
}

/// Pays for values of so many bytes.
pub(super) fn charge(bytes: usize) -> Result<(), Error> {
    let mut meter = METER.get();
    let Some(left) = meter.left.checked_sub(bytes) else {
        return Err(refuse(format!("it makes values of more than {MOST_BYTES} bytes")));
    };
    meter.left = left;
    METER.set(meter);
    Ok(())
}

/// Pays for so many printed bytes.
pub(super) fn printed(bytes: usize) -> Result<(), Error> {
    let mut meter = METER.get();
    let Some(printable) = meter.printable.checked_sub(bytes) else {
        return Err(refuse(format!("it prints more than {MOST_PRINTED} bytes")));
    };
    meter.printable = printable;
    METER.set(meter);
    tick()
}

/// Fails when the time is over.
pub(super) fn tick() -> Result<(), Error> {
    if METER.get().until.is_some_and(|until| Instant::now() > until) {
        return Err(refuse(format!("it takes more than {} seconds", MOST_TIME.as_secs())));
    }
    Ok(())
}

/// A text that grows to no more than [`MOST_TEXT`].
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MOST_TEXT {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// A value as it is printed; what is not a text already is charged.
pub(super) fn text_of(value: &Value) -> Result<Cow<'_, str>, Error> {
    if let Some(text) = value.as_str() {
        return Ok(Cow::Borrowed(text));
    }
    weigh(value)?;
    let mut out = Bounded(String::new());
    write!(out, "{value}").map_err(|_| too_long())?;
    charge(out.0.len())?;
    Ok(Cow::Owned(out.0))
}

/// Whether a value holds others.
pub(super) fn holds_others(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map)
}

/// Whether a value can be in a list, a dict or a namespace: what is written as JSON. Namespaces,
/// macros and loops refer to others, so that a value could contain itself.
pub(super) fn is_data(value: &Value) -> bool {
    let Some(object) = value.as_object() else { return true };
    let name = object.type_name();
    let refers =
        ["namespace_object", "loop_object", "macro_object", "closure_object", "module_object"];
    value.kind() != ValueKind::Plain && !refers.iter().any(|part| name.contains(part))
}

/// Fails for a value that, with all that it holds, has more than [`MOST_TEXT`] bytes (an element
/// that is held twice counts twice), or lists and dicts nested too deeply.
pub(super) fn weigh(value: &Value) -> Result<(), Error> {
    fn walk(value: &Value, depth: usize, left: &mut usize) -> Result<(), Error> {
        if depth > MOST_DEPTH {
            return Err(refuse(format!("lists and dicts are nested deeper than {MOST_DEPTH}")));
        }
        let weight = ELEMENT + value.as_str().map_or(0, str::len);
        *left = left
            .checked_sub(weight)
            .ok_or_else(|| refuse(format!("it uses a value of more than {MOST_TEXT} bytes")))?;
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter()? {
                    walk(&item, depth + 1, left)?;
                }
            }
            ValueKind::Map => {
                let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
                for (key, item) in pairs.into_iter().flatten() {
                    walk(&key, depth + 1, left)?;
                    walk(&item, depth + 1, left)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
    if !holds_others(value) {
        return Ok(());
    }
    walk(value, 0, &mut (2 * MOST_TEXT))
}

/// Pays for a value that was made. What is computed anew at each use becomes a list, so that such
/// values do not pile up.
pub(super) fn made(value: Value) -> Result<Value, Error> {
    tick()?;
    match value.kind() {
        ValueKind::String => {
            let bytes = value.as_str().map_or(0, str::len);
            if bytes > MOST_TEXT {
                return Err(too_long());
            }
            charge(bytes)?;
            Ok(value)
        }
        ValueKind::Seq if value.downcast_object_ref::<Vec<Value>>().is_some() => {
            charge(value.len().unwrap_or(0).saturating_mul(ELEMENT))?;
            Ok(value)
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let mut items = Vec::new();
            for item in value.try_iter()? {
                charge(ELEMENT)?;
                items.push(item);
            }
            Ok(Value::from(items))
        }
        ValueKind::Map => {
            charge(value.len().unwrap_or(0).saturating_mul(2 * ELEMENT))?;
            Ok(value)
        }
        _ => Ok(value),
    }
}
