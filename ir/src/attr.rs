//! Attributes: the compile-time arguments of an operation.

use std::sync::Arc;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

/// An attribute's value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Attr {
    Bool(bool),
    Int(i64),
    Float(#[serde(with = "float")] f64),
    Ints(Vec<i64>),
    Str(Arc<str>),
}

/// Floats as numbers; those that JSON has no numbers for as `{"float": "nan"}`, `inf`, `-inf`.
mod float {
    use std::borrow::Cow;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Form<'a> {
        Number(f64),
        Named { float: Cow<'a, str> },
    }

    pub fn serialize<S: Serializer>(v: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        let form = match v {
            v if v.is_nan() => Form::Named { float: "nan".into() },
            v if v.is_infinite() => Form::Named { float: v.to_string().into() },
            v => Form::Number(*v),
        };
        form.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        match Form::deserialize(deserializer)? {
            Form::Number(v) => Ok(v),
            Form::Named { float } => float.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// What kind of value an attribute takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttrKind {
    Bool,
    Int,
    Float,
    Ints,
    Str,
}

impl AttrKind {
    /// The kind's name in messages.
    pub fn name(self) -> &'static str {
        match self {
            AttrKind::Bool => "a boolean",
            AttrKind::Int => "an integer",
            AttrKind::Float => "a number",
            AttrKind::Ints => "a list of integers",
            AttrKind::Str => "a string",
        }
    }

    /// Whether `attr` is of this kind. Integers serve where a number is asked for.
    pub fn accepts(self, attr: &Attr) -> bool {
        matches!(
            (self, attr),
            (AttrKind::Bool, Attr::Bool(_))
                | (AttrKind::Int, Attr::Int(_))
                | (AttrKind::Float, Attr::Float(_) | Attr::Int(_))
                | (AttrKind::Ints, Attr::Ints(_))
                | (AttrKind::Str, Attr::Str(_))
        )
    }
}

/// One attribute in an op's table row.
#[derive(Clone, Copy, Debug)]
pub struct AttrSpec {
    pub name: &'static str,
    pub kind: AttrKind,
    pub required: bool,
    pub doc: &'static str,
}

/// Attributes by name, in the order of the op's table row when canonical.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attrs(pub IndexMap<Arc<str>, Attr>);

impl Attrs {
    /// No attributes.
    pub fn new() -> Self {
        Attrs::default()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same with one more attribute.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Attr>) -> Self {
        self.0.insert(name.into(), value.into());
        self
    }

    /// The attribute of that name.
    pub fn get(&self, name: &str) -> Option<&Attr> {
        self.0.get(name)
    }

    /// An integer, or `default` when absent or of another kind (which the verifier refuses).
    pub fn int(&self, name: &str, default: i64) -> i64 {
        match self.get(name) {
            Some(Attr::Int(v)) => *v,
            _ => default,
        }
    }

    /// A number, or `default`.
    pub fn float(&self, name: &str, default: f64) -> f64 {
        match self.get(name) {
            Some(Attr::Float(v)) => *v,
            Some(Attr::Int(v)) => *v as f64,
            _ => default,
        }
    }

    /// A boolean, or `default`.
    pub fn bool(&self, name: &str, default: bool) -> bool {
        match self.get(name) {
            Some(Attr::Bool(v)) => *v,
            _ => default,
        }
    }

    /// A list of integers, when present.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.get(name) {
            Some(Attr::Ints(v)) => Some(v),
            _ => None,
        }
    }

    /// A string, when present.
    pub fn str(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(Attr::Str(v)) => Some(v),
            _ => None,
        }
    }
}

impl From<bool> for Attr {
    fn from(v: bool) -> Self {
        Attr::Bool(v)
    }
}

impl From<i64> for Attr {
    fn from(v: i64) -> Self {
        Attr::Int(v)
    }
}

impl From<f64> for Attr {
    fn from(v: f64) -> Self {
        Attr::Float(v)
    }
}

impl From<&str> for Attr {
    fn from(v: &str) -> Self {
        Attr::Str(v.into())
    }
}

impl From<Vec<i64>> for Attr {
    fn from(v: Vec<i64>) -> Self {
        Attr::Ints(v)
    }
}
