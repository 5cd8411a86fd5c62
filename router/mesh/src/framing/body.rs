//! Judges a chunked body's framing as it passes (RFC 9112 section 7.1).

use super::Violation;
use super::head::{MAX_LENGTH, is_text_byte};

/// The longest size line, its extensions included, without the CRLF.
const MAX_LINE: usize = 256;
/// The most hexadecimal digits of a chunk size.
const MAX_DIGITS: usize = 16;
/// All extensions of one body. hyper gives up one byte later.
const MAX_EXTENSIONS: usize = 16 * 1024 - 1;

/// Where in a chunk the next byte is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Size,
    /// White space behind the size: only an extension may follow it.
    Space,
    Extension,
    SizeLineFeed,
    Data,
    DataReturn,
    DataLineFeed,
    /// Behind the size line of the last chunk.
    Trailers,
}

/// A chunked body up to its trailer section.
pub(super) struct Chunks {
    place: Place,
    /// The chunk's size while it is read, then how much of its data is still to come.
    left: u64,
    /// Bytes of the size line so far.
    line: usize,
    /// Bytes of all extensions so far.
    extensions: usize,
}

impl Chunks {
    pub(super) fn new() -> Self {
        Self {
            place: Place::Size,
            left: 0,
            line: 0,
            extensions: 0,
        }
    }

    /// How many bytes are well framed, and whether the trailer section starts behind them. Less than all of them only
    /// if it does.
    pub(super) fn judge(&mut self, bytes: &[u8]) -> Result<(usize, bool), Violation> {
        let mut judged = 0;
        while let Some(byte) = bytes.get(judged) {
            if self.place == Place::Data {
                judged += skip(&mut self.left, bytes.len() - judged);
                if self.left == 0 {
                    self.place = Place::DataReturn;
                }
                continue;
            }
            self.place = self.step(*byte)?;
            judged += 1;
            if self.place == Place::Trailers {
                return Ok((judged, true));
            }
        }
        Ok((judged, false))
    }

    fn step(&mut self, byte: u8) -> Result<Place, Violation> {
        match self.place {
            Place::Size | Place::Space | Place::Extension => self.size_line(byte),
            Place::SizeLineFeed => match byte {
                b'\n' if self.left == 0 => Ok(Place::Trailers),
                b'\n' => Ok(Place::Data),
                _ => Err(Violation::BareCarriageReturn),
            },
            Place::DataReturn if byte == b'\r' => Ok(Place::DataLineFeed),
            Place::DataLineFeed if byte == b'\n' => {
                self.line = 0;
                Ok(Place::Size)
            }
            Place::DataReturn | Place::DataLineFeed | Place::Data | Place::Trailers => Err(Violation::ChunkEnd),
        }
    }

    /// `1*HEXDIG *( BWS ";" chunk-ext )`, of which only the size matters.
    fn size_line(&mut self, byte: u8) -> Result<Place, Violation> {
        if byte == b'\n' {
            return Err(Violation::BareLineFeed);
        }
        if self.place == Place::Size && byte.is_ascii_hexdigit() {
            return self.size_digit(byte);
        }
        if self.line == 0 {
            return Err(Violation::ChunkSize);
        }
        if byte == b'\r' && self.place != Place::Space {
            return Ok(Place::SizeLineFeed);
        }
        self.line += 1;
        self.extensions += 1;
        if self.line > MAX_LINE || self.extensions > MAX_EXTENSIONS {
            return Err(Violation::ChunkLineTooLong);
        }
        match (self.place, byte) {
            (Place::Extension, _) if is_text_byte(byte) => Ok(Place::Extension),
            (Place::Extension, _) => Err(Violation::ChunkExtension),
            (_, b';') => Ok(Place::Extension),
            (_, b' ' | b'\t') => Ok(Place::Space),
            _ => Err(Violation::ChunkSize),
        }
    }

    fn size_digit(&mut self, byte: u8) -> Result<Place, Violation> {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            _ => (byte | 0x20) - b'a' + 10,
        };
        self.line += 1;
        if self.line > MAX_DIGITS || self.left > MAX_LENGTH >> 4 {
            return Err(Violation::ChunkSize);
        }
        self.left = self.left << 4 | u64::from(digit);
        Ok(Place::Size)
    }
}

/// Takes up to `available` bytes off what is left of a body or chunk, and says how many.
pub(super) fn skip(left: &mut u64, available: usize) -> usize {
    let skipped = usize::try_from(*left).unwrap_or(usize::MAX).min(available);
    *left = left.saturating_sub(skipped as u64);
    skipped
}
