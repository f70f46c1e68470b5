//! `Packages` files: text to packages.

/// A binary package that a mirror has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    depends: String,
}

impl Package {
    /// The names of the packages that it depends on, alternatives left out.
    pub fn depends(&self) -> impl Iterator<Item = &str> {
        let clauses = self.depends.split(',').filter(|clause| !clause.contains('|'));
        clauses.filter_map(|clause| clause.split_ascii_whitespace().next())
    }
}

/// The packages of an index whose names are wanted.
pub fn packages(index: &str, wanted: impl Fn(&str) -> bool) -> Vec<Package> {
    let stanzas = index.split("\n\n").filter_map(|stanza| {
        let field = |name: &str| {
            let mut lines = stanza.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
        };
        let name = field("Package").filter(|name| wanted(name))?;
        Some(Package { name, version: field("Version")?, depends: field("Depends").unwrap_or_default() })
    });
    stanzas.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_wanted_packages_are_read_with_their_dependencies() {
        let index = "Package: other\nVersion: 1\n\n\
                     Package: linux-image-7.3-amd64\nSource: linux-signed-amd64 (7.3+1)\nVersion: 7.3-1~bpo13+1\n\
                     Depends: dracut | initramfs-tools (>= 0.120), kmod, linux-binary-7.3-amd64 (= 7.3-1)\n\
                     Description: a\n kernel\n";
        let found = packages(index, |name| name.starts_with("linux-"));
        let [package] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(package.name, "linux-image-7.3-amd64");
        assert_eq!(package.version, "7.3-1~bpo13+1");
        assert_eq!(package.depends().collect::<Vec<_>>(), ["kmod", "linux-binary-7.3-amd64"]);
    }
}
