//! Objects as the API sends them: one that cannot be read is one object less, and not the end of a list or a watch.

use std::borrow::Cow;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::{ApiResource, DynamicResourceScope};
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::Read;
use crate::model::{Kind, Problem, Severity};
use crate::objects::Metadata;
use crate::source::{Object, reference};

/// What is long and of no use to us: not even kept while an object is being read.
const PASSED_OVER: [&str; 4] =
    ["managedFields", "ownerReferences", "finalizers", "kubectl.kubernetes.io/last-applied-configuration"];

/// An object of one kind, or why it is none.
#[derive(Clone, Debug)]
pub(super) struct Seen<T> {
    /// As far as kube needs it.
    metadata: ObjectMeta,
    content: Result<T, Unread>,
}

/// What cannot be read of an object.
#[derive(Clone, Debug)]
struct Unread {
    field: String,
    message: String,
}

impl<T> Seen<T> {
    /// The object; or, where it cannot be read, what to say about it.
    pub(super) fn read(self, kind: Kind, wrap: fn(T) -> Object) -> Read {
        let Self { metadata, content } = self;
        content.map(wrap).map_err(|Unread { field, message }| {
            let metadata =
                Metadata { name: metadata.name, namespace: metadata.namespace, ..Metadata::default() };
            let message = format!("{message}; what is known of this object stays in force, correct it");
            Problem::of(&reference(kind, &metadata), Severity::Error, field, message).into()
        })
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Seen<T> {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        let Lean(object) = Lean::deserialize(reader)?;
        let text = |name: &str| object["metadata"][name].as_str().map(str::to_owned);
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        // To know where takes longer, and is rarely asked.
        let content = T::deserialize(&object).or_else(|_| {
            serde_path_to_error::deserialize(&object).map_err(|error| Unread {
                field: error.path().to_string(),
                message: error.inner().to_string(),
            })
        });
        Ok(Self { metadata, content })
    }
}

impl<T> Resource for Seen<T> {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// JSON without what is passed over.
struct Lean(Value);

impl<'de> Deserialize<'de> for Lean {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_any(LeanVisitor).map(Self)
    }
}

struct LeanVisitor;

impl<'de> Visitor<'de> for LeanVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Lean(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            if PASSED_OVER.contains(&name.as_str()) {
                map.next_value::<IgnoredAny>()?;
            } else {
                let Lean(value) = map.next_value()?;
                fields.insert(name, value);
            }
        }
        Ok(fields.into())
    }
}

#[cfg(test)]
#[path = "seen/tests.rs"]
mod tests;
