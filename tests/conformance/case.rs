//! What a case of the table is: settings, a request, an app, and what must come of it at our router and at upstream's.

use crate::check::Check;
use crate::decisions::Decision;
use crate::routers::Settings;

/// Where the router listens for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listener {
    /// Port 8080 of a cluster.
    Http,
    /// Port 8081.
    Health,
    /// Port 9090.
    Metrics,
}

/// What the client does, one after the other.
#[derive(Debug, Clone)]
pub(crate) enum Talk {
    /// Sends this.
    Send(String),
    /// Reads until this has come, behind what it waited for before.
    Await(&'static str),
    /// Sends nothing more.
    Stop,
}

/// What the app does.
#[derive(Debug, Clone)]
pub(crate) enum App {
    /// Answers each whole request with this.
    Answers(String),
    /// The same on port 8888 of an address of its own.
    OnDefaultPort,
    /// Answers a head at once, without its body.
    AnswersHeads(String),
    /// Writes this for a whole request and closes.
    Closes(String),
    /// Closes as soon as it has a head.
    Drops,
    /// Takes requests and says nothing.
    Hangs,
    /// Nobody listens.
    Refuses,
    /// Nobody takes connections, and their queue is full.
    Unheard,
    /// Listens after a while, and then answers.
    Late,
    /// Answers in pieces with pauses, for longer than the router waits for any of them.
    Paced,
    /// Answers a head with the first, and whatever comes then with the second.
    Switches(String, &'static str),
}

/// A row of the table.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// The section of the contract.
    pub(crate) section: u8,
    pub(crate) name: String,
    pub(crate) settings: Settings,
    pub(crate) listener: Listener,
    pub(crate) talk: Vec<Talk>,
    pub(crate) app: App,
    /// Which answer of the connection the checks are about.
    pub(crate) nth: usize,
    pub(crate) expect: Vec<Check>,
    /// Where upstream's router does something else: why ours does not, and what theirs does.
    pub(crate) differs: Option<(&'static Decision, Vec<Check>)>,
}

/// A case of the plainest kind: allow-all, an app that answers `hello`, one request.
pub(crate) fn case(name: impl Into<String>, request: impl Into<String>) -> Case {
    Case {
        section: 0,
        name: name.into(),
        settings: Settings::open(),
        listener: Listener::Http,
        talk: vec![Talk::Send(request.into())],
        app: App::Answers(hello()),
        nth: 0,
        expect: Vec::new(),
        differs: None,
    }
}

impl Case {
    /// Other settings.
    pub(crate) fn with(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Another app.
    pub(crate) fn app(mut self, app: App) -> Self {
        self.app = app;
        self
    }

    /// An app that answers otherwise.
    pub(crate) fn answer(self, answer: impl Into<String>) -> Self {
        self.app(App::Answers(answer.into()))
    }

    /// Another listener.
    pub(crate) fn at(mut self, listener: Listener) -> Self {
        self.listener = listener;
        self
    }

    /// What the client does after its request.
    pub(crate) fn then(mut self, more: impl IntoIterator<Item = Talk>) -> Self {
        self.talk.extend(more);
        self
    }

    /// The checks are about the second answer.
    pub(crate) fn second(mut self) -> Self {
        self.nth = 1;
        self
    }

    /// What must be so.
    pub(crate) fn expect(mut self, checks: impl IntoIterator<Item = Check>) -> Self {
        self.expect.extend(checks);
        self
    }

    /// The app is asked once, and the client gets its whole `hello`.
    pub(crate) fn passes(self) -> Self {
        self.expect(PASSED)
    }

    /// The router answers itself, and the app hears of nothing.
    pub(crate) fn refused(self, status: u16, text: &'static str) -> Self {
        self.expect([Check::Status(status), Check::Detail(text), Check::Untouched])
    }

    /// A request that could be read in two ways: 400, nothing at the app, and the connection closes.
    pub(crate) fn repelled(self) -> Self {
        self.expect([Check::Status(400), Check::Untouched, Check::Closes])
    }

    /// What upstream's router does instead.
    pub(crate) fn differs(mut self, why: &'static Decision, theirs: impl IntoIterator<Item = Check>) -> Self {
        self.differs = Some((why, theirs.into_iter().collect()));
        self
    }

    /// What upstream's router does instead: it asks the app.
    pub(crate) fn passes_there(self, why: &'static Decision) -> Self {
        self.differs(why, PASSED)
    }

    /// All checks for either router.
    pub(crate) fn checks(&self) -> impl Iterator<Item = &Check> {
        self.expect
            .iter()
            .chain(self.differs.iter().flat_map(|(_, theirs)| theirs))
    }
}

/// What is so of a request that passed.
pub(crate) const PASSED: [Check; 3] = [Check::Status(200), Check::Body("hello"), Check::Asked(1)];

/// A 200 with a body.
pub(crate) fn hello() -> String {
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".into()
}

/// The head of a request that leads to the app, with more `fields`, each ended with CRLF.
pub(crate) fn head(line: &str, fields: &str) -> String {
    format!(
        "{line} HTTP/1.1\r\nHost: sandbox.example\r\nX-Sandbox-ID: alpha\r\nX-Sandbox-Port: @PORT@\r\n\
         X-Sandbox-Pod-IP: @IP@\r\n{fields}\r\n"
    )
}

/// A plain request that leads to the app.
pub(crate) fn get(path: &str) -> String {
    head(&format!("GET {path}"), "")
}

/// The same with more `fields`.
pub(crate) fn with(fields: &str) -> String {
    head("GET /page", fields)
}

/// A request in which the routing header `name` occurs once for each of `values`, and the others lead to the app.
pub(crate) fn routed(name: &str, values: &[&str]) -> String {
    let lines: String = values.iter().flat_map(|value| [name, ": ", *value, "\r\n"]).collect();
    let usual = get("/page");
    let others = usual
        .split_inclusive("\r\n")
        .filter(|line| !line.starts_with(&format!("{name}: ")));
    let others: String = others.collect();
    others.replacen("\r\n\r\n", &format!("\r\n{lines}\r\n"), 1)
}

/// A request for a sandbox without a hint.
pub(crate) fn unhinted(fields: &str) -> String {
    with(fields).replace("X-Sandbox-Pod-IP: @IP@\r\n", "")
}
