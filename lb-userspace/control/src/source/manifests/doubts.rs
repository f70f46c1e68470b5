//! What is said of fields that are not read: nothing goes by them, but their author may have meant something else.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use super::parse::{join, join_text};

/// Wrong fields of an object that are told.
const MOST: usize = 16;

/// Something about a field that its author should look at.
pub(super) struct Doubt {
    /// Path of the field.
    pub(super) field: String,
    /// What is odd and what to do.
    pub(super) message: String,
}

/// Compares what is written with what Kubernetes has in an object of this type.
pub(super) fn doubts<T: DeserializeOwned + Serialize>(object: &Value) -> Vec<Doubt> {
    let mut written = object.clone();
    drop_nulls(&mut written);
    let mut doubts = Vec::new();
    for _ in 0..MOST {
        let error = match serde_path_to_error::deserialize::<_, T>(&written) {
            Ok(read) => {
                let mut unknown = Vec::new();
                if let Ok(read) = serde_json::to_value(&read) {
                    unknown_fields(&written, &read, "", &mut unknown);
                }
                doubts.extend(unknown.into_iter().map(|field| {
                    let message =
                        "there is no such field, and it is ignored; check how it is spelt".to_owned();
                    Doubt { field, message }
                }));
                return doubts;
            }
            Err(error) => error,
        };
        let inner = error.inner().to_string();
        // The API server would fill in what is missing.
        if !inner.starts_with("missing field") {
            let message = format!("{inner}; nothing here goes by it, and the rest is served; correct it");
            doubts.push(Doubt { field: join("", error.path()), message });
        }
        if !take_out(&mut written, error.path()) {
            break;
        }
    }
    doubts
}

/// Null is as good as nothing.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Takes out the field at `path`, or the list it is in. False where there is none.
fn take_out(value: &mut Value, path: &Path) -> bool {
    let keys: Vec<&String> = path
        .iter()
        .map_while(|segment| if let Segment::Map { key } = segment { Some(key) } else { None })
        .collect();
    let Some((last, before)) = keys.split_last() else { return false };
    let around = before.iter().try_fold(value, |value, key| value.get_mut(key.as_str()));
    let fields = around.and_then(Value::as_object_mut);
    fields.is_some_and(|fields| fields.remove(last.as_str()).is_some())
}

/// Fields of `written` that have not made it into `read`.
fn unknown_fields(written: &Value, read: &Value, path: &str, unknown: &mut Vec<String>) {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (name, value) in written {
                let path = join_text(path, name);
                match read.get(name) {
                    Some(read) => unknown_fields(value, read, &path, unknown),
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(written), Value::Array(read)) => {
            for (i, (written, read)) in written.iter().zip(read).enumerate() {
                unknown_fields(written, read, &format!("{path}[{i}]"), unknown);
            }
        }
        _ => {}
    }
}
