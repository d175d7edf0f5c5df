//! `aether models`: lists the catalogue.

use std::io::{self, ErrorKind, Write};

use aether_llm::hub::{Cache, Catalogue, DEFAULT_MODEL, bytes};
use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

/// List the models that can be named with -m
#[derive(Debug, Args)]
pub struct ModelsArgs {
    /// Print one JSON list with all that the catalogue knows
    #[arg(long)]
    pub json: bool,
    /// Include the models that tests and benchmarks use
    #[arg(long, hide = true)]
    pub dev: bool,
}

/// Lists the models on standard output.
pub fn run(args: &ModelsArgs) -> anyhow::Result<()> {
    let catalogue = Catalogue::load(args.dev)?;
    let cache = Cache::open()?;
    let text = if args.json {
        format!("{:#}\n", json_list(&catalogue, &cache)?)
    } else {
        table(&catalogue, &cache)
    };
    match io::stdout().write_all(text.as_bytes()) {
        // The reader of a pipe has seen enough.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

/// A table for people: name, size, licence, if it is here, description.
pub fn table(catalogue: &Catalogue, cache: &Cache) -> String {
    let mut rows = vec![["NAME", "SIZE", "LICENCE", "CACHED", "DESCRIPTION"].map(str::to_owned)];
    for entry in catalogue.entries() {
        rows.push([
            entry.name.clone(),
            bytes(entry.size),
            entry.licence.name.clone(),
            if cache.is_present(entry) { "yes" } else { "no" }.to_owned(),
            entry.description.clone(),
        ]);
    }
    let mut widths = [0; 5];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The entries as they are in the catalogue, each with `default`, `cached` and `path`.
pub fn json_list(catalogue: &Catalogue, cache: &Cache) -> anyhow::Result<Value> {
    let mut list = Vec::new();
    for entry in catalogue.entries() {
        let mut value = serde_json::to_value(entry)?;
        value["default"] = json!(entry.name == DEFAULT_MODEL);
        value["cached"] = json!(cache.is_present(entry));
        value["path"] = json!(cache.model_path(entry).to_string_lossy());
        list.push(value);
    }
    Ok(Value::Array(list))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_list_the_catalogue() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let catalogue = Catalogue::load_with(false, None).unwrap();
        let text = table(&catalogue, &cache);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("NAME          SIZE    LICENCE"), "{text}");
        assert!(lines[1].starts_with("smollm2-135m  98 MB   Apache-2.0"), "{text}");
        assert!(lines[1].contains("  no      SmolLM2"), "{text}");
        assert!(lines[2].starts_with("gemma3-270m   253 MB  Gemma Terms of Use"), "{text}");

        let list = json_list(&catalogue, &cache).unwrap();
        assert_eq!(list[0]["name"], "smollm2-135m");
        assert_eq!(list[0]["default"], true);
        assert_eq!(list[1]["cached"], false);
        assert_eq!(list[1]["size"], 253_113_024);
        assert!(list[0]["path"].as_str().unwrap().ends_with("smollm2-135m.gguf"));
    }
}
