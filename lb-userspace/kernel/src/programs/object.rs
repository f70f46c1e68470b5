//! The object once more, for programs that are loaded by hand: linked, with the maps of those that aya has loaded.

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use aya_obj::{Function, Object, Program};

use super::image;
use super::load::{LoadError, OBJECT, Programs};

/// The object, with its maps and calls resolved.
pub(super) struct Linked {
    object: Object,
    btf: Option<OwnedFd>,
}

impl Linked {
    /// With the maps of `programs`.
    pub(super) fn new(programs: &Programs) -> Result<Self, LoadError> {
        let parse = |error: String| LoadError::Parse(error);
        let mut object = Object::parse(OBJECT).map_err(|error| parse(error.to_string()))?;
        let btf = match aya::features().btf() {
            Some(features) => object
                .fixup_and_sanitize_btf(features)
                .map_err(|error| parse(error.to_string()))?
                .map(|btf| image::load_btf(&btf.to_bytes()))
                .transpose()
                .map_err(|error| parse(error.to_string()))?,
            None => None,
        };
        let maps = object.maps.clone();
        let fds: Vec<_> = maps
            .iter()
            .filter_map(|(name, map)| Some((name.as_str(), programs.map_fd(name)?.as_raw_fd(), map)))
            .collect();
        let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_maps(fds.into_iter(), &sections).map_err(|error| parse(error.to_string()))?;
        object.relocate_calls(&sections).map_err(|error| parse(error.to_string()))?;
        object.sanitize_functions(aya::features());
        Ok(Self { object, btf })
    }

    /// A program, and its code with all that it calls.
    pub(super) fn function(&self, name: &'static str) -> Result<(&Program, &Function), LoadError> {
        let missing = LoadError::MissingProgram(name);
        let program = self.object.programs.get(name).ok_or(missing)?;
        let function = self.object.functions.get(&program.function_key());
        Ok((program, function.ok_or(LoadError::MissingProgram(name))?))
    }

    /// The object's types.
    pub(super) fn btf(&self) -> Option<BorrowedFd<'_>> {
        self.btf.as_ref().map(AsFd::as_fd)
    }
}
