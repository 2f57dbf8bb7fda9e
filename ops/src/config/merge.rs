//! The pure half of `config`: layers in, one value or a list of mistakes out. Not a reader of
//! files or of the environment. Invariant: it always ends, after at most [`MAX_ROUNDS`] attempts.

use std::fmt;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use serde_path_to_error::Segment;

use super::{ConfigErrors, RESERVED_ENV};

/// Each attempt to read the value finds one mistake or mends one environment text; a configuration
/// with more mistakes than this is reported in part.
const MAX_ROUNDS: usize = 64;

/// One thing that is wrong, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Key as `section.key`, empty for the whole.
    pub key: String,
    /// Where it was given: a file, an environment variable, a flag.
    pub origin: Option<String>,
    /// What is wrong, and a suggestion where there is one.
    pub what: String,
}

impl Mistake {
    /// About a key, found after the configuration was read.
    pub fn of_key(key: &str, what: impl Into<String>) -> Self {
        Self { key: key.to_owned(), origin: None, what: what.into() }
    }

    /// About a file as a whole.
    pub fn of_file(name: &str, what: impl Into<String>) -> Self {
        Self { key: String::new(), origin: Some(name.to_owned()), what: what.into() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("configuration: ")?;
        match (self.key.as_str(), &self.origin) {
            ("", None) => {}
            ("", Some(origin)) => write!(f, "{origin}: ")?,
            (key, None) => write!(f, "{key}: ")?,
            (key, Some(origin)) => write!(f, "{key} (from {origin}): ")?,
        }
        f.write_str(&self.what)
    }
}

/// One step on the way to a value.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

type Path = Vec<Step>;

fn show(path: &[Step]) -> String {
    let mut out = String::new();
    for step in path {
        match step {
            Step::Key(key) if out.is_empty() => out.push_str(key),
            Step::Key(key) => {
                out.push('.');
                out.push_str(key);
            }
            Step::Index(i) => out.push_str(&format!("[{i}]")),
        }
    }
    out
}

/// A source of values, weaker ones first.
struct Layer {
    kind: LayerKind,
    value: Value,
}

enum LayerKind {
    File(String),
    Env(String),
    Flag,
}

/// As [`super::load`], with everything given: `file` is a name and a text.
pub fn load_from<T>(
    file: Option<(&str, &str)>,
    env: impl Iterator<Item = (String, String)>,
    env_prefix: &str,
    flags: Value,
) -> Result<T, ConfigErrors>
where
    T: DeserializeOwned + Serialize,
{
    let mut layers = Vec::new();
    if let Some((name, text)) = file {
        let value = parse_toml(name, text).map_err(|m| ConfigErrors(vec![m]))?;
        layers.push(Layer { kind: LayerKind::File(name.to_owned()), value });
    }
    layers.extend(env_layers(env, env_prefix));
    let mut flags = flags;
    super::drop_nulls(&mut flags);
    layers.push(Layer { kind: LayerKind::Flag, value: flags });
    Reader::new(layers).read()
}

fn parse_toml(name: &str, text: &str) -> Result<Value, Mistake> {
    let table: toml::Table = toml::from_str(text).map_err(|e| {
        // The library's display quotes the line, which may hold a secret; the position is enough.
        let line =
            e.span().map_or(1, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        Mistake::of_file(name, format!("line {line}: not TOML: {}", first_line(e.message())))
    })?;
    serde_json::to_value(table).map_err(|e| Mistake::of_file(name, e.to_string()))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// One layer per variable, so that a mistake can name it. Sorted, for the same result each time.
fn env_layers(env: impl Iterator<Item = (String, String)>, prefix: &str) -> Vec<Layer> {
    let mut vars: Vec<(String, String)> = env
        .filter(|(name, _)| name.starts_with(prefix) && !RESERVED_ENV.contains(&name.as_str()))
        .collect();
    vars.sort();
    let layer = |(name, text): (String, String)| {
        let steps = name[prefix.len()..].to_lowercase();
        let value = steps.rsplit("__").fold(Value::String(text), |inner, key| {
            Value::Object(Map::from_iter([(key.to_owned(), inner)]))
        });
        Layer { kind: LayerKind::Env(name), value }
    };
    vars.into_iter().map(layer).collect()
}

struct Reader {
    layers: Vec<Layer>,
    merged: Value,
    mistakes: Vec<Mistake>,
}

impl Reader {
    fn new(layers: Vec<Layer>) -> Self {
        let mut merged = Value::Object(Map::new());
        for layer in &layers {
            merge(&mut merged, &layer.value);
        }
        Self { layers, merged, mistakes: Vec::new() }
    }

    fn read<T: DeserializeOwned + Serialize>(mut self) -> Result<T, ConfigErrors> {
        for _ in 0..MAX_ROUNDS {
            match serde_path_to_error::deserialize::<_, T>(self.merged.clone()) {
                Ok(value) => {
                    let printed = serde_json::to_value(&value).unwrap_or(Value::Null);
                    let given = self.merged.clone();
                    self.find_unknown(&given, &printed, &mut Vec::new());
                    return if self.mistakes.is_empty() {
                        Ok(value)
                    } else {
                        Err(ConfigErrors(self.mistakes))
                    };
                }
                Err(e) => {
                    let path = to_path(e.path());
                    let message = first_line(&e.inner().to_string()).to_owned();
                    if !self.mend(&path, &message) && !self.note(path, &message) {
                        break;
                    }
                }
            }
        }
        Err(ConfigErrors(self.mistakes))
    }

    /// Environment variables are texts. Where the key wants something else, read the text as JSON;
    /// where it wants a list, else as words between commas. True if there is something new to try,
    /// which is never a text again where a text failed, so this ends.
    fn mend(&mut self, path: &[Step], message: &str) -> bool {
        if !self.given_by_env(path) {
            return false;
        }
        let Some(place) = get_mut(&mut self.merged, path) else { return false };
        let Value::String(text) = &*place else { return false };
        let json = serde_json::from_str::<Value>(text).ok().filter(|v| !v.is_string());
        let new = if message.contains("expected a sequence") {
            json.filter(Value::is_array).unwrap_or_else(|| words(text))
        } else if let Some(json) = json {
            json
        } else {
            return false;
        };
        *place = new;
        true
    }

    fn given_by_env(&self, path: &[Step]) -> bool {
        !path.is_empty()
            && matches!(self.layer_of(path), Some(Layer { kind: LayerKind::Env(_), .. }))
    }

    /// The strongest layer that gives this key or something below it.
    fn layer_of(&self, path: &[Step]) -> Option<&Layer> {
        let keys: Vec<&str> = path
            .iter()
            .map_while(|s| match s {
                Step::Key(k) => Some(k.as_str()),
                Step::Index(_) => None,
            })
            .collect();
        self.layers.iter().rev().find(|layer| {
            let mut at = &layer.value;
            for key in &keys {
                match at.get(key) {
                    Some(inner) => at = inner,
                    // A scalar above the key: it gave all that is below.
                    None => return !at.is_object(),
                }
            }
            true
        })
    }

    fn origin(&self, path: &[Step]) -> Option<String> {
        match &self.layer_of(path)?.kind {
            LayerKind::File(name) => Some(name.clone()),
            LayerKind::Env(name) => Some(name.clone()),
            LayerKind::Flag => {
                let flag = path.iter().rev().find_map(|s| match s {
                    Step::Key(key) => Some(key.replace('_', "-")),
                    Step::Index(_) => None,
                })?;
                Some(format!("--{flag}"))
            }
        }
    }

    /// Notes a mistake and takes its value away, so that the next one can be found. False if
    /// nothing can be taken away.
    fn note(&mut self, path: Path, message: &str) -> bool {
        if let Some(field) = between(message, "missing field `", "`") {
            let mut key = path.clone();
            key.push(Step::Key(field.to_owned()));
            let near = get(&self.merged, &path)
                .and_then(Value::as_object)
                .and_then(|given| nearest(field, given.keys().map(String::as_str)));
            let hint = near.map_or(String::new(), |k| format!("; did you mean it by {k:?}?"));
            self.push(&key, None, format!("must be given{hint}"));
            return false;
        }
        let mut path = path;
        if let Some(field) = between(message, "unknown field `", "`") {
            if path.last() != Some(&Step::Key(field.to_owned())) {
                path.push(Step::Key(field.to_owned()));
            }
            let known: Vec<&str> = message.split('`').skip(3).step_by(2).collect();
            let what = unknown(field, known.into_iter());
            let origin = self.origin(&path);
            self.push(&path, origin, what);
        } else {
            let origin = self.origin(&path);
            self.push(&path, origin, message.to_owned());
        }
        remove(&mut self.merged, &path)
    }

    fn push(&mut self, path: &[Step], origin: Option<String>, what: String) {
        self.mistakes.push(Mistake { key: show(path), origin, what });
    }

    /// Whatever was given and is not printed back was not read by anyone.
    fn find_unknown(&mut self, given: &Value, printed: &Value, path: &mut Path) {
        match (given, printed) {
            (Value::Object(given), Value::Object(printed)) => {
                for (key, value) in given {
                    path.push(Step::Key(key.clone()));
                    match printed.get(key) {
                        Some(inner) => self.find_unknown(value, inner, path),
                        None => self.note_unknown(key, printed, path),
                    }
                    path.pop();
                }
            }
            (Value::Array(given), Value::Array(printed)) => {
                for (i, (a, b)) in given.iter().zip(printed).enumerate() {
                    path.push(Step::Index(i));
                    self.find_unknown(a, b, path);
                    path.pop();
                }
            }
            // A secret, or a type with a form of its own.
            _ => {}
        }
    }

    fn note_unknown(&mut self, key: &str, known: &Map<String, Value>, path: &Path) {
        let near = nearest(key, known.keys().map(String::as_str));
        // Environments are full of variables that others set (Kubernetes makes some up from
        // service names): one without a section is ours only if it looks like a key of ours.
        if self.given_by_env(path) && path.len() == 1 && near.is_none() {
            return;
        }
        let origin = self.origin(path);
        self.push(path, origin, unknown(key, known.keys().map(String::as_str)));
    }
}

fn unknown<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    match nearest(key, known.iter().copied()) {
        Some(near) => format!("unknown key; did you mean {near:?}?"),
        None if known.is_empty() => "unknown key".to_owned(),
        None => format!("unknown key; known are {}", known.join(", ")),
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = &text[text.find(before)? + before.len()..];
    Some(&rest[..rest.find(after)?])
}

fn to_path(path: &serde_path_to_error::Path) -> Path {
    path.iter()
        .map_while(|segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

fn words(text: &str) -> Value {
    let parts = text.split(',').map(str::trim).filter(|w| !w.is_empty());
    Value::Array(parts.map(|w| Value::String(w.to_owned())).collect())
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

fn get<'a>(value: &'a Value, path: &[Step]) -> Option<&'a Value> {
    path.iter().try_fold(value, |v, step| match step {
        Step::Key(key) => v.get(key),
        Step::Index(i) => v.get(i),
    })
}

fn get_mut<'a>(value: &'a mut Value, path: &[Step]) -> Option<&'a mut Value> {
    path.iter().try_fold(value, |v, step| match step {
        Step::Key(key) => v.get_mut(key),
        Step::Index(i) => v.get_mut(i),
    })
}

/// Takes a value away; true if it was there. An element of a list takes the list with it, because
/// the others' numbers would change.
fn remove(value: &mut Value, path: &[Step]) -> bool {
    let end = path.iter().position(|s| matches!(s, Step::Index(_))).unwrap_or(path.len());
    let Some((Step::Key(last), parents)) = path[..end].split_last() else { return false };
    get_mut(value, parents)
        .and_then(Value::as_object_mut)
        .is_some_and(|map| map.remove(last).is_some())
}

/// The known word that the given one was probably meant to be.
fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A word much longer than any key was not meant to be one, and comparing costs its square.
    if word.len() > 64 {
        return None;
    }
    let allowed = match word.chars().count() {
        0..=3 => 1,
        4..=7 => 2,
        _ => 3,
    };
    known
        .map(|k| (edits(word, k), k))
        .filter(|(n, k)| *n <= allowed && *n < k.len())
        .min_by_key(|(n, _)| *n)
        .map(|(_, k)| k)
}

/// Insertions, deletions, replacements and swaps of neighbours between two words.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}
