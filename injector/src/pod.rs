//! Reads a pod as the API server sent it, without ever writing it again: what isn't known here stays as it is.

use json_patch::jsonptr::PointerBuf;
use serde_json::{Map, Value};

/// A pod that isn't shaped like one. The API server sends none; a file may hold one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// Which field.
    pub field: String,
    /// What it must be.
    pub expected: &'static str,
}

/// A raw pod whose outline is sound: maps, lists and names are where they belong.
#[derive(Debug, Clone, Copy)]
pub struct Pod<'a> {
    raw: &'a Value,
}

impl<'a> Pod<'a> {
    /// A view of a raw pod.
    ///
    /// # Errors
    /// The first field of the outline that has the wrong type.
    pub fn read(raw: &'a Value) -> Result<Self, Malformed> {
        let wrong = |field: &str, expected| Malformed {
            field: field.to_owned(),
            expected,
        };
        if !raw.is_object() {
            return Err(wrong("the pod", "an object"));
        }
        if at(raw, &["metadata"]).is_some_and(|metadata| !metadata.is_object()) {
            return Err(wrong("metadata", "an object"));
        }
        for map in ["labels", "annotations"] {
            let Some(map_value) = at(raw, &["metadata", map]) else {
                continue;
            };
            let texts = map_value
                .as_object()
                .is_some_and(|map| map.values().all(Value::is_string));
            if !texts {
                return Err(wrong(&format!("metadata.{map}"), "a map of strings"));
            }
        }
        if !raw.get("spec").is_some_and(Value::is_object) {
            return Err(wrong("spec", "an object"));
        }
        for list in ["initContainers", "containers", "ephemeralContainers", "volumes"] {
            let Some(list_value) = at(raw, &["spec", list]) else {
                continue;
            };
            let named = |item: &Value| item.get("name").is_some_and(Value::is_string);
            if !list_value.as_array().is_some_and(|items| items.iter().all(named)) {
                return Err(wrong(&format!("spec.{list}"), "a list of objects with names"));
            }
        }
        let pod = Self { raw };
        for container in pod.containers() {
            for (path, right, expected) in [
                (
                    &["securityContext"][..],
                    Value::is_object as fn(&Value) -> bool,
                    "an object",
                ),
                (&["securityContext", "capabilities"], Value::is_object, "an object"),
                (&["securityContext", "capabilities", "drop"], Value::is_array, "a list"),
            ] {
                if container.at(path).is_some_and(|value| !right(value)) {
                    return Err(wrong(&container.field(&path.join(".")), expected));
                }
            }
        }
        Ok(pod)
    }

    /// The pod as it was sent.
    pub fn raw(self) -> &'a Value {
        self.raw
    }

    /// The value under the names, unless it is absent or null.
    pub fn at(self, path: &[&str]) -> Option<&'a Value> {
        at(self.raw, path)
    }

    /// One label.
    pub fn label(self, name: &str) -> Option<&'a str> {
        text_at(self.raw, &["metadata", "labels", name])
    }

    /// One annotation.
    pub fn annotation(self, name: &str) -> Option<&'a str> {
        text_at(self.raw, &["metadata", "annotations", name])
    }

    /// The names and values of `labels` or `annotations`.
    pub fn texts(self, map: &'static str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let map = self.at(&["metadata", map]).and_then(Value::as_object);
        map.into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
    }

    /// Every container: init containers first, as they start.
    pub fn containers(self) -> impl Iterator<Item = Container<'a>> {
        ContainerList::ALL.into_iter().flat_map(move |list| {
            items(self.at(&["spec", list.name()])).map(move |(index, fields)| Container { list, index, fields })
        })
    }

    /// Every volume with its place.
    pub fn volumes(self) -> impl Iterator<Item = (usize, &'a Value)> {
        items(self.at(&["spec", "volumes"]))
    }

    /// The name, or how a name will be made.
    pub fn display_name(self) -> String {
        match (self.at(&["metadata", "name"]), self.at(&["metadata", "generateName"])) {
            (Some(Value::String(name)), _) if !name.is_empty() => name.clone(),
            (_, Some(Value::String(prefix))) => format!("{prefix}*"),
            _ => String::new(),
        }
    }

    /// The kind and name of the object that controls the pod.
    pub fn owner(self) -> Option<(&'a str, &'a str)> {
        let controls = |owner: &&Value| owner.get("controller").and_then(Value::as_bool) == Some(true);
        let owners = self.at(&["metadata", "ownerReferences"])?.as_array()?;
        let owner = owners.iter().find(controls)?;
        Some((text_at(owner, &["kind"])?, text_at(owner, &["name"])?))
    }
}

/// The place and value of a container's environment variable that is written out.
pub(crate) fn variable<'a>(container: &'a Value, name: &str) -> Option<(usize, &'a str)> {
    let named = |(_, variable): &(usize, &Value)| text_at(variable, &["name"]) == Some(name);
    let (index, variable) = items(at(container, &["env"])).find(named)?;
    Some((index, text_at(variable, &["value"])?))
}

/// Which of a pod's lists a container is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerList {
    /// Runs before the app, or beside it with `restartPolicy: Always`.
    Init,
    /// The app.
    Main,
    /// Added to a running pod.
    Ephemeral,
}

impl ContainerList {
    /// Every list, in the order in which their containers start.
    pub const ALL: [Self; 3] = [Self::Init, Self::Main, Self::Ephemeral];

    /// The field's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Init => "initContainers",
            Self::Main => "containers",
            Self::Ephemeral => "ephemeralContainers",
        }
    }
}

/// One container and its place.
#[derive(Debug, Clone, Copy)]
pub struct Container<'a> {
    /// Which list it is in.
    pub list: ContainerList,
    /// Its place in the list.
    pub index: usize,
    fields: &'a Value,
}

impl<'a> Container<'a> {
    /// Its name.
    pub fn name(self) -> &'a str {
        text_at(self.fields, &["name"]).unwrap_or_default()
    }

    /// The value under the names, unless it is absent or null.
    pub fn at(self, path: &[&str]) -> Option<&'a Value> {
        at(self.fields, path)
    }

    /// All of it.
    pub fn fields(self) -> &'a Value {
        self.fields
    }

    /// Where a field of it is, as messages name fields: `spec.containers[0].image`.
    pub fn field(self, rest: &str) -> String {
        let (list, index) = (self.list.name(), self.index);
        if rest.is_empty() {
            format!("spec.{list}[{index}]")
        } else {
            format!("spec.{list}[{index}].{rest}")
        }
    }

    /// Where a field of it is, as patches name fields: `/spec/containers/0/image`.
    pub fn pointer(self, rest: &[&str]) -> PointerBuf {
        let index = self.index.to_string();
        let place = ["spec", self.list.name(), &index];
        PointerBuf::from_tokens(place.into_iter().chain(rest.iter().copied()))
    }
}

/// The value under the names, unless it is absent or null.
pub fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    let found = path.iter().try_fold(value, |value, name| value.get(*name))?;
    (!found.is_null()).then_some(found)
}

/// The text under the names.
pub fn text_at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a str> {
    at(value, path).and_then(Value::as_str)
}

/// Whether the value under the names is `true`.
pub fn is_true(value: &Value, path: &[&str]) -> bool {
    at(value, path).and_then(Value::as_bool) == Some(true)
}

/// The items of a list with their places; none where there is no list.
pub fn items(list: Option<&Value>) -> impl Iterator<Item = (usize, &Value)> {
    list.and_then(Value::as_array).into_iter().flatten().enumerate()
}

/// The members of a map; none where there is no map.
pub fn members(map: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    map.and_then(Value::as_object).map(Map::iter).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whatever_has_the_wrong_type_in_the_outline_is_named() {
        for (pod, field) in [
            (json!([]), "the pod"),
            (json!({"metadata": 1, "spec": {}}), "metadata"),
            (json!({"metadata": {"labels": []}, "spec": {}}), "metadata.labels"),
            (
                json!({"metadata": {"annotations": {"a": 1}}, "spec": {}}),
                "metadata.annotations",
            ),
            (json!({}), "spec"),
            (json!({"spec": null}), "spec"),
            (json!({"spec": {"containers": {}}}), "spec.containers"),
            (json!({"spec": {"initContainers": [{}]}}), "spec.initContainers"),
            (
                json!({"spec": {"ephemeralContainers": [{"name": 1}]}}),
                "spec.ephemeralContainers",
            ),
            (json!({"spec": {"volumes": ["a"]}}), "spec.volumes"),
            (
                json!({"spec": {"containers": [{"name": "a", "securityContext": {"capabilities": {"drop": {}}}}]}}),
                "spec.containers[0].securityContext.capabilities.drop",
            ),
        ] {
            assert_eq!(Pod::read(&pod).unwrap_err().field, field, "{pod}");
        }
    }

    #[test]
    fn null_and_absent_mean_the_same() {
        let pod = json!({"metadata": {"labels": null}, "spec": {"containers": null, "volumes": null}});
        let pod = Pod::read(&pod).unwrap();
        assert_eq!(
            pod.containers().count() + pod.volumes().count() + pod.texts("labels").count(),
            0
        );
        assert_eq!(pod.label("a"), None);
    }

    #[test]
    fn a_pods_owner_is_the_one_that_controls_it() {
        let owner = |name: &str, controller: Value| json!({"kind": "Sandbox", "name": name, "controller": controller});
        for (owners, found) in [
            (
                json!([
                    owner("first", json!(false)),
                    owner("second", Value::Null),
                    owner("third", json!(true))
                ]),
                Some(("Sandbox", "third")),
            ),
            (json!([{"kind": "Sandbox", "name": "first"}]), None),
            (Value::Null, None),
        ] {
            let pod = json!({"metadata": {"ownerReferences": owners}, "spec": {}});
            assert_eq!(Pod::read(&pod).unwrap().owner(), found, "{pod}");
        }
    }

    #[test]
    fn a_container_knows_its_place() {
        let pod = json!({"spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "b"}, {"name": "c"}]}});
        let pod = Pod::read(&pod).unwrap();
        let found: Vec<_> = pod.containers().map(|c| (c.name(), c.field("x"))).collect();
        assert_eq!(
            found,
            [
                ("b", "spec.initContainers[0].x".to_owned()),
                ("c", "spec.initContainers[1].x".to_owned()),
                ("a", "spec.containers[0].x".to_owned()),
            ]
        );
        let last = pod.containers().last().unwrap();
        assert_eq!(last.pointer(&["a/b"]).as_str(), "/spec/containers/0/a~1b");
    }
}
