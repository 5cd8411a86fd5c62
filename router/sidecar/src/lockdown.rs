//! Closes the pod's network from outside, but for the gate's own ports: nftables rules in the pod's network namespace.
//!
//! Runs as the pod's first init container, ends, and leaves the rules behind. What comes in is dropped unless it is
//!
//! | what | why |
//! |---|---|
//! | from loopback | the gate dials the app there |
//! | part of a connection that the pod opened itself | its answers |
//! | an ICMP error about such a connection | path MTU, unreachable hosts. Nothing else that is "related": helpers of protocols could be made to expect any connection |
//! | IPv6 neighbour discovery, and the queries by which switches learn who listens to it | without it there is no IPv6 |
//! | TCP to the gate's mesh or health port | the gate |
//!
//! One chain for IPv4 and IPv6. All is done in one batch, so that there is no moment without rules when it runs again, and
//! read back: the program succeeds only if the kernel says that it holds these rules.
//!
//! Afterwards only `CAP_NET_ADMIN` in the pod's network namespace could change them, and only `CAP_NET_RAW` opens the
//! sockets that see packets before rules do. No container of an injected pod has either.

use crate::netlink::{Attribute, Message, NLM_F_APPEND, NLM_F_CREATE, Netfilter, NetlinkError, holds};
use rustix::io::Errno;
use sandgate_mesh::sandbox::AppPort;

const TABLE: &str = "sandgate";
const CHAIN: &str = "input";

/// The ports that stay open.
#[derive(Debug, Clone, Copy)]
pub struct OpenPorts {
    /// The gate's mTLS port.
    pub mesh: AppPort,
    /// The gate's health and metrics port.
    pub health: AppPort,
}

/// Why the pod isn't locked down.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockdownError {
    /// No `CAP_NET_ADMIN`.
    #[error(
        "this container may not change the pod's network rules: it needs user 0 and the capability NET_ADMIN \
         (securityContext.runAsUser: 0, capabilities.add: [NET_ADMIN]), which the namespace's Pod Security level and the \
         container runtime must allow"
    )]
    NotAllowed,
    /// No `nf_tables`.
    #[error(
        "the kernel of this pod has no nf_tables ({0}); a sandboxed runtime such as gVisor brings a kernel of its own \
         without them. Use a node or runtime class that has nf_tables for IPv4 and IPv6, or switch lockdown off"
    )]
    NoNfTables(Errno),
    /// It lacks something, or refuses.
    #[error(
        "the kernel refused {what}: {errno}. Nothing was changed; check that the node's kernel has the modules nf_tables, \
         nft_ct and nf_conntrack"
    )]
    Refused {
        /// Which part.
        what: &'static str,
        /// The kernel's reason.
        errno: Errno,
    },
    /// Nothing that can be understood came back.
    #[error("the kernel did not say whether the pod's network rules are in force")]
    NoAnswer,
    /// The rules are other ones.
    #[error("the pod's network rules are not in force: the kernel holds another {0}. Does something else change them?")]
    NotInForce(&'static str),
}

/// Writes the rules and makes sure that they are in force. Whatever an earlier run wrote is replaced.
///
/// # Errors
/// See [`LockdownError`]; then the rules are not known to be in force, and the pod must not start.
pub fn lock_down(ports: OpenPorts) -> Result<(), LockdownError> {
    let rules = rules(ports);
    let (about, messages): (Vec<_>, Vec<_>) = batch(&rules).into_iter().unzip();
    let mut netfilter = Netfilter::open().map_err(|error| explain(error, &about))?;
    netfilter.transact(&messages).map_err(|error| explain(error, &about))?;
    for (part, kind, wanted) in in_force(&rules) {
        let question = message(kind, 0, Vec::new());
        let mut found = netfilter.dump(&question).map_err(|error| explain(error, &[part]))?;
        // Other tables are somebody else's. They can drop what this one accepts, and never accept what it drops.
        found.retain(|found| holds(&[table_name()], found));
        let all = wanted.len() == found.len();
        if !all || !wanted.iter().zip(&found).all(|(wanted, found)| holds(wanted, found)) {
            return Err(LockdownError::NotInForce(part));
        }
    }
    Ok(())
}

fn explain(error: NetlinkError, about: &[&'static str]) -> LockdownError {
    match error {
        NetlinkError::Refused(_, Errno::PERM) | NetlinkError::Socket(Errno::PERM | Errno::ACCESS) => {
            LockdownError::NotAllowed
        }
        NetlinkError::Socket(errno) if errno != Errno::AGAIN => LockdownError::NoNfTables(errno),
        // Without the subsystem even the beginning of a batch is refused so.
        NetlinkError::Refused(0, errno @ (Errno::OPNOTSUPP | Errno::AFNOSUPPORT)) => LockdownError::NoNfTables(errno),
        NetlinkError::Refused(place, errno) => LockdownError::Refused {
            what: about.get(place).copied().unwrap_or("the rules"),
            errno,
        },
        NetlinkError::Socket(_) | NetlinkError::Unreadable => LockdownError::NoAnswer,
    }
}

fn message(kind: u16, flags: u16, attributes: Vec<Attribute>) -> Message {
    Message {
        kind,
        family: NFPROTO_INET,
        flags,
        attributes,
    }
}

/// What is done, in order, and what each step is about.
fn batch(rules: &[Rule]) -> Vec<(&'static str, Message)> {
    let mut steps = vec![
        // So that there is one to delete.
        (TABLE_PART, message(NFT_MSG_NEWTABLE, NLM_F_CREATE, vec![table_name()])),
        (TABLE_PART, message(NFT_MSG_DELTABLE, 0, vec![table_name()])),
        (TABLE_PART, message(NFT_MSG_NEWTABLE, NLM_F_CREATE, table())),
        (CHAIN_PART, message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, chain())),
    ];
    for rule in rules {
        let flags = NLM_F_CREATE | NLM_F_APPEND;
        steps.push((rule.about, message(NFT_MSG_NEWRULE, flags, rule.attributes())));
    }
    steps
}

/// What the kernel must hold of our table afterwards, and how to ask it.
fn in_force(rules: &[Rule]) -> [(&'static str, u16, Vec<Vec<Attribute>>); 3] {
    let rules = rules.iter().map(Rule::attributes).collect();
    [
        (TABLE_PART, NFT_MSG_GETTABLE, vec![table()]),
        (CHAIN_PART, NFT_MSG_GETCHAIN, vec![chain()]),
        ("list of rules", NFT_MSG_GETRULE, rules),
    ]
}

// linux/netfilter/nf_tables.h and what it stands on.
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV6: u8 = 10;
const IPPROTO_ICMP: u8 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_ICMPV6: u8 = 58;
const NF_INET_LOCAL_IN: u32 = 1;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
/// Every network namespace has its loopback interface under this number.
const LOOPBACK_IFINDEX: u32 = 1;
const MULTICAST_LISTENER_QUERY: u8 = 130;
const ROUTER_SOLICITATION: u8 = 133;
const REDIRECT: u8 = 137;
const CT_ESTABLISHED: u32 = 1 << 1;
const CT_RELATED: u32 = 1 << 2;

const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_GETRULE: u16 = 7;

const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;
const NFT_CMP_LTE: u32 = 3;
const NFT_CMP_GTE: u32 = 5;
const NFT_META_IIF: u32 = 4;
const NFT_META_NFPROTO: u32 = 15;
const NFT_META_L4PROTO: u32 = 16;
const NFT_CT_STATE: u32 = 0;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;

const TABLE_PART: &str = "table";
const CHAIN_PART: &str = "chain for incoming packets";

/// The name of our table, which objects in it have in the same place.
fn table_name() -> Attribute {
    Attribute::text(1, TABLE)
}

fn table() -> Vec<Attribute> {
    // No flags: a dormant table filters nothing.
    vec![table_name(), Attribute::number(2, 0)]
}

fn chain() -> Vec<Attribute> {
    let hook = vec![Attribute::number(1, NF_INET_LOCAL_IN), Attribute::number(2, 0)];
    vec![
        table_name(),
        Attribute::text(3, CHAIN),
        Attribute::nested(4, hook),
        Attribute::number(5, NF_DROP),
        Attribute::text(7, "filter"),
    ]
}

/// What is accepted: packets of which every test is true.
#[derive(Debug)]
struct Rule {
    about: &'static str,
    tests: Vec<Attribute>,
}

impl Rule {
    fn attributes(&self) -> Vec<Attribute> {
        let verdict = Attribute::nested(2, vec![Attribute::number(1, NF_ACCEPT)]);
        let accept = expression(
            "immediate",
            vec![
                Attribute::number(1, NFT_REG_VERDICT),
                Attribute::nested(2, vec![verdict]),
            ],
        );
        let mut expressions = self.tests.clone();
        expressions.push(accept);
        vec![
            table_name(),
            Attribute::text(2, CHAIN),
            Attribute::nested(4, expressions),
        ]
    }
}

fn rules(ports: OpenPorts) -> Vec<Rule> {
    let rule = |about, tests: Vec<Vec<Attribute>>| Rule {
        about,
        tests: tests.concat(),
    };
    let protocol = |protocol: u8| meta(NFT_META_L4PROTO, &[protocol]);
    // IPv4 carries any protocol number, also that of ICMPv6.
    let icmpv6 = || [meta(NFT_META_NFPROTO, &[NFPROTO_IPV6]), protocol(IPPROTO_ICMPV6)].concat();
    let discovery = vec![
        payload(0, 1),
        compare(NFT_CMP_GTE, &[ROUTER_SOLICITATION]),
        compare(NFT_CMP_LTE, &[REDIRECT]),
    ];
    let query = vec![payload(0, 1), compare(NFT_CMP_EQ, &[MULTICAST_LISTENER_QUERY])];
    let port = |port: AppPort| vec![payload(2, 2), compare(NFT_CMP_EQ, &port.get().to_be_bytes())];
    vec![
        rule(
            "rule for loopback",
            vec![meta(NFT_META_IIF, &LOOPBACK_IFINDEX.to_ne_bytes())],
        ),
        rule("rule for answers", vec![connection(CT_ESTABLISHED)]),
        rule(
            "rule for ICMP errors",
            vec![connection(CT_RELATED), protocol(IPPROTO_ICMP)],
        ),
        rule("rule for ICMPv6 errors", vec![connection(CT_RELATED), icmpv6()]),
        rule("rule for neighbour discovery", vec![icmpv6(), discovery]),
        rule("rule for multicast listener queries", vec![icmpv6(), query]),
        rule("rule for the mesh port", vec![protocol(IPPROTO_TCP), port(ports.mesh)]),
        rule(
            "rule for the health port",
            vec![protocol(IPPROTO_TCP), port(ports.health)],
        ),
    ]
}

fn expression(name: &str, data: Vec<Attribute>) -> Attribute {
    Attribute::nested(1, vec![Attribute::text(1, name), Attribute::nested(2, data)])
}

fn data(kind: u16, value: &[u8]) -> Attribute {
    Attribute::nested(kind, vec![Attribute::bytes(1, value)])
}

fn compare(operator: u32, value: &[u8]) -> Attribute {
    let register = Attribute::number(1, NFT_REG_1);
    expression("cmp", vec![register, Attribute::number(2, operator), data(3, value)])
}

/// Something that is known about the packet is this.
fn meta(key: u32, value: &[u8]) -> Vec<Attribute> {
    let load = vec![Attribute::number(1, NFT_REG_1), Attribute::number(2, key)];
    vec![expression("meta", load), compare(NFT_CMP_EQ, value)]
}

/// The packet is in this state of a connection.
fn connection(state: u32) -> Vec<Attribute> {
    let load = vec![Attribute::number(1, NFT_REG_1), Attribute::number(2, NFT_CT_STATE)];
    let mask = vec![
        Attribute::number(1, NFT_REG_1),
        Attribute::number(2, NFT_REG_1),
        Attribute::number(3, 4),
        data(4, &state.to_ne_bytes()),
        data(5, &[0; 4]),
    ];
    vec![
        expression("ct", load),
        expression("bitwise", mask),
        compare(NFT_CMP_NEQ, &[0; 4]),
    ]
}

/// Loads bytes of the transport header.
fn payload(offset: u32, length: u32) -> Attribute {
    let load = vec![
        Attribute::number(1, NFT_REG_1),
        Attribute::number(2, NFT_PAYLOAD_TRANSPORT_HEADER),
        Attribute::number(3, offset),
        Attribute::number(4, length),
    ];
    expression("payload", load)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Vec<&'static str> {
        let port = |number| AppPort::new(number).unwrap();
        let ports = OpenPorts {
            mesh: port(14443),
            health: port(14480),
        };
        batch(&rules(ports)).into_iter().map(|(part, _)| part).collect()
    }

    #[test]
    fn whoever_reads_a_failure_learns_what_to_change() {
        let text = |error| explain(error, &parts()).to_string();
        for (error, wanted) in [
            (NetlinkError::Refused(0, Errno::PERM), "capabilities.add: [NET_ADMIN]"),
            (NetlinkError::Socket(Errno::ACCESS), "container runtime must allow"),
            (NetlinkError::Socket(Errno::PROTONOSUPPORT), "has no nf_tables"),
            (NetlinkError::Refused(0, Errno::OPNOTSUPP), "gVisor"),
            (NetlinkError::Refused(0, Errno::AFNOSUPPORT), "for IPv4 and IPv6"),
            (
                NetlinkError::Refused(3, Errno::NOENT),
                "refused chain for incoming packets",
            ),
            (NetlinkError::Refused(5, Errno::NOENT), "refused rule for answers"),
            (NetlinkError::Refused(5, Errno::NOENT), "nf_conntrack"),
            (NetlinkError::Socket(Errno::AGAIN), "did not say"),
            (NetlinkError::Unreadable, "did not say"),
        ] {
            assert!(text(error).contains(wanted), "{error:?}: {}", text(error));
        }
    }
}
