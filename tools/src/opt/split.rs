//! `--split-input-file`: several modules in one file.

/// The line between two parts.
pub const MARK: &str = "// -----";

/// The parts. Each is led by as many empty lines as there are before it in the file, so that line
/// numbers in messages are those of the file.
pub fn parts(source: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    for (i, line) in source.split_inclusive('\n').enumerate() {
        if line.trim_end() == MARK {
            parts.push(std::mem::replace(&mut part, "\n".repeat(i + 1)));
        } else {
            part.push_str(line);
        }
    }
    parts.push(part);
    parts
}

#[cfg(test)]
mod tests {
    #[test]
    fn parts_keep_their_line_numbers() {
        let parts = super::parts("a\n// -----\nb\nc\n// -----\n");
        assert_eq!(parts, ["a\n", "\n\nb\nc\n", "\n\n\n\n\n"]);
    }
}
