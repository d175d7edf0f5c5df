//! The header of a file: `// RUN: aether-opt ARGUMENTS` lines before the module.
//!
//! Arguments are separated by spaces; double quotes keep spaces together. The file itself is
//! not named.

use anyhow::{Context, bail};
use clap::Parser;

use super::Cli;

/// How a line begins that says how a file is run.
pub const RUN: &str = "// RUN: aether-opt";

/// The line behind which a test says what must come out; it is no part of the input.
pub const EXPECT: &str = "// expect:\n";

/// The arguments of every `RUN` line in the comments before the module.
///
/// # Errors
/// When quotes are not closed, or the flags are not known.
pub fn run_lines(source: &str) -> anyhow::Result<Vec<Cli>> {
    let header = source.lines().take_while(|line| line.starts_with("//") || line.trim().is_empty());
    header.filter_map(|line| line.strip_prefix(RUN)).map(|line| parse(line.trim())).collect()
}

/// The arguments in the file's header, when the command line names the file and says no more.
pub fn arguments(cli: &Cli, source: &str) -> anyhow::Result<Option<Cli>> {
    let bare = Cli { file: cli.file.clone(), ..parse("")? };
    if format!("{cli:?}") != format!("{bare:?}") {
        return Ok(None);
    }
    let first = run_lines(source)?.into_iter().next();
    Ok(first.map(|found| Cli { file: cli.file.clone(), ..found }))
}

fn parse(line: &str) -> anyhow::Result<Cli> {
    let words = words(line).with_context(|| format!("in the header `{RUN} {line}`"))?;
    let arguments = std::iter::once("aether-opt".to_owned()).chain(words);
    // The error's first line suffices here: what follows is the usage of the whole command.
    Cli::try_parse_from(arguments).map_err(|e| {
        let text = e.to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        anyhow::anyhow!("in the header `{RUN} {line}`: {first}")
    })
}

fn words(line: &str) -> anyhow::Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            c if c.is_whitespace() && !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    if quoted {
        bail!("quotes are not closed");
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_at_spaces_outside_quotes() {
        let table: [(&str, &[&str]); 4] = [
            ("", &[]),
            ("  a  --b=c ", &["a", "--b=c"]),
            ("--input \"x=[1, 2]\" y", &["--input", "x=[1, 2]", "y"]),
            ("--pipeline \"\"", &["--pipeline", ""]),
        ];
        for (line, want) in table {
            assert_eq!(words(line).unwrap(), want);
        }
        assert!(words("a \"b").is_err());
    }

    #[test]
    fn a_file_alone_is_run_as_its_header_says() {
        let cli = |args: &[&str]| Cli::parse_from([&["aether-opt"], args].concat());
        let source = "// Why.\n// RUN: aether-opt --pipeline cse\n\nmodule @m {\n}\n";
        let found = arguments(&cli(&["f.aet"]), source).unwrap().unwrap();
        assert_eq!(
            (found.pipeline.as_deref(), found.file.unwrap().to_str()),
            (Some("cse"), Some("f.aet"))
        );
        assert!(arguments(&cli(&["f.aet", "--stats"]), source).unwrap().is_none());
        assert!(arguments(&cli(&["f.aet"]), "module @m {\n}\n").unwrap().is_none());
        let e = run_lines("// RUN: aether-opt --nonsense\n").unwrap_err().to_string();
        assert!(e.contains("--nonsense"), "{e}");
    }
}
