//! Where WebSocket frames begin and end (RFC 6455 section 5.2). Headers are read; payloads are counted and nothing else.
//! Whatever the bytes are, they are frames: nothing that a peer sends makes a follower lose its place. Masks, reserved bits,
//! unknown opcodes and the order of fragments are for the two ends to judge.

/// Longest payload of a control frame, in bytes (RFC 6455 section 5.5).
const LONGEST_CONTROL: u64 = 125;

/// Why a frame may not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A length with its top bit set, or a control frame that is fragmented or over 125 bytes: the two ends may disagree
    /// about what comes behind it.
    Malformed,
    /// Its message is longer than messages may be.
    TooBig,
}

#[derive(Debug)]
struct Header {
    /// Of the header itself, in bytes: 2 to 14.
    length: usize,
    payload: u64,
    is_last: bool,
    is_control: bool,
    is_close: bool,
}

impl Header {
    /// `None` where `bytes` end before the header does.
    fn read(bytes: &[u8]) -> Option<Self> {
        let [first, second, ..] = *bytes else { return None };
        let (width, short) = match second & 0x7f {
            126 => (2, 0),
            127 => (8, 0),
            short => (0, u64::from(short)),
        };
        let extended = bytes.get(2..2 + width)?;
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let length = 2 + width + mask;
        (bytes.len() >= length).then(|| Self {
            length,
            payload: extended.iter().fold(short, |sum, byte| sum << 8 | u64::from(*byte)),
            is_last: first & 0x80 != 0,
            is_control: first & 0x08 != 0,
            is_close: first & 0x0f == 0x08,
        })
    }

    fn is_malformed(&self) -> bool {
        self.payload >> 63 != 0 || self.is_control && (self.payload > LONGEST_CONTROL || !self.is_last)
    }
}

/// Follows the frames of one direction of a WebSocket.
#[derive(Debug)]
pub struct Follower {
    /// Payload bytes of a message; `None` without limit.
    limit: Option<u64>,
    /// Whether faults are let pass.
    lenient: bool,
    /// Payload bytes of the frame under way that have not come.
    rest: u64,
    /// Payload bytes of the message under way, on the wire, in the frames that have begun.
    message: u64,
    /// Whether a close frame has begun.
    closes: bool,
}

impl Follower {
    /// At the beginning of a direction whose messages may have `limit` payload bytes; 0 for any number.
    pub fn new(limit: u64) -> Self {
        Self {
            limit: Some(limit).filter(|limit| *limit > 0),
            lenient: false,
            rest: 0,
            message: 0,
            closes: false,
        }
    }

    /// Follows `bytes`, and says how many of them may pass. What is left behind these is part of a header, to be presented
    /// again with more, or begins with the frame that has the fault.
    pub fn follow(&mut self, bytes: &[u8]) -> (usize, Option<Fault>) {
        let mut passed = 0;
        while let Some(ahead) = bytes.get(passed..).filter(|ahead| !ahead.is_empty()) {
            if self.rest > 0 {
                let payload = usize::try_from(self.rest).unwrap_or(usize::MAX).min(ahead.len());
                self.rest -= payload as u64;
                passed += payload;
                continue;
            }
            let Some(header) = Header::read(ahead) else { break };
            if let Err(fault) = self.begin(&header) {
                return (passed, Some(fault));
            }
            passed += header.length;
        }
        (passed, None)
    }

    /// From here on only the place counts: nothing is a fault.
    pub fn forgive(&mut self) {
        self.lenient = true;
    }

    /// Payload bytes of the frame under way that have not come; 0 between frames.
    pub fn rest(&self) -> u64 {
        self.rest
    }

    /// Whether a close frame has begun.
    pub fn closes(&self) -> bool {
        self.closes
    }

    fn begin(&mut self, header: &Header) -> Result<(), Fault> {
        if header.is_malformed() && !self.lenient {
            return Err(Fault::Malformed);
        }
        if !header.is_control {
            // Up to the last fragment, whatever kind of frame each says that it is: or a message could be cut into pieces
            // that are small enough.
            let message = self.message.saturating_add(header.payload);
            if self.limit.is_some_and(|limit| message > limit) && !self.lenient {
                return Err(Fault::TooBig);
            }
            self.message = if header.is_last { 0 } else { message };
        }
        self.rest = header.payload;
        self.closes |= header.is_close;
        Ok(())
    }
}

#[cfg(test)]
#[path = "websocket_tests.rs"]
mod tests;
