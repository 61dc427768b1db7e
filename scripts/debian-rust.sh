# Sourced by check-targets.sh and check-msrv.sh: finds or fetches a Rust toolchain that Debian packages.
#
# Debian's `rustc-web` brings a newer Rust than the release's own, the standard library's source with it
# (so that other targets can be type-checked without their prebuilt std), and still carries the older
# version that is our `rust-version`. The packages conflict with Debian's `rustc` and `rustup` packages;
# they are therefore unpacked into a cache under target/ and never installed. What is installed already
# is used as it is. Nothing here touches the toolchain on the caller's PATH.
#
# Callers define `skip REASON`, which says so and exits.

# Fetches the package lists, which takes root; without it the lists at hand have to do.
apt_refresh_lists() {
    if [ "$(id -u)" -eq 0 ]; then
        apt-get update -qq >/dev/null 2>&1 || echo "apt-get update failed; going on with the lists at hand" >&2
    fi
}

# Installs packages when we are root and may; answers whether all of them are there.
apt_ensure() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing+=("$package")
    done
    [ "${#missing[@]}" -eq 0 ] && return 0
    [ "${INSTALL:-1}" = 1 ] && [ "$(id -u)" -eq 0 ] || return 1
    echo "installing ${missing[*]}"
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq \
        --no-install-recommends "${missing[@]}" >/dev/null
}

# debian_rust CACHE_DIR VERSION_PREFIX PACKAGES...: sets RUST_BIN (a folder with rustc and cargo) and
# RUST_LIBRARY_PATH (empty for an installed toolchain). A version prefix such as "1.85." or "".
debian_rust() {
    local cache=$1 prefix=$2 package version wanted=() candidate
    shift 2
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || skip "no apt-get: the toolchain comes from Debian"

    local installed=1
    for package in "$@"; do
        version=$(dpkg-query -W -f '${db:Status-Abbrev}${Version}' "$package" 2>/dev/null || true)
        [[ $version == ii*" $prefix"* ]] || installed=0
    done
    if [ "$installed" = 1 ]; then
        RUST_BIN=$(dirname "$(dpkg -L rustc-web | grep '/bin/rustc$')")
        RUST_LIBRARY_PATH=""
        return 0
    fi

    if [ ! -e "$cache/complete" ]; then
        # What depends on what is asked of apt; with a version prefix every package is named, with its version.
        for package in "$@"; do
            candidate=$(apt-cache madison "$package" 2>/dev/null | awk '{print $3}' | grep "^${prefix//./\\.}" | head -n 1 || true)
            [ -n "$candidate" ] || skip "Debian's lists have no $package ${prefix:-of any version}"
            wanted+=("$package=$candidate")
        done
        rm -rf "$cache"
        mkdir -p "$cache/debs/partial" "$cache/root"
        # Only a download, into our own folder: no lock of the system's is needed, and no root.
        apt-get install -y -qq --download-only --no-install-recommends --allow-downgrades \
            -o Debug::NoLocking=true -o Dir::Cache::archives="$cache/debs" "${wanted[@]}" >/dev/null 2>"$cache/log" \
            || { cat "$cache/log" >&2; skip "apt-get could not download ${wanted[*]}"; }
        for package in "$cache"/debs/*.deb; do
            dpkg -x "$package" "$cache/root"
        done
        rm -rf "$cache/debs"
        touch "$cache/complete"
    fi
    RUST_BIN="$cache/root/usr/bin"
    local libraries
    libraries=$(dirname "$(find "$cache/root/usr/lib" -name 'librustc_driver-*.so' | head -n 1)")
    RUST_LIBRARY_PATH="$libraries:$cache/root/lib/${libraries##*/}"
    [ -x "$RUST_BIN/rustc" ] && [ -x "$RUST_BIN/cargo" ] || skip "the unpacked packages hold no rustc and cargo"
    debian_cargo --version >/dev/null && LD_LIBRARY_PATH=$RUST_LIBRARY_PATH "$RUST_BIN/rustc" -vV >/dev/null \
        || skip "the unpacked toolchain does not run here"
}

# Runs cargo of that toolchain with what it needs, and with nothing of rustup's.
debian_cargo() {
    env -u RUSTUP_TOOLCHAIN -u RUSTC_WRAPPER -u CARGO \
        PATH="$RUST_BIN:$PATH" RUSTC="$RUST_BIN/rustc" RUSTDOC="$RUST_BIN/rustdoc" \
        ${RUST_LIBRARY_PATH:+LD_LIBRARY_PATH="$RUST_LIBRARY_PATH"} \
        "$RUST_BIN/cargo" "$@"
}
