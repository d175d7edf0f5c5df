//! Models in several files, as llama.cpp's `llama-gguf-split` makes them.
//!
//! The files are called `NAME-00001-of-00003.gguf` and so on. Each has the keys `split.no` (from 0),
//! `split.count` and `split.tensors.count` (of all files together); the first has the metadata too.

use std::path::{Path, PathBuf};

use super::read::{Entry, Head};
use super::{Gguf, GgufError, Part, Value};

/// What stands between the name and the numbers' end: `-00001-of-00003`.
const SUFFIX: usize = "-00001-of-00003".len();

/// The name of a split file before its numbers, its number from 0, and how many there are.
fn numbered(path: &Path) -> Option<(String, u64, u64)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (name, suffix) = stem.split_at_checked(stem.len().checked_sub(SUFFIX)?)?;
    let (number, count) = suffix.strip_prefix('-')?.split_once("-of-")?;
    let parse = |digits: &str| {
        let whole = digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
        whole.then(|| digits.parse::<u64>().ok()).flatten()
    };
    let (number, count) = (parse(number)?, parse(count)?);
    (1..=count).contains(&number).then(|| (name.to_owned(), number - 1, count))
}

fn part_path(path: &Path, name: &str, number: u64, count: u64) -> PathBuf {
    path.with_file_name(format!("{name}-{:05}-of-{count:05}.gguf", number + 1))
}

/// The files of the model that `path` names: itself, or by their names all files of a split one.
pub fn part_paths(path: &Path) -> Vec<PathBuf> {
    match numbered(path) {
        Some((name, _, count)) => (0..count).map(|i| part_path(path, &name, i, count)).collect(),
        None => vec![path.to_owned()],
    }
}

/// What a file says of being a part.
struct Keys {
    number: u64,
    count: u64,
    /// Tensors of all files together.
    tensors: u64,
}

/// The keys of a part; `None` for a file that is whole.
fn keys(part: &Part, head: &Head) -> Result<Option<Keys>, GgufError> {
    let read = |entry: &Entry| {
        let value = Value::decode(entry.ty, &part.map[entry.start..entry.end]);
        value.and_then(|v| v.as_int()).and_then(|v| u64::try_from(v).ok())
    };
    let get = |key: &str| match head.keys.get(key) {
        None => Err(wrong(part.path(), format!("it is a part of a model without the key {key}"))),
        Some(entry) => read(entry)
            .ok_or_else(|| wrong(part.path(), format!("its metadata key {key} should be a count"))),
    };
    if !head.keys.contains_key("split.count") {
        return Ok(None);
    }
    match get("split.count")? {
        // Written so where a model was split and one file was enough.
        0 | 1 => Ok(None),
        count => {
            Ok(Some(Keys { number: get("split.no")?, count, tensors: get("split.tensors.count")? }))
        }
    }
}

fn wrong(path: &Path, problem: String) -> GgufError {
    GgufError::Split { path: path.to_owned(), problem }
}

/// Opens the file at `path`, and the others of its model when it is split.
pub(super) fn open(path: &Path, detached: bool) -> Result<Gguf, GgufError> {
    let (part, head) = Part::open(path, detached)?;
    let Some(found) = keys(&part, &head)? else { return Ok(Gguf { parts: vec![part], head }) };
    let (number, count) = (found.number, found.count);
    let Some((name, by_name, count_by_name)) = numbered(path) else {
        return Err(wrong(
            path,
            format!(
                "it is part {} of {count} of a model, but the others cannot be found by its name; \
                 it should be called NAME-{:05}-of-{count:05}.gguf, with the others beside it",
                number.saturating_add(1),
                number.saturating_add(1)
            ),
        ));
    };
    if (number, count) != (by_name, count_by_name) {
        let (said, named) = (number.saturating_add(1), by_name + 1);
        return Err(wrong(
            path,
            format!(
                "it says that it is part {said} of {count}, its name {named} of {count_by_name}"
            ),
        ));
    }
    let mut parts = Vec::new();
    let mut whole: Option<Head> = None;
    for i in 0..count {
        let other = part_path(path, &name, i, count);
        if !other.exists() {
            return Err(wrong(
                path,
                format!("part {} of {count} is missing: there is no {}", i + 1, other.display()),
            ));
        }
        let (part, mut head) = Part::open(&other, detached)?;
        let same = keys(&part, &head)?
            .is_some_and(|k| (k.number, k.count, k.tensors) == (i, count, found.tensors));
        if !same {
            let problem = format!("it is not part {} of {count} of the same model", i + 1);
            return Err(wrong(&other, problem));
        }
        for tensor in &mut head.tensors {
            tensor.part = parts.len();
        }
        match &mut whole {
            None => whole = Some(head),
            Some(whole) => {
                for tensor in head.tensors {
                    let index = whole.tensors.len();
                    if whole.by_name.insert(tensor.name.clone(), index).is_some() {
                        let problem = format!("another part has a tensor {:?} too", tensor.name);
                        return Err(wrong(&other, problem));
                    }
                    whole.tensors.push(tensor);
                }
            }
        }
        parts.push(part);
    }
    match whole {
        Some(head) if head.tensors.len() as u64 == found.tensors => Ok(Gguf { parts, head }),
        whole => {
            let there = whole.map_or(0, |head| head.tensors.len());
            let all = found.tensors;
            Err(wrong(path, format!("its {count} parts have {there} of the model's {all} tensors")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts_are_read() {
        let table = [
            ("a-00001-of-00003.gguf", Some(("a", 0, 3))),
            ("/x/b-c-00002-of-00002.gguf", Some(("b-c", 1, 2))),
            ("-00001-of-00001.gguf", Some(("", 0, 1))),
            ("a-00000-of-00003.gguf", None),
            ("a-00004-of-00003.gguf", None),
            ("a-0001-of-00003.gguf", None),
            ("a-00001-of-00003", None),
            ("a-+0001-of-00003.gguf", None),
            ("é00001-of-00003.gguf", None),
            ("of.gguf", None),
        ];
        for (path, want) in table {
            let found = numbered(Path::new(path));
            let found = found.as_ref().map(|(name, n, count)| (&**name, *n, *count));
            assert_eq!(found, want, "{path}");
        }
        let paths = part_paths(Path::new("/x/b-00002-of-00002.gguf"));
        let want = ["/x/b-00001-of-00002.gguf", "/x/b-00002-of-00002.gguf"].map(PathBuf::from);
        assert_eq!(paths, want);
        assert_eq!(part_paths(Path::new("/x/b.gguf")), [PathBuf::from("/x/b.gguf")]);
    }
}
