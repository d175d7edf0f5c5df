//! The chat page: self-contained, and talking with the server in a browser when one is installed
//! (Debian's package `chromium`).

use std::path::Path;
use std::process::Command;

use aether_llm::server::ServerOptions;

use super::Server;
use super::browser::browser;

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let server = Server::plain();
    let (status, answer) = server.send("GET", "/", "", b"");
    assert_eq!(status, 200);
    let (head, html) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("text/html") && head.contains("default-src 'none'"), "{head}");
    assert!(html.starts_with("<!doctype html>") && html.ends_with("</html>\n"));
    for outside in ["src=", "@import", "url(", "innerHTML", "<link"] {
        assert!(!html.contains(outside), "{outside}");
    }
    let options = ServerOptions { page: false, ..ServerOptions::default() };
    assert_eq!(Server::start(options, 1).send("GET", "/", "", b"").0, 404);
}

/// The document after the page asked what its address says.
fn dom_after(browser: &Path, server: &Server, question: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    // The browser's clock runs ahead while nothing is to be done; the page's own, which ticks until
    // the answer is there, is something.
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000000"])
        .arg(format!("--user-data-dir={}", folder.path().display()))
        .arg("--dump-dom")
        .arg(format!("http://{}/#q={question}", server.address))
        .output()
        .expect("the browser starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_browser_asks_and_shows_the_answer() {
    let Some(browser) = browser() else { return };
    let options = ServerOptions {
        max_tokens: 12,
        seed: Some(1),
        grammar: Some("root ::= \"**yes** <b>\"".to_owned()),
        ..ServerOptions::default()
    };
    let server = Server::start(options, 8);
    // What is made once is made.
    server.lives();
    let dom = dom_after(&browser, &server, "Is%20it%3F");
    // The question, the answer as Markdown with markup as text, and what it cost.
    for part in [
        "<article class=\"user\">Is it?</article>",
        "<p><strong>yes</strong> &lt;b&gt;</p>",
        " tokens, ",
    ] {
        assert!(dom.contains(part), "{part} is not in {dom}");
    }
    let keys = ServerOptions { api_keys: vec!["sk-x".to_owned()], ..ServerOptions::default() };
    let dom = dom_after(&browser, &Server::start(keys, 8), "Hi");
    assert!(dom.contains("401: an API key is needed"), "{dom}");
}
