# Sourced by the other scripts: makes .venv and installs a lock file into it, once for each state of the lock.
# Wants Python 3.11 or newer and nothing else; PYTHON names another interpreter than python3.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
venv="$root/.venv"

die() { printf '%s\n' "$*" >&2; exit 2; }

# setup demo|dev: leaves a .venv that holds at least that lock. `dev` holds all of `demo`.
setup() {
    local want=$1 python=${PYTHON:-python3} state stamp
    state=$(cat pyproject.toml requirements-demo.lock requirements-dev.lock | cksum | tr ' ' -)
    for stamp in dev "$want"; do
        [ "$(cat "$venv/.installed-$stamp" 2>/dev/null)" = "$state" ] && return
    done
    command -v "$python" >/dev/null || die "Python 3.11 or newer is needed: install it, or name it in PYTHON."
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
        || die "$("$python" --version) is too old: 3.11 or newer is needed; name another one in PYTHON."
    echo "Setting up .venv ($want); this takes a minute, once." >&2
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv" \
        || die "python3 -m venv failed: on Debian and Ubuntu, install the package python3-venv."
    rm -f "$venv"/.installed-*
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --require-hashes --no-compile \
        -r "requirements-$want.lock" >&2
    # On all processors, where pip would compile on one. What does not compile is not imported.
    "$venv/bin/python" -m compileall -qq -j 0 "$venv"/lib/python3*/site-packages >/dev/null || :
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e . >&2
    echo "$state" >"$venv/.installed-$want"
}

# browser: sees to a Chromium and a Node for the tests. engines: to the other browsers, and a sound card of software.
# Both install where they may; else the tests say what to do.
browser() {
    local missing=()
    [ -n "${CHROMIUM:-}" ] || command -v chromium-headless-shell chromium chromium-browser google-chrome >/dev/null \
        || ls "$HOME"/.cache/ms-playwright/chromium* >/dev/null 2>&1 || missing+=(chromium-headless-shell)
    command -v node >/dev/null && command -v npm >/dev/null || missing+=(nodejs npm)
    install_packages "${missing[@]}"
}

engines() {
    local missing=()
    [ -n "${FIREFOX:-}" ] || command -v firefox-esr firefox >/dev/null || missing+=(firefox-esr)
    command -v WebKitWebDriver >/dev/null || missing+=(webkit2gtk-driver)
    command -v Xvfb >/dev/null || missing+=(xvfb)
    command -v pulseaudio >/dev/null && command -v pacat >/dev/null \
        || missing+=(pulseaudio pulseaudio-utils gstreamer1.0-pulseaudio gstreamer1.0-plugins-good)
    install_packages "${missing[@]}"
}

install_packages() {
    if [ $# -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "Installing $* for the browser tests." >&2
        apt-get update -qq >&2 \
            && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null \
            || echo "That failed; the browser tests will say what to do." >&2
    fi
}
