# Sourced by container-test: the base, the build and the export, each a function. Wants `root`, `venv`, `state` set.

need_tools() {
    local tool missing=()
    for tool in buildah crun; do command -v "$tool" >/dev/null || missing+=("$tool"); done
    [ -n "${BASE:-}" ] || command -v debootstrap >/dev/null || missing+=(debootstrap)
    [ ${#missing[@]} -eq 0 ] \
        || die "container-test needs ${missing[*]}: on Debian and Ubuntu, apt-get install ${missing[*]}"
    [ "$(id -u)" = 0 ] || die "container-test needs root: it mounts the image and starts it with crun"
}

# Storage of our own, so that nothing of the machine's is touched and `rm -rf var/container-test` is all the tidying.
write_storage_conf() {
    printf '[storage]\ndriver = "%s"\ngraphroot = "%s"\nrunroot = "%s"\n' \
        "$STORAGE_DRIVER" "$state/storage" "$state/runroot" >"$CONTAINERS_STORAGE_CONF"
}

# Debian with python3 and nothing else, and the same with pip and strip to build in; made once.
make_debian_bases() {
    local mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian} suite=${DEBIAN_SUITE:-bookworm} made
    if ! buildah inspect --type image localhost/token-broker-base >/dev/null 2>&1; then
        echo "Making a Debian base with debootstrap; this takes two minutes, once." >&2
        rm -rf "$state/base"
        debootstrap --variant=minbase --include=python3,ca-certificates "$suite" "$state/base" "$mirror" >"$state/base.log" \
            || die "debootstrap failed; see $state/base.log"
        rm -rf "$state/base"/var/cache/apt/archives/*.deb "$state/base"/var/lib/apt/lists/*
        import_rootfs "$state/base" localhost/token-broker-base
        rm -rf "$state/base"
    fi
    buildah inspect --type image localhost/token-broker-build-base >/dev/null 2>&1 && return
    made=$(buildah from --pull-never localhost/token-broker-base)
    buildah run "$made" -- sh -c \
        'apt-get -qq update && apt-get -qq install --no-install-recommends python3-pip binutils' >"$state/build-base.log" 2>&1 \
        || die "installing pip and binutils into the build base failed; see $state/build-base.log"
    buildah commit --quiet --rm "$made" localhost/token-broker-build-base >/dev/null
}

import_rootfs() {
    local made
    made=$(buildah from scratch)
    buildah add --quiet "$made" "$1" / >/dev/null
    buildah commit --quiet --rm "$made" "$2" >/dev/null
}

# The wheels come through this machine's own pip, whatever mirror it is set to; the build itself needs no network.
fetch_wheels() {
    local build_base=$1 version made
    made=$(buildah from --pull-never "$build_base")
    version=$(buildah run "$made" -- python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    buildah rm "$made" >/dev/null
    mkdir -p "$state/wheels"
    "${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
        --only-binary :all: --python-version "$version" --dest "$state/wheels" \
        --requirement "$root/requirements.lock" >"$state/wheels.log" 2>&1 \
        || die "fetching the wheels failed; see $state/wheels.log"
}

build_image() {
    local base=$1 build_base=$2 tag=$3 version
    fetch_wheels "$build_base"
    version=$("$venv/bin/python" -c 'import token_broker; print(token_broker.__version__)')
    buildah build --quiet --pull-never --format docker --file "$root/Containerfile" --ignorefile "$root/.containerignore" \
        --build-arg BASE="$base" --build-arg BUILD_BASE="$build_base" \
        --build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/wheels --volume "$state/wheels:/wheels:ro" \
        --build-arg VERSION="$version" --build-arg REVISION="$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)" \
        --tag "$tag" "$root" >"$state/build.log" 2>&1 \
        || die "the build failed; see $state/build.log"
}

# The image as files, which tell the layers' true sizes and the configuration as a registry would get it.
export_image() {
    rm -rf "$2"
    buildah push --quiet --format v2s2 "$1" "dir:$2"
}
