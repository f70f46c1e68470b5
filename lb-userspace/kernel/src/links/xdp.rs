//! XDP of an interface: what hangs there, and what is to hang there.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use aya_obj::generated as kernel;
use lb_control::network::XdpAttached;

use super::link::{self, LinkTarget};
use super::{At, AttachError, Hooks, XdpMode, candidates, open_link, pin, remove_link};
use crate::programs::load::ProgramSpec;

impl XdpMode {
    /// Whether a program that hangs so stays where it is, and only its code is replaced.
    pub const fn keeps(self, in_place: Option<XdpAttached>) -> bool {
        matches!(
            (self, in_place),
            (Self::Auto | Self::Native, Some(XdpAttached::Native | XdpAttached::Offloaded))
                | (Self::Generic, Some(XdpAttached::Generic))
        )
    }
}

impl Hooks {
    /// How a program of ours, this agent's or an earlier one's, hangs on the interface now. A program of others is not
    /// meant.
    pub fn xdp_in_place(&self, program: ProgramSpec, at: At<'_>) -> Result<Option<XdpAttached>, AttachError> {
        for candidate in candidates(&self.pins, &self.pins.link(program.name, at.index)) {
            let Some(link) = open_link(&candidate)? else { continue };
            let info =
                link::info(link.as_fd()).map_err(|source| AttachError::Pin { path: candidate, source })?;
            if info.interface() == at.index {
                return Ok(Some(how(info.prog_id, at.xdp)));
            }
        }
        Ok(None)
    }

    /// Attaches the XDP program as `mode` says, where `in_place` hangs now. On success how it hangs then; none when it
    /// is off.
    ///
    /// The second value is a warning: what was wished for and why it could not be had.
    pub fn attach_xdp(
        &mut self,
        program: ProgramSpec,
        at: At<'_>,
        mode: XdpMode,
        in_place: Option<XdpAttached>,
    ) -> Result<(Option<XdpAttached>, Option<String>), AttachError> {
        let path = self.pins.link(program.name, at.index);
        if mode.keeps(in_place) && self.adopt(program, at, &path)? {
            return Ok((in_place, None));
        }
        // Another mode needs another link. tc serves the interface meanwhile.
        for pinned in candidates(&self.pins, &path) {
            remove_link(&pinned)?;
        }
        match mode {
            XdpMode::Off => Ok((None, None)),
            XdpMode::Native => {
                self.create_xdp(program, at, &path, kernel::XDP_FLAGS_DRV_MODE)?;
                Ok((Some(XdpAttached::Native), None))
            }
            XdpMode::Generic => {
                self.create_xdp(program, at, &path, kernel::XDP_FLAGS_SKB_MODE)?;
                Ok((Some(XdpAttached::Generic), None))
            }
            XdpMode::Auto => match self.create_xdp(program, at, &path, kernel::XDP_FLAGS_DRV_MODE) {
                Ok(()) => Ok((Some(XdpAttached::Native), None)),
                // Not the generic mode: it runs after packets were merged, with checksums left to be
                // finished, which a program cannot tell; and it is no faster than tc.
                Err(AttachError::XdpUnsupported { source, .. }) => {
                    let warning = format!(
                        "{}: the driver ({}) does not take XDP ({source}), so tc does its work",
                        at.name, at.driver
                    );
                    Ok((None, Some(warning)))
                }
                Err(error) => Err(error),
            },
        }
    }

    fn create_xdp(
        &mut self,
        program: ProgramSpec,
        at: At<'_>,
        path: &Path,
        flags: u32,
    ) -> Result<(), AttachError> {
        let fd = self.programs.fd(program).map_err(|error| at.refused(program, error))?;
        let kind = kernel::bpf_attach_type::BPF_XDP as u32;
        match link::create(fd, LinkTarget::Interface(at.index), kind, flags) {
            Ok(link) => pin(path, &link),
            // (The keeper may have been there first, or the agent.)
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) => {
                if self.adopt(program, at, path)? {
                    return Ok(());
                }
                Err(AttachError::XdpTaken { interface: at.name.to_owned(), id: at.xdp.map(|(_, id)| id) })
            }
            Err(source) if flags == kernel::XDP_FLAGS_DRV_MODE && is_unsupported(&source) => {
                let (interface, driver) = (at.name.to_owned(), at.driver.to_owned());
                Err(AttachError::XdpUnsupported { interface, driver, source })
            }
            Err(error) => Err(at.refused(program, error)),
        }
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EOPNOTSUPP)
}

/// How the program of a link hangs, by what the kernel says of the interface, for a link itself does not say.
fn how(program: u32, attached: Option<(XdpAttached, u32)>) -> XdpAttached {
    match attached {
        Some((how, id)) if id == program => how,
        // Of the time before it was put there. That it sees packets is certain.
        _ => XdpAttached::Generic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use XdpAttached::{Generic, Native, Offloaded};

    #[test]
    fn a_mode_keeps_what_already_is_what_it_asks_for() {
        let cases = [
            (XdpMode::Auto, Some(Native), true),
            (XdpMode::Auto, Some(Offloaded), true),
            (XdpMode::Auto, Some(Generic), false),
            (XdpMode::Native, Some(Native), true),
            (XdpMode::Native, Some(Generic), false),
            (XdpMode::Generic, Some(Generic), true),
            (XdpMode::Generic, Some(Native), false),
            (XdpMode::Off, Some(Native), false),
            (XdpMode::Auto, None, false),
        ];
        for (mode, in_place, expected) in cases {
            assert_eq!(mode.keeps(in_place), expected, "{mode:?} {in_place:?}");
        }
    }

    #[test]
    fn how_a_program_hangs_is_said_of_that_program_alone() {
        assert_eq!(how(7, Some((Native, 7))), Native);
        assert_eq!(how(7, Some((Native, 8))), Generic, "another program was there when the kernel was asked");
        assert_eq!(how(7, None), Generic);
    }
}
