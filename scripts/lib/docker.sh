# Sourced after bootstrap.sh by scripts that show or test netctl on real Docker engines: installs or unpacks
# what such an engine needs, and starts nothing.
# Sets $cache (in the checkout), where packages are unpacked that are not installed.

cache=$root/.cache

# install_stopped PROGRAM PACKAGE: unless this host has the program already. No daemon of the package is
# started: Docker's, for one, would change this host's firewall.
install_stopped() {
    local policy=/usr/sbin/policy-rc.d made=0 failed=0
    command -v "$1" >/dev/null && return
    # What Debian asks before a package starts its daemon (invoke-rc.d(8)); 101 is no.
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        made=1
    fi
    (install_packages "$2") || failed=1
    if ((made)); then rm -f "$policy"; fi
    ((failed == 0)) || exit 1
}

# private_apt ARG...: apt-get with lists and settings of its own below $cache/apt, for another release than the
# host's; what the host's own apt knows stays as it is.
private_apt() {
    apt-get -qq -o Dir::Etc::sourcelist="$cache/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferencesparts=/dev/null -o Dir::State="$cache/apt/state" \
        -o Dir::State::status="$cache/apt/state/status" -o Dir::Cache="$cache/apt/cache" \
        -o APT::Sandbox::User=root "$@"
}

# unpack FOLDER RELEASE PACKAGE...: the files of packages, by the host's own Debian mirror, below
# $cache/FOLDER; done once. RELEASE '' is the host's. Returns 1 where there is no such release.
unpack() {
    local folder=$cache/$1 release=$2 mirror package
    shift 2
    [[ -e $folder/.complete ]] && grep -qxF "$release $*" "$folder/.complete" && return
    say "unpacking packages: $*"
    rm -rf "$folder"
    mkdir -p "$folder/.packages"
    if [[ $release ]]; then
        mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m1 -E '/debian/?$') ||
            { say "this host's apt knows no Debian mirror"; return 1; }
        rm -rf "$cache/apt"
        mkdir -p "$cache"/apt/{state/lists/partial,cache/archives/partial}
        touch "$cache/apt/state/status"
        printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$mirror" "$release" \
            >"$cache/apt/sources.list"
        private_apt update >&2 && (cd "$folder/.packages" && private_apt download "$@" >&2) || return 1
        rm -rf "$cache/apt"
    else
        (cd "$folder/.packages" && apt-get -qq download "$@" >/dev/null 2>&1) ||
            { apt-get update -qq >&2 && (cd "$folder/.packages" && apt-get -qq download "$@" >&2); } || return 1
    fi
    for package in "$folder"/.packages/*.deb; do dpkg -x "$package" "$folder"; done
    rm -rf "$folder/.packages"
    printf '%s\n' "$release $*" >"$folder/.complete"
}

# prepare_docker: an engine, something to make an image from, and Compose where Debian has it for us.
prepare_docker() {
    install_stopped dockerd docker.io
    unpack busybox '' busybox-static || die "busybox-static could not be unpacked"
    unpack compose trixie docker-compose || say "no Docker Compose of Debian's here"
}

# prepare_test_engines: a second, newer engine beside the distribution's, and a registry.
prepare_test_engines() {
    prepare_docker
    install_stopped docker-registry docker-registry
    # runc stays the host's: a newer release's needs a newer C library.
    unpack docker-26.1 trixie docker.io docker-cli containerd || say "no second engine here"
}
