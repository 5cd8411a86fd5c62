//! What one caller and one sandbox may have of the router: requests per second and at once, counted over all workers
//! (CONTRACT section 4).

mod rate;
mod reached;
mod table;

pub use rate::Rate;
pub use reached::LimitReached;
pub use table::Share;

use crate::metrics::Metrics;
use reached::Of;
use sandgate_mesh::caller::Caller;
use sandgate_mesh::sandbox::{SandboxKey, SandboxName};
use std::net::IpAddr;
use std::sync::Arc;
use table::{Full, Place, Table};

/// The limits that are set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestLimits {
    /// Of each caller.
    pub caller: Option<Share>,
    /// Of each sandbox, whoever calls.
    pub sandbox: Option<Share>,
}

/// Whose requests are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    /// A caller with a name, wherever he calls from, and whichever groups his credential names.
    Named(Box<str>),
    /// Nobody in particular, at this address.
    At(IpAddr),
}

impl Who {
    /// `caller`, who is at the address that `client` says if nobody knows more of him.
    pub(crate) fn of(caller: &Caller, client: impl FnOnce() -> IpAddr) -> Self {
        if caller.is_anonymous() {
            Self::At(client())
        } else {
            Self::Named(caller.to_string().into())
        }
    }

    const fn kind(&self) -> Kind {
        match self {
            Self::Named(_) => Kind::Named,
            Self::At(_) => Kind::At,
        }
    }
}

/// So that strangers at many addresses leave room for callers with names, and the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Named,
    At,
}

/// Which sandbox it is that a request reaches, whatever it calls it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Whither {
    /// Its gate proves it.
    Gate(SandboxKey),
    /// Nobody proves anything there.
    Pod(IpAddr),
}

/// What a request has of the limits, until it is over.
#[derive(Debug)]
pub(crate) struct Places {
    who: Who,
    #[expect(dead_code, reason = "it is held, and not looked at")]
    caller: Option<Place<Who, Kind>>,
    sandbox: Option<Place<Whither, Who>>,
}

/// The requests of callers and of sandboxes.
#[derive(Debug)]
pub(crate) struct RequestCounts {
    callers: Option<Table<Who, Kind>>,
    sandboxes: Option<Table<Whither, Who>>,
    metrics: Arc<Metrics>,
}

impl RequestCounts {
    /// Nothing is counted yet. `None` where there is no limit.
    pub(crate) fn new(limits: RequestLimits, metrics: &Arc<Metrics>) -> Option<Self> {
        let RequestLimits { caller, sandbox } = limits;
        (caller.is_some() || sandbox.is_some()).then(|| Self {
            callers: caller.map(Table::new),
            sandboxes: sandbox.map(Table::new),
            metrics: Arc::clone(metrics),
        })
    }

    /// A place for a request of `who`, wherever it wants to go.
    ///
    /// # Errors
    /// [`LimitReached`].
    pub(crate) fn enter(&self, who: Who) -> Result<Box<Places>, LimitReached> {
        let caller = self
            .callers
            .as_ref()
            .map(|callers| callers.enter(who.clone(), &who.kind()));
        let caller = caller.transpose().map_err(|full| self.refused(full, Of::Caller))?;
        let sandbox = None;
        Ok(Box::new(Places { who, caller, sandbox }))
    }

    /// A place for the same request at the sandbox `name`, which has been found to be `whither`. A name that leads nowhere isn't
    /// counted.
    ///
    /// # Errors
    /// [`LimitReached`].
    pub(crate) fn enter_sandbox(
        &self,
        places: &mut Places,
        name: &SandboxName,
        whither: Whither,
    ) -> Result<(), LimitReached> {
        let Some(sandboxes) = &self.sandboxes else {
            return Ok(());
        };
        let place = sandboxes.enter(whither, &places.who);
        let place = place.map_err(|full| self.refused(full, Of::Sandbox(name.clone())))?;
        places.sandbox = Some(place);
        Ok(())
    }

    fn refused(&self, full: Full, of: Of) -> LimitReached {
        let reached = LimitReached::new(full, of);
        self.metrics.limited(reached.limit());
        reached
    }
}
