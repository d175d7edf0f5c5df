//! Every template's text parses and validates for many shapes, types and adapters.

use aether_codegen_wgsl::Adapter;
use aether_codegen_wgsl::kernel::{Access, Bind, Launch};
use aether_codegen_wgsl::templates::attention::Attention;
use aether_codegen_wgsl::templates::dense::{Addend as DenseAddend, Dense};
use aether_codegen_wgsl::templates::gather::GatherRows;
use aether_codegen_wgsl::templates::pick::Pick;
use aether_codegen_wgsl::templates::product::{Addend, Product, Weight};
use aether_codegen_wgsl::templates::{Operand, Site};
use aether_codegen_wgsl::validate::validate as validate_shader;
use aether_ir::{DType, Dim, Layout, Symbol};
use indexmap::IndexSet;
use naga::valid::{Capabilities, ValidationFlags, Validator};

/// From what WebGPU guarantees to all that kernels use.
fn adapters() -> Vec<Adapter> {
    let roomy =
        Adapter { workgroup_bytes: 48 << 10, workgroup_invocations: 1024, ..Adapter::LEAST };
    let software = Adapter { f16: true, subgroup: Some(8), ..roomy };
    let full = Adapter { f16: true, subgroup: Some(32), cooperative_matrix: true, ..roomy };
    vec![Adapter::LEAST, roomy, software, Adapter { cooperative_matrix: false, ..full }, full]
}

fn operands() -> Vec<Operand> {
    (0..10).map(|i| Operand { bind: Bind::Operand(i), access: Access::Read }).collect()
}

/// Fails with naga's message, the text before it.
fn validate(adapter: &Adapter, launches: &[Launch]) {
    assert!(!launches.is_empty());
    for launch in launches {
        let shader = &launch.shader;
        let needs = &shader.needs;
        assert!(!needs.f16 || adapter.f16, "{}", shader.name);
        assert!(!needs.subgroups || adapter.subgroup.is_some(), "{}", shader.name);
        assert!(!needs.cooperative_matrix || adapter.cooperative_matrix, "{}", shader.name);
        if let Err(e) = validate_shader(shader) {
            let lines = shader.wgsl.lines().enumerate();
            let numbered: String = lines.map(|(i, l)| format!("{:4} {l}\n", i + 1)).collect();
            panic!("{numbered}\n{e}");
        }
        let module = naga::front::wgsl::parse_str(&shader.wgsl).unwrap();
        to_spirv(&module, shader.name);
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).unwrap();
        let bytes: u32 = module
            .global_variables
            .iter()
            .filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup)
            .map(|(_, v)| layouter[v.ty].size)
            .sum();
        assert!(bytes <= adapter.workgroup_bytes, "{} takes {bytes} bytes", shader.name);
        let bindings = module
            .global_variables
            .iter()
            .filter(|(_, v)| matches!(v.space, naga::AddressSpace::Storage { .. }))
            .count();
        assert_eq!(bindings, shader.bindings.len());
        assert_eq!(bindings, launch.binds.len());
    }
}

/// The driver's language, in whose writer naga has been seen to stumble over valid modules.
fn to_spirv(module: &naga::Module, name: &str) {
    let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
    let info = validator.validate(module).unwrap();
    let options = naga::back::spv::Options { lang_version: (1, 3), ..Default::default() };
    let entry = naga::back::spv::PipelineOptions {
        shader_stage: naga::ShaderStage::Compute,
        entry_point: "main".to_owned(),
    };
    let words = naga::back::spv::write_vec(module, &info, &options, Some(&entry));
    assert!(words.is_ok_and(|w| !w.is_empty()), "{name}");
}

fn everywhere(f: impl Fn(&Site) -> Vec<Launch>) {
    let symbols: IndexSet<Symbol> = ["p".into(), "s".into()].into();
    for adapter in adapters() {
        let site = Site { adapter: &adapter, symbols: &symbols, operands: &operands() };
        validate(&adapter, &f(&site));
    }
}

#[test]
fn dense_products() {
    let mut shaders = 0;
    for dtype in [DType::F32, DType::F16] {
        for (stack, rows, most_rows, columns, depth) in [
            (Dim::new(1), Dim::new(1024), 1024, 1024, 1024),
            (Dim::new(12), Dim::symbol("s"), 512, 72, 40),
            (Dim::symbol("p"), Dim::new(64), 64, 200, 264),
        ] {
            for transposed in [false, true] {
                let plain = Dense {
                    dtype,
                    stack: stack.clone(),
                    rows: rows.clone(),
                    most_rows,
                    columns,
                    depth,
                    transposed,
                    shared: false,
                    addend: None,
                    act: None,
                };
                let more = Dense {
                    shared: true,
                    addend: Some(DenseAddend::Row),
                    act: Some("gelu".to_owned()),
                    ..plain.clone()
                };
                let whole = Dense { addend: Some(DenseAddend::Whole), ..plain.clone() };
                for dense in [plain, more, whole] {
                    for adapter in adapters().iter().filter(|a| dense.is_supported(a)) {
                        let symbols: IndexSet<Symbol> = ["p".into(), "s".into()].into();
                        let operands = operands();
                        let site = Site { adapter, symbols: &symbols, operands: &operands };
                        validate(adapter, &[dense.launch(&site).unwrap()]);
                        shaders += 1;
                    }
                }
            }
        }
    }
    assert!(shaders >= 90, "{shaders}");
}

#[test]
fn products() {
    let types = DType::all()
        .filter(|d| !d.planes().is_empty() || matches!(d, DType::F32 | DType::F16 | DType::Bf16));
    let mut shaders = 0;
    for dtype in types {
        for (k, most_tokens, tokens) in [
            (256, 1, Dim::new(1)),
            (14336, 1, Dim::new(1)),
            (4096, 8, Dim::symbol("s")),
            (1536, 512, Dim::symbol("s")),
            (512, 33, Dim::new(33)),
        ] {
            let layout = if dtype.is_quantized() { Layout::Planes } else { Layout::RowMajor };
            let weight = |rows| Weight { dtype, layout, rows };
            let plain = Product {
                k,
                tokens,
                most_tokens,
                weights: vec![weight(100)],
                addends: Vec::new(),
                act: None,
                gated: false,
                norm: None,
                part: None,
            };
            let add = Product {
                addends: vec![Addend { weight: 0, row: false }],
                act: Some("gelu".to_owned()),
                part: Some((64, 300)),
                ..plain.clone()
            };
            let gated = Product {
                weights: vec![weight(64), weight(64)],
                act: Some("silu".to_owned()),
                gated: true,
                norm: Some(1e-5f32.to_bits()),
                ..plain.clone()
            };
            let multi = Product {
                weights: vec![weight(64), weight(17), weight(16)],
                addends: vec![Addend { weight: 1, row: true }],
                norm: Some(1e-6f32.to_bits()),
                ..plain.clone()
            };
            for product in [plain, add, gated, multi] {
                assert!(product.is_supported(), "{product:?}");
                everywhere(|site| product.launches(site));
                shaders += 1;
            }
        }
    }
    assert_eq!(shaders, 13 * 5 * 4);
}

#[test]
fn attentions() {
    for (heads, kv_heads, d, dv) in [
        (32, 8, 128, 128),
        (9, 3, 64, 64),
        (4, 1, 256, 256),
        (3, 3, 20, 12),
        (14, 2, 80, 80),
        (5, 5, 7, 9),
    ] {
        for cache in [DType::F16, DType::F32] {
            for (tokens, most_tokens) in [(Dim::new(1), 1), (Dim::symbol("s"), 512)] {
                for (window, softcap, causal) in
                    [(0, 0.0, true), (100, 30.0, true), (0, 0.0, false)]
                {
                    let a = Attention {
                        heads,
                        kv_heads,
                        d,
                        dv,
                        tokens: tokens.clone(),
                        most_tokens,
                        context: 4096,
                        cache,
                        scale: 0.125,
                        causal,
                        window,
                        softcap,
                        slots: None,
                    };
                    assert!(a.is_supported());
                    everywhere(|site| a.launches(site));
                    if causal {
                        let slots = Attention { slots: Some(4), ..a };
                        everywhere(|site| slots.launches(site));
                    }
                }
            }
        }
    }
}

#[test]
fn picks_and_gathers() {
    for (n, k) in
        [(5, None), (151936, None), (151936, Some(40)), (1000, Some(1)), (2048, Some(512))]
    {
        let pick = Pick { rows: Dim::symbol("s"), most_rows: 8, n, k };
        assert!(pick.is_supported());
        everywhere(|site| pick.launches(site));
    }
    for dtype in DType::all().filter(|d| !d.planes().is_empty()) {
        let gather = GatherRows { dtype, rows: 1000, k: 512, n: Dim::symbol("s"), part: 0..1000 };
        everywhere(|site| gather.launches(site).unwrap());
    }
}

/// The text as it was reviewed: a row of q4_k by subgroups, and a table's row.
#[test]
fn reviewed_sample() {
    let symbols = IndexSet::new();
    let adapter =
        Adapter { f16: true, subgroup: Some(32), workgroup_bytes: 48 << 10, ..Adapter::LEAST };
    let site = Site { adapter: &adapter, symbols: &symbols, operands: &operands() };
    let weight = Weight { dtype: DType::Q4K, layout: Layout::Planes, rows: 4096 };
    let product = Product {
        k: 4096,
        tokens: Dim::new(1),
        most_tokens: 1,
        weights: vec![weight],
        addends: vec![Addend { weight: 0, row: false }],
        act: None,
        gated: false,
        norm: None,
        part: None,
    };
    insta::assert_snapshot!("matvec_q4_k", product.launches(&site)[0].shader.wgsl);
    let gather =
        GatherRows { dtype: DType::Q6K, rows: 1000, k: 512, n: Dim::new(1), part: 0..1000 };
    insta::assert_snapshot!("gather_rows_q6_k", gather.launches(&site).unwrap()[0].shader.wgsl);
}
