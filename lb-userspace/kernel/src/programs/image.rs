//! Loads a program together with the verifier's log, which aya drops when all went well.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use aya_obj::generated::bpf_insn;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::sys::{address, address_mut, bpf, cmd, info, info_into, raw};

const PROG_LOAD: i64 = 5;
const BTF_LOAD: i64 = 18;
/// `BPF_LOG_STATS`: numbers alone, no trace.
const LOG_STATS: u32 = 4;

#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct ProgLoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
    attach_prog_fd: u32,
    core_relo_cnt: u32,
    fd_array: u64,
}

#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct BtfLoadAttr {
    btf: u64,
    btf_log_buf: u64,
    btf_size: u32,
    btf_log_size: u32,
    btf_log_level: u32,
    pad: u32,
}

/// A program ready to be loaded, its maps and calls resolved.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// `enum bpf_prog_type`.
    pub kind: u32,
    /// `enum bpf_attach_type`, 0 where the type has none.
    pub attach_type: u32,
    /// The code.
    pub instructions: &'a [bpf_insn],
    /// The licence the code declares.
    pub license: &'a CStr,
    /// The types, for functions verified on their own.
    pub btf: Option<BorrowedFd<'a>>,
    /// Records that tie functions to types, end to end.
    pub functions: &'a [u8],
    /// Bytes of one of those records.
    pub function_size: usize,
    /// Descriptors that calls of the kernel's functions name by number.
    pub owners: &'a [i32],
}

/// What the verifier says of a program that it has refused: the end of its log, on lines of its own.
pub fn refusal(image: Image<'_>) -> String {
    const EVERY_STEP: u32 = 1;
    const LINES: usize = 20;
    let mut log = vec![0_u8; 1 << 24];
    let _ = load_with(image, EVERY_STEP, &mut log);
    let text = CStr::from_bytes_until_nul(&log).map(|text| text.to_string_lossy().into_owned());
    let text = text.unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(LINES)..].join("\n  ");
    if end.is_empty() { String::new() } else { format!("\n  {end}") }
}

/// Loads `image`. The verifier's closing numbers come back as text.
pub fn load(image: Image<'_>) -> io::Result<(OwnedFd, String)> {
    let mut log = vec![0_u8; 1 << 16];
    let program = load_with(image, LOG_STATS, &mut log)?;
    let text = CStr::from_bytes_until_nul(&log).map(|text| text.to_string_lossy().into_owned());
    Ok((program, text.unwrap_or_default()))
}

fn load_with(image: Image<'_>, log_level: u32, log: &mut [u8]) -> io::Result<OwnedFd> {
    let mut attr = ProgLoadAttr {
        prog_type: image.kind,
        insn_cnt: u32::try_from(image.instructions.len()).map_err(io::Error::other)?,
        insns: address(image.instructions),
        license: image.license.as_ptr() as u64,
        log_level,
        log_size: log.len() as u32,
        log_buf: address_mut(log),
        expected_attach_type: image.attach_type,
        fd_array: if image.owners.is_empty() { 0 } else { address(image.owners) },
        ..Default::default()
    };
    if let Some(btf) = image.btf {
        let count = image.functions.len().checked_div(image.function_size).unwrap_or(0);
        attr.prog_btf_fd = raw(btf);
        attr.func_info = address(image.functions);
        attr.func_info_rec_size = image.function_size as u32;
        attr.func_info_cnt = count as u32;
    }
    // SAFETY: code, licence, records and descriptors are slices and a C string that outlive the call, with their own lengths (calls
    // name no descriptor beyond); the log has room for `log_size` bytes. The result is a new descriptor of ours alone.
    unsafe { bpf(PROG_LOAD, &mut attr).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// Bytes of a loaded program's machine code.
pub fn jited_bytes(program: BorrowedFd<'_>) -> io::Result<u32> {
    /// The beginning of `struct bpf_prog_info`.
    #[derive(Default, FromBytes, IntoBytes)]
    #[repr(C)]
    struct Info {
        kind: u32,
        id: u32,
        tag: [u8; 8],
        jited_bytes: u32,
        translated_bytes: u32,
    }
    info(program).map(|info: Info| info.jited_bytes)
}

/// Loads type information.
pub fn load_btf(btf: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = BtfLoadAttr { btf: address(btf), btf_size: btf.len() as u32, ..Default::default() };
    // SAFETY: `btf` outlives the call and has the length given. The result is a new descriptor.
    unsafe { bpf(BTF_LOAD, &mut attr).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct IdAttr {
    start_or_id: u32,
    next_id: u32,
    open_flags: u32,
}

/// `struct bpf_btf_info`.
#[derive(Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct TypesInfo {
    types: u64,
    size: u32,
    id: u32,
    name: u64,
    name_length: u32,
    of_kernel: u32,
}

/// The descriptor of a module's types.
pub fn types_of(module: &str) -> io::Result<OwnedFd> {
    let mut id = 0;
    loop {
        let mut next = IdAttr { start_or_id: id, ..Default::default() };
        // SAFETY: the attribute holds numbers alone.
        unsafe { bpf(cmd::BTF_GET_NEXT_ID, &mut next) }?;
        id = next.next_id;
        let mut open = IdAttr { start_or_id: id, ..Default::default() };
        // SAFETY: as above; the result is a new descriptor of ours alone.
        let types = match unsafe { bpf(cmd::BTF_GET_FD_BY_ID, &mut open) } {
            // SAFETY: as above.
            Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
            // It went in the meantime.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            Err(error) => return Err(error),
        };
        let mut name = [0_u8; 64];
        let ask = TypesInfo {
            name: name.as_mut_ptr() as u64,
            name_length: name.len() as u32,
            ..Default::default()
        };
        // SAFETY: `name` has room for `name_length` bytes and outlives the call; nothing else is asked for.
        let info = match unsafe { info_into(types.as_fd(), ask) } {
            Ok(info) => info,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => continue,
            Err(error) => return Err(error),
        };
        if info.of_kernel != 0 && name.split(|byte| *byte == 0).next() == Some(module.as_bytes()) {
            return Ok(types);
        }
    }
}
