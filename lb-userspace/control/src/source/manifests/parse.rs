//! The text of one file into objects: one wrong document leaves the others alone.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use super::doubts::{Doubt, doubts};
use crate::model::{Kind, ObjectRef, Origin, Problem, Severity};
use crate::objects::EndpointSlice;
use crate::source::{Object, Sourced};

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// The objects that can be read.
    pub(super) objects: Vec<Sourced>,
    /// What is wrong with the others.
    pub(super) problems: Vec<Problem>,
    /// Objects that are named but cannot be read.
    pub(super) wrong: BTreeSet<ObjectRef>,
    /// Some document tells not even which object it is.
    pub(super) unreadable: bool,
    /// The problems, by their numbers, that are to say whether an object, or what a document held, is still in force.
    pub(super) unsettled: Vec<(usize, Option<ObjectRef>)>,
}

impl Parsed {
    /// An object, or a document that nobody can read, is lost, unless it was read before.
    fn lose(&mut self, object: Option<&ObjectRef>, problem: Problem) {
        match object {
            Some(object) => drop(self.wrong.insert(object.clone())),
            None => self.unreadable = true,
        }
        self.unsettled.push((self.problems.len(), object.cloned()));
        self.problems.push(problem);
    }
}

/// Reads YAML, of which JSON is a part, with any number of documents.
pub(super) fn parse(file: &str, text: &str) -> Parsed {
    let file: Arc<str> = file.into();
    let mut parsed = Parsed::default();
    for (first_line, text) in documents(text) {
        let document = Document { file: &file, first_line, text, places: OnceCell::new() };
        document.read(&mut parsed);
    }
    parsed
}

/// Cuts a text at the lines `---` and `...`, which in YAML always end a document. Returns each with the
/// number of the line it starts at, from 0.
fn documents(text: &str) -> Vec<(u32, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    for (number, line) in (0u32..).zip(text.split_inclusive('\n')) {
        let end = line.trim_end();
        let begins = end == "---" || line.starts_with("--- ") || line.starts_with("---\t");
        if begins || end == "..." {
            documents.push((start_line, &text[start..offset]));
            // A line `--- # text` or `--- {…}` is part of the document it begins.
            let skip = if end.len() == 3 { line.len() } else { 0 };
            start = offset + skip;
            start_line = if skip > 0 { number + 1 } else { number };
        }
        offset += line.len();
    }
    documents.push((start_line, &text[start..]));
    // What comes before the first document may be directives, which are no document.
    let is_document = |text: &str| text.lines().any(|line| !line.is_empty() && !line.starts_with(['%', '#']));
    documents.retain(|(_, text)| is_document(text));
    documents
}

struct Document<'a> {
    file: &'a Arc<str>,
    first_line: u32,
    text: &'a str,
    /// Worked out by reading the text a second time, where it is needed.
    places: OnceCell<Option<Located>>,
}

/// The beginning of every object.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: Option<String>,
    kind: Option<String>,
    #[serde(default)]
    metadata: Option<HeadMetadata>,
}

#[derive(Deserialize)]
struct HeadMetadata {
    namespace: Option<String>,
    name: Option<String>,
}

impl Document<'_> {
    fn read(&self, parsed: &mut Parsed) {
        match serde_saphyr::from_str_with_options(self.text, options()) {
            Ok(Value::Null) => {}
            Ok(value) => self.object(value, "", parsed),
            Err(error) => {
                let line = error.location().map_or(1, |location| location.line() as u32);
                let message = format!("this is not YAML: {}", plain(&error));
                parsed.lose(None, Problem::of_source(Severity::Error, message).at(Some(&self.origin(line))));
            }
        }
    }

    /// Reads the object at `path` (empty: the document itself, `items[3]`: part of a List).
    fn object(&self, value: Value, path: &str, parsed: &mut Parsed) {
        let place = || self.origin(self.line_of(path));
        // A list would be read as the fields in their order.
        let no_fields = serde_json::Map::new();
        let fields = value.as_object().unwrap_or(&no_fields);
        let head: Head = match serde_path_to_error::deserialize(fields) {
            Ok(head) => head,
            Err(error) => {
                parsed.unreadable = true;
                let field = join(path, error.path());
                let origin = self.origin(self.line_of(&field));
                let message = format!("{}; correct it", error.inner());
                let problem = Problem { field, ..Problem::of_source(Severity::Error, message) };
                return parsed.problems.push(problem.at(Some(&origin)));
            }
        };
        let Some(kind) = head.kind else {
            parsed.unreadable = true;
            let message = "this is not a Kubernetes object: it has no kind; add kind and apiVersion";
            return parsed.problems.push(Problem::of_source(Severity::Error, message).at(Some(&place())));
        };
        let version = head.api_version.as_deref().unwrap_or("");
        let (kind, expected) = match kind.as_str() {
            "List" => return self.list(value, version, path, parsed),
            "Service" => (Kind::Service, "v1"),
            "EndpointSlice" => (Kind::EndpointSlice, "discovery.k8s.io/v1"),
            "Endpoints" => (Kind::Endpoints, "v1"),
            "Node" => (Kind::Node, "v1"),
            "ServiceCIDR" => (Kind::ServiceCidr, "networking.k8s.io/v1"),
            other => {
                tracing::debug!("{}: kind {other} is not read", place());
                return;
            }
        };
        let metadata = head.metadata.unwrap_or(HeadMetadata { namespace: None, name: None });
        let namespace = match kind {
            Kind::Node | Kind::ServiceCidr => "".to_owned(),
            _ => metadata.namespace.filter(|namespace| !namespace.is_empty()).unwrap_or("default".to_owned()),
        };
        let Some(name) = metadata.name.filter(|name| !name.is_empty()) else {
            parsed.unreadable = true;
            let message = format!("the {kind} has no name; write one");
            let problem =
                Problem { field: "metadata.name".to_owned(), ..Problem::of_source(Severity::Error, message) };
            return parsed.problems.push(problem.at(Some(&place())));
        };
        let reference = ObjectRef::new(kind, namespace, name);
        if version != expected {
            parsed.wrong.insert(reference.clone());
            let message = format!("{version:?} is not read; write {expected}");
            let problem = Problem::of(&reference, Severity::Error, "apiVersion", message);
            return parsed.problems.push(problem.at(Some(&place())));
        }
        match kind {
            Kind::Service => self.typed(
                &value,
                path,
                &reference,
                parsed,
                |object| Object::Service(Box::new(object)),
                doubts::<core::Service>,
            ),
            Kind::EndpointSlice => self.typed(
                &value,
                path,
                &reference,
                parsed,
                |object| Object::EndpointSlice(Box::new(with_defaults(object))),
                doubts::<discovery::EndpointSlice>,
            ),
            Kind::Endpoints => self.typed(
                &value,
                path,
                &reference,
                parsed,
                |object| Object::Endpoints(Box::new(object)),
                doubts::<core::Endpoints>,
            ),
            Kind::Node => self.typed(
                &value,
                path,
                &reference,
                parsed,
                |object| Object::Node(Box::new(object)),
                doubts::<core::Node>,
            ),
            Kind::ServiceCidr => self.typed(
                &value,
                path,
                &reference,
                parsed,
                |object| Object::ServiceCidr(Box::new(object)),
                doubts::<networking::ServiceCIDR>,
            ),
        }
    }

    fn list(&self, mut value: Value, version: &str, path: &str, parsed: &mut Parsed) {
        let items = match value.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) if version == "v1" && path.is_empty() => items,
            None if version == "v1" => Vec::new(),
            _ => {
                parsed.unreadable = true;
                let message = "this List cannot be read; write apiVersion v1, and objects under items";
                let origin = self.origin(self.line_of(path));
                return parsed.problems.push(Problem::of_source(Severity::Error, message).at(Some(&origin)));
            }
        };
        for (i, item) in items.into_iter().enumerate() {
            self.object(item, &format!("items[{i}]"), parsed);
        }
    }

    fn typed<T: DeserializeOwned>(
        &self,
        value: &Value,
        path: &str,
        reference: &ObjectRef,
        parsed: &mut Parsed,
        wrap: impl FnOnce(T) -> Object,
        doubts: impl FnOnce(&Value) -> Vec<Doubt>,
    ) {
        let origin = |field: &str| self.origin(self.line_of(&join_text(path, field)));
        let object: T = match serde_path_to_error::deserialize(value) {
            Ok(object) => object,
            Err(error) => {
                let field = join("", error.path());
                let message = error.inner().to_string();
                let problem = Problem::of(reference, Severity::Error, field.as_str(), message);
                return parsed.lose(Some(reference), problem.at(Some(&origin(&field))));
            }
        };
        for Doubt { field, message } in doubts(value) {
            let problem = Problem::of(reference, Severity::Warning, field.as_str(), message);
            parsed.problems.push(problem.at(Some(&origin(&field))));
        }
        parsed.objects.push(Sourced { object: wrap(object), origin: Some(origin("")) });
    }

    fn origin(&self, line: u32) -> Origin {
        Origin { file: self.file.clone(), line: self.first_line + line }
    }

    /// The line of a field within the document, from 1; of what is around it when it is not there.
    fn line_of(&self, path: &str) -> u32 {
        let places = || serde_saphyr::from_str_with_options(self.text, options()).ok();
        self.places.get_or_init(places).as_ref().map_or(1, |root| root.line_of(path))
    }
}

fn options() -> serde_saphyr::Options {
    // Ours are the user's own files, whose size is limited already: the defaults would refuse a List of
    // ten thousand objects. The limits on aliases stay.
    serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_nodes: 50_000_000, max_events: 100_000_000 },
    }
}

/// What the API server fills in.
fn with_defaults(mut slice: EndpointSlice) -> EndpointSlice {
    for port in &mut slice.ports {
        port.name.get_or_insert_default();
    }
    slice
}

pub(super) fn join(path: &str, inner: &Path) -> String {
    let mut text = path.to_owned();
    for segment in inner.iter() {
        match segment {
            Segment::Seq { index } => text.push_str(&format!("[{index}]")),
            Segment::Map { key } => text = join_text(&text, key),
            Segment::Enum { variant } => text = join_text(&text, variant),
            Segment::Unknown => {}
        }
    }
    text
}

pub(super) fn join_text(path: &str, field: &str) -> String {
    match (path, field) {
        ("", text) | (text, "") => text.to_owned(),
        (path, field) => format!("{path}.{field}"),
    }
}

/// The message without the text around it, in one line.
fn plain(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

/// Where every part of a document stands.
struct Located {
    line: u32,
    content: Content,
}

#[derive(Default)]
enum Content {
    #[default]
    Scalar,
    List(Vec<Located>),
    Fields(Vec<(String, Located)>),
}

impl Located {
    fn line_of(&self, path: &str) -> u32 {
        let mut here = self;
        for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
            let next = match &here.content {
                Content::Scalar => None,
                Content::List(items) => {
                    step.trim_end_matches(']').parse::<usize>().ok().and_then(|index| items.get(index))
                }
                Content::Fields(fields) => {
                    fields.iter().find(|(name, _)| name == step).map(|(_, value)| value)
                }
            };
            match next {
                Some(next) => here = next,
                None => break,
            }
        }
        here.line
    }
}

impl<'de> Deserialize<'de> for Located {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = serde_saphyr::Spanned::<Content>::deserialize(deserializer)?;
        Ok(Self { line: spanned.referenced.line() as u32, content: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> serde::de::Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("anything")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Content, E> {
        Ok(Content::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Content, E> {
        Ok(Content::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Content, E> {
        Ok(Content::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Content, E> {
        Ok(Content::Scalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<Content, E> {
        Ok(Content::Scalar)
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar)
    }

    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar)
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Content, D::Error> {
        Content::deserialize(deserializer)
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Content, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Content::List(items))
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Content::Fields(fields))
    }
}
