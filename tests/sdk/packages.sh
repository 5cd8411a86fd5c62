# Shared by tests/sdk/run, tests/cluster/run (the published SDK) and tests/browser/run: Python packages in a virtual environment.
# Sourced, after `die` is defined.
# shellcheck shell=bash

sdk_folder=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
sdk_cache=${XDG_CACHE_HOME:-$HOME/.cache}/sandgate/sdk

need_python() {
    command -v python3 >/dev/null || die "python3 is missing"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "python3 >= 3.11 is needed"
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || die "python3's venv module is missing: install python3-venv"
        timeout 300 apt-get install -y --no-install-recommends python3-venv >&2
    fi
}

# A virtual environment that holds exactly the requirements. The stamp is written last, so a broken one is made again.
need_packages() { # need_packages [REQUIREMENTS CACHE]; the SDK's if not given
    local requirements=${1:-$sdk_folder/requirements.txt} cache=${2:-$sdk_cache}
    local stamp="$cache/stamp" wanted
    wanted=$(sha256sum <"$requirements")$(python3 --version)
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock --timeout 600 9 || die "another run has held $cache/lock for ten minutes"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        rm -f "$stamp"
        python3 -m venv --clear "$cache/venv"
        timeout 600 "$cache/venv/bin/pip" install --quiet --disable-pip-version-check -r "$requirements"
        printf '%s' "$wanted" >"$stamp"
    fi
    exec 9>&-
}
