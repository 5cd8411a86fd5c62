//! Pods as a release before made them: an API server stored what is in `tests/golden/shapes` then, and nobody writes it anew.

use crate::chart::OWN_NAMESPACE;
use serde_json::{Value, json};

/// A pod of shape 2. What its gate was given is first of each list.
const SHAPE_2: &str = include_str!("../../golden/shapes/2.json");

/// What gates were given in one installation of a release with shape 2.
#[derive(Debug, Clone, Copy)]
pub struct Shape2<'a> {
    /// Where its injector was.
    pub own_namespace: &'a str,
    /// The image of gates.
    pub image: &'a str,
    /// The roots of gates in PEM.
    pub roots: &'a str,
}

impl Shape2<'_> {
    /// A pod, or a template for pods, as it came out of the injector. It has no volumes and no init containers of its own.
    pub fn injected(&self, pod: &Value) -> Value {
        let (mut injected, stored) = (pod.clone(), self.stored());
        for (part, name) in [
            ("labels", "sandgate.dev/injected"),
            ("annotations", "sandgate.dev/shape"),
        ] {
            injected["metadata"][part][name] = stored["metadata"][part][name].clone();
        }
        let mut gate = self.gate();
        // The API server has filled it in.
        gate.as_object_mut().unwrap().remove("terminationMessagePath");
        for (list, ours) in [("initContainers", json!([gate])), ("volumes", self.volumes())] {
            let others = std::mem::replace(&mut injected["spec"][list], ours);
            assert_eq!(others, Value::Null, "{pod}");
        }
        injected
    }

    /// The gate as it was stored.
    pub fn gate(&self) -> Value {
        self.stored()["spec"]["initContainers"][0].clone()
    }

    /// Its volumes, likewise.
    pub fn volumes(&self) -> Value {
        let stored = self.stored();
        json!(stored["spec"]["volumes"].as_array().unwrap()[..2])
    }

    fn stored(&self) -> Value {
        let mut stored: Value = serde_json::from_str(&SHAPE_2.replace(OWN_NAMESPACE, self.own_namespace)).unwrap();
        let gate = &mut stored["spec"]["initContainers"][0];
        let roots = &mut gate["env"][3];
        assert_eq!(roots["name"], "SANDGATE_TRUST_ANCHORS");
        roots["value"] = self.roots.into();
        gate["image"] = self.image.into();
        stored
    }
}
