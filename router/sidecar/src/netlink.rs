//! Speaks to the kernel's `nf_tables` over a netlink socket: how its messages are written, sent as one batch, and read back.
//!
//! Written here because no crate fits. `nftnl` and `mnl` bind C libraries, `nftables` runs the program `nft`, `rustables`
//! is under the GPL, and the others written in Rust are young and hold a hundred times what is used here: three kinds of
//! object, six kinds of expression. That is little enough to be read whole, and the format is an interface that the
//! kernel keeps stable (`linux/netlink.h`, `linux/netfilter/nf_tables.h`).

use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recvfrom, sendto, socket_with};
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Wait for each answer of the kernel, which has it ready when a message has been sent.
const PATIENCE: Duration = Duration::from_secs(5);
/// More than the kernel puts into one datagram.
const DATAGRAM_BYTES: usize = 128 * 1024;

const NLMSG_HEADER_BYTES: usize = 16;
const NFGENMSG_BYTES: usize = 4;
const ATTRIBUTE_HEADER_BYTES: usize = 4;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Make the object if it isn't there.
pub(crate) const NLM_F_CREATE: u16 = 0x400;
/// Put it behind the others.
pub(crate) const NLM_F_APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFPROTO_UNSPEC: u8 = 0;

/// Why something isn't known to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NetlinkError {
    /// There is no socket to speak through, or it failed.
    Socket(Errno),
    /// The kernel said no to the message with this place in the batch; nothing of the batch was done.
    Refused(usize, Errno),
    /// The kernel's answer is incomplete or isn't in the format.
    Unreadable,
}

impl From<Errno> for NetlinkError {
    fn from(errno: Errno) -> Self {
        Self::Socket(errno)
    }
}

/// A value with a name: what messages are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attribute {
    kind: u16,
    value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Bytes(Vec<u8>),
    Nested(Vec<Attribute>),
}

impl Attribute {
    /// Plain bytes.
    pub(crate) fn bytes(kind: u16, bytes: &[u8]) -> Self {
        Self {
            kind,
            value: Value::Bytes(bytes.to_vec()),
        }
    }

    /// A number, which `nf_tables` has in network order.
    pub(crate) fn number(kind: u16, number: u32) -> Self {
        Self::bytes(kind, &number.to_be_bytes())
    }

    /// A text, which ends with a zero.
    pub(crate) fn text(kind: u16, text: &str) -> Self {
        Self::bytes(kind, &[text.as_bytes(), &[0]].concat())
    }

    /// Attributes in an attribute.
    pub(crate) fn nested(kind: u16, attributes: Vec<Self>) -> Self {
        Self {
            kind,
            value: Value::Nested(attributes),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let mut value = Vec::new();
        let nested = match &self.value {
            Value::Bytes(bytes) => {
                value.extend_from_slice(bytes);
                0
            }
            Value::Nested(attributes) => {
                for attribute in attributes {
                    attribute.write(&mut value);
                }
                NLA_F_NESTED
            }
        };
        // No attribute here comes near the limit of 16 bits.
        let length = u16::try_from(ATTRIBUTE_HEADER_BYTES + value.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&length.to_ne_bytes());
        out.extend_from_slice(&(self.kind | nested).to_ne_bytes());
        out.extend_from_slice(&value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

const NLA_F_NESTED: u16 = 0x8000;
const NLA_KIND: u16 = 0x3fff;

/// Whether what the kernel holds is what was asked for. It may say more (counts, defaults), but nothing else, and a list
/// must have exactly the same items.
pub(crate) fn holds(wanted: &[Attribute], found: &[u8]) -> bool {
    let Some(found) = attributes(found) else { return false };
    let of_kind = |kind: u16| found.iter().filter(move |(other, _)| *other == kind);
    wanted.iter().enumerate().all(|(place, attribute)| {
        let kind = attribute.kind;
        let before = wanted.iter().take(place).filter(|other| other.kind == kind).count();
        let in_all = wanted.iter().filter(|other| other.kind == kind).count();
        let same = |value: &[u8]| match &attribute.value {
            Value::Bytes(bytes) => bytes == value,
            Value::Nested(nested) => holds(nested, value),
        };
        of_kind(kind).count() == in_all && of_kind(kind).nth(before).is_some_and(|(_, value)| same(value))
    })
}

/// Attributes that follow each other, or nothing if they can't be told apart.
fn attributes(mut bytes: &[u8]) -> Option<Vec<(u16, &[u8])>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & NLA_KIND;
        found.push((kind, bytes.get(ATTRIBUTE_HEADER_BYTES..length)?));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(found)
}

/// One thing to do, or to ask for.
#[derive(Debug)]
pub(crate) struct Message {
    /// Which, of `NFT_MSG_*`.
    pub(crate) kind: u16,
    /// The family of addresses that the object is for.
    pub(crate) family: u8,
    /// Of [`NLM_F_CREATE`] and [`NLM_F_APPEND`].
    pub(crate) flags: u16,
    /// The object, as far as it has to be said.
    pub(crate) attributes: Vec<Attribute>,
}

impl Message {
    fn write(&self, flags: u16, sequence: u32, out: &mut Vec<u8>) {
        let start = out.len();
        let kind = NFNL_SUBSYS_NFTABLES << 8 | self.kind;
        write_header(kind, NLM_F_REQUEST | flags | self.flags, sequence, out);
        out.extend_from_slice(&[self.family, 0, 0, 0]);
        for attribute in &self.attributes {
            attribute.write(out);
        }
        end(start, out);
    }
}

fn write_header(kind: u16, flags: u16, sequence: u32, out: &mut Vec<u8>) {
    // The length comes last; the sender's port is the kernel's to fill in.
    out.extend_from_slice(&0_u32.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&0_u32.to_ne_bytes());
}

fn end(start: usize, out: &mut [u8]) {
    let Some(message) = out.get_mut(start..) else { return };
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    if let Some(field) = message.first_chunk_mut() {
        *field = length.to_ne_bytes();
    }
}

/// Begins or ends a batch. Its answers carry the same sequence number as the first message in it.
fn write_bracket(kind: u16, out: &mut Vec<u8>) {
    let start = out.len();
    write_header(kind, NLM_F_REQUEST, 0, out);
    let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    out.extend_from_slice(&[NFPROTO_UNSPEC, 0, high, low]);
    end(start, out);
}

/// A message of the kernel.
#[derive(Debug)]
struct Reply<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

/// The next message of a datagram, which is cut off from it; nothing at its end.
fn next<'a>(datagram: &mut &'a [u8]) -> Result<Option<Reply<'a>>, NetlinkError> {
    if datagram.is_empty() {
        return Ok(None);
    }
    let read = || {
        let header: &[u8; NLMSG_HEADER_BYTES] = datagram.first_chunk()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let reply = Reply {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            payload: datagram.get(NLMSG_HEADER_BYTES..length)?,
        };
        Some((reply, datagram.get(length.next_multiple_of(4)..).unwrap_or_default()))
    };
    let (reply, rest) = read().ok_or(NetlinkError::Unreadable)?;
    *datagram = rest;
    Ok(Some(reply))
}

/// The error in an answer, or nothing if all went well.
fn errno(payload: &[u8]) -> Result<Option<Errno>, NetlinkError> {
    let code = payload.first_chunk().ok_or(NetlinkError::Unreadable)?;
    let code = i32::from_ne_bytes(*code);
    Ok((code != 0).then(|| Errno::from_raw_os_error(code.saturating_neg())))
}

/// A conversation with the `nf_tables` of the network namespace that this process is in.
#[derive(Debug)]
pub(crate) struct Netfilter {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Netfilter {
    /// Opens a socket. Whether the process may use it shows with the first message.
    #[expect(clippy::disallowed_methods, reason = "the kernel is the only one it leads to")]
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(NETFILTER),
        )?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self {
            socket,
            buffer: vec![0; DATAGRAM_BYTES],
        })
    }

    /// Does all of these, or nothing.
    pub(crate) fn transact(&mut self, messages: &[Message]) -> Result<(), NetlinkError> {
        let mut batch = Vec::new();
        write_bracket(NFNL_MSG_BATCH_BEGIN, &mut batch);
        let mut waiting = HashSet::new();
        for (sequence, message) in (0..).zip(messages) {
            message.write(NLM_F_ACK, sequence, &mut batch);
            waiting.insert(sequence);
        }
        write_bracket(NFNL_MSG_BATCH_END, &mut batch);
        self.send(&batch)?;
        while !waiting.is_empty() {
            let mut datagram = self.receive()?;
            while let Some(reply) = next(&mut datagram)? {
                let refused = match reply.kind {
                    NLMSG_ERROR => errno(reply.payload)?,
                    _ => return Err(NetlinkError::Unreadable),
                };
                if let Some(errno) = refused {
                    let place = usize::try_from(reply.sequence).unwrap_or(usize::MAX);
                    return Err(NetlinkError::Refused(place, errno));
                }
                waiting.remove(&reply.sequence);
            }
        }
        Ok(())
    }

    /// All objects of a kind that match: the attributes of each.
    pub(crate) fn dump(&mut self, message: &Message) -> Result<Vec<Vec<u8>>, NetlinkError> {
        let mut request = Vec::new();
        message.write(NLM_F_DUMP, 0, &mut request);
        self.send(&request)?;
        let mut found = Vec::new();
        loop {
            let mut datagram = self.receive()?;
            while let Some(reply) = next(&mut datagram)? {
                match reply.kind {
                    // Somebody changed the objects meanwhile: these are neither the old nor the new ones.
                    _ if reply.flags & NLM_F_DUMP_INTR != 0 => return Err(NetlinkError::Unreadable),
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => {
                        let errno = errno(reply.payload)?.ok_or(NetlinkError::Unreadable)?;
                        return Err(NetlinkError::Refused(0, errno));
                    }
                    _ => {
                        let attributes = reply.payload.get(NFGENMSG_BYTES..);
                        found.push(attributes.ok_or(NetlinkError::Unreadable)?.to_vec());
                    }
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        let kernel = SocketAddrNetlink::new(0, 0);
        let sent = sendto(&self.socket, bytes, SendFlags::empty(), &kernel)?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(NetlinkError::Unreadable)
        }
    }

    /// The next datagram of the kernel, and of nobody else.
    fn receive(&mut self) -> Result<&[u8], NetlinkError> {
        let (_, length, sender) = recvfrom(&self.socket, self.buffer.as_mut_slice(), RecvFlags::TRUNC)?;
        let kernel = sender
            .and_then(|address| SocketAddrNetlink::try_from(address).ok())
            .is_some_and(|address| address.pid() == 0);
        // A datagram that was cut off is longer than the buffer.
        let datagram = self.buffer.get(..length).filter(|_| kernel);
        datagram.ok_or(NetlinkError::Unreadable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_read_as_they_were_written() {
        let text = Attribute::text(1, "abcd");
        let attribute = Attribute::nested(2, vec![text, Attribute::number(3, 7)]);
        let mut bytes = Vec::new();
        attribute.write(&mut bytes);
        let outer = attributes(&bytes).unwrap();
        let [(2, inner)] = outer[..] else { panic!("{outer:?}") };
        assert_eq!(
            attributes(inner).unwrap(),
            [(1, &b"abcd\0"[..]), (3, &[0, 0, 0, 7][..])]
        );
        assert!(holds(&[attribute], &bytes));
    }

    #[test]
    fn more_than_was_asked_for_is_held_and_less_or_other_is_not() {
        let written = |attributes: &[Attribute]| {
            let mut bytes = Vec::new();
            for attribute in attributes {
                attribute.write(&mut bytes);
            }
            bytes
        };
        let item = |number| Attribute::nested(1, vec![Attribute::number(5, number)]);
        let wanted = [Attribute::number(2, 9), item(1), item(2)];
        assert!(holds(
            &wanted,
            &written(&[item(1), Attribute::number(7, 0), item(2), Attribute::number(2, 9)])
        ));
        for other in [
            vec![item(1), item(2)],
            vec![Attribute::number(2, 8), item(1), item(2)],
            vec![Attribute::number(2, 9), item(2), item(1)],
            vec![Attribute::number(2, 9), item(1)],
            vec![Attribute::number(2, 9), item(1), item(2), item(3)],
            vec![],
        ] {
            assert!(!holds(&wanted, &written(&other)), "{other:?}");
        }
        assert!(!holds(&wanted, b"\x01\0\x02\0"));
    }

    #[test]
    fn a_datagram_that_is_cut_off_is_not_read() {
        let mut whole = Vec::new();
        write_bracket(NFNL_MSG_BATCH_BEGIN, &mut whole);
        let mut datagram = whole.as_slice();
        assert_eq!(next(&mut datagram).unwrap().unwrap().kind, NFNL_MSG_BATCH_BEGIN);
        assert!(next(&mut datagram).unwrap().is_none());
        for length in 1..whole.len() {
            assert_eq!(
                next(&mut &whole[..length]).err(),
                Some(NetlinkError::Unreadable),
                "{length}"
            );
        }
    }
}
