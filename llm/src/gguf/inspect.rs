//! What is in a GGUF file, as text for a person and as JSON for a program.
//!
//! Long arrays and strings are cut; control characters from the file are escaped, so that a
//! hostile name cannot drive a terminal.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use aether_ir::DType;
use serde_json::{Map, json};

use super::{Gguf, TensorInfo, Value};

/// Array elements shown to a person.
const FEW: usize = 4;
/// Characters of a string shown to a person.
const WIDTH: usize = 60;
/// Array elements given to a program.
const MANY: usize = 64;

/// Tables of the metadata and the tensors of `gguf`, and totals by element type.
pub fn text(gguf: &Gguf) -> String {
    let mut out = String::new();
    // Writing to a `String` cannot fail.
    let _ = writeln!(
        out,
        "{}\nGGUF version {}, {} keys, {} tensors, alignment {}, {}\n",
        gguf.path().display(),
        gguf.version(),
        gguf.metadata().len(),
        gguf.tensors().len(),
        gguf.alignment(),
        size(gguf.mapped_bytes()),
    );
    if let [_, rest @ ..] = gguf.parts()
        && !rest.is_empty()
    {
        out.pop();
        let _ = writeln!(
            out,
            "in {} files, up to {}\n",
            rest.len() + 1,
            rest[rest.len() - 1].path().display()
        );
    }

    let rows: Vec<_> = gguf.metadata().map(|(k, v)| [escape(k), v.type_text(), show(v)]).collect();
    table(&mut out, ["key", "type", "value"], &rows, [false, false, false]);

    let rows: Vec<_> = gguf.tensors().iter().map(tensor_row).collect();
    out.push('\n');
    table(
        &mut out,
        ["tensor", "type", "shape", "bytes", "offset"],
        &rows,
        [false, false, false, true, true],
    );

    let mut rows: Vec<_> = totals(gguf.tensors())
        .into_iter()
        .map(|(dtype, t)| t.row(dtype.name().to_owned()))
        .collect();
    let all = gguf.tensors().iter().fold(Total::default(), Total::add);
    rows.push(all.row("total".to_owned()));
    out.push('\n');
    table(
        &mut out,
        ["type", "tensors", "elements", "bytes", "bits each"],
        &rows,
        [false, true, true, true, true],
    );
    out
}

/// The same as an object: `path`, `version`, `alignment`, `file_bytes`, `metadata` (for each key
/// its `type` and `value`; an array has its `length`, and of long ones only the first items as
/// `value`), `tensors` (`name`, `type`, `shape` with the row length first, `bytes`, `offset`) and
/// `totals`; of a split model also `parts`, the paths of its files, and of each tensor its `part` from 0. Numbers that JSON has not are strings: `NaN`, `inf`, `-inf`.
pub fn json(gguf: &Gguf) -> serde_json::Value {
    let metadata: Map<String, serde_json::Value> = gguf
        .metadata()
        .map(|(key, value)| {
            let entry = match value {
                Value::Array(a) => json!({
                    "type": format!("{}[]", a.elem_type()),
                    "length": a.len(),
                    "value": a.iter().take(MANY).map(plain).collect::<Vec<_>>(),
                }),
                v => json!({ "type": v.value_type().name(), "value": plain(v) }),
            };
            (key.to_owned(), entry)
        })
        .collect();
    let split = gguf.parts().len() > 1;
    let tensors: Vec<_> = gguf
        .tensors()
        .iter()
        .map(|t| {
            let mut row = json!({
                "name": t.name,
                "type": t.dtype.name(),
                "shape": t.shape,
                "bytes": t.bytes,
                "offset": t.offset,
            });
            if split {
                row["part"] = t.part.into();
            }
            row
        })
        .collect();
    let totals: Map<String, serde_json::Value> = totals(gguf.tensors())
        .into_iter()
        .map(|(dtype, t)| {
            let total = json!({ "tensors": t.tensors, "elements": t.elements, "bytes": t.bytes });
            (dtype.name().to_owned(), total)
        })
        .collect();
    let mut all = json!({
        "path": gguf.path().to_string_lossy(),
        "version": gguf.version(),
        "alignment": gguf.alignment(),
        "file_bytes": gguf.mapped_bytes(),
        "metadata": metadata,
        "tensors": tensors,
        "totals": totals,
    });
    if split {
        all["parts"] = gguf.parts().iter().map(|part| part.path().to_string_lossy()).collect();
    }
    all
}

#[derive(Clone, Copy, Default)]
struct Total {
    tensors: usize,
    elements: u64,
    bytes: u64,
}

impl Total {
    fn add(self, t: &TensorInfo) -> Total {
        // Data does not overlap, so bytes add up to less than the file; an element takes at
        // least a quarter of a byte, so neither sum can overflow.
        Total {
            tensors: self.tensors + 1,
            elements: self.elements + t.elements(),
            bytes: self.bytes + t.bytes,
        }
    }

    fn row(&self, name: String) -> [String; 5] {
        let bits = match self.elements {
            0 => "-".to_owned(),
            n => format!("{:.2}", self.bytes as f64 * 8.0 / n as f64),
        };
        [name, self.tensors.to_string(), self.elements.to_string(), size(self.bytes), bits]
    }
}

fn totals(tensors: &[TensorInfo]) -> BTreeMap<DType, Total> {
    let mut totals = BTreeMap::<DType, Total>::new();
    for t in tensors {
        let total = totals.entry(t.dtype).or_default();
        *total = total.add(t);
    }
    totals
}

fn tensor_row(t: &TensorInfo) -> [String; 5] {
    let shape: Vec<_> = t.shape.iter().map(u64::to_string).collect();
    [
        escape(&t.name),
        t.dtype.name().to_owned(),
        shape.join(" x "),
        t.bytes.to_string(),
        t.offset.to_string(),
    ]
}

/// Bytes with a unit, for instance `93.8 MiB`.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

fn escape(name: &str) -> String {
    name.chars()
        .flat_map(|c| {
            // Printable characters stand as they are, quotes too.
            let escaped = c.is_control().then(|| c.escape_default());
            let kept = escaped.is_none().then_some(c);
            escaped.into_iter().flatten().chain(kept)
        })
        .collect()
}

/// A value on one line.
fn show(value: Value<'_>) -> String {
    match value {
        Value::Str(bytes) => {
            // Enough bytes for the characters that are shown.
            let head = &bytes[..bytes.len().min(4 * WIDTH + 4)];
            let head = String::from_utf8_lossy(head);
            match head.char_indices().nth(WIDTH) {
                Some((cut, _)) => format!("{:?}… ({} bytes)", &head[..cut], bytes.len()),
                None => format!("{head:?}"),
            }
        }
        Value::Array(a) => {
            let mut items: Vec<_> = a.iter().take(FEW).map(show).collect();
            if a.len() > FEW {
                items.push("…".to_owned());
            }
            format!("[{}]", items.join(", "))
        }
        Value::F32(v) => format!("{v:?}"),
        Value::F64(v) => format!("{v:?}"),
        Value::Bool(v) => v.to_string(),
        other => other.as_int().unwrap_or_default().to_string(),
    }
}

/// A value as JSON.
fn plain(value: Value<'_>) -> serde_json::Value {
    match value {
        Value::U8(v) => v.into(),
        Value::I8(v) => v.into(),
        Value::U16(v) => v.into(),
        Value::I16(v) => v.into(),
        Value::U32(v) => v.into(),
        Value::I32(v) => v.into(),
        Value::U64(v) => v.into(),
        Value::I64(v) => v.into(),
        Value::Bool(v) => v.into(),
        Value::Str(v) => String::from_utf8_lossy(v).into(),
        // The shortest decimal of the `f32`, not of its widening.
        Value::F32(v) => v.to_string().parse::<f64>().map_or(json!(v.to_string()), |wide| {
            if v.is_finite() { json!(wide) } else { json!(v.to_string()) }
        }),
        Value::F64(v) if v.is_finite() => json!(v),
        Value::F64(v) => json!(v.to_string()),
        Value::Array(a) => a.iter().take(MANY).map(plain).collect(),
    }
}

/// Appends aligned columns; `right` says which are numbers. The last column is not padded.
fn table<const N: usize>(
    out: &mut String,
    heads: [&str; N],
    rows: &[[String; N]],
    right: [bool; N],
) {
    let heads = heads.map(str::to_owned);
    let mut widths = [0; N];
    for row in std::iter::once(&heads).chain(rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in std::iter::once(&heads).chain(rows) {
        let mut line = String::new();
        for ((cell, width), right) in row.iter().zip(widths).zip(right) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            let _ =
                if right { write!(line, "{cell:>width$}") } else { write!(line, "{cell:<width$}") };
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
}
