//! NumPy's `.npy` files (format 1.0 to 3.0), and tensors as text.
//!
//! Source: numpy.lib.format's documentation. Arrays must be little-endian and in C order.

use std::path::Path;

use aether_ir::tensor::ConcreteType;
use aether_ir::{DType, Tensor};
use anyhow::{Context, bail};

/// NumPy's names of element types.
const TYPES: [(&str, DType); 10] = [
    ("<f4", DType::F32),
    ("<f2", DType::F16),
    ("<f8", DType::F64),
    ("|i1", DType::I8),
    ("<i2", DType::I16),
    ("<i4", DType::I32),
    ("<i8", DType::I64),
    ("|u1", DType::U8),
    ("<u4", DType::U32),
    ("|b1", DType::Bool),
];

const MAGIC: &[u8] = b"\x93NUMPY";

/// Reads a tensor.
///
/// # Errors
/// When the file is not a `.npy` file of a known type; the message says what is wrong.
pub fn read(path: &Path) -> anyhow::Result<Tensor> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&bytes).with_context(|| format!("{} is no usable .npy file", path.display()))
}

fn parse(bytes: &[u8]) -> anyhow::Result<Tensor> {
    let rest = bytes.strip_prefix(MAGIC).context("it does not start with NumPy's signature")?;
    let (version, rest) = rest.split_at_checked(2).context("it is truncated")?;
    let (length, rest) = match version[0] {
        1 => rest
            .split_at_checked(2)
            .map(|(n, rest)| (usize::from(n[0]) | usize::from(n[1]) << 8, rest)),
        2 | 3 => rest.split_at_checked(4).map(|(n, rest)| {
            (n.iter().rev().fold(0usize, |acc, &b| acc << 8 | usize::from(b)), rest)
        }),
        v => bail!("format {v} is not known"),
    }
    .context("it is truncated")?;
    let (header, data) = rest.split_at_checked(length).context("it is truncated")?;
    let header = std::str::from_utf8(header).context("its header is no text")?;
    let field = |key: &str| -> anyhow::Result<&str> {
        let quoted = format!("'{key}':");
        let at = header.find(&quoted).with_context(|| format!("its header lacks {key}"))?;
        Ok(header[at + quoted.len()..].trim_start())
    };
    let descr = field("descr")?.trim_start_matches('\'');
    let descr = &descr[..descr.find('\'').context("its type has no end")?];
    let dtype = TYPES.iter().find(|(name, _)| *name == descr).map(|(_, dtype)| *dtype);
    let dtype = dtype.with_context(|| format!("its element type {descr} is not supported"))?;
    if field("fortran_order")?.starts_with("True") {
        bail!("it is in Fortran order; save numpy.ascontiguousarray of it");
    }
    let shape = field("shape")?.strip_prefix('(').context("its shape is no tuple")?;
    let shape = &shape[..shape.find(')').context("its shape has no end")?];
    let shape = shape
        .split(',')
        .map(str::trim)
        .filter(|d| !d.is_empty())
        .map(|d| d.parse::<usize>().with_context(|| format!("its dimension {d} is no number")))
        .collect::<anyhow::Result<Vec<usize>>>()?;
    Ok(Tensor::new(ConcreteType::new(dtype, shape), data.to_vec())?)
}

/// Writes a tensor. Types that NumPy lacks become f32.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, tensor: &Tensor) -> anyhow::Result<()> {
    std::fs::write(path, to_bytes(tensor)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

fn to_bytes(tensor: &Tensor) -> anyhow::Result<Vec<u8>> {
    let known = TYPES.iter().find(|(_, dtype)| *dtype == tensor.dtype());
    let (descr, data) = match known {
        Some((name, _)) => (*name, tensor.bytes().to_vec()),
        None => ("<f4", tensor.to_f32_vec()?.iter().flat_map(|v| v.to_le_bytes()).collect()),
    };
    let dims: Vec<String> = tensor.shape().iter().map(|d| format!("{d},")).collect();
    let shape = dims.join(" ");
    let mut header =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    // Data starts at a multiple of 64 bytes; the header ends with a newline.
    let unpadded = MAGIC.len() + 4 + header.len() + 1;
    header.push_str(&" ".repeat(unpadded.next_multiple_of(64) - unpadded));
    header.push('\n');
    let mut out = MAGIC.to_vec();
    out.extend([1, 0]);
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(data);
    Ok(out)
}

/// Elements that [`show`] writes at most.
const SHOWN: usize = 64;

/// Type and first elements, for people.
///
/// # Errors
/// When a quantised tensor cannot be decoded.
pub fn show(tensor: &Tensor) -> anyhow::Result<String> {
    let values = tensor.to_f64_vec()?;
    let list: Vec<String> = values.iter().take(SHOWN).map(|v| format!("{v}")).collect();
    let more = if values.len() > SHOWN { ", …" } else { "" };
    let shape: Vec<String> = tensor.shape().iter().map(|d| format!("{d}x")).collect();
    Ok(format!("tensor<{}{}> [{}{more}]\n", shape.concat(), tensor.dtype(), list.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_round_trip() {
        for shape in [vec![], vec![3], vec![2, 3]] {
            let n: usize = shape.iter().product();
            let values: Vec<f32> = (0..n).map(|i| i as f32 - 0.5).collect();
            let tensor = Tensor::from_f32(&shape, &values).unwrap();
            let bytes = to_bytes(&tensor).unwrap();
            assert_eq!(bytes.len() % 64, (n * 4) % 64);
            assert_eq!(parse(&bytes).unwrap(), tensor);
            for end in 0..bytes.len() {
                assert!(parse(&bytes[..end]).is_err());
            }
        }
    }

    #[test]
    fn damaged_headers_are_refused() {
        let header = |text: &str| {
            let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
            bytes.extend((text.len() as u16).to_le_bytes());
            bytes.extend(text.as_bytes());
            bytes
        };
        for (text, message) in [
            ("{'fortran_order': False, 'shape': (1,), }", "lacks descr"),
            ("{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }", ">f4 is not supported"),
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (1,), }", "Fortran order"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", "-1 is no number"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (9,), }", "bytes"),
        ] {
            let error = format!("{:#}", parse(&header(text)).unwrap_err());
            assert!(error.contains(message), "{error}");
        }
    }
}
