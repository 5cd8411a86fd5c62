//! What a kubelet does with a container: its environment, its volumes, its HTTP probes.

use crate::folder::Folder;
use crate::{exchange, processes, status};
use serde_json::Value;
use std::process::Command;
use tokio::net::TcpStream;

/// A container's command, where `program` stands for the one in its image: with its arguments and its environment.
///
/// Its volumes are in `volumes`, each in a folder of its name. Of the arguments only the folder of each mount is another:
/// `--file=/mount/name` becomes `--file=…/volume/name`, and `--folder=/mount` becomes `--folder=…/volume`.
pub fn command(program: &str, pod: &Value, container: &Value, volumes: &Folder) -> Command {
    let variables = environment(pod, container);
    let arguments = items(&container["args"]).map(|argument| expanded(text(argument), &variables));
    in_container(program, pod, container, volumes, arguments.collect())
}

/// The command that a kubelet runs in a container as soon as it has started it, likewise. Nothing is expanded in it.
pub fn post_start(program: &str, pod: &Value, container: &Value, volumes: &Folder) -> Command {
    let hook = &container["lifecycle"]["postStart"]["exec"]["command"];
    let mut words = items(hook).map(|word| text(word).to_owned());
    assert_eq!(words.next().as_deref(), Some(text(&container["command"][0])), "{hook}");
    in_container(program, pod, container, volumes, words.collect())
}

fn environment(pod: &Value, container: &Value) -> Vec<(String, String)> {
    let mut variables: Vec<(String, String)> = Vec::new();
    for variable in items(&container["env"]) {
        let value = match &variable["valueFrom"]["fieldRef"]["fieldPath"] {
            Value::Null => expanded(text(&variable["value"]), &variables),
            path => field(pod, text(path)),
        };
        variables.push((text(&variable["name"]).to_owned(), value));
    }
    variables
}

fn in_container(program: &str, pod: &Value, container: &Value, volumes: &Folder, arguments: Vec<String>) -> Command {
    let mounts: Vec<_> = items(&container["volumeMounts"]).collect();
    let argument = |argument: String| {
        mounts.iter().fold(argument, |argument, mount| {
            let volume = volumes.path(text(&mount["name"]));
            let (there, here) = (text(&mount["mountPath"]), volume.display());
            match argument.strip_suffix(&format!("={there}")) {
                Some(flag) => format!("{flag}={here}"),
                None => argument.replace(&format!("={there}/"), &format!("={here}/")),
            }
        })
    };
    for mount in &mounts {
        let declared = items(&pod["spec"]["volumes"]).any(|volume| volume["name"] == mount["name"]);
        assert!(declared, "the pod has no volume for {mount}");
        std::fs::create_dir_all(volumes.path(text(&mount["name"]))).unwrap();
    }
    let mut command = processes::command(program, arguments.into_iter().map(argument));
    command.envs(environment(pod, container));
    command
}

/// The status that a probe's or hook's HTTP handler gets; `None` where nobody listens.
pub async fn probe(handler: &Value) -> Option<u16> {
    let get = &handler["httpGet"];
    assert_eq!(get["scheme"], "HTTP", "{handler}");
    let port = get["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap();
    let stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let head = format!(
        "GET {} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: kube-probe/1.36\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        text(&get["path"])
    );
    Some(status(&exchange(stream, head, false).await))
}

/// The items of a list; none if there is no list.
fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// A field of the pod, as the downward API names it.
fn field(pod: &Value, path: &str) -> String {
    let value = match path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        Some((map, key)) => &at(pod, map)[key],
        None => at(pod, path),
    };
    text(value).to_owned()
}

fn at<'a>(pod: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(pod, |value, name| &value[name])
}

/// `$(NAME)` is the value of a variable that is known already, and `$$` a dollar sign.
fn expanded(mut text: &str, variables: &[(String, String)]) -> String {
    let mut expanded = String::new();
    while let Some((before, after)) = text.split_once('$') {
        expanded.push_str(before);
        let reference = after.strip_prefix('(').and_then(|rest| rest.split_once(')'));
        let known = |name: &str| variables.iter().rfind(|(known, _)| known == name);
        let value = reference.and_then(|(name, rest)| Some((known(name)?.1.as_str(), rest)));
        let (value, rest) = value.unwrap_or(("$", after.strip_prefix('$').unwrap_or(after)));
        expanded.push_str(value);
        text = rest;
    }
    expanded + text
}
