//! Typed access to the metadata.

use super::value::{Array, Strings, Value, ValueType};
use super::{Gguf, GgufError};

/// Any integer type of the file is accepted where an integer is asked for, any number where a
/// float is. For a key that may be absent see [`Optional`].
impl Gguf {
    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        take: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<T, GgufError> {
        let Some(value) = self.get(key) else {
            let (path, key) = (self.path().to_owned(), key.to_owned());
            return Err(GgufError::MissingKey { path, key, expected });
        };
        take(value).ok_or_else(|| self.wrong(key, expected, value.type_text()))
    }

    fn wrong(&self, key: &str, expected: &'static str, found: String) -> GgufError {
        let (path, key) = (self.path().to_owned(), key.to_owned());
        GgufError::WrongType { path, key, expected, found }
    }

    fn range(&self, key: &str, expected: &'static str, value: String) -> GgufError {
        let (path, key) = (self.path().to_owned(), key.to_owned());
        GgufError::OutOfRange { path, key, expected, value }
    }

    fn int<T: TryFrom<i128>>(&self, key: &str, expected: &'static str) -> Result<T, GgufError> {
        let v = self.typed(key, expected, |v| v.as_int())?;
        T::try_from(v).map_err(|_| self.range(key, expected, v.to_string()))
    }

    /// An integer from 0 to 2³² − 1.
    ///
    /// # Errors
    /// When the key is missing, holds no integer, or one that does not fit.
    pub fn get_u32(&self, key: &str) -> Result<u32, GgufError> {
        self.int(key, "an unsigned 32-bit integer")
    }

    /// An integer from 0 to 2⁶⁴ − 1.
    ///
    /// # Errors
    /// When the key is missing, holds no integer, or one that does not fit.
    pub fn get_u64(&self, key: &str) -> Result<u64, GgufError> {
        self.int(key, "an unsigned 64-bit integer")
    }

    /// A number, rounded to `f32`.
    ///
    /// # Errors
    /// When the key is missing or holds no number.
    pub fn get_f32(&self, key: &str) -> Result<f32, GgufError> {
        self.typed(key, "a number", |v| v.as_f32())
    }

    /// A truth value.
    ///
    /// # Errors
    /// When the key is missing or holds another type.
    pub fn get_bool(&self, key: &str) -> Result<bool, GgufError> {
        self.typed(key, "a bool", |v| v.as_bool())
    }

    /// A string.
    ///
    /// # Errors
    /// When the key is missing, holds another type, or bytes that are not UTF-8.
    pub fn get_str(&self, key: &str) -> Result<&str, GgufError> {
        let bytes = self.typed(key, "a string", |v| v.as_bytes())?;
        std::str::from_utf8(bytes)
            .map_err(|_| self.range(key, "valid UTF-8", "the string".to_owned()))
    }

    /// An array of any element type.
    ///
    /// # Errors
    /// When the key is missing or holds another type.
    pub fn get_array(&self, key: &str) -> Result<Array<'_>, GgufError> {
        self.typed(key, "an array", |v| v.as_array())
    }

    /// The strings of an array, as bytes; they are not copied.
    ///
    /// # Errors
    /// When the key is missing or holds another type.
    pub fn get_strings(&self, key: &str) -> Result<Strings<'_>, GgufError> {
        self.typed(key, "an array of strings", |v| {
            v.as_array().filter(|a| a.elem_type() == ValueType::Str).map(|a| Strings(a.iter()))
        })
    }

    /// An array of numbers, rounded to `f32`.
    ///
    /// # Errors
    /// When the key is missing or holds another type.
    pub fn get_f32s(&self, key: &str) -> Result<Vec<f32>, GgufError> {
        self.typed(key, "an array of numbers", |v| {
            v.as_array()?.iter().map(|v| v.as_f32()).collect()
        })
    }

    fn ints<T: TryFrom<i128>>(
        &self,
        key: &str,
        expected: &'static str,
        item: &'static str,
    ) -> Result<Vec<T>, GgufError> {
        let array = self.typed(key, expected, |v| {
            v.as_array()
                .filter(|a| a.is_empty() || a.iter().next().is_some_and(|v| v.as_int().is_some()))
        })?;
        let convert = |v: Value<'_>| {
            let v = v.as_int().unwrap_or_default();
            T::try_from(v).map_err(|_| self.range(key, item, v.to_string()))
        };
        array.iter().map(convert).collect()
    }

    /// An array of integers from 0 to 2³² − 1.
    ///
    /// # Errors
    /// When the key is missing, holds another type, or a number that does not fit.
    pub fn get_u32s(&self, key: &str) -> Result<Vec<u32>, GgufError> {
        self.ints(key, "an array of integers", "an unsigned 32-bit integer")
    }

    /// An array of integers from −2³¹ to 2³¹ − 1.
    ///
    /// # Errors
    /// When the key is missing, holds another type, or a number that does not fit.
    pub fn get_i32s(&self, key: &str) -> Result<Vec<i32>, GgufError> {
        self.ints(key, "an array of integers", "a signed 32-bit integer")
    }
}

/// A key that may be absent but, if present, must be right:
/// `gguf.get_f32("llama.rope.freq_base").optional()?.unwrap_or(10_000.0)`.
pub trait Optional<T> {
    /// `None` in place of [`GgufError::MissingKey`].
    ///
    /// # Errors
    /// Every other error stays.
    fn optional(self) -> Result<Option<T>, GgufError>;
}

impl<T> Optional<T> for Result<T, GgufError> {
    fn optional(self) -> Result<Option<T>, GgufError> {
        match self {
            Ok(v) => Ok(Some(v)),
            Err(GgufError::MissingKey { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }
}
