//! Safetensors files: those of the Python package, our own, and hostile ones.

use std::fs;

use aether_ir::DType;
use aether_runtime::graph::*;
use half::{bf16, f16};

/// Written by scripts/oracles/safetensors_sample.py.
const SAMPLE: &[u8] = include_bytes!("data/sample.safetensors");

fn load(bytes: &[u8]) -> Result<std::collections::BTreeMap<String, Array>, SafetensorsError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    fs::write(&path, bytes).unwrap();
    load_safetensors(path)
}

#[test]
fn every_type_of_a_file_of_the_python_package_is_read() {
    let a = load(SAMPLE).unwrap();
    assert_eq!(a.len(), 12);
    assert_eq!(a["layer.weight"].shape(), [2, 3]);
    assert_eq!(a["layer.weight"].to_vec::<f32>().unwrap(), [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]);
    assert_eq!(a["f64"].to_vec::<f64>().unwrap().map_bits(), [1e300f64, -0.0].map(f64::to_bits));
    let halves = [1.5, -2.0, 65504.0].map(f16::from_f32);
    assert_eq!(a["f16"].to_vec::<f16>().unwrap(), halves);
    assert_eq!(a["bf16"].to_vec::<bf16>().unwrap(), [1.0, -3.5].map(bf16::from_f32));
    assert_eq!(a["i8"].to_vec::<i8>().unwrap(), [-128, 127]);
    assert_eq!(a["i16"].to_vec::<i16>().unwrap(), [-30000]);
    assert_eq!(a["i32"].to_vec::<i32>().unwrap(), [1 << 30, -7]);
    assert_eq!(a["i64"].item::<i64>().unwrap(), 1 << 40);
    assert_eq!(a["u8"].to_vec::<u8>().unwrap(), [0, 255]);
    assert_eq!(a["u32"].to_vec::<u32>().unwrap(), [u32::MAX]);
    assert_eq!(a["bool"].to_vec::<bool>().unwrap(), [true, false, true]);
    assert_eq!((a["empty"].shape(), a["empty"].dtype()), (&[0, 4][..], DType::F32));
}

trait Bits {
    fn map_bits(self) -> Vec<u64>;
}

impl Bits for Vec<f64> {
    fn map_bits(self) -> Vec<u64> {
        self.into_iter().map(f64::to_bits).collect()
    }
}

#[test]
fn what_is_written_is_what_the_python_package_writes() {
    let arrays = load(SAMPLE).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own.safetensors");
    save_safetensors(&path, arrays.iter().map(|(name, a)| (name.as_str(), a))).unwrap();
    assert_eq!(fs::read(&path).unwrap(), SAMPLE);
}

#[test]
fn parameters_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("params.safetensors");
    let make = |scale: f32| {
        let g = Graph::new();
        let w = g.param("w", &Array::new(&[scale, 2.0 * scale], [2]).unwrap());
        let b = g.param("b", &Array::scalar(scale));
        (g, w, b)
    };
    let (g, w, _) = make(3.0);
    g.save_params(&path).unwrap();
    let (h, v, c) = make(0.0);
    h.load_params(&path).unwrap();
    assert_eq!(v.get().unwrap(), w.get().unwrap());
    assert_eq!(c.get().unwrap().item::<f32>().unwrap(), 3.0);

    let extra = h.param("later", &Array::scalar(1f32));
    let missing = h.load_params(&path).unwrap_err();
    assert!(matches!(missing, SafetensorsError::Missing { ref name, .. } if name == "later"));
    assert_eq!(extra.get().unwrap().item::<f32>().unwrap(), 1.0);

    let other = Graph::new();
    let kept = other.param("b", &Array::scalar(9f32));
    other.param("w", &Array::new(&[1f32; 3], [3]).unwrap());
    let misfit = other.load_params(&path).unwrap_err().to_string();
    assert!(misfit.contains("`w`") && misfit.contains("tensor<3xf32>"), "{misfit}");
    assert_eq!(kept.get().unwrap().item::<f32>().unwrap(), 9.0, "changed though the file misfits");
}

/// A file of this header and so many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 2);
    bytes
}

#[test]
fn hostile_files_give_errors() {
    let one = |dtype: &str, shape: &str, end: usize| {
        format!(r#"{{"x":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
    };
    let huge = "[4294967296,4294967296,4294967296]";
    let table = [
        ("nothing", Vec::new()),
        ("a header beyond the file", u64::MAX.to_le_bytes().to_vec()),
        ("no header", file("", 0)),
        ("no JSON", file("{\"x\":", 0)),
        ("data beyond the file", file(&one("F32", "[4]", 16), 8)),
        ("too few bytes for the shape", file(&one("F32", "[4]", 8), 8)),
        ("a shape that overflows", file(&one("F32", huge, 8), 8)),
        ("a negative length", file(&one("F32", "[-1]", 4), 4)),
        ("an unknown type", file(&one("F37", "[1]", 4), 4)),
        ("a type that Aether has not", file(&one("U64", "[1]", 8), 8)),
        ("too many axes", file(&one("U8", "[1,1,1,1,1,1,1,1,1]", 1), 1)),
        ("a bool of 2", file(&one("BOOL", "[1]", 1), 1)),
        ("data that no tensor names", file(&one("U8", "[1]", 1), 2)),
    ];
    for (what, bytes) in table {
        assert!(load(&bytes).is_err(), "{what} was read");
    }
    for cut in (0..SAMPLE.len()).step_by(7) {
        assert!(load(&SAMPLE[..cut]).is_err(), "the first {cut} bytes were read");
    }
    assert!(load_safetensors("/no/such/file").unwrap_err().to_string().contains("/no/such/file"));
}

#[test]
fn quantised_arrays_are_refused() {
    let g = Graph::new();
    let blocks = g.zeros(DType::F32, [1, 32]).quantize(DType::Q8_0).run(Device::Cpu).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let error = save_safetensors(folder.path().join("q"), [("q", &blocks)]).unwrap_err();
    assert!(error.to_string().contains("q8_0"), "{error}");
}
