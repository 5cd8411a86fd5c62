"""Checks pods in a folder against strict Kubernetes schemas; `tests/admit_schemas` makes the pods and calls this."""

import importlib.resources
import json
import pathlib
import sys

import jsonschema
from referencing import Registry
from referencing.jsonschema import DRAFT7

OLDEST, NEWEST = 29, 37
# Of each generated pod: as it comes, as it leaves, as it leaves with lockdown. Fewer were not written, or not found.
KINDS = ("before", "after", "locked-down")
LEAST = 400


def validator(minor):
    """The strict schema of a pod in Kubernetes 1.<minor>."""
    name = f"v1.{minor}.0-local-strict"
    folder = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema" / name
    load = lambda file: json.loads((folder / file).read_text())
    definitions = DRAFT7.create_resource(load("_definitions.json"))
    registry = Registry().with_resource("_definitions.json", definitions)
    return jsonschema.Draft7Validator(load("pod-v1.json"), registry=registry)


def main(folder):
    pods = {file.name: json.loads(file.read_text()) for file in sorted(pathlib.Path(folder).glob("*.json"))}
    for kind in KINDS:
        count = sum(name.endswith(f"-{kind}.json") for name in pods)
        if count < LEAST:
            print(f"{count} pods {kind}, at least {LEAST} are expected")
            return 1
    passed = failed = 0
    for minor in range(OLDEST, NEWEST + 1):
        schema, before = validator(minor), failed
        for name, pod in pods.items():
            error = next(schema.iter_errors(pod), None)
            if error is None:
                passed += 1
            else:
                failed += 1
                print(f"1.{minor} {name}: {error.json_path}: {error.message:.200}")
        print(f"1.{minor}: {len(pods)} pods, {failed - before} failed")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
