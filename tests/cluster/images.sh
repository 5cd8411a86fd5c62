# Shared by run: the images that a node has, as archives in the cache; nothing comes from a registry. Sourced after
# programs.sh.
# shellcheck shell=bash disable=SC2154

images=$cache/images
# The release of Debian that apps in tests run on, and its Python.
app_suite=bookworm
app_python=3.11

# Makes an archive unless it is there as it would be made now: a stamp beside it says of what it was made.
image() { # image NAME MADE_OF FUNCTION
    local archive=$images/$1.tar
    if [ -f "$archive" ] && [ "$(cat "$images/$1.stamp" 2>/dev/null)" = "$2" ]; then return; fi
    echo "making the image $1" >&2
    rm -rf -- "$images/$1.root" "$images/$1.stamp"
    mkdir -p "$images/$1.root"
    "$3" "$images/$1.root" "$archive"
    rm -rf -- "$images/$1.root"
    printf '%s' "$2" >"$images/$1.stamp"
}

checksum() { cat -- "$@" | sha256sum | cut -c -64; }

archive() { python3 -B "$here/images/archive.py" "$@"; }

make_pause() {
    cc -Os -static -o "$1/pause" "$here/images/pause.c"
    archive local/pause:1 "$2" "$1" '{"Entrypoint": ["/pause"]}'
}

make_controller() {
    cp -- "$agent_sandbox_controller/agent-sandbox-controller" "$1/"
    # For the certificate of its webhook.
    mkdir -m 1777 "$1/tmp"
    archive local/agent-sandbox-controller:1 "$2" "$1" '{"Entrypoint": ["/agent-sandbox-controller"], "User": "65532"}'
}

# Debian with Python, upstream's runtime for sandboxes, which the published SDK talks to, and the tests' own app.
make_app() {
    timeout 900 mmdebstrap --quiet --variant=minbase --include=python3 "$app_suite" "$1"
    timeout 600 "$sdk_cache/venv/bin/pip" install --quiet --disable-pip-version-check --target "$1/opt/packages" \
        --python-version "$app_python" --only-binary=:all: -c "$sdk_folder/requirements.txt" fastapi uvicorn python-multipart
    mkdir "$1/app" "$1/opt/tests"
    cp -- "$agent_sandbox/examples/python-runtime-sandbox/main.py" "$1/app/"
    cp -- "$here/images/app.py" "$1/opt/tests/"
    chown -R 1000:1000 "$1/app"
    archive local/app:1 "$2" "$1" '{"Env": ["PATH=/usr/bin:/bin", "PYTHONPATH=/opt/packages", "PYTHONDONTWRITEBYTECODE=1"],
        "WorkingDir": "/app", "User": "1000:1000",
        "Cmd": ["python3", "-m", "uvicorn", "main:app", "--host", "0.0.0.0", "--port", "8888"]}'
}

# All that a node needs, but for our own.
need_foreign_images() {
    local files
    files=$(checksum "$here/images.sh" "$here"/images/* "$sdk_folder/requirements.txt")
    mkdir -p "$images"
    image pause "$files" make_pause
    image agent-sandbox-controller "$agent_sandbox_version $files" make_controller
    image app "$agent_sandbox_version $files" make_app
}

# Ours, from this tree or from a folder that has their archives.
need_own_images() { # need_own_images FOLDER
    if [ -z "${SANDGATE_IMAGES:-}" ]; then
        "$root/tests/images/run" --archives "$1"
        return
    fi
    mkdir -p "$1"
    for name in router sidecar injector; do
        [ -f "$SANDGATE_IMAGES/$name.tar" ] || die "SANDGATE_IMAGES=$SANDGATE_IMAGES holds no $name.tar"
        cp -- "$SANDGATE_IMAGES/$name.tar" "$1/"
    done
}
