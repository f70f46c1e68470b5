//! OCI archives: an image layout (<https://specs.opencontainers.org/image-spec/image-layout/>) in a tar.
//!
//! The same content gives the same bytes: nothing in it depends on when or where it was made.

use std::collections::BTreeMap;
use std::io::{self, Write};

use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// An image with one file, an executable program.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    /// As Go calls it: `amd64`, `arm64`.
    pub architecture: &'a str,
    /// The file's path, without the first slash.
    pub file: &'a str,
    /// Its content.
    pub content: &'a [u8],
    /// What is started.
    pub entrypoint: &'a [String],
    /// Annotations of the image.
    pub labels: &'a [(&'static str, String)],
}

/// The content of an archive.
#[derive(Debug)]
pub struct Archive {
    /// By their hashes.
    blobs: BTreeMap<String, Vec<u8>>,
    index: Value,
    digest: String,
}

impl Archive {
    /// The images of several architectures under one name, such as `localhost/shunt:0.1.0`.
    ///
    /// # Errors
    /// A layer cannot be packed.
    pub fn new(name: &str, images: &[Image<'_>]) -> io::Result<Self> {
        let mut archive = Self { blobs: BTreeMap::new(), index: Value::Null, digest: String::new() };
        let mut manifests = Vec::new();
        for image in images {
            let mut manifest = archive.add_image(image)?;
            manifest["platform"] = json!({ "architecture": image.architecture, "os": "linux" });
            manifests.push(manifest);
        }
        // An index of its own for the architectures: tools take the one entry of the outer one, then the machine's.
        let inner = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        let mut entry = archive.add_json(INDEX, &inner);
        archive.digest = entry["digest"].as_str().unwrap_or_default().to_owned();
        let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        entry["annotations"] =
            json!({ "org.opencontainers.image.ref.name": tag, "io.containerd.image.name": name });
        archive.index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
        Ok(archive)
    }

    fn add_image(&mut self, image: &Image<'_>) -> io::Result<Value> {
        let layer = layer(image.file, image.content)?;
        let mut packed = GzBuilder::new().write(Vec::new(), Compression::best());
        packed.write_all(&layer)?;
        let descriptor = self.add(LAYER, packed.finish()?);
        let labels: BTreeMap<_, _> = image.labels.iter().map(|(name, value)| (*name, value)).collect();
        let config = json!({
            "created": EPOCH,
            "architecture": image.architecture,
            "os": "linux",
            "config": { "Entrypoint": image.entrypoint, "Labels": labels },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
            "history": [{ "created": EPOCH, "created_by": format!("COPY {0} /{0}", image.file) }],
        });
        let config = self.add_json(CONFIG, &config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": [descriptor],
            "annotations": labels,
        });
        Ok(self.add_json(MANIFEST, &manifest))
    }

    fn add_json(&mut self, media_type: &str, value: &Value) -> Value {
        self.add(media_type, value.to_string().into_bytes())
    }

    /// Keeps a blob; its descriptor.
    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = digest(&bytes);
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
        self.blobs.insert(digest, bytes);
        descriptor
    }

    /// Writes it; the digest of the index that names all architectures.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, out: impl Write) -> io::Result<String> {
        let mut tar = tar::Builder::new(out);
        append(&mut tar, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        append(&mut tar, "index.json", 0o644, self.index.to_string().as_bytes())?;
        for (digest, bytes) in &self.blobs {
            append(&mut tar, &format!("blobs/{}", digest.replace(':', "/")), 0o644, bytes)?;
        }
        tar.into_inner()?.flush()?;
        Ok(self.digest.clone())
    }
}

/// A layer that holds one program.
fn layer(path: &str, content: &[u8]) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, path, 0o755, content)?;
    tar.into_inner()
}

fn append(tar: &mut tar::Builder<impl Write>, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    tar.append_data(&mut header, path, content)
}

fn digest(bytes: &[u8]) -> String {
    let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hash}")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    fn written() -> (String, BTreeMap<String, Vec<u8>>) {
        let (entrypoint, labels) = (["/shunt".to_owned()], [("a", "b".to_owned())]);
        let image = |architecture, content| Image {
            architecture,
            file: "shunt",
            content,
            entrypoint: &entrypoint,
            labels: &labels,
        };
        let images = [image("amd64", b"for PCs".as_slice()), image("arm64", b"for ARM".as_slice())];
        let mut bytes = Vec::new();
        let digest = Archive::new("localhost:5000/shunt:1", &images).unwrap().write(&mut bytes).unwrap();
        (digest, files(&bytes))
    }

    fn files(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(tar).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), bytes);
        }
        files
    }

    fn json(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    /// The blob of a descriptor, which tells size and hash.
    fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
        let name = descriptor["digest"].as_str().unwrap();
        let bytes = &files[&format!("blobs/{}", name.replace(':', "/"))];
        assert_eq!(descriptor["size"], bytes.len());
        assert_eq!(digest(bytes), name);
        bytes
    }

    #[test]
    fn every_architecture_is_found_from_the_index_and_holds_its_program() {
        let (digest_of_all, files) = written();
        assert_eq!(json(&files["oci-layout"]), json!({ "imageLayoutVersion": "1.0.0" }));
        let outer = &json(&files["index.json"])["manifests"][0];
        assert_eq!(outer["digest"], digest_of_all);
        assert_eq!(outer["annotations"]["org.opencontainers.image.ref.name"], "1");
        let inner = json(blob(&files, outer));
        for (number, architecture, content) in [(0, "amd64", "for PCs"), (1, "arm64", "for ARM")] {
            let entry = &inner["manifests"][number];
            assert_eq!(entry["platform"], json!({ "architecture": architecture, "os": "linux" }));
            let manifest = json(blob(&files, entry));
            let config = json(blob(&files, &manifest["config"]));
            assert_eq!(config["architecture"], architecture);
            assert_eq!(config["config"]["Entrypoint"], json!(["/shunt"]));
            let mut layer = Vec::new();
            GzDecoder::new(blob(&files, &manifest["layers"][0])).read_to_end(&mut layer).unwrap();
            assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&layer)]));
            let mut tar = tar::Archive::new(layer.as_slice());
            let mut program = tar.entries().unwrap().next().unwrap().unwrap();
            assert_eq!(program.header().mode().unwrap(), 0o755);
            let mut text = String::new();
            program.read_to_string(&mut text).unwrap();
            assert_eq!(text, content);
        }
    }

    #[test]
    fn nothing_is_in_it_that_no_descriptor_names_and_it_is_the_same_each_time() {
        let (one, files) = written();
        // Two layers, configs and manifests, the inner index; layout and outer index beside them.
        assert_eq!(files.len(), 2 * 3 + 1 + 2);
        assert_eq!(written(), (one, files));
    }
}
