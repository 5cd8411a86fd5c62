//! What `sandgate-local` tells whoever started it.

use sandgate_mesh::contract::{DEFAULT_APP_PORT, DEFAULT_NAMESPACE};
use sandgate_mesh::sandbox::{AppPort, Namespace, SandboxName};
use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::path::Path;

/// What is running, as far as [`Scene::instructions`] speaks of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scene<'a> {
    /// The router's address as a client on this machine writes it.
    pub(crate) router: SocketAddr,
    /// The token, unless nobody needs one.
    pub(crate) token: Option<&'a str>,
    /// The sandboxes' namespace.
    pub(crate) namespace: &'a Namespace,
    /// What runs in it.
    pub(crate) sandboxes: &'a [SandboxScene],
    /// Whether the apps are the demo apps.
    pub(crate) demo: bool,
    /// The policy file, if there is one.
    pub(crate) policy: Option<&'a Path>,
}

/// One sandbox of a [`Scene`].
#[derive(Debug, Clone)]
pub(crate) struct SandboxScene {
    /// Its name.
    pub(crate) name: SandboxName,
    /// Its app's ports.
    pub(crate) ports: Vec<AppPort>,
    /// Its gate's port; none without a mesh.
    pub(crate) gate: Option<u16>,
}

impl Scene<'_> {
    /// The text shown at start: who runs where, and commands to paste, each with the answer to expect.
    pub(crate) fn instructions(&self) -> String {
        let mut text = String::from("\nSandgate runs on this machine. Ctrl-C ends it.\n\n");
        line(&mut text, format_args!("  router         http://{}", self.router));
        match self.token {
            Some(token) => line(&mut text, format_args!("  token          {token}")),
            None => line(&mut text, format_args!("  token          none: everybody may call")),
        }
        for sandbox in self.sandboxes {
            let ports: Vec<_> = sandbox.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
            let gate = sandbox.gate.map_or_else(
                || "no gate (--mesh off)".into(),
                |port| format!("gate on 127.0.0.1:{port}"),
            );
            let (name, ports) = (sandbox.name.as_str(), ports.join(", "));
            line(&mut text, format_args!("  sandbox {name:<6} {gate}, app on {ports}"));
        }
        if let Some(file) = self.policy {
            line(&mut text, format_args!("  policy         {}", file.display()));
        }
        text.push('\n');
        match (self.demo, self.sandboxes) {
            (true, [alpha, beta, ..]) => self.demo_commands(&mut text, alpha, beta),
            (_, sandboxes) => sandboxes
                .iter()
                .for_each(|sandbox| self.app_commands(&mut text, sandbox)),
        }
        if let Some(first) = self.sandboxes.first() {
            self.attacks(&mut text, first);
        }
        text
    }

    fn demo_commands(&self, text: &mut String, alpha: &SandboxScene, beta: &SandboxScene) {
        let (app, other) = (alpha.ports.first().copied(), beta.ports.first().copied());
        let call = |before: &str, sandbox, port, path: &str| self.curl(true, before, sandbox, port, path);
        title(text, "Allowed");
        self.command(
            text,
            &call("", alpha, app, "/hello"),
            "200: what the sandbox sees of this request",
        );
        self.command(
            text,
            &call("", beta, other, "/public/page"),
            "200: beta allows GET below /public",
        );
        title(text, "Files: into the sandbox and back");
        let upload = format!(
            "echo hello | {}",
            call("-F 'file=@-;filename=hello.txt' ", alpha, app, "/upload")
        );
        self.command(text, &upload, "200");
        self.command(text, &call("", alpha, app, "/download/hello.txt"), "200: hello");
        let denied = alpha.gate.is_some();
        title(
            text,
            if denied {
                "Denied by policy"
            } else {
                "No policy without gates (--mesh off)"
            },
        );
        let answer = if denied {
            "403: alpha's policy has no DELETE"
        } else {
            "200"
        };
        self.command(text, &call("-X DELETE ", alpha, app, "/hello"), answer);
        let answer = if denied { "403: not below /public" } else { "200" };
        self.command(text, &call("", beta, other, "/private"), answer);
    }

    fn app_commands(&self, text: &mut String, sandbox: &SandboxScene) {
        title(text, &format!("Allowed: {}", sandbox.name));
        for port in &sandbox.ports {
            let call = self.curl(true, "", sandbox, Some(*port), "/");
            self.command(text, &call, &format!("what the app on port {port} answers"));
        }
        let free = (1..=u16::MAX).filter_map(AppPort::new);
        let stranger = free.into_iter().find(|port| !sandbox.ports.contains(port));
        if sandbox.gate.is_some() {
            title(text, "Denied by policy");
            let call = self.curl(true, "", sandbox, stranger, "/");
            self.command(text, &call, "403: not one of the sandbox's ports");
        }
    }

    fn attacks(&self, text: &mut String, sandbox: &SandboxScene) {
        if self.token.is_some() {
            title(text, "Denied without the token");
            let call = self.curl(false, "", sandbox, sandbox.ports.first().copied(), "/hello");
            annotated(text, &call, "401");
        }
        if let Some(gate) = sandbox.gate {
            title(text, "Past the router, without its certificate");
            // Without --no-alpn, the gate already refuses the protocols that curl offers.
            let call = format!("curl -k --no-alpn https://127.0.0.1:{gate}/");
            annotated(text, &call, "TLS handshake fails: certificate required");
        }
    }

    /// A command whose answer depends on the policy.
    fn command(&self, text: &mut String, command: &str, answer: &str) {
        if self.policy.is_some() {
            annotated(text, command, "as the policy file says");
        } else {
            annotated(text, command, answer);
        }
    }

    fn curl(
        &self,
        with_token: bool,
        before: &str,
        sandbox: &SandboxScene,
        port: Option<AppPort>,
        path: &str,
    ) -> String {
        let mut command = format!("curl {before}");
        let mut header = |name: &str, value: &str| {
            let value = value.replace('\'', r"'\''");
            // Writing to a String can't fail.
            let _ = write!(command, "-H '{name}: {value}' ");
        };
        if let Some(token) = self.token.filter(|_| with_token) {
            header("Authorization", &format!("Bearer {token}"));
        }
        header("X-Sandbox-ID", sandbox.name.as_str());
        if self.namespace.as_str() != DEFAULT_NAMESPACE {
            header("X-Sandbox-Namespace", self.namespace.as_str());
        }
        if let Some(port) = port.filter(|port| port.get() != DEFAULT_APP_PORT) {
            header("X-Sandbox-Port", &port.to_string());
        }
        format!("{command}http://{}{path}", self.router)
    }
}

fn title(text: &mut String, title: &str) {
    line(text, format_args!("# {title}"));
}

fn annotated(text: &mut String, command: &str, answer: &str) {
    line(text, format_args!("{command}  # {answer}"));
}

fn line(text: &mut String, content: fmt::Arguments<'_>) {
    // Writing to a String can't fail.
    let _ = writeln!(text, "{content}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(name: &str, port: u16, gate: Option<u16>) -> SandboxScene {
        SandboxScene {
            name: name.parse().unwrap(),
            ports: vec![AppPort::new(port).unwrap()],
            gate,
        }
    }

    #[test]
    fn the_demo_shows_each_kind_of_answer() {
        let sandboxes = [sandbox("alpha", 8888, Some(4001)), sandbox("beta", 8889, Some(4002))];
        let scene = Scene {
            router: "127.0.0.1:8080".parse().unwrap(),
            token: Some("s3cret"),
            namespace: &"default".parse().unwrap(),
            sandboxes: &sandboxes,
            demo: true,
            policy: None,
        };
        let text = scene.instructions();
        let token = "-H 'Authorization: Bearer s3cret' ";
        for expected in [
            format!("curl {token}-H 'X-Sandbox-ID: alpha' http://127.0.0.1:8080/hello  # 200"),
            format!("curl -X DELETE {token}-H 'X-Sandbox-ID: alpha' http://127.0.0.1:8080/hello  # 403"),
            "curl -H 'X-Sandbox-ID: alpha' http://127.0.0.1:8080/hello  # 401\n".into(),
            format!("{token}-H 'X-Sandbox-ID: beta' -H 'X-Sandbox-Port: 8889' http://127.0.0.1:8080/private  # 403"),
            "http://127.0.0.1:8080/download/hello.txt  # 200".into(),
            "curl -k --no-alpn https://127.0.0.1:4001/  # TLS handshake fails: certificate required\n".into(),
        ] {
            assert!(text.contains(&expected), "{expected}\n{text}");
        }
    }

    #[test]
    fn the_text_promises_only_what_is_there() {
        let scene = Scene {
            router: "127.0.0.1:8080".parse().unwrap(),
            token: None,
            namespace: &"team-a".parse().unwrap(),
            sandboxes: &[sandbox("alpha", 8888, None), sandbox("beta", 8889, None)],
            demo: true,
            policy: None,
        };
        let text = scene.instructions();
        assert!(text.contains("-H 'X-Sandbox-Namespace: team-a'"), "{text}");
        for absent in ["401", "403", "Bearer", "https://"] {
            assert!(!text.contains(absent), "{absent}\n{text}");
        }
        let scene = Scene {
            token: Some("it's"),
            sandboxes: &[sandbox("web", 1, Some(4001))],
            demo: false,
            ..scene
        };
        let text = scene.instructions();
        assert!(text.contains(r"Bearer it'\''s'"), "{text}");
        assert!(
            text.contains("-H 'X-Sandbox-Port: 2' http://127.0.0.1:8080/  # 403"),
            "{text}"
        );
        let scene = Scene {
            policy: Some(Path::new("p.json")),
            ..scene
        };
        let text = scene.instructions();
        assert!(!text.contains("403") && text.contains("# 401"), "{text}");
    }
}
