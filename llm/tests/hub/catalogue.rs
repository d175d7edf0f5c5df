//! The catalogue files, what a user's words mean, and where the cache is.

use aether_llm::hub::{self, Cache, Catalogue, HubError, Resolved, Source};

use crate::support::*;

#[test]
fn built_in_catalogues() {
    let seen = Catalogue::load_with(false, None).unwrap();
    assert_eq!(seen.names(), ["smollm2-135m", "gemma3-270m"]);
    assert!(seen.find(hub::DEFAULT_MODEL).is_some());
    let all = Catalogue::load_with(true, None).unwrap();
    assert_eq!(all.names()[2..], ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]);
    let parts: Vec<usize> = all
        .entries()
        .iter()
        .map(|e| match &e.sources[0] {
            Source::PyPi { packages, .. } => packages.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(parts, [1, 4, 6, 22]);
}

#[test]
fn names_that_are_not_known() {
    let catalogue = Catalogue::load_with(true, None).unwrap();
    let table = [
        ("smolm2-135m", vec!["smollm2-135m"]),
        ("SmolLM2", vec!["smollm2-135m"]),
        ("smolm", vec!["smollm2-135m"]),
        ("gem", vec!["gemma3-270m"]),
        ("qwen2.5-coder", vec!["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]),
        ("zebra", vec![]),
        ("", vec![]),
    ];
    for (name, near) in table {
        assert_eq!(catalogue.near(name), near, "{name}");
    }
    let text = catalogue.get("gemma3-270").unwrap_err().to_string();
    assert_eq!(
        text,
        "no model is named 'gemma3-270' (did you mean gemma3-270m?); known models: \
         smollm2-135m, gemma3-270m, qwen2.5-coder-0.5b, qwen2.5-coder-1.5b"
    );
}

#[test]
fn specs_mean_files_then_names() {
    let catalogue = Catalogue::load_with(false, None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("smollm2-135m");
    std::fs::write(&file, b"GGUF").unwrap();
    let file_text = file.to_str().unwrap();
    assert_eq!(hub::resolve(Some(file_text), &catalogue).unwrap(), Resolved::File(file.clone()));
    for spec in [None, Some("smollm2-135m")] {
        let Resolved::Model(entry) = hub::resolve(spec, &catalogue).unwrap() else { panic!() };
        assert_eq!(entry.name, "smollm2-135m");
    }
    let error = hub::resolve(folder.path().to_str(), &catalogue).unwrap_err();
    assert!(matches!(error, HubError::IsFolder { .. }), "{error}");
    let error = hub::resolve(Some("./model.gguf"), &catalogue).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no such file and no model of that name: './model.gguf'; known models: \
         smollm2-135m, gemma3-270m"
    );
}

#[test]
fn bad_catalogues_are_refused() {
    let good = serde_json::to_value(entry(b"x", vec![hub_source(), pip_source(2)])).unwrap();
    let document = |e: &serde_json::Value| serde_json::json!({ "models": [e] }).to_string();
    assert!(Catalogue::parse(&document(&good), "test").is_ok());
    let table = [
        ("/name", "../evil", "a name has"),
        ("/name", "A", "a name has"),
        ("/name", "", "a name has"),
        ("/name", "-x", "a name has"),
        ("/sha256", "00", "64 lower case"),
        ("/sources/0/repo", "owner", "owner/name"),
        ("/sources/0/repo", "a/b?c", "owner/name"),
        ("/sources/0/file", "../x", "plain relative path"),
        ("/sources/0/file", "/x", "plain relative path"),
        ("/sources/0/revision", "a b", "plain relative path"),
        ("/sources/0/kind", "ftp", "unknown variant"),
        ("/sources/1/packages/0", "--index-url==x", "pinned package"),
        ("/sources/1/packages/0", "name", "pinned package"),
        ("/sources/1/packages/0", "http://x==1", "pinned package"),
    ];
    for (pointer, value, expected) in table {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value.into();
        let text = Catalogue::parse(&document(&bad), "test").unwrap_err().to_string();
        assert!(text.contains(expected), "{pointer} {value}: {text}");
        assert!(text.starts_with("model catalogue test: "), "{text}");
    }
    for (text, expected) in [
        ("", "EOF"),
        ("{}", "missing field"),
        ("[1]", "invalid"),
        (r#"{"models":[{"name":"x","surprise":1}]}"#, "unknown field"),
    ] {
        let error = Catalogue::parse(text, "test").unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let mut zero = good.clone();
    zero["size"] = 0.into();
    assert!(Catalogue::parse(&document(&zero), "test").is_err());
    let mut odd = good.clone();
    odd["sources"][1]["files"] = serde_json::json!(["one"]);
    assert!(Catalogue::parse(&document(&odd), "test").is_err());
    let twice = serde_json::json!({ "models": [good, good] }).to_string();
    assert!(Catalogue::parse(&twice, "test").unwrap_err().to_string().contains("twice"));
}

#[test]
fn extra_catalogue_adds_and_replaces() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.json");
    let mut mine = entry(b"x", vec![hub_source()]);
    let new = mine.clone();
    mine.name = hub::DEFAULT_MODEL.to_owned();
    std::fs::write(&path, serde_json::json!({ "models": [mine, new] }).to_string()).unwrap();
    let catalogue = Catalogue::load_with(false, Some(&path)).unwrap();
    assert_eq!(catalogue.names(), ["smollm2-135m", "gemma3-270m", "tiny"]);
    assert_eq!(catalogue.get(hub::DEFAULT_MODEL).unwrap().size, 1);
    let error = Catalogue::load_with(false, Some(&folder.path().join("none"))).unwrap_err();
    assert!(error.to_string().contains("none"), "{error}");
}

#[test]
fn cache_folder_by_environment() {
    let with = |vars: &'static [(&'static str, &'static str)]| {
        Cache::from_vars(|name| vars.iter().find(|v| v.0 == name).map(|v| v.1.into()))
            .map(|c| c.root().to_str().unwrap().to_owned())
    };
    assert_eq!(with(&[("AETHER_HOME", "/a"), ("HOME", "/h")]).unwrap(), "/a");
    assert!(matches!(with(&[("AETHER_HOME", "")]), Err(HubError::NoCacheFolder)));
    if cfg!(target_os = "linux") {
        assert_eq!(with(&[("HOME", "/h")]).unwrap(), "/h/.cache/aether");
        assert_eq!(with(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]).unwrap(), "/x/aether");
        let relative = [("XDG_CACHE_HOME", "x"), ("HOME", "/h")];
        let relative = Cache::from_vars(|n| relative.iter().find(|v| v.0 == n).map(|v| v.1.into()));
        assert_eq!(relative.unwrap().root().to_str().unwrap(), "/h/.cache/aether");
    }
}
