//! Reading little-endian fields from bytes that may end anywhere, and saying where they ended.

use super::metadata::kind;
use crate::{Error, Result};
use std::fmt;

/// The longest string that a file may hold.
pub(super) const STRING_BYTES_MAX: u64 = 64 << 20;

/// A place in the file. It moves only over what it has read.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

/// Why a field could not be read.
#[derive(Debug)]
pub(super) enum Fault {
    /// The file ends before the `wanted` bytes of the field at `at`.
    Ends { at: usize, wanted: u64, left: usize },
    /// The string at `at` has more bytes than any may have.
    TooLong { at: usize, bytes: u64 },
}

impl Fault {
    /// The error, with `what` was being read.
    pub(super) fn of(self, what: impl fmt::Display) -> Error {
        match self {
            Fault::Ends { at, wanted, left } => {
                damaged(at, what, format_args!("{wanted} bytes wanted, but the file has {left} left"))
            }
            Fault::TooLong { at, bytes } => {
                damaged(at, what, format_args!("a string of {bytes} bytes, at most {STRING_BYTES_MAX} are allowed"))
            }
        }
    }
}

/// The file is damaged: `what` was being read, where, and why it cannot be right.
pub(super) fn damaged(at: usize, what: impl fmt::Display, why: impl fmt::Display) -> Error {
    Error::Format(format!("{what} at byte {at}: {why}"))
}

impl<'a> Cursor<'a> {
    /// Bytes after this place.
    pub(super) fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: u64) -> Result<&'a [u8], Fault> {
        let fault = Fault::Ends { at: self.at, wanted: len, left: self.left() };
        let Ok(len) = usize::try_from(len) else { return Err(fault) };
        let found = self.bytes.get(self.at..).and_then(|left| left.get(..len)).ok_or(fault)?;
        self.at += len;
        Ok(found)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let fault = Fault::Ends { at: self.at, wanted: N as u64, left: self.left() };
        self.take(N as u64)?.try_into().map_err(|_| fault)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Fault> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Fault> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }

    /// A u64 length and that many bytes.
    pub(super) fn string(&mut self) -> Result<&'a [u8], Fault> {
        let start = self.at;
        let len = self.u64()?;
        if len > STRING_BYTES_MAX {
            return Err(Fault::TooLong { at: start, bytes: len });
        }
        self.take(len)
    }

    /// The value of this type, which is a scalar; None when it is not.
    pub(super) fn scalar(&mut self, id: u32) -> Result<Option<super::Value>, Fault> {
        use super::Value;
        Ok(Some(match id {
            kind::U8 => Value::U8(self.u8()?),
            kind::I8 => Value::I8(self.u8()? as i8),
            kind::U16 => Value::U16(self.u16()?),
            kind::I16 => Value::I16(self.u16()? as i16),
            kind::U32 => Value::U32(self.u32()?),
            kind::I32 => Value::I32(self.u32()? as i32),
            kind::U64 => Value::U64(self.u64()?),
            kind::I64 => Value::I64(self.u64()? as i64),
            kind::F32 => Value::F32(f32::from_bits(self.u32()?)),
            kind::F64 => Value::F64(f64::from_bits(self.u64()?)),
            kind::BOOL => Value::Bool(self.u8()? != 0), // That it is 0 or 1 was checked by the parser.
            _ => return Ok(None),
        }))
    }
}

/// A name in a message: quoted, escaped, and cut where a hostile file would make it endless.
pub(super) struct Named<'a>(pub(super) &'static str, pub(super) &'a [u8]);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 96;
        let Named(what, name) = self;
        let shown = &name[..name.len().min(SHOWN)];
        let cut = if name.len() > SHOWN { "…" } else { "" };
        write!(f, "{what} \"{}{cut}\"", shown.escape_ascii())
    }
}
