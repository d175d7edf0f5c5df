//! The GGUF reader: a file written by another program, and every way of lying to it.

use std::path::Path;

use aether_ir::DType;
use aether_ir::quant::dequantize;
use aether_llm::gguf::{Gguf, GgufError, GgufWriter, Optional, Problem, Value, inspect, sha256};

/// Written by scripts/oracles/gguf_sample.py; `cargo test` runs in the folder of the package.
const SAMPLES: [(u32, &str); 2] =
    [(3, "tests/data/gguf/sample-v3.gguf"), (2, "tests/data/gguf/sample-v2.gguf")];

fn floats(gguf: &Gguf, name: &str) -> Vec<f32> {
    let t = gguf.tensor(name).unwrap();
    let mut out = vec![0.0; t.elements() as usize];
    dequantize(t.dtype, gguf.data(t), &mut out).unwrap();
    out
}

#[test]
fn a_file_of_the_python_package_is_read_whole() {
    for (version, path) in SAMPLES {
        let g = Gguf::open(path).unwrap();
        assert_eq!((g.version(), g.alignment()), (version, 64));
        let scalars = [
            ("general.architecture", Value::Str(b"llama")),
            ("general.alignment", Value::U32(64)),
            ("t.u8", Value::U8(200)),
            ("t.i8", Value::I8(-100)),
            ("t.u16", Value::U16(60000)),
            ("t.i16", Value::I16(-30000)),
            ("t.u32", Value::U32(4_000_000_000)),
            ("t.i32", Value::I32(-2_000_000_000)),
            ("t.f32", Value::F32(0.1)),
            ("t.true", Value::Bool(true)),
            ("t.false", Value::Bool(false)),
            ("t.str", Value::Str("Grüße, 世界".as_bytes())),
            ("t.control", Value::Str(b"a\x1b[2Jb\nc")),
            ("t.u64", Value::U64((1 << 63) + 5)),
            ("t.i64", Value::I64(-(1 << 62))),
            ("t.f64", Value::F64(1e-300)),
        ];
        let read: Vec<_> = g.metadata().take(scalars.len()).collect();
        assert_eq!(read, scalars);
        let strings: Vec<_> = g.get_strings("t.strings").unwrap().collect();
        assert_eq!(strings, ["one", "", "dreiß", "four", "five"].map(str::as_bytes));
        assert_eq!(g.get_strings("t.strings").unwrap().len(), 5);
        assert_eq!(g.get_i32s("t.ints").unwrap(), [-1, 0, 70000]);
        assert_eq!(g.get_f32s("t.floats").unwrap(), [0.5, -1.25, 3.0]);
        let bools = g.get_array("t.bools").unwrap();
        assert_eq!(
            bools.iter().map(|v| v.as_bool().unwrap()).collect::<Vec<_>>(),
            [true, false, true]
        );
        assert_eq!(g.get_str("t.long").unwrap(), "abcdefghij".repeat(20));
        assert_eq!(g.metadata().len(), 21);

        let table: Vec<_> =
            g.tensors().iter().map(|t| (t.name.as_str(), t.dtype, t.shape.clone())).collect();
        assert_eq!(
            table,
            [
                ("plain.f32", DType::F32, vec![3, 2]),
                ("plain.f16", DType::F16, vec![3]),
                ("plain.i32", DType::I32, vec![2, 1, 1, 1]),
                ("plain.i64", DType::I64, vec![1]),
                ("blocks.q8_0", DType::Q8_0, vec![64, 2]),
                ("blocks.q4_1", DType::Q4_1, vec![64, 2]),
                ("blocks.q6_k", DType::Q6K, vec![256, 1]),
            ]
        );
        assert_eq!(floats(&g, "plain.f32"), [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]);
        assert_eq!(floats(&g, "plain.f16"), [1.5, -2.0, 0.25]);
        assert_eq!(floats(&g, "plain.i32"), [7.0, -8.0]);
        assert_eq!(floats(&g, "plain.i64"), [(1u64 << 40) as f32]);
        for name in ["blocks.q8_0", "blocks.q4_1"] {
            for (i, v) in floats(&g, name).into_iter().enumerate() {
                assert!((v - (i as f32 - 64.0) / 8.0).abs() < 0.2, "{name} {i} {v}");
            }
        }
        let q6 = g.tensor("blocks.q6_k").unwrap();
        assert_eq!(g.data(q6), (0..210).collect::<Vec<u8>>());
        assert_eq!((q6.cols(), q6.rows(), q6.elements(), q6.bytes), (256, 1, 256, 210));
        // Borrowed from the map, at the offset that the table says.
        assert!(std::ptr::eq(g.data(q6).as_ptr(), &g.map()[q6.offset as usize]));
        assert_eq!(q6.offset % 64, 0);
    }
}

#[test]
fn inspection_is_as_recorded() {
    let g = Gguf::open(SAMPLES[0].1).unwrap();
    insta::assert_snapshot!("inspect_text", inspect::text(&g));
    insta::assert_snapshot!(
        "inspect_json",
        serde_json::to_string_pretty(&inspect::json(&g)).unwrap()
    );
}

#[test]
fn inspection_of_odd_values() {
    let mut w = GgufWriter::new();
    w.value("nan", f32::NAN).value("inf", f64::NEG_INFINITY).value("tenth", 0.1f32);
    w.string("bytes", b"a\xffb").values("none", &[0u8; 0]).values("many", &[5i64; 100]);
    w.string("esc\x1b]", "x");
    let g = Gguf::from_bytes("odd.gguf", &w.to_bytes()).unwrap();
    let text = inspect::text(&g);
    assert!(!text.contains('\x1b'), "{text}");
    assert!(text.contains("many") && text.contains("i64[100]  [5, 5, 5, 5, …]"), "{text}");
    let json = inspect::json(&g);
    assert_eq!(json["metadata"]["nan"]["value"], "NaN");
    assert_eq!(json["metadata"]["inf"]["value"], "-inf");
    assert_eq!(json["metadata"]["tenth"]["value"], 0.1);
    assert_eq!(json["metadata"]["bytes"]["value"], "a\u{fffd}b");
    assert_eq!(json["metadata"]["none"]["length"], 0);
    assert_eq!(json["metadata"]["many"]["length"], 100);
}

/// A file with each kind of field.
fn base() -> GgufWriter {
    let mut w = GgufWriter::new();
    w.value("a.u32", 7u32)
        .string("b.str", "hello")
        .values("c.u16", &[1u16, 2, 3])
        .strings("d.sts", &["x", "yz"])
        .value("e.boo", true)
        .values("f.bos", &[true, false]);
    w.tensor_from_f32("t0", DType::F32, &[4, 2], &[1.0; 8]).unwrap();
    w.tensor_from_f32("t1", DType::Q4_0, &[32, 1], &[1.0; 32]).unwrap();
    w
}

/// Where `name` begins in `bytes`; it must occur once.
fn find(bytes: &[u8], name: &str) -> usize {
    let hits: Vec<_> =
        bytes.windows(name.len()).enumerate().filter(|w| w.1 == name.as_bytes()).collect();
    assert_eq!(hits.len(), 1, "{name}");
    hits[0].0
}

/// What stands after `file.gguf: ` in the message, which must be of a format error.
fn complaint(bytes: &[u8]) -> String {
    let error = Gguf::from_bytes("file.gguf", bytes).unwrap_err();
    assert!(matches!(error, GgufError::Format { .. }), "{error}");
    error.to_string().strip_prefix("file.gguf: ").unwrap().to_owned()
}

#[test]
fn every_kind_of_field_is_checked() {
    let bytes = base().to_bytes();
    assert!(Gguf::from_bytes("file.gguf", &bytes).is_ok());
    let len = bytes.len();
    // Where the value of each key begins (its type stands four bytes before) and where each
    // tensor's dimension count, first dimension, type and offset stand (two dimensions each).
    let [a, b, c, d, e, f] =
        ["a.u32", "b.str", "c.u16", "d.sts", "e.boo", "f.bos"].map(|key| find(&bytes, key) + 5 + 4);
    let [t0, t1] = ["t0", "t1"].map(|name| find(&bytes, name));
    let (dims, dim0, dim1, ty, offset) = (t1 + 2, t1 + 6, t1 + 14, t1 + 22, t1 + 26);
    let data = (t1 + 34).next_multiple_of(32);
    let huge = u64::MAX.to_le_bytes();
    let u32 = |v: u32| v.to_le_bytes().to_vec();
    let u64 = |v: u64| v.to_le_bytes().to_vec();

    let count = |what: &str, at: usize, least: usize, left: usize| {
        format!(
            "{what} (byte {at}): 18446744073709551615 items of at least {least} bytes do not fit \
             into the {left} bytes left"
        )
    };
    let truncated = |what: &str, at: usize| {
        format!(
            "{what} (byte {at}): needs 18446744073709551615 bytes, but {} are left in the file",
            len - at
        )
    };
    let table: Vec<(usize, Vec<u8>, String)> = vec![
        (
            0,
            b"GGML".to_vec(),
            "magic (byte 0): not a GGUF file: it starts with \"GGML\" instead of \"GGUF\"".into(),
        ),
        (4, u32(1), "version (byte 4): version 1 is not supported; 2 and 3 are".into()),
        (4, u32(4), "version (byte 4): version 4 is not supported; 2 and 3 are".into()),
        (
            4,
            3u32.to_be_bytes().to_vec(),
            "version (byte 4): a big-endian file; only little-endian ones are read".into(),
        ),
        (8, huge.to_vec(), count("tensor count", 8, 24, len - 24)),
        (16, huge.to_vec(), count("key count", 16, 14, len - 24)),
        (
            24,
            huge.to_vec(),
            "key 0 (byte 24): 18446744073709551615 bytes are too long; at most 65535 are allowed"
                .into(),
        ),
        (24, u64(0), "key 0 (byte 24): is empty".into()),
        (
            24,
            u64(60_000),
            format!("key 0 (byte 32): needs 60000 bytes, but {} are left in the file", len - 32),
        ),
        (32, vec![0xff], "key 0 (byte 32): is not valid UTF-8".into()),
        (a - 4, u32(13), format!("type of key \"a.u32\" (byte {}): unknown value type 13", a - 4)),
        (
            b - 9,
            b"a.u32".to_vec(),
            format!("key \"a.u32\" (byte {}): occurs a second time", b - 17),
        ),
        (b, huge.to_vec(), truncated("value of key \"b.str\"", b + 8)),
        (c, u32(99), format!("element type of key \"c.u16\" (byte {c}): unknown value type 99")),
        (
            c,
            u32(9),
            format!(
                "element type of key \"c.u16\" (byte {c}): an array of arrays, which is not supported"
            ),
        ),
        (c + 4, huge.to_vec(), count("length of array \"c.u16\"", c + 4, 2, len - c - 12)),
        (d + 4, huge.to_vec(), count("length of array \"d.sts\"", d + 4, 8, len - d - 12)),
        (d + 12, huge.to_vec(), truncated("item 0 of array \"d.sts\"", d + 20)),
        (d + 21, huge.to_vec(), truncated("item 1 of array \"d.sts\"", d + 29)),
        (e, vec![2], format!("value of key \"e.boo\" (byte {e}): 2 is neither 0 nor 1")),
        (
            f + 13,
            vec![255],
            format!("an item of array \"f.bos\" (byte {}): 255 is neither 0 nor 1", f + 13),
        ),
        (
            t1 - 8,
            u64(65),
            format!(
                "name of tensor 1 (byte {}): 65 bytes are too long; at most 64 are allowed",
                t1 - 8
            ),
        ),
        (t1 - 8, u64(0), format!("name of tensor 1 (byte {}): is empty", t1 - 8)),
        (t1, vec![0xc0], format!("name of tensor 1 (byte {t1}): is not valid UTF-8")),
        (t1, b"t0".to_vec(), format!("tensor \"t0\" (byte {}): occurs a second time", t1 - 8)),
        (
            dims,
            u32(5),
            format!(
                "dimension count of tensor \"t1\" (byte {dims}): 5 dimensions; at most 4 are allowed"
            ),
        ),
        (
            dims,
            u32(1_000_000),
            format!(
                "dimension count of tensor \"t1\" (byte {dims}): 1000000 dimensions; at most 4 are allowed"
            ),
        ),
        (dim1, u64(0), format!("dimension 1 of tensor \"t1\" (byte {dim1}): a dimension of zero")),
        (
            dim0,
            u64(33),
            format!(
                "shape of tensor \"t1\" (byte {dim0}): rows of 33 elements are not whole q4_0 blocks of 32"
            ),
        ),
        (
            dim1,
            u64(1 << 59),
            format!(
                "shape of tensor \"t1\" (byte {dim0}): the number of elements or bytes overflows"
            ),
        ),
        (
            t0 + 6,
            u64(1 << 62),
            format!(
                "shape of tensor \"t0\" (byte {}): the number of elements or bytes overflows",
                t0 + 6
            ),
        ),
        (
            ty,
            u32(4),
            format!(
                "element type of tensor \"t1\" (byte {ty}): element type 4 (q4_2, removed from ggml) is not supported"
            ),
        ),
        (
            ty,
            u32(20),
            format!(
                "element type of tensor \"t1\" (byte {ty}): element type 20 (iq4_nl) is not supported"
            ),
        ),
        (
            ty,
            u32(4242),
            format!(
                "element type of tensor \"t1\" (byte {ty}): element type 4242 (unknown) is not supported"
            ),
        ),
        (
            offset,
            u64(33),
            format!(
                "offset of tensor \"t1\" (byte {offset}): offset 33 is not a multiple of the alignment 32"
            ),
        ),
        (
            offset,
            u64(0),
            format!(
                "offset of tensor \"t1\" (byte {offset}): its data overlaps that of tensor \"t0\""
            ),
        ),
        (
            offset,
            u64(64),
            format!(
                "offset of tensor \"t1\" (byte {offset}): its data would end at byte {}, but the file has {len}: it is truncated or corrupt",
                data + 64 + 18
            ),
        ),
        (
            offset,
            u64(u64::MAX - 31),
            format!(
                "offset of tensor \"t1\" (byte {offset}): its data would end at byte {}, but the file has {len}: it is truncated or corrupt",
                u64::MAX
            ),
        ),
    ];
    for (at, patch, expected) in table {
        let mut bad = bytes.clone();
        bad[at..at + patch.len()].copy_from_slice(&patch);
        assert_eq!(complaint(&bad), expected, "{patch:?} at {at}");
    }
}

#[test]
fn alignment_is_checked() {
    let with = |set: fn(&mut GgufWriter)| {
        let mut w = GgufWriter::new();
        set(&mut w);
        complaint(&w.to_bytes())
    };
    let refused = "is not a power of two from 8 to 65536";
    let field = "general.alignment (byte 53)";
    let key = "general.alignment";
    assert_eq!(with(|w| _ = w.value("general.alignment", 0u32)), format!("{field}: 0 {refused}"));
    assert_eq!(with(|w| _ = w.value("general.alignment", -8i32)), format!("{field}: -8 {refused}"));
    assert_eq!(with(|w| _ = w.value("general.alignment", 48u8)), format!("{field}: 48 {refused}"));
    assert_eq!(
        with(|w| _ = w.value("general.alignment", 1u64 << 62)),
        format!("{field}: {} {refused}", 1u64 << 62)
    );
    assert_eq!(
        with(|w| _ = w.string("general.alignment", "32")),
        format!("{field}: is str, but should be an integer")
    );
    let mut w = GgufWriter::new();
    w.alignment(4096);
    w.tensor_from_f32("t", DType::F16, &[3], &[1.0, 2.0, 3.0]).unwrap();
    let g = Gguf::from_bytes("a", &w.to_bytes()).unwrap();
    assert_eq!((g.get_u64(key).unwrap(), g.tensors()[0].offset), (4096, 4096));
    assert_eq!(floats(&g, "t"), [1.0, 2.0, 3.0]);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = base().to_bytes();
    let whole = Gguf::from_bytes("whole", &bytes).unwrap();
    let last = whole.tensor("t1").unwrap();
    let needed = (last.offset + last.bytes) as usize;
    for cut in 0..=bytes.len() {
        let result = Gguf::from_bytes("cut", &bytes[..cut]);
        // The padding behind the last tensor holds nothing.
        assert_eq!(result.is_ok(), cut >= needed, "cut at {cut}");
    }
}

/// Looks at everything that a file claims to hold.
fn look(g: &Gguf) -> usize {
    let data: usize = g.tensors().iter().map(|t| g.data(t).len()).sum();
    assert!(data <= g.map().len());
    for t in g.tensors() {
        assert_eq!(g.data(t).len() as u64, t.bytes);
        assert!(t.rows().checked_mul(t.cols()) == Some(t.elements()));
    }
    inspect::text(g).len() + inspect::json(g).to_string().len()
}

#[test]
fn random_damage_never_panics() {
    let mut rng = fastrand::Rng::with_seed(20_250_211);
    let sources = [base().to_bytes(), std::fs::read(SAMPLES[0].1).unwrap()];
    let (mut read, mut refused) = (0, 0);
    for i in 0..20_000 {
        let mut bytes = sources[i % 2].clone();
        for _ in 0..rng.usize(1..6) {
            let at = rng.usize(..bytes.len());
            match rng.u8(..4) {
                0 => bytes[at] ^= 1 << rng.u8(..8),
                1 => bytes[at] = rng.u8(..),
                2 => bytes[at] = *rng.choice([0, 1, 0x7f, 0x80, 0xff].iter()).unwrap(),
                _ => {
                    let end = (at + 8).min(bytes.len());
                    bytes[at..end].fill(0xff);
                }
            }
        }
        match Gguf::from_bytes("damaged", &bytes) {
            Ok(g) => {
                read += 1;
                look(&g);
            }
            Err(error) => {
                refused += 1;
                assert!(error.to_string().len() < 1000, "{error}");
            }
        }
    }
    // Both ways are taken often, so the test tests something.
    assert!(read > 1000 && refused > 1000, "{read} read, {refused} refused");
}

#[test]
fn typed_access_says_what_is_wrong() {
    let mut w = base();
    w.value("neg", -3i8).value("big", u64::MAX).value("half", 0.5f64).string("raw", b"\xff\xfe");
    w.values("mixed", &[1i64, -1, 1 << 40]);
    let g = Gguf::from_bytes("m.gguf", &w.to_bytes()).unwrap();
    assert_eq!(g.get_u32("a.u32").unwrap(), 7);
    assert_eq!(g.get_u64("big").unwrap(), u64::MAX);
    assert_eq!(g.get_f32("neg").unwrap(), -3.0);
    assert_eq!(g.get_f32("half").unwrap(), 0.5);
    assert_eq!(g.get_u32s("c.u16").unwrap(), [1, 2, 3]);
    assert_eq!(g.get_f32s("c.u16").unwrap(), [1.0, 2.0, 3.0]);
    assert_eq!(g.get_u32("none").optional().unwrap(), None);
    assert_eq!(g.get_u32("a.u32").optional().unwrap(), Some(7));
    assert!(matches!(g.get_u32("b.str").optional(), Err(GgufError::WrongType { .. })));

    let messages = [
        g.get_u32("none").unwrap_err(),
        g.get_u32("b.str").unwrap_err(),
        g.get_u32("neg").unwrap_err(),
        g.get_u32("big").unwrap_err(),
        g.get_f32("e.boo").unwrap_err(),
        g.get_bool("a.u32").unwrap_err(),
        g.get_str("d.sts").unwrap_err(),
        g.get_str("raw").unwrap_err(),
        g.get_strings("c.u16").unwrap_err(),
        g.get_array("a.u32").unwrap_err(),
        g.get_f32s("d.sts").unwrap_err(),
        g.get_u32s("f.bos").unwrap_err(),
        g.get_u32s("mixed").unwrap_err(),
        g.get_i32s("mixed").unwrap_err(),
    ]
    .map(|e| e.to_string());
    let expected = [
        "m.gguf: metadata has no key \"none\", which should be an unsigned 32-bit integer",
        "m.gguf: metadata key \"b.str\" is str, but should be an unsigned 32-bit integer",
        "m.gguf: metadata key \"neg\": -3 is not an unsigned 32-bit integer",
        "m.gguf: metadata key \"big\": 18446744073709551615 is not an unsigned 32-bit integer",
        "m.gguf: metadata key \"e.boo\" is bool, but should be a number",
        "m.gguf: metadata key \"a.u32\" is u32, but should be a bool",
        "m.gguf: metadata key \"d.sts\" is str[2], but should be a string",
        "m.gguf: metadata key \"raw\": the string is not valid UTF-8",
        "m.gguf: metadata key \"c.u16\" is u16[3], but should be an array of strings",
        "m.gguf: metadata key \"a.u32\" is u32, but should be an array",
        "m.gguf: metadata key \"d.sts\" is str[2], but should be an array of numbers",
        "m.gguf: metadata key \"f.bos\" is bool[2], but should be an array of integers",
        "m.gguf: metadata key \"mixed\": -1 is not an unsigned 32-bit integer",
        "m.gguf: metadata key \"mixed\": 1099511627776 is not a signed 32-bit integer",
    ];
    assert_eq!(messages, expected);
}

#[test]
fn files_that_cannot_be_opened() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Gguf::open(dir.path().join("none.gguf")).unwrap_err();
    assert!(missing.to_string().starts_with("cannot open "), "{missing}");
    assert!(matches!(Gguf::open(dir.path()), Err(GgufError::NotAFile { .. })));
    let empty = dir.path().join("empty.gguf");
    std::fs::write(&empty, b"").unwrap();
    match Gguf::open(&empty) {
        Err(GgufError::Format { at: 0, problem, .. }) => {
            assert_eq!(problem, Problem::Truncated { need: 4, left: 0 });
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(sha256(dir.path().join("none"), |_, _| ()), Err(GgufError::Io { .. })));
}

#[test]
fn the_digest_reports_progress() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, b"abc").unwrap();
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(sha256(&path, |_, _| ()).unwrap(), abc);
    std::fs::write(&path, vec![0; 3_000_000]).unwrap();
    let mut seen = Vec::new();
    sha256(&path, |done, total| seen.push((done, total))).unwrap();
    assert!(seen.len() >= 3 && seen.is_sorted(), "{seen:?}");
    assert_eq!(seen.last(), Some(&(3_000_000, 3_000_000)));
}

#[test]
fn a_vocabulary_alone_is_a_file() {
    let tokens: Vec<String> = (0..150_000).map(|i| format!("token {i}")).collect();
    let mut w = GgufWriter::new();
    w.string("general.architecture", "llama").strings("tokenizer.ggml.tokens", &tokens);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vocab.gguf");
    w.write(&path).unwrap();
    let g = Gguf::open(&path).unwrap();
    assert!(g.tensors().is_empty() && g.tensor("t").is_none());
    let read = g.get_strings("tokenizer.ggml.tokens").unwrap();
    assert!(read.eq(tokens.iter().map(String::as_bytes)));
    assert_eq!(g.path(), Path::new(&path));
}

#[test]
fn every_type_survives_writing() {
    let mut w = GgufWriter::new();
    let written: Vec<DType> = DType::all()
        .filter(|d| {
            let values: Vec<f32> = (0..512).map(|i| (i % 15) as f32 - 7.0).collect();
            w.tensor_from_f32(d.name(), *d, &[256, 2], &values).is_ok()
        })
        .collect();
    assert_eq!(written.len(), 20);
    let g = Gguf::from_bytes("all", &w.to_bytes()).unwrap();
    assert_eq!(g.tensors().iter().map(|t| t.dtype).collect::<Vec<_>>(), written);
    for d in [DType::F32, DType::F16, DType::Bf16, DType::F64, DType::I8, DType::I64, DType::Q8_0] {
        let back = floats(&g, d.name());
        assert!(back.iter().enumerate().all(|(i, v)| (v - ((i % 15) as f32 - 7.0)).abs() < 0.03));
    }
    let error = w.tensor("u", DType::U8, &[1], vec![0]).unwrap_err();
    assert_eq!(error.to_string(), "tensor \"u\": GGUF has no type u8");
    let error = w.tensor_from_f32("p", DType::Q4_0, &[32], &[0.0; 33]).unwrap_err();
    assert!(matches!(error, GgufError::Encode { .. }), "{error}");
}
