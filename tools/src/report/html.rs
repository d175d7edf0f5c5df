//! Small parts of a page: escaped text, tables, numbers for people.

use std::fmt::Write as _;

/// Text as HTML, in attributes too.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Not allowed in HTML, whatever the encoding.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A cell of a table.
pub enum Cell {
    Text(String),
    /// Set in the fixed-width font.
    Code(String),
    /// Aligned to the right.
    Number(String),
    /// A bar of this share of the width, with a text.
    Bar(f64, String),
}

/// A table with these headings.
pub fn table(headings: &[&str], rows: &[Vec<Cell>]) -> String {
    let mut out = String::from("<div class=\"wide\"><table>\n<thead><tr>");
    for (i, heading) in headings.iter().enumerate() {
        let number = matches!(rows.first().and_then(|row| row.get(i)), Some(Cell::Number(_)));
        let class = if number { " class=\"n\"" } else { "" };
        let _ = write!(out, "<th{class}>{}</th>", escape(heading));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        out.push_str("<tr>");
        for cell in row {
            let _ = match cell {
                Cell::Text(text) => write!(out, "<td>{}</td>", escape(text)),
                Cell::Code(text) => write!(out, "<td><code>{}</code></td>", escape(text)),
                Cell::Number(text) => write!(out, "<td class=\"n\">{}</td>", escape(text)),
                Cell::Bar(share, text) => write!(
                    out,
                    "<td class=\"bar\"><span style=\"width:{:.1}%\"></span><b>{}</b></td>",
                    share.clamp(0.0, 1.0) * 100.0,
                    escape(text)
                ),
            };
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    out
}

/// Bytes with a binary unit.
pub fn bytes(n: f64) -> String {
    scaled(n, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// A count with a decimal unit.
pub fn count(n: f64) -> String {
    scaled(n, 1000.0, &["", "k", "M", "G", "T"]).trim_end().to_owned()
}

/// Seconds with a unit.
pub fn seconds(s: f64) -> String {
    scaled(s * 1e6, 1000.0, &["µs", "ms", "s"])
}

fn scaled(n: f64, step: f64, units: &[&str]) -> String {
    let (mut n, mut unit) = (n, 0);
    while n.abs() >= step && unit + 1 < units.len() {
        n /= step;
        unit += 1;
    }
    match n {
        n if n == n.trunc() && n < 10_000.0 => format!("{n:.0} {}", units[unit]),
        n => format!("{n:.1} {}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(bytes(1000.0), "1000 B");
        assert_eq!(bytes(1536.0), "1.5 KiB");
        assert_eq!(count(2_500_000.0), "2.5 M");
        assert_eq!(count(12.0), "12");
        assert_eq!(seconds(0.0125), "12.5 ms");
    }

    #[test]
    fn nothing_escapes() {
        let cell = Cell::Text("<script>\"&'\u{1}".to_owned());
        let table = table(&["a<b"], &[vec![cell]]);
        assert!(
            table.contains("&lt;script&gt;&quot;&amp;&#39;\u{fffd}") && table.contains("a&lt;b")
        );
    }
}
