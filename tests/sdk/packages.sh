# Shared by tests/sdk/run and tests/cluster/run: the published SDK in a virtual environment. Sourced, after `die` is defined.
# shellcheck shell=bash

sdk_folder=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
sdk_cache=${XDG_CACHE_HOME:-$HOME/.cache}/sandgate/sdk

need_python() {
    command -v python3 >/dev/null || die "python3 is missing"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "the SDK needs python3 >= 3.11"
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || die "python3's venv module is missing: install python3-venv"
        timeout 300 apt-get install -y --no-install-recommends python3-venv >&2
    fi
}

# A virtual environment that holds exactly requirements.txt. The stamp is written last, so a broken one is made again.
need_packages() {
    local stamp="$sdk_cache/stamp" wanted
    wanted=$(sha256sum <"$sdk_folder/requirements.txt")$(python3 --version)
    mkdir -p "$sdk_cache"
    exec 9>"$sdk_cache/lock"
    flock --timeout 600 9 || die "another run has held $sdk_cache/lock for ten minutes"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        rm -f "$stamp"
        python3 -m venv --clear "$sdk_cache/venv"
        timeout 600 "$sdk_cache/venv/bin/pip" install --quiet --disable-pip-version-check -r "$sdk_folder/requirements.txt"
        printf '%s' "$wanted" >"$stamp"
    fi
    exec 9>&-
}
