# Sourced by scripts/kernel-lab for `build`: Debian's newest kernel source -> $cache/linux.
# All of it happens in a folder beside that, which goes with the script whatever comes of it.

oldest=6.12

# newest_source: the name of the newest package of kernel source that apt knows of.
newest_source() {
    local version
    version=$(apt-cache search --names-only '^linux-source-[0-9.]+$' |
        sed -n 's/^linux-source-\([0-9.]*\) .*/\1/p' | sort -V | tail -n1)
    if [[ -z $version || $(printf '%s\n' "$oldest" "$version" | sort -V | head -n1) != "$oldest" ]]; then
        die "the newest kernel source that apt offers is ${version:-none}, and $oldest or later is needed:" \
            "run \`apt-get update\`, or add this distribution's backports to apt's sources"
    fi
    printf 'linux-source-%s\n' "$version"
}

# unpack_source PACKAGE: download a package here and unpack the source in it, without installing it.
unpack_source() {
    say "downloading $1 (140 MB)"
    apt-get -qq download "$1" 2>&1 | grep -v '_apt' >&2 || true
    [[ -n $(compgen -G "$1_*.deb") ]] || die "$1 could not be downloaded; apt's message is above"
    say 'unpacking it (1.5 GB)'
    dpkg-deb --fsys-tarfile "$1"_*.deb | tar -xO "./usr/src/$1.tar.xz" | tar -xJ
    rm "$1"_*.deb
}

# configure: the configuration, in which everything that the fragment says must have come out as it says.
configure() {
    local line symbol missing=()
    make -s ARCH=um defconfig
    # The last of several lines about one symbol counts.
    cat "$parts/fragment" >>.config
    make -s ARCH=um olddefconfig 2>"$work/configuring"
    while read -r line; do
        [[ $line == CONFIG_* || $line == '# CONFIG_'* ]] || continue
        symbol=${line#\# }; symbol=${symbol%%[= ]*}
        grep -qxF "$line" .config && continue
        # A symbol may be switched off by there being none.
        [[ $line != *=* ]] && ! grep -q "^$symbol=" .config && continue
        if grep -rqxE --include='Kconfig*' "(menu)?config ${symbol#CONFIG_}" .; then
            missing+=("$line")
        else
            say "this kernel knows no $symbol: left out"
        fi
    done <"$parts/fragment"
    ((${#missing[@]} == 0)) || die "this kernel does not take these lines of $parts/fragment: ${missing[*]}"
}

build_kernel() {
    local package version made
    [[ $(uname -m) == x86_64 ]] || die "user-mode Linux is built on x86-64 only, this is $(uname -m)"
    command -v apt-get >/dev/null || die 'this needs Debian or Ubuntu; name a kernel in NETCTL_LAB_KERNEL instead'
    install_packages flex bison bc libelf-dev gcc libc6-dev make xz-utils
    package=$(newest_source)
    version=$(apt-cache show --no-all-versions "$package" | sed -n 's/^Version: //p')
    made="$package $version, fragment $(sha256sum <"$parts/fragment" | cut -c1-16)"
    if [[ -x $cache/linux && $(cat "$cache/linux.made-from" 2>/dev/null) == "$made" ]]; then
        say "$cache/linux is made from $made already"
        return
    fi

    mkdir -p "$cache"
    work=$(mktemp -d "$cache/build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    cd "$work"
    unpack_source "$package"
    cd "$package"
    configure
    say "building $package $version with $(nproc) processors"
    nice make -s ARCH=um -j"$(nproc)" linux >"$work/building" 2>&1 ||
        { tail -n 30 "$work/building" >&2; die 'the kernel could not be built; the last messages are above'; }
    strip linux
    mv linux "$cache/linux"
    printf '%s\n' "$made" >"$cache/linux.made-from"
    say "built $cache/linux"
}

build_kernel
