# Sourced by the scripts: what a bare Debian or Ubuntu host lacks for running netctl from its checkout.
# Sets $root (the checkout) and $python (of its virtual environment).

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=$root/.venv/bin/python

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# install_packages PACKAGE...: those that are missing, by the distribution's package manager.
install_packages() {
    local package missing=()
    command -v dpkg-query >/dev/null || die "no dpkg here; install these by hand: $*"
    for package; do
        [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    ((EUID == 0)) || die "these packages are missing and installing them needs root: ${missing[*]}"
    say "installing packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 && return
    # The first try saves an update where the lists are fresh; a bare image has none.
    apt-get update -qq >&2 && apt-get install -qq -y --no-install-recommends "${missing[@]}" >&2 ||
        die "the packages could not be installed: ${missing[*]}"
}

# find_python: the first interpreter of 3.11 or later; the distribution's own first, since other users may run it.
find_python() {
    local candidate
    for candidate in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
        command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null &&
            { command -v "$candidate"; return; }
    done
    die "Python 3.11 or later is needed (apt-get install python3)"
}

# fill_venv PYTHON DIRECTORY: a virtual environment with pip in it; one that was interrupted is completed.
fill_venv() {
    "$2/bin/python" -m pip --version >/dev/null 2>&1 || "$1" -m venv "$2" ||
        die "no virtual environment could be made with $1"
}

# make_venv EXTRA: the virtual environment in the checkout, renewed when what it is made from changes.
make_venv() {
    local extra=$1 base stamp
    base=$(find_python) || exit 1
    [[ $base == /usr/bin/python3 ]] && install_packages python3-venv
    stamp=$(cat "$root/pyproject.toml" "$root/constraints.txt" | sha256sum | cut -d' ' -f1)
    if [[ -x $python ]] && grep -qx "$stamp all" "$root/.venv/.made" 2>/dev/null && [[ $extra == all ]]; then return; fi
    if [[ -x $python ]] && grep -qx "$stamp dev" "$root/.venv/.made" 2>/dev/null; then return; fi
    say "making the virtual environment .venv (a minute)"
    fill_venv "$base" "$root/.venv"
    "$python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" -e "$root[$extra]" >&2 ||
        die "pip could not install netctl[$extra]; its message is above"
    printf '%s %s\n' "$stamp" "$extra" >"$root/.venv/.made"
}
