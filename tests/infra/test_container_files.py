"""The Containerfile's promises that can be read off it; `scripts/container-test` sees to the rest."""

import re
import tomllib

from tests.infra.bicep import ROOT

CONTAINERFILE = (ROOT / "Containerfile").read_text()
FINAL = CONTAINERFILE.rpartition("\nFROM ")[2]


def instructions(name: str, text: str = FINAL) -> list[str]:
    return re.findall(rf"^{name} ((?:.*\\\n)*.*)$", text, flags=re.MULTILINE)


def test_user_is_numeric_and_not_root() -> None:
    (user,) = instructions("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_sigterm_reaches_the_broker() -> None:
    assert instructions("ENTRYPOINT") == ['["token-broker"]']
    assert instructions("CMD")[-1] == '["serve"]'
    assert instructions("STOPSIGNAL") == ["SIGTERM"]


def test_state_is_on_the_volume() -> None:
    (environment,) = instructions("ENV")
    assert instructions("VOLUME") == ['["/var/lib/token-broker"]']
    assert "BROKER_DATABASE_URL=sqlite+aiosqlite:////var/lib/token-broker/" in environment
    assert "HOST=0.0.0.0" in environment
    assert "PORT=8080" in environment


def test_dependencies_come_from_the_lock() -> None:
    installs = re.findall(r"pip --python \S+ install[^&]*", CONTAINERFILE)
    assert len(installs) == 1
    assert "--require-hashes" in installs[0]
    assert "--only-binary :all:" in installs[0]
    assert "--no-cache-dir" in installs[0]
    assert all(command.startswith("rm -rf ") for command in instructions("RUN"))


def test_simulator_is_optional() -> None:
    assert "ARG WITH_SIMULATOR=false" in CONTAINERFILE


def test_image_names_version_and_revision() -> None:
    (labels,) = instructions("LABEL")
    assert 'org.opencontainers.image.version="${VERSION}"' in labels
    assert 'org.opencontainers.image.revision="${REVISION}"' in labels


def test_image_has_the_wheels_packages() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = dict(re.findall(r"^COPY (\w+) /opt/app/(\S+)$", CONTAINERFILE, flags=re.MULTILINE))
    assert copied == {name: name for name in wheel["packages"]} | wheel["force-include"]


def test_both_ignore_files_agree() -> None:
    assert (ROOT / ".containerignore").read_bytes() == (ROOT / ".dockerignore").read_bytes()


def test_copied_files_are_not_ignored() -> None:
    admitted = {line[1:] for line in (ROOT / ".containerignore").read_text().splitlines() if line.startswith("!")}
    sources = [line.split()[:-1] for line in re.findall(r"^COPY (?!--)(.*)$", CONTAINERFILE, flags=re.MULTILINE)]
    assert {name for names in sources for name in names} == admitted
