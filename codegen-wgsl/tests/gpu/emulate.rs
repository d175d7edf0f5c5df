//! Cooperative matrices in plain WGSL, for drivers without: an invocation has half a row of the
//! result, and of the two others what that half is made of. It is slow, and shows where kernels read
//! and write.
//!
//! A subgroup is 32 invocations in a row of the workgroup, and the driver's own may be narrower, so
//! shaders may use subgroup operations on neighbouring invocations only.

const HELPERS: &str = "
alias MatA = array<f32, 16>;
alias MatB = array<f32, 128>;
alias MatC = array<f32, 8>;
fn coop_multiply_add(a: ptr<function, MatA>, b: ptr<function, MatB>, c: ptr<function, MatC>) -> MatC {
    var d = *c;
    for (var k = 0u; k < 16u; k += 1u) {
        let x = (*a)[k];
        for (var j = 0u; j < 8u; j += 1u) { d[j] += x * (*b)[8u * k + j]; }
    }
    return d;
}
";

/// How many elements of a matrix an invocation has, and the row and column of its element `e_`.
fn share(role: &str) -> (usize, &'static str, &'static str) {
    match role {
        "A" => (16, "(lane / 2u)", "e_"),
        "B" => (128, "(e_ / 8u)", "(lane % 2u * 8u + e_ % 8u)"),
        _ => (8, "(lane / 2u)", "(lane % 2u * 8u + e_)"),
    }
}

/// A shader that means the same and has no cooperative matrices. Statements are those of the
/// templates: one to a line, each matrix loaded, added to or stored by one of its own.
pub fn emulated(wgsl: &str) -> String {
    let mut out = String::new();
    let mut helpers = false;
    for line in wgsl.lines() {
        if line.starts_with("enable wgpu_cooperative_matrix") {
            continue;
        }
        if !helpers && !line.starts_with("enable") {
            out.push_str(HELPERS);
            helpers = true;
        }
        let line = line
            .replace(
                ", @builtin(subgroup_id) sg: u32, @builtin(subgroup_invocation_id) lane: u32) {",
                ") {\nlet sg = tid / 32u;\nlet lane = tid % 32u;",
            )
            .replace("coop_mat16x16<f32, C>()", "MatC()");
        match statement(wgsl, &line) {
            Some(text) => out.push_str(&text),
            None => out.push_str(&line),
        }
        out.push('\n');
    }
    assert!(!out.contains("coop_mat") && !out.contains("coopLoad"), "{out}");
    out
}

fn statement(wgsl: &str, line: &str) -> Option<String> {
    let line = line.trim();
    if let Some((target, call)) = line.split_once(" = coopMultiplyAdd(") {
        let (a, rest) = call.split_once(", ")?;
        let (b, c) = rest.strip_suffix(");")?.split_once(", ")?;
        return Some(format!("{target} = coop_multiply_add(&{a}, &{b}, &{c});"));
    }
    if let Some((target, call)) = line.split_once(" = coopLoad") {
        let rows = call.starts_with('T');
        let (ty, call) = call.split_once(">(&")?;
        let role = ty.strip_suffix('>')?.rsplit(' ').next()?;
        let from = Place::parse(wgsl, call.strip_suffix(");")?, rows)?.element(role);
        let (declared, name) = match target.strip_prefix("let ") {
            Some(name) => (format!("var {name}: Mat{role};\n"), name),
            None => (String::new(), target),
        };
        let n = share(role).0;
        return Some(format!(
            "{declared}for (var e_ = 0u; e_ < {n}u; e_ += 1u) {{ {name}[e_] = f32({from}); }}"
        ));
    }
    if let Some(call) = line.strip_prefix("coopStore") {
        let rows = call.starts_with('T');
        let (name, call) = call.split_once('(')?.1.split_once(", &")?;
        let to = Place::parse(wgsl, call.strip_suffix(");")?, rows)?.element("C");
        return Some(format!("for (var e_ = 0u; e_ < 8u; e_ += 1u) {{ {to} = {name}[e_]; }}"));
    }
    None
}

/// Where a matrix begins in workgroup memory, and how many elements its lines are apart.
struct Place {
    name: String,
    index: String,
    stride: String,
    /// Lines are rows.
    rows: bool,
    /// Elements are vectors of four.
    vectors: bool,
}

impl Place {
    /// Of `name[index], stride`.
    fn parse(wgsl: &str, text: &str, rows: bool) -> Option<Place> {
        let (place, stride) = text.rsplit_once(", ")?;
        let (name, index) = place.strip_suffix(']')?.split_once('[')?;
        let vectors = wgsl.contains(&format!("var<workgroup> {name}: array<vec4<"));
        Some(Place {
            name: name.to_owned(),
            index: index.to_owned(),
            stride: stride.to_owned(),
            rows,
            vectors,
        })
    }

    /// The invocation's element `e_`.
    fn element(&self, role: &str) -> String {
        let (_, row, column) = share(role);
        let (line, along) = if self.rows { (row, column) } else { (column, row) };
        let (name, index, stride) = (&self.name, &self.index, &self.stride);
        if self.vectors {
            return format!("{name}[{index} + {line} * {stride} + {along} / 4u][{along} % 4u]");
        }
        format!("{name}[{index} + {line} * {stride} + {along}]")
    }
}
