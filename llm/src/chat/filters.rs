//! What templates expect beside Jinja itself.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// `json.dumps(value, ensure_ascii=False, indent=…)`.
pub(super) fn to_json(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    // Of transformers' other arguments the defaults are what is done.
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let mut out = String::new();
    write_json(value, indent.map(|n| n.min(16)), 0, &mut out)?;
    Ok(Value::from_safe_string(out))
}

/// Deeper values are refused.
const MOST_DEPTH: usize = 128;

fn write_json(
    value: &Value,
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
) -> Result<(), Error> {
    if depth > MOST_DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "the value is nested too deeply"));
    }
    if out.len() > super::limits::MOST_TEXT {
        return Err(super::limits::too_long());
    }
    let line = |out: &mut String, depth: usize| {
        if let Some(n) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', n * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    let atom = |out: &mut String| -> Result<(), Error> {
        let text = serde_json::to_string(value)
            .map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
        out.push_str(&text);
        Ok(())
    };
    match value.kind() {
        ValueKind::Map => {
            let mut empty = true;
            out.push('{');
            for key in value.try_iter()? {
                out.push_str(if empty { "" } else { comma });
                empty = false;
                line(out, depth + 1);
                let text = serde_json::to_string(&key.to_string()).unwrap_or_default();
                // Writing to a string does not fail.
                let _ = write!(out, "{text}: ");
                write_json(&value.get_item(&key)?, indent, depth + 1, out)?;
            }
            if !empty {
                line(out, depth);
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let mut empty = true;
            out.push('[');
            for item in value.try_iter()? {
                out.push_str(if empty { "" } else { comma });
                empty = false;
                line(out, depth + 1);
                write_json(&item, indent, depth + 1, out)?;
            }
            if !empty {
                line(out, depth);
            }
            out.push(']');
        }
        ValueKind::Undefined => out.push_str("null"),
        _ => atom(out)?,
    }
    Ok(())
}

/// Ends the rendering with a message.
pub(super) fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The date now (UTC), as `strftime` writes it: what templates ask for.
pub(super) fn strftime_now(format: String) -> Result<String, Error> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    strftime(&format, seconds).map_err(|c| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime: %{c} is not known"))
    })
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Seconds since 1970 as a date; the directive that is not known otherwise.
pub(super) fn strftime(format: &str, seconds: u64) -> Result<String, char> {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (name, week_day) = (MONTHS[month - 1], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let directive = chars.next().unwrap_or('%');
        // Writing to a string does not fail.
        let _ = match directive {
            'Y' => write!(out, "{year}"),
            'y' => write!(out, "{:02}", year % 100),
            'm' => write!(out, "{month:02}"),
            'B' => write!(out, "{name}"),
            'b' => write!(out, "{}", &name[..3]),
            'd' => write!(out, "{day:02}"),
            'A' => write!(out, "{week_day}"),
            'a' => write!(out, "{}", &week_day[..3]),
            'H' => write!(out, "{:02}", rest / 3600),
            'M' => write!(out, "{:02}", rest / 60 % 60),
            'S' => write!(out, "{:02}", rest % 60),
            '%' => write!(out, "%"),
            other => return Err(other),
        };
    }
    Ok(out)
}

/// Days since 1970 as year, month, day (Hinnant's `civil_from_days`).
fn civil(days: u64) -> (u64, usize, u64) {
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    (year, month as usize, doy - (153 * mp + 2) / 5 + 1)
}

/// An error with its place and its cause.
pub(super) fn describe(error: &Error) -> String {
    let mut text = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    if error.kind() == ErrorKind::OutOfFuel {
        text = "it takes too many steps (out of fuel)".to_owned();
    }
    if let Some(line) = error.line() {
        let _ = write!(text, " (line {line} of the template)");
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        let table = [
            (0, "1970-01-01 Thursday Thu"),
            (951_782_400, "2000-02-29 Tuesday Tue"),
            (1_709_164_800, "2024-02-29 Thursday Thu"),
            (1_735_689_599, "2024-12-31 Tuesday Tue"),
            (4_102_444_800, "2100-01-01 Friday Fri"),
        ];
        for (seconds, want) in table {
            assert_eq!(strftime("%Y-%m-%d %A %a", seconds).unwrap(), want);
        }
        assert_eq!(
            strftime("%d %b %y, %H:%M:%S 100%%", 1_000_000_000).unwrap(),
            "09 Sep 01, 01:46:40 100%"
        );
        assert_eq!(strftime("%Q", 0), Err('Q'));
    }
}
