//! Files right, broken, renamed, swapped and taken away.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::parse::parse;
use super::read::keep_last_good;
use super::*;
use crate::model::Problem;
use crate::source::{Config, Object, spawn as spawn_source};

const WEB: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  clusterIP: 10.96.0.10
  ports:
  - port: 80
";

fn names(parsed: &parse::Parsed) -> Vec<String> {
    parsed.objects.iter().map(|sourced| sourced.object.reference().to_string()).collect()
}

fn problems(parsed: &parse::Parsed) -> Vec<String> {
    parsed.problems.iter().map(Problem::to_string).collect()
}

#[test]
fn one_wrong_document_leaves_the_others_alone() {
    let text = format!(
        "# a comment\n---\n{WEB}---\napiVersion: v1\nkind: Service\nmetadata:\n  name: bad\nspec:\n  ports:\n  - port: \"eighty\"\n\
         ---\nkind: [\n---\napiVersion: v1\nkind: Node\nmetadata: {{name: node-a}}\n...\n"
    );
    let parsed = keep_last_good(&[], parse("f.yaml", &text));
    assert_eq!(names(&parsed), ["Service default/web", "Node node-a"]);
    assert_eq!(parsed.objects[0].origin.as_ref().unwrap().line, 3);
    let problems = problems(&parsed);
    assert_eq!(
        problems[0],
        "f.yaml:18: Service default/bad: spec.ports[0].port: invalid type: string \"eighty\", expected i32; \
         nothing of it is in force, correct it"
    );
    assert!(problems[1].starts_with("f.yaml:20: this is not YAML: "), "{}", problems[1]);
    assert_eq!(problems.len(), 2);
    assert!(parsed.unreadable);
}

#[test]
fn lists_and_json_are_read() {
    let text = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}]}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}},
        {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "k"}, "spec": {"cidrs": []}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "b", "namespace": "x"},
         "addressType": "IPv4", "endpoints": [],
         "ports": [{"port": "http"}]},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "c", "namespace": "x"},
         "addressType": "IPv4", "endpoints": [], "ports": [{"port": 80}]}
    ]}"#;
    let parsed = parse("f.json", text);
    assert_eq!(names(&parsed), ["Service default/a", "ServiceCIDR k", "EndpointSlice x/c"]);
    assert_eq!(parsed.objects[0].origin.as_ref().unwrap().line, 2);
    let problems = problems(&parsed);
    assert!(
        problems[0].starts_with("f.json:7: EndpointSlice x/b: ports[0].port: invalid type"),
        "{problems:?}"
    );
    let Object::EndpointSlice(slice) = &parsed.objects[2].object else { panic!("a slice") };
    assert_eq!(slice.ports[0].name.as_deref(), Some(""), "what the API server fills in");
}

#[test]
fn what_a_document_lacks_is_named() {
    let cases = [
        ("a: 1\n", "f.yaml:1: this is not a Kubernetes object: it has no kind; add kind and apiVersion"),
        ("- 1\n", "f.yaml:1: this is not a Kubernetes object"),
        ("kind: Service\napiVersion: v1\n", "f.yaml:1: metadata.name: the Service has no name; write one"),
        (
            "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: x}\n",
            "f.yaml:1: EndpointSlice default/x: apiVersion: \"discovery.k8s.io/v1beta1\" is not read; write discovery.k8s.io/v1",
        ),
        ("kind: List\napiVersion: v1\nitems: 3\n", "f.yaml:1: this List cannot be read"),
        ("kind: Service\nkind: Node\n", "f.yaml:2: this is not YAML: duplicate mapping key"),
    ];
    for (text, expected) in cases {
        let parsed = parse("f.yaml", text);
        let problems = problems(&parsed);
        assert_eq!(problems.len(), 1, "{text}: {problems:?}");
        assert!(problems[0].starts_with(expected), "{problems:?}");
        assert_eq!(parsed.objects, []);
    }
    for text in
        ["", "---\n---\n", "# nothing\n", "%YAML 1.2\n---\n", "apiVersion: apps/v1\nkind: Deployment\n"]
    {
        let parsed = parse("f.yaml", text);
        assert!(parsed.objects.is_empty() && parsed.problems.is_empty(), "{text:?} {:?}", parsed.problems);
    }
}

#[test]
fn a_misspelt_field_is_named_with_its_line() {
    let parsed = parse("f.yaml", &WEB.replace("- port: 80", "- port: 80\n    nodeport: 30080"));
    assert_eq!(
        problems(&parsed),
        [
            "f.yaml:9: Service default/web: spec.ports[0].nodeport: there is no such field, and it is ignored; check how it is spelt"
        ]
    );
    assert_eq!(parsed.objects.len(), 1);
}

#[test]
fn null_is_as_good_as_nothing() {
    let text = WEB.replace("  name: web", "  name: web\n  creationTimestamp: null\n  labels: null")
        + "  sessionAffinityConfig: null\nstatus:\n  loadBalancer: null\n  \
           conditions: [{type: Ready, status: 'True', reason: r, message: m, lastTransitionTime: null}]\n";
    let parsed = parse("f.yaml", &text);
    assert_eq!((problems(&parsed), names(&parsed)), (vec![], vec!["Service default/web".to_owned()]));
}

#[test]
fn what_nothing_goes_by_is_told_and_the_rest_is_served() {
    let text =
        WEB.replace("- port: 80", "- port: 80\n    targetPort: {a: 1}\n  selector: web\n  selektor: web");
    let parsed = parse("f.yaml", &text);
    assert_eq!(names(&parsed), ["Service default/web"]);
    let said = problems(&parsed);
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said[0].starts_with("f.yaml:9: Service default/web: spec.ports[0].targetPort: "), "{said:?}");
    assert!(said[1].starts_with("f.yaml:10: Service default/web: spec.selector: invalid type"), "{said:?}");
    assert!(said[2].contains("spec.selektor: there is no such field"), "{said:?}");
    assert!(said[1].ends_with("nothing here goes by it, and the rest is served; correct it"), "{said:?}");
}

#[test]
fn what_breaks_keeps_its_last_good_content() {
    let two = format!("{WEB}---\n{}", WEB.replace("web", "api"));
    let good = parse("f.yaml", &two).objects;
    // Known which is wrong: that one stays as it was.
    let one_wrong = two.replacen("port: 80", "port: x", 1);
    let parsed = keep_last_good(&good, parse("f.yaml", &one_wrong));
    assert_eq!(names(&parsed), ["Service default/api", "Service default/web"]);
    let kept = "; its last good content stays in force, correct it";
    assert!(problems(&parsed)[0].ends_with(kept), "{:?}", parsed.problems);
    // Not known: nothing goes.
    let parsed = keep_last_good(&good, parse("f.yaml", "kind: ["));
    assert_eq!(parsed.objects, good);
    assert!(problems(&parsed)[0].ends_with(kept), "{:?}", parsed.problems);
    // What was never read is not in force, whatever else the file holds.
    let nothing = "; nothing of it is in force, correct it";
    let api = parse("f.yaml", &one_wrong).objects;
    for text in [one_wrong.clone(), format!("kind: [\n---\n{}", WEB.replace("web", "api"))] {
        let parsed = keep_last_good(&api, parse("f.yaml", &text));
        assert_eq!(names(&parsed), ["Service default/api"]);
        assert!(problems(&parsed)[0].ends_with(nothing), "{:?}", parsed.problems);
    }
    // Taken out on purpose.
    let parsed = keep_last_good(&good, parse("f.yaml", WEB));
    assert_eq!(names(&parsed), ["Service default/web"]);
}

fn config(path: &Path) -> Config {
    Config::Manifests { path: path.to_owned(), give_back_memory: || {} }
}

/// What a reader of the events knows.
struct Known {
    source: Source,
    objects: BTreeMap<ObjectRef, Sourced>,
    problems: Vec<Problem>,
    synced: bool,
}

impl Known {
    async fn new(path: &Path) -> Self {
        Self::of(config(path)).await
    }

    async fn of(config: Config) -> Self {
        let source = spawn_source(config).await.unwrap();
        let mut known = Self { source, objects: BTreeMap::new(), problems: Vec::new(), synced: false };
        known.until(|known| known.synced).await;
        known
    }

    async fn until(&mut self, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !done(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = tokio::time::timeout(left, self.source.events.recv()).await;
            match event.unwrap_or_else(|_| panic!("{:?} {:?}", self.names(), self.problems)).unwrap() {
                Event::Applied(sourced) => {
                    self.objects.insert(sourced.object.reference(), sourced);
                }
                Event::Deleted(reference) => {
                    self.objects.remove(&reference).unwrap();
                }
                Event::Reset { kind, objects } => {
                    self.objects.retain(|reference, _| reference.kind != kind);
                    self.objects
                        .extend(objects.into_iter().map(|sourced| (sourced.object.reference(), sourced)));
                }
                other @ (Event::ListBegun(_)
                | Event::Listed(_)
                | Event::Unreadable(_)
                | Event::ListEnded(_)
                | Event::Cluster(_)) => {
                    panic!("{other:?}")
                }
                Event::Synced => self.synced = true,
                Event::Problems(problems) => self.problems = problems,
            }
        }
    }

    async fn until_names(&mut self, names: &[&str]) {
        self.until(|known| known.names() == names).await;
    }

    fn names(&self) -> Vec<&str> {
        self.objects.keys().map(|reference| &*reference.name).collect()
    }
}

#[tokio::test]
async fn a_folder_is_watched() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("web.yaml"), WEB).unwrap();
    fs::write(at("notes.txt"), "no manifest").unwrap();
    fs::write(at(".hidden.yaml"), "no: manifest").unwrap();
    let mut known = Known::new(folder.path()).await;
    assert_eq!(known.names(), ["web"]);
    assert_eq!(known.problems, []);

    fs::write(at("api.yml"), WEB.replace("web", "api")).unwrap();
    known.until_names(&["api", "web"]).await;
    // As editors do.
    fs::write(at("new.tmp"), WEB.replace("web", "shop")).unwrap();
    fs::rename(at("new.tmp"), at("api.yml")).unwrap();
    known.until_names(&["shop", "web"]).await;
    fs::write(at("web.yaml"), "kind: [").unwrap();
    known.until(|known| !known.problems.is_empty()).await;
    assert_eq!(known.names(), ["shop", "web"], "what breaks stays in force");
    fs::remove_file(at("api.yml")).unwrap();
    known.until_names(&["web"]).await;
    fs::write(at("web.yaml"), WEB.replace("web", "web2")).unwrap();
    known.until_names(&["web2"]).await;
    known.until(|known| known.problems.is_empty()).await;
}

#[tokio::test]
async fn one_file_is_watched() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.yaml");
    fs::write(&file, WEB).unwrap();
    let mut known = Known::new(&file).await;
    assert_eq!(known.names(), ["web"]);
    fs::remove_file(&file).unwrap();
    known.until(|known| !known.problems.is_empty()).await;
    assert_eq!(known.names(), ["web"], "the file we were given is missed, not forgotten");
    fs::write(&file, WEB.replace("web", "api")).unwrap();
    known.until_names(&["api"]).await;
}

#[tokio::test]
async fn a_mounted_config_map_is_watched() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (version, name) in [("..1", "web"), ("..2", "api")] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("all.yaml"), WEB.replace("web", name)).unwrap();
    }
    symlink("..1", at("..data")).unwrap();
    symlink("..data/all.yaml", at("all.yaml")).unwrap();
    let mut known = Known::new(folder.path()).await;
    assert_eq!(known.names(), ["web"]);
    symlink("..2", at("..new")).unwrap();
    fs::rename(at("..new"), at("..data")).unwrap();
    known.until_names(&["api"]).await;
}

#[tokio::test]
async fn the_same_object_twice_is_told_and_the_first_file_wins() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.yaml"), WEB).unwrap();
    fs::write(folder.path().join("b.yaml"), WEB.replace("10.96.0.10", "10.96.0.11")).unwrap();
    let known = Known::new(folder.path()).await;
    let origin = known.objects.values().next().unwrap().origin.clone().unwrap();
    assert!(origin.file.ends_with("a.yaml"));
    assert!(known.problems[0].message.contains("a.yaml:1 as well"), "{:?}", known.problems);
}

#[tokio::test]
async fn a_path_that_is_not_there_is_an_error() {
    let error = spawn_source(config(Path::new("/does/not/exist"))).await.unwrap_err();
    assert!(error.to_string().starts_with("--manifests /does/not/exist: "), "{error}");
}

#[tokio::test]
async fn what_is_no_file_is_told_and_holds_nothing_up() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let fifo = std::process::Command::new("mkfifo").args([at("a-fifo.yaml"), at("hidden")]).status().unwrap();
    assert!(fifo.success());
    symlink(at("hidden"), at("b-link.yaml")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("c-socket.yaml")).unwrap();
    symlink("/dev/zero", at("d-device.yaml")).unwrap();
    symlink(at("nowhere"), at("e-broken.yaml")).unwrap();
    fs::create_dir(at("f-folder.yaml")).unwrap();
    fs::write(at("web.yaml"), WEB).unwrap();
    let known = Known::new(folder.path()).await;
    assert_eq!(known.names(), ["web"]);
    let said: Vec<String> = known.problems.iter().map(Problem::to_string).collect();
    for (said, (name, what)) in said.iter().zip([
        ("a-fifo.yaml", "it is a FIFO and no file; take it out; nothing of it is in force"),
        ("b-link.yaml", "it is a FIFO and no file"),
        ("c-socket.yaml", "it is a socket and no file"),
        ("d-device.yaml", "it is a device and no file"),
        ("e-broken.yaml", "No such file"),
    ]) {
        assert!(said.contains(name) && said.contains(what), "{said}");
    }
    assert_eq!(said.len(), 5, "{said:?}");
    let error = spawn_source(config(&at("hidden"))).await.unwrap_err().to_string();
    assert!(
        error.ends_with("hidden: it is a FIFO and no file; give a file or folder that exists"),
        "{error}"
    );
}

#[tokio::test]
async fn a_file_that_is_too_large_is_told_and_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let large = folder.path().join("large.yaml");
    fs::write(&large, WEB).unwrap();
    let mut known = Known::new(folder.path()).await;
    assert_eq!(known.names(), ["web"]);
    // A hole takes no room.
    fs::File::options().write(true).open(&large).unwrap().set_len((64 << 20) + 1).unwrap();
    known.until(|known| !known.problems.is_empty()).await;
    let said = known.problems[0].to_string();
    let expected = "large.yaml: cannot be read: it is larger than 64 MiB; split it; its last good content stays in force";
    assert!(said.ends_with(expected), "{said}");
    fs::write(folder.path().join("api.yaml"), WEB.replace("web", "api")).unwrap();
    known.until_names(&["api", "web"]).await;
}

#[tokio::test]
async fn memory_is_given_back_after_a_large_reading() {
    static TIMES: AtomicU32 = AtomicU32::new(0);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("web.yaml"), WEB).unwrap();
    let give_back_memory = || {
        TIMES.fetch_add(1, Ordering::SeqCst);
    };
    let config = Config::Manifests { path: folder.path().to_owned(), give_back_memory };
    let mut known = Known::of(config).await;
    fs::write(folder.path().join("small.yaml"), WEB.replace("web", "small")).unwrap();
    known.until_names(&["small", "web"]).await;
    assert_eq!(TIMES.load(Ordering::SeqCst), 0);
    fs::write(
        folder.path().join("large.yaml"),
        format!("{}#{}\n", WEB.replace("web", "large"), "x".repeat(2 << 20)),
    )
    .unwrap();
    known.until_names(&["large", "small", "web"]).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while TIMES.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn endpoints_by_hand_are_mirrored() {
    let folder = tempfile::tempdir().unwrap();
    let endpoints = |address: &str| {
        format!(
            "apiVersion: v1\nkind: Endpoints\nmetadata: {{name: web}}\nsubsets:\n\
             - {{addresses: [{{ip: {address}}}], ports: [{{port: 8080}}]}}\n"
        )
    };
    fs::write(folder.path().join("endpoints.yaml"), endpoints("10.0.0.1")).unwrap();
    let mut known = Known::new(folder.path()).await;
    assert_eq!(known.names(), [""; 0]);
    assert!(known.problems[0].message.contains("no Service of its name"), "{:?}", known.problems);
    // The Service may stand in another file, and come later.
    fs::write(folder.path().join("web.yaml"), WEB).unwrap();
    known.until_names(&["web", "web/IPv4/8080/TCP"]).await;
    known.until(|known| known.problems.is_empty()).await;
    fs::write(folder.path().join("endpoints.yaml"), endpoints("10.0.0.2")).unwrap();
    known
        .until(|known| {
            let slices = known.objects.values().filter_map(|sourced| match &sourced.object {
                Object::EndpointSlice(slice) => Some(slice.endpoints[0].addresses[0].as_str()),
                _ => None,
            });
            slices.eq(["10.0.0.2"])
        })
        .await;
    fs::remove_file(folder.path().join("web.yaml")).unwrap();
    known.until_names(&[]).await;
}

proptest::proptest! {
    #[test]
    fn no_text_upsets_it(text in "(---\n|kind: |Service|List|apiVersion: |v1|items:|[-a-z:{}\\[\\]&*!|>\"'#%,. \t\n\r0-9é])*") {
        let _ = parse("f.yaml", &text);
    }

    #[test]
    fn no_damage_to_a_file_upsets_it(at in 0..WEB.len(), with in "[^a]{0,3}", cut in 0usize..20) {
        let mut text = WEB.to_owned();
        text.replace_range(at..(at + cut).min(WEB.len()), &with);
        let parsed = parse("f.yaml", &format!("{text}\n---\n{}", WEB.replace("web", "other")));
        // The other document may only be lost when the damage opened it up to this one.
        proptest::prop_assert!(names(&parsed).iter().any(|name| name.ends_with("other")));
    }
}
