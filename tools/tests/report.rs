//! The page of `aetherc report`: whole, self-contained, well-formed, and drawn by a browser when
//! one is installed (Debian's package `chromium`).

#[path = "../../tests/support/browser.rs"]
mod browser;

use std::path::Path;
use std::process::Command;

use browser::browser;

fn report(file: &str, folder: &Path) -> String {
    let out = folder.join("report.html");
    let done = Command::new(env!("CARGO_BIN_EXE_aetherc"))
        .args(["report", file, "-o", out.to_str().unwrap()])
        .output()
        .expect("aetherc starts");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    std::fs::read_to_string(out).unwrap()
}

fn sample() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/layer.aet");
    path.to_str().unwrap().to_owned()
}

/// Elements without content.
const VOID: [&str; 3] = ["meta", "br", "hr"];

/// Walks the tags: each that is opened is closed, in order. Gives how often each name occurs.
fn well_formed(html: &str) -> std::collections::BTreeMap<String, usize> {
    let mut open: Vec<&str> = Vec::new();
    let mut counts = std::collections::BTreeMap::new();
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        let end = rest.find('>').expect("a tag is closed by `>`");
        let tag = &rest[..end];
        rest = &rest[end + 1..];
        let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap();
        if tag.starts_with('!') || VOID.contains(&name) {
            continue;
        }
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "</{name}> closes something else");
            continue;
        }
        *counts.entry(name.to_owned()).or_insert(0) += 1;
        if !tag.ends_with('/') {
            open.push(name);
        }
        // What is inside is no markup.
        if name == "style" || name == "script" {
            rest = &rest[rest.find("</").expect("it ends")..];
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
    counts
}

fn check(html: &str) -> std::collections::BTreeMap<String, usize> {
    assert!(html.starts_with("<!doctype html>") && html.ends_with("</html>\n"));
    for outside in ["http:", "https:", "src=", "@import", "url("] {
        assert!(!html.contains(outside), "the page refers to something outside: {outside}");
    }
    let counts = well_formed(html);
    for id in ["passes", "fusion", "costs", "graphs", "memory", "constants", "symbols", "text"] {
        assert_eq!(html.matches(&format!("id=\"{id}\"")).count(), 1, "section {id}");
        assert!(html.contains(&format!("href=\"#{id}\"")), "no link to {id}");
    }
    counts
}

#[test]
fn a_page_shows_what_the_compiler_did() {
    let folder = tempfile::tempdir().unwrap();
    let html = report(&sample(), folder.path());
    let counts = check(&html);
    // Two functions before; the same two and the body of a fused loop after.
    assert_eq!(html.matches("class=\"graph\"").count(), 5);
    assert!(html.matches("class=\"memory\"").count() >= 1);
    assert!(html.matches("class=\"range").count() >= 3, "the frame has ranges");
    assert!(counts["path"] > 10 && counts["table"] >= 5);
    for part in ["matmul_gated", "matmul, matmul, silu, mul", "1..=64", "@w_gate", "lower bound"] {
        assert!(html.contains(part), "{part}");
    }
    assert!(html.contains("a &amp; b &lt;c&gt;"), "names are escaped");
    assert_eq!(html, report(&sample(), folder.path()), "the same input gives the same page");
}

#[test]
fn a_language_model_gets_a_page() {
    let pulled = Command::new(env!("CARGO_BIN_EXE_aether")).args(["pull", "smollm2-135m"]).output();
    let model = String::from_utf8(pulled.unwrap().stdout).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let html = report(model.trim(), folder.path());
    check(&html);
    for part in ["@layer", "attention", "kv_append", "matmul_gated", "272 constants"] {
        assert!(html.contains(part), "{part}");
    }
    assert!(html.len() < 4 << 20, "{} bytes are too many to send along", html.len());
}

/// What the browser makes of the page: the document after parsing and scripts, and a picture.
#[test]
fn a_browser_draws_the_page() {
    let Some(browser) = browser() else { return };
    let folder = tempfile::tempdir().unwrap();
    let html = report(&sample(), folder.path());
    let page = format!("file://{}/report.html", folder.path().display());
    let run = |mode: &str| {
        let profile = format!("--user-data-dir={}/profile", folder.path().display());
        let flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,1600"];
        let output = Command::new(&browser)
            .args(flags)
            .args([&profile, "--virtual-time-budget=2000", mode, &page])
            .output()
            .expect("the browser starts");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let dom = run("--dump-dom");
    for (part, n) in [("<section", 8), ("<svg", html.matches("<svg").count())] {
        assert_eq!(dom.matches(part).count(), n, "{part} in what the browser made of the page");
    }
    let picture = folder.path().join("page.png");
    run(&format!("--screenshot={}", picture.display()));
    let png = std::fs::read(picture).expect("a screenshot");
    assert!(png.starts_with(b"\x89PNG") && png.len() > 20_000, "an empty picture");
}
