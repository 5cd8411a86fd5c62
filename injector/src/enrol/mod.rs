//! The control plane's side of enrolment: gives each gate its identity and its policy, and each router its identity. One
//! replica does, and dials them: nothing in a sandbox has to reach the control plane, which upstream's network policies rule
//! out.
//!
//! | module | hides |
//! |---|---|
//! | [`pods`] | the watches that say which gates and which routers there are and where |
//! | [`namespaces`] | the watch that says which namespaces have opted in |
//! | [`queue`] | which of them is visited when |
//! | [`turns`] | that no namespace keeps others waiting |
//! | [`work`] | that visits are made side by side, and how many |
//! | [`visit`] | what is said to a gate, and in which order |
//! | [`visit_certified`] | the same of a gate whose identity the kubelet brings |
//! | [`visit_router`] | the same of a router |
//! | [`dial`] | the connection, and that a stranger may be at its other end |
//! | [`clock`] | how far a gate's clock is from this one |
//! | [`events`] | what is told on pods, and how much of it |
//! | [`shown`] | which gates have shown their identity |
//! | [`evidence`] | requests to the API server about a gate |
//! | [`verify`] | what proves that a gate is the gate of its pod |
//! | [`verify_router`] | what proves that a router is one |
//! | [`requests`] | which requests of kubelets for gates' certificates wait for an answer |
//! | [`signer`] | whether one is answered with a certificate |
//! | [`published_roots`] | where routers, and gates whose identity the kubelet brings, find the roots |
//! | [`policy`] | what a gate's policy consists of |
//! | [`own`] | the control plane's own certificate |
//! | [`leader`] | which replica does all this |
//! | [`epoch`] | that what a former leader says doesn't count |
//! | [`holders`] | who still needs which root |
//! | [`rotate`] | that the root is replaced, and when it may go on |
//! | [`report`], [`rotate_report`] | metrics and log |

mod clock;
mod dial;
mod epoch;
pub(crate) mod events;
mod evidence;
mod holders;
mod leader;
mod namespaces;
mod own;
mod pods;
mod policy;
mod published_roots;
mod queue;
pub(crate) mod report;
mod requests;
pub(crate) mod rotate;
pub(crate) mod rotate_report;
mod shown;
mod signer;
mod turns;
mod verify;
mod verify_router;
mod visit;
mod visit_certified;
mod visit_router;
mod work;

use crate::anchors::Anchors;
use crate::authority_keeper::Authority;
use crate::authority_secret::AuthoritySecret;
use crate::kubernetes::RequestError;
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::shape::SHAPES;
use epoch::Epoch;
use evidence::Evidence;
use kube::Client;
use leader::Candidate;
use namespaces::OptedIn;
use own::OwnIdentity;
use published_roots::PublishedRoots;
use report::Report;
use rotate::{Followers, RotationContext, Rotor};
use sandgate_mesh::drain::Draining;
use sandgate_mesh::policy::model::DefaultPolicy;
use sandgate_mesh::telemetry::chain;
use shown::Shown;
use signer::Signer;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::watch;
use visit::{Party, Visitor};

/// How long to wait before an epoch is asked for again.
const RETRY: Duration = Duration::from_secs(1);

/// What enrolment works with.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) settings: Settings,
    pub(crate) default_policy: DefaultPolicy,
    pub(crate) authority: Authority,
    /// The roots that gates and routers are given.
    pub(crate) anchors: watch::Receiver<Option<Arc<Anchors>>>,
    /// The Secret that holds the authority, and the epoch.
    pub(crate) secret: String,
    /// The `ConfigMap` in which routers find the roots.
    pub(crate) roots_config_map: String,
    /// Whether kubelets' requests for gates' certificates are answered.
    pub(crate) signs_pod_certificates: bool,
    /// How long identities live.
    pub(crate) lifetime: Duration,
    /// How long a leader may be silent before another replica takes over.
    pub(crate) lease: Duration,
    pub(crate) rotation: RotationContext,
    pub(crate) report: Report,
    pub(crate) metrics: Arc<Metrics>,
}

/// Looks after gates whenever this replica is the leader, until it is told to leave. Then another can take over at once.
pub(crate) async fn run(context: Context, mut leaving: Draining) {
    let namespace = context.settings.own_namespace.as_str();
    let mut candidate = Candidate::new(context.client.clone(), namespace, context.lease);
    tokio::select! {
        () = leaving.started() => {}
        () = lead(&context, &mut candidate) => {}
    }
    context.leads_no_more();
    candidate.release().await;
}

/// Becomes the leader, works, stops when it isn't any more, for ever.
async fn lead(context: &Context, candidate: &mut Candidate) {
    let mut authority = context.authority.clone();
    let failed = |error: &RequestError| {
        context.metrics.failed("lease");
        tracing::warn!(
            error = chain(error),
            "can't bring the Lease of the replica that looks after gates up to date"
        );
    };
    loop {
        // Without a root there is nothing that it could do.
        if authority.wait_for(Option::is_some).await.is_err() {
            return;
        }
        candidate.acquire(failed).await;
        tracing::info!("this replica looks after gates from now on");
        context.report.leads(true);
        tokio::select! {
            () = candidate.keep(failed) => {}
            () = term(context) => {}
        }
        context.leads_no_more();
        tracing::warn!(
            "this replica looks after gates no longer: it couldn't renew its Lease, or another has taken it"
        );
    }
}

impl Context {
    fn leads_no_more(&self) {
        self.report.leads(false);
        self.rotation.report.rests();
    }
}

/// One leader's time: first of all an epoch of its own, in which all that it says is said; and the roots as they are now, for a
/// former leader may have changed them since this replica looked last.
async fn term(context: &Context) {
    let epoch = loop {
        let (client, namespace) = (context.client.clone(), context.settings.own_namespace.as_str());
        match epoch::raise(client, namespace, &context.secret, context.lifetime).await {
            Ok(epoch) => break epoch,
            Err(error) => {
                context.metrics.failed("epoch");
                let secret = &context.secret;
                tracing::warn!(
                    error = chain(&error),
                    namespace,
                    secret,
                    "can't begin an epoch, without which no gate is told anything"
                );
            }
        }
        tokio::time::sleep(RETRY).await;
    };
    context.report.epoch(epoch.number);
    tracing::info!(epoch = epoch.number, "a new epoch has begun");
    context.rotation.fresh.read(RETRY).await;
    let own_namespace = context.settings.own_namespace.clone();
    let (opted_in, shown) = (OptedIn::default(), Shown::default());
    let gates = Visitor {
        shown: shown.clone(),
        ..visitor(context, Party::Gates, opted_in.clone(), epoch)
    };
    let routers = visitor(context, Party::Routers, OptedIn::only(own_namespace), epoch);
    let (tell_of_gates, gates_follow) = watch::channel(None);
    let (tell_of_routers, routers_follow) = watch::channel(None);
    let followers = Followers {
        gates: gates_follow,
        routers: routers_follow,
    };
    let (client, report, metrics) = (&context.client, &context.report, &context.metrics);
    // Each for ever. Routers have a queue of their own: gates that stall, however many, keep none of them waiting.
    tokio::join!(
        work::work(client.clone(), gates, tell_of_gates, report, metrics),
        work::work(client.clone(), routers, tell_of_routers, report, metrics),
        PublishedRoots::for_routers(context).run(),
        pod_certificates(context, opted_in, shown),
        rotor(context, followers).run(),
    );
}

/// Answers kubelets' requests, and publishes the roots for them, if that is wanted.
async fn pod_certificates(context: &Context, opted_in: OptedIn, shown: Shown) {
    if !context.signs_pod_certificates {
        return;
    }
    let signer = Signer {
        client: context.client.clone(),
        evidence: Evidence::new(context.client.clone()),
        settings: context.settings.clone(),
        shapes: SHAPES,
        authority: context.authority.clone(),
        anchors: context.anchors.clone(),
        opted_in,
        shown,
        lifetime: context.lifetime,
    };
    tokio::join!(
        requests::run(signer, &context.report, &context.metrics),
        PublishedRoots::for_kubelets(context).run(),
    );
}

fn rotor(context: &Context, followers: Followers) -> Rotor {
    let namespace = context.settings.own_namespace.as_str();
    let secret = AuthoritySecret::new(context.client.clone(), namespace, &context.secret);
    let (authority, metrics) = (context.authority.clone(), Arc::clone(&context.metrics));
    Rotor::new(context.rotation.clone(), secret, authority, followers, metrics)
}

fn visitor(context: &Context, party: Party, opted_in: OptedIn, epoch: Epoch) -> Visitor {
    Visitor {
        party,
        evidence: Evidence::new(context.client.clone()),
        settings: context.settings.clone(),
        shapes: SHAPES,
        default_policy: context.default_policy,
        authority: context.authority.clone(),
        anchors: context.anchors.clone(),
        opted_in,
        shown: Shown::default(),
        own: OwnIdentity::new(context.settings.control_identity.clone(), context.lifetime),
        lifetime: context.lifetime,
        former_until: epoch.former_until,
        epoch: epoch.number,
        counter: AtomicU64::new(1),
    }
}
