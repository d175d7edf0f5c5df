//! Printing and parsing are each other's inverse; whatever the text, parsing ends with a module or
//! with located errors.

use std::sync::Arc;

use aether_ir::diag::render;
use aether_ir::text::{
    explain, parse_and_verify, parse_module, parse_with_map, print_module, print_with_map,
    strip_spans,
};
use aether_ir::{
    Attr, Attrs, ConstData, DType, Dim, Func, Inst, Layout, Loc, Module, Op, Operand, Shape,
    TensorType, ValueId, verify,
};
use fastrand::Rng;

/// Every construct once, in canonical form.
const SAMPLE: &str = r#"module @demo {
  sym s in 1..=512
  sym p in 0..=4096
  const @blk.0.attn_q : tensor<576x576xq4_1> = file("model.gguf", 1024, 207360)
  const @packed : tensor<17x32xq4_1, r16> = file("dir/\"m\".gguf", 0, 640, sha256 = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff")
  const @w : tensor<2x2xf32> = dense<[1.0, -2.5, 1e-45, inf]>
  const @flags : tensor<3xbool> = dense<[true, false, true]>
  const @"odd name" : tensor<1xf16> = dense<0x017e>
  const @block : tensor<32xq8_0> = dense<0x00000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20>
  const @none : tensor<0xi64> = dense<[]>
  func @layer(%x: tensor<[s]x576xf32>, %cache: tensor<64x3x64xf16>) -> (tensor<[s]x576xf32>, tensor<64x3x64xf16>) {
    %0 = rope %x {mode = "neox", theta = 10000.0, n_dims = 64, freq_scale = 1e-5} : tensor<[s]x576xf32>
    return %0, %cache
  }
  func @main(%x: tensor<[s]x576xf32>, %cache: tensor<64x3x64xf16>, %past: tensor<i32>) -> tensor<f32> {
    %w = constant @blk.0.attn_q : tensor<576x576xq4_1>
    %q.0 = matmul %x, %w {transpose_b = true} : tensor<[s]x576xf32>
    %0, %"new cache" = call @layer %q.0, donate %cache : tensor<[s]x576xf32>, tensor<64x3x64xf16>
    %1 = concat %0, %x {axis = 0} : tensor<[2*s]x576xf32>
    %2 = reduce_sum %1 {axes = [0, 1]} : tensor<f32>
    call @side
    return %2
  }
  func @side() -> () {
    %0 = splat {value = -inf} : tensor<[p+s-1]x[p*s]xf32>
    return
  }
}
"#;

#[test]
fn canonical_text_is_unchanged() {
    let (module, map) = parse_with_map(SAMPLE).unwrap();
    let (text, printed) = print_with_map(&module);
    assert_eq!(text, SAMPLE);
    // Parser and printer agree on where the parts are, to the byte.
    for loc in [
        Loc::Module,
        Loc::Symbol(1),
        Loc::ConstType(1),
        Loc::ConstData(5),
        Loc::Func(2),
        Loc::ResultType(0, 1),
        Loc::Inst(1, 2),
        Loc::Op(1, 3),
        Loc::Callee(1, 2),
        Loc::Operand(1, 2, 1),
        Loc::Attr(0, 0, 2),
        Loc::Result(1, 2, 1),
        Loc::Type(1, 2, 1),
        Loc::Return(0),
        Loc::Returned(0, 1),
    ] {
        assert_eq!(map.get(loc), printed.get(loc), "{loc:?}");
    }
    let at = map.get(Loc::Operand(1, 2, 1)).unwrap();
    assert_eq!(&SAMPLE[at.start as usize..at.end as usize], "%cache");
}

#[test]
fn layout_of_the_text_is_free() {
    let wide = SAMPLE
        .replace("\n    %1 = ", "\n\n// why\n    %1   =  // how\n  ")
        .replace("{mode = \"neox\", ", "{\n mode = \"neox\",\r\n\t");
    let (mut a, mut b) = (parse_module(SAMPLE).unwrap(), parse_module(&wide).unwrap());
    strip_spans(&mut a);
    strip_spans(&mut b);
    assert_eq!(a, b);
}

const NAMES: [&str; 14] = [
    "x",
    "y",
    "cache",
    "blk.0.attn_q",
    "a-b",
    "$1",
    "0",
    "17",
    "odd name",
    "quo\"te",
    "back\\slash",
    "größe",
    "line\nbreak",
    "return",
];

fn name(rng: &mut Rng) -> Arc<str> {
    let base = NAMES[rng.usize(..NAMES.len())];
    if rng.bool() { base.into() } else { format!("{base}{}", rng.u32(..50)).into() }
}

fn dim(rng: &mut Rng) -> Dim {
    let mut sum = Dim::new(rng.u64(..9));
    for _ in 0..rng.usize(..4) {
        let mut term = Dim::new(rng.u64(..4));
        for _ in 0..rng.usize(..3) {
            term = &term * &Dim::symbol(["s", "t", "x", "xf32", "_u9"][rng.usize(..5)]);
        }
        sum = if rng.bool() { &sum + &term } else { &sum - &term };
    }
    sum
}

fn ty(rng: &mut Rng) -> TensorType {
    let dtypes: Vec<DType> = DType::all().collect();
    TensorType {
        shape: Shape((0..rng.usize(..4)).map(|_| dim(rng)).collect()),
        dtype: dtypes[rng.usize(..dtypes.len())],
        layout: Layout::ALL[usize::from(rng.u8(..8) == 0)],
    }
}

fn attr(rng: &mut Rng) -> Attr {
    match rng.u8(..6) {
        0 => Attr::Bool(rng.bool()),
        1 => Attr::Int(rng.i64(..)),
        2 => Attr::Ints((0..rng.usize(..4)).map(|_| rng.i64(-5..5)).collect()),
        3 => Attr::Str(name(rng)),
        4 => Attr::Float([0.0, -0.0, 1.0, 1e300, f64::INFINITY, -f64::INFINITY][rng.usize(..6)]),
        _ => {
            let v = f64::from_bits(rng.u64(..));
            Attr::Float(if v.is_nan() { 0.1 } else { v })
        }
    }
}

/// A module that can be written, with no regard to the rules of the verifier.
fn module(rng: &mut Rng) -> Module {
    let mut module = Module::new(name(rng));
    for s in ["s", "t", "x", "xf32", "_u9"] {
        module.declare_symbol(s, rng.u64(..), rng.u64(..));
    }
    for _ in 0..rng.usize(..4) {
        let data = if rng.bool() {
            let bytes: Vec<u8> = (0..rng.usize(..300)).map(|_| rng.u8(..)).collect();
            ConstData::Dense(bytes.into())
        } else {
            ConstData::File {
                path: name(rng).to_string(),
                offset: rng.u64(..),
                bytes: rng.u64(..),
                sha256: rng.bool().then(|| "ab".repeat(32)),
            }
        };
        let ty = ty(rng);
        module.add_const(name(rng), ty, data);
    }
    let ops: Vec<Op> = Op::all().collect();
    for _ in 0..rng.usize(..4) {
        let mut func = Func::new(name(rng));
        let mut taken = std::collections::HashSet::new();
        let mut value = |func: &mut Func, rng: &mut Rng| {
            let name = if rng.bool() { Some(name(rng)) } else { None };
            let name = name.filter(|n| taken.insert(n.clone()));
            let ty = ty(rng);
            func.add_value(ty, name)
        };
        for _ in 0..rng.usize(..4) {
            let id = value(&mut func, rng);
            func.params.push(id);
        }
        for _ in 0..rng.usize(..9) {
            let known = func.values.len() as u32;
            let operands = (0..rng.usize(..4))
                .filter(|_| known > 0)
                .map(|_| Operand { value: ValueId(rng.u32(..known)), donated: rng.u8(..4) == 0 });
            let operands = operands.collect();
            let mut attrs = Attrs::new();
            for _ in 0..rng.usize(..3) {
                attrs.0.insert(name(rng), attr(rng));
            }
            let symbol = rng.bool().then(|| name(rng));
            let results = (0..rng.usize(..4)).map(|_| value(&mut func, rng)).collect();
            let op = ops[rng.usize(..ops.len())];
            func.body.push(Inst { op, operands, attrs, symbol, results, span: 0..0 });
        }
        func.result_types = (0..rng.usize(..3)).map(|_| ty(rng)).collect();
        let known = func.values.len() as u32;
        func.returns =
            (0..rng.usize(..3)).filter(|_| known > 0).map(|_| ValueId(rng.u32(..known))).collect();
        module.add_func(func);
    }
    module
}

#[test]
fn random_modules_round_trip_through_text_and_json() {
    let mut rng = Rng::with_seed(7);
    for _ in 0..1500 {
        let module = module(&mut rng);
        let text = print_module(&module);
        let mut back = parse_module(&text)
            .unwrap_or_else(|d| panic!("{}\n{text}", render(&d, &text, "printed")));
        assert_eq!(print_module(&back), text);
        strip_spans(&mut back);
        assert_eq!(back, module, "{text}");

        let json = serde_json::to_string(&module).unwrap();
        let back: Module = serde_json::from_str(&json).unwrap();
        assert_eq!(back, module, "{json}");

        if let Err(diagnostics) = verify(&module) {
            assert!(explain(&module, &diagnostics).contains(" | "));
        }
    }
}

#[test]
fn equal_names_are_told_apart() {
    let mut module = Module::new("m");
    let mut func = Func::new("f");
    for name in [Some("x"), Some("x"), Some("x_1"), None, Some("x"), Some("0"), Some("")] {
        let id = func.add_value(TensorType::scalar(DType::F32), name.map(Into::into));
        func.params.push(id);
    }
    module.add_func(func);
    let text = print_module(&module);
    let params = text.lines().nth(1).unwrap().replace(": tensor<f32>", "");
    assert_eq!(params, r#"  func @f(%x, %x_2, %x_1, %0, %x_3, %"0", %"") -> () {"#);
    assert_eq!(print_module(&parse_module(&text).unwrap()), text);
}

#[test]
fn every_element_keeps_its_bits() {
    let mut rng = Rng::with_seed(3);
    for dtype in DType::all().filter(|d| !d.is_quantized()) {
        for _ in 0..300 {
            let n = rng.usize(..4);
            let bytes: Vec<u8> = (0..n * dtype.block_bytes()).map(|_| rng.u8(..)).collect();
            let mut module = Module::new("m");
            module.add_const("c", TensorType::new(dtype, [n]), ConstData::Dense(bytes.into()));
            let text = print_module(&module);
            let mut back = parse_module(&text).unwrap();
            strip_spans(&mut back);
            assert_eq!(back, module, "{text}");
        }
    }
}

#[test]
fn non_finite_attributes_survive_json() {
    for v in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let json = serde_json::to_string(&Attr::Float(v)).unwrap();
        let Attr::Float(back) = serde_json::from_str(&json).unwrap() else { panic!("{json}") };
        assert!(back == v || back.is_nan() && v.is_nan(), "{json}");
    }
}

/// Words that mutations put in, besides the sample's own.
const WORDS: [&str; 34] = [
    "%",
    "@",
    "\"",
    "tensor<",
    ">",
    "[",
    "]",
    "{",
    "}",
    "(",
    ")",
    "->",
    ":",
    "=",
    ",",
    "-",
    "0x",
    "..=",
    "//",
    "\n",
    "\t",
    "é",
    "☃",
    "return",
    "func @f",
    "const @c",
    "sym s",
    "donate",
    "file(",
    "dense<",
    "99999999999999999999999",
    "1e999",
    "[s*s*s*s-9]",
    "tensor<2x[s+t]xq4_k, r16>",
];

#[test]
fn mutated_text_never_panics() {
    let mut rng = Rng::with_seed(11);
    let boundaries: Vec<usize> = SAMPLE.char_indices().map(|(i, _)| i).collect();
    let (mut accepted, mut verified) = (0, 0);
    for _ in 0..20_000 {
        let mut text = SAMPLE.to_owned();
        for _ in 0..=rng.usize(..3) {
            let from = boundaries[rng.usize(..boundaries.len())];
            let to = (from + rng.usize(..12)).min(text.len());
            if !text.is_char_boundary(from) || !text.is_char_boundary(to) || from > to {
                continue;
            }
            let start = boundaries[rng.usize(..boundaries.len())];
            let copied = SAMPLE.get(start..start + rng.usize(..30)).unwrap_or("x");
            match rng.u8(..5) {
                0 => text.replace_range(from..to, ""),
                1 => text.insert_str(from, WORDS[rng.usize(..WORDS.len())]),
                2 => text.replace_range(from..to, WORDS[rng.usize(..WORDS.len())]),
                3 => text.insert_str(from, copied),
                _ => text.replace_range(from..to, copied),
            }
        }
        match parse_module(&text) {
            Ok(module) => {
                accepted += 1;
                let printed = print_module(&module);
                let back = parse_module(&printed)
                    .unwrap_or_else(|d| panic!("{}", render(&d, &printed, "printed")));
                assert_eq!(print_module(&back), printed);
            }
            Err(d) => {
                assert!(!d.is_empty());
                assert!(render(&d, &text, "mutated").contains("-->"));
            }
        }
        match parse_and_verify(&text) {
            Ok(_) => verified += 1,
            Err(d) => assert!(render(&d, &text, "mutated").contains("-->")),
        }
    }
    // The mutations are neither all fatal nor all harmless.
    assert!((500..19_000).contains(&accepted) && verified < accepted, "{accepted} {verified}");
}

#[test]
fn hostile_text_is_refused_in_bounded_time() {
    let n = 200_000;
    let table = [
        "{".repeat(n),
        "(".repeat(n),
        "module @m {".repeat(n / 10),
        "module @m {\n  func @f".to_owned() + &"(".repeat(n),
        "module @m {\n".to_owned() + &"%a,\n".repeat(n),
        "module @m {\n func @f() -> () {\n".to_owned() + &"%a = \n".repeat(n),
        "module @m {\n func @f(%x: tensor<".to_owned()
            + &"2x".repeat(n)
            + "f32>) -> () {\nreturn\n}\n}",
        "module @m {\n func @f(%x: tensor<[".to_owned()
            + &"s*".repeat(n)
            + "s]xf32>) -> () {\nreturn\n}\n}",
        "module @m {\n func @f(%x: tensor<[".to_owned() + &"-".repeat(n),
        "\"".repeat(n),
        "//".repeat(n),
        "é".repeat(n),
        "\0".repeat(n),
    ];
    for text in table {
        let diagnostics = parse_and_verify(&text).unwrap_err();
        let shown = render(&diagnostics, &text, "hostile");
        assert!(shown.contains("-->") && shown.len() < 100_000, "{}", shown.len());
    }
}

#[test]
fn deeply_nested_json_is_refused() {
    let n = 100_000;
    let json = serde_json::to_string(&parse_module(SAMPLE).unwrap()).unwrap();
    let within = |from: &str, to: String| json.replacen(from, &to, 1);
    for text in [
        "[".repeat(n),
        "{\"funcs\":".repeat(n),
        within("\"symbols\":{", "\"other\":".to_owned() + &"[".repeat(n)),
        within("\"attrs\":{", "\"attrs\":{\"x\":".to_owned() + &"[".repeat(n)),
    ] {
        assert!(serde_json::from_str::<Module>(&text).is_err());
    }
}

#[test]
fn any_json_module_is_verified_without_panic() {
    // Numbers of a valid module's JSON replaced at random: ids out of range, odd shapes, counts.
    let mut rng = Rng::with_seed(5);
    let json = serde_json::to_string(&parse_module(SAMPLE).unwrap()).unwrap();
    let digits: Vec<usize> =
        json.bytes().enumerate().filter(|(_, b)| b.is_ascii_digit()).map(|(i, _)| i).collect();
    let mut read = 0;
    for _ in 0..5_000 {
        let mut changed = json.clone().into_bytes();
        for _ in 0..=rng.usize(..4) {
            changed[digits[rng.usize(..digits.len())]] = b'0' + rng.u8(..10);
        }
        let Ok(module) = serde_json::from_slice::<Module>(&changed) else { continue };
        read += 1;
        if let Err(diagnostics) = verify(&module) {
            assert!(explain(&module, &diagnostics).contains("-->"));
        }
    }
    assert!(read > 1_000, "{read}");
}
