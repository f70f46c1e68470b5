//! `cargo xtask image`: the container image that deploy/Containerfile describes, for several architectures, as an OCI archive.
//! It is one file in an empty root, so nothing but this program is needed to make it.

mod oci;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::architecture::Architecture;
use crate::{build, command, repository};
use oci::{Archive, Image};

/// Arguments of `cargo xtask image`.
#[derive(Debug, clap::Args)]
pub struct ImageArgs {
    /// Architectures
    #[arg(long = "arch", value_enum, value_name = "ARCH", default_value = "both")]
    architectures: Which,

    /// Where to write the archive [default: target/image/shunt.oci.tar]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Name under which a registry or a runtime knows the image
    #[arg(long, default_value = concat!("localhost/shunt:", env!("CARGO_PKG_VERSION")))]
    name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    #[value(name = "x86_64")]
    X86_64,
    #[value(name = "aarch64")]
    Aarch64,
    Both,
}

impl Which {
    const fn architectures(self) -> &'static [Architecture] {
        match self {
            Self::X86_64 => &[Architecture::X86_64],
            Self::Aarch64 => &[Architecture::Aarch64],
            Self::Both => &Architecture::ALL,
        }
    }
}

/// Builds the agent for each architecture, and the archive.
pub fn image(args: &ImageArgs) -> Result<()> {
    let recipe = Recipe::read()?;
    let mut images = Vec::new();
    for architecture in args.architectures.architectures() {
        let program = build::for_any_machine(*architecture)?;
        images.push((*architecture, read(&program)?));
    }
    let revision =
        command::stdout(Command::new("git").current_dir(repository::root()).args(["rev-parse", "HEAD"]));
    let labels = recipe.labels(revision.ok().as_deref().map(str::trim));
    let images: Vec<_> = images
        .iter()
        .map(|(architecture, program)| Image {
            architecture: architecture.of_debian(),
            file: &recipe.file,
            content: program,
            entrypoint: &recipe.entrypoint,
            labels: &labels,
        })
        .collect();
    let output = args.output.clone().unwrap_or_else(|| repository::target().join("image/shunt.oci.tar"));
    if let Some(folder) = output.parent() {
        fs::create_dir_all(folder).into_diagnostic().wrap_err_with(|| folder.display().to_string())?;
    }
    let file = File::create(&output).into_diagnostic().wrap_err_with(|| output.display().to_string())?;
    let digest = Archive::new(&args.name, &images).into_diagnostic()?.write(file).into_diagnostic()?;
    println!("{} {digest}", output.display());
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).into_diagnostic().wrap_err_with(|| path.display().to_string())
}

/// What the Containerfile says.
#[derive(Debug, PartialEq, Eq)]
struct Recipe {
    /// Path of the one file in the image, without the first slash.
    file: String,
    entrypoint: Vec<String>,
}

impl Recipe {
    fn read() -> Result<Self> {
        let path = repository::root().join("deploy/Containerfile");
        let text =
            fs::read_to_string(&path).into_diagnostic().wrap_err_with(|| path.display().to_string())?;
        Self::parse(&text).ok_or_else(|| {
            miette!(
                "{} is no longer `FROM scratch`, one COPY of shunt and an ENTRYPOINT: xtask/src/image makes that only",
                path.display()
            )
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let lines: Vec<_> = lines.filter_map(|line| line.split_once(' ')).collect();
        let [("FROM", "scratch"), ("COPY", copy), ("ENTRYPOINT", entrypoint)] = lines.as_slice() else {
            return None;
        };
        let (_, target) = copy.split_once(' ')?;
        Some(Self {
            file: target.strip_prefix('/')?.into(),
            entrypoint: serde_json::from_str(entrypoint).ok()?,
        })
    }

    fn labels(&self, revision: Option<&str>) -> Vec<(&'static str, String)> {
        let mut labels = vec![
            ("org.opencontainers.image.title", "Shunt".to_owned()),
            ("org.opencontainers.image.version", env!("CARGO_PKG_VERSION").into()),
            ("org.opencontainers.image.licenses", env!("CARGO_PKG_LICENSE").into()),
            ("org.opencontainers.image.source", env!("CARGO_PKG_REPOSITORY").into()),
        ];
        labels.extend(revision.map(|revision| ("org.opencontainers.image.revision", revision.to_owned())));
        labels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_containerfile_says_what_is_made() {
        let recipe = Recipe::read().unwrap();
        assert_eq!(recipe, Recipe { file: "shunt".into(), entrypoint: vec!["/shunt".into()] });
    }

    #[test]
    fn another_recipe_is_not_taken_for_it() {
        assert_eq!(Recipe::parse("FROM debian\nCOPY shunt /shunt\nENTRYPOINT [\"/shunt\"]\n"), None);
        assert_eq!(
            Recipe::parse("FROM scratch\nCOPY a /a\nCOPY shunt /shunt\nENTRYPOINT [\"/shunt\"]\n"),
            None
        );
    }
}
