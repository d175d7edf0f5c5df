//! Names and strings in the text: when they need quotes, and how quotes are read.

/// Whether a name can stand after `%` or `@` without quotes.
pub fn is_bare(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'$' | b'-'))
}

/// Whether a name is all digits: such names belong to values that have none.
pub fn is_number(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit())
}

/// Adds `text` in quotes.
pub fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                out.push_str(&format!("\\u{{{:x}}}", c as u32));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// The text that a quoted string stands for, or what is wrong with it.
pub fn unquote(quoted: &str) -> Result<String, String> {
    let inner = quoted
        .strip_prefix('"')
        .and_then(|q| q.strip_suffix('"'))
        .ok_or_else(|| "expected a string in quotes".to_owned())?;
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some(c @ ('"' | '\\')) => out.push(c),
            Some('u') => {
                let rest = chars.as_str();
                let decoded = rest
                    .strip_prefix('{')
                    .and_then(|r| r.split_once('}'))
                    .filter(|(digits, _)| (1..=6).contains(&digits.len()))
                    .and_then(|(digits, after)| {
                        let code = u32::from_str_radix(digits, 16).ok()?;
                        Some((char::from_u32(code)?, after))
                    });
                let Some((c, after)) = decoded else {
                    return Err("`\\u` needs a character's number, as in `\\u{e9}`".to_owned());
                };
                out.push(c);
                chars = after.chars();
            }
            other => {
                let other = other.map(String::from).unwrap_or_default();
                return Err(format!("unknown escape `\\{other}`"));
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_is_reversible() {
        for text in ["", "a", "\"", "\\", "a\nb\tc\r", "\u{0}\u{7f}\u{2028}é☃", "\\u{41}"] {
            let mut quoted = String::new();
            quote(&mut quoted, text);
            assert_eq!(unquote(&quoted).as_deref(), Ok(text));
            assert!(!quoted.contains('\n'));
        }
        for bad in ["", "\"", "\"\\q\"", "\"\\u{110000}\"", "\"\\u{}\"", "\"\\u41\"", "\"\\\""] {
            assert!(unquote(bad).is_err(), "{bad}");
        }
    }
}
