"""`scripts/infra-check compiler` hands every file to the compiler, and fails on whatever it finds."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.infra.bicep import INFRA, PARAMETER_FILES, ROOT, TEMPLATES

SCRIPT = ROOT / "scripts" / "infra-check"
COMPILER = """#!/usr/bin/env bash
echo "$*" >>"$LOG"
case $1 in
--version) echo "Bicep CLI version $VERSION (0a1b2c3d4e)" ;;
format) sed "$CHANGE" "$2" ;;
snapshot) echo '{}' >"${2%.bicepparam}.snapshot.json" ;;
lint) [ -z "$FINDING" ] || echo "/x/$2(3,7) : $FINDING" >&2 ;;
build | build-params) echo '{"text": "no Error of ours : Warning "}' ;;
esac
"""
(PINNED,) = re.findall(r"^wanted_bicep=(\S+)$", SCRIPT.read_text(), flags=re.MULTILINE)


class Run:
    """The script with a compiler that answers as told; `asked` is each command line it got."""

    def __init__(self, folder: Path, **environment: str) -> None:
        (folder / "bicep").write_text(COMPILER)
        (folder / "bicep").chmod(0o700)
        log = folder / "log"
        log.touch()
        given = {"LOG": str(log), "VERSION": PINNED, "CHANGE": "", "FINDING": "", **environment}
        self.result = run(f"{folder}:{os.environ['PATH']}", **given)
        self.asked = log.read_text().splitlines()


def run(path: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`scripts/infra-check compiler` with that PATH."""
    return subprocess.run(
        ["bash", SCRIPT, "compiler"],
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def path_without_bicep(folder: Path) -> str:
    """A PATH with what the script needs, and no compiler whatever this machine has."""
    for name in ("dirname", "rm"):
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    (folder / "bash").symlink_to(shutil.which("bash") or "/bin/bash")
    return str(folder)


def test_every_file_is_checked(tmp_path: Path) -> None:
    ran = Run(tmp_path)
    assert ran.result.returncode == 0, ran.result.stderr
    for file in TEMPLATES:
        assert f"build {file.relative_to(ROOT)} --stdout" in ran.asked
    for file in PARAMETER_FILES:
        assert f"build-params {file.relative_to(ROOT)} --stdout" in ran.asked
        assert any(line.startswith(f"snapshot {file.relative_to(ROOT)} ") for line in ran.asked)
    for file in (*TEMPLATES, *PARAMETER_FILES):
        assert f"lint {file.relative_to(ROOT)}" in ran.asked
        assert f"format {file.relative_to(ROOT)} --stdout" in ran.asked
    assert not list(INFRA.rglob("*.snapshot.json")), "a check leaves nothing behind"


@pytest.mark.parametrize("finding", ["Warning use-safe-access: x", "Error BCP057: x"])
def test_finding_fails(finding: str, tmp_path: Path) -> None:
    """The compiler itself exits with 0 on a warning."""
    result = Run(tmp_path, FINDING=finding).result
    assert result.returncode == 1
    assert finding in result.stderr


def test_unformatted_file_fails(tmp_path: Path) -> None:
    result = Run(tmp_path, CHANGE="s/^param /param  /").result
    assert result.returncode == 1
    assert "is not formatted" in result.stderr


def test_missing_compiler_is_skipped(tmp_path: Path) -> None:
    result = run(path_without_bicep(tmp_path))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["The Bicep compiler's checks are skipped: bicep is not on the PATH."]


def test_other_compiler_version_is_skipped(tmp_path: Path) -> None:
    ran = Run(tmp_path, VERSION="0.1.0")
    assert ran.result.returncode == 0
    assert len(ran.result.stdout.splitlines()) == 1
    assert ran.asked == ["--version"]


def test_required_compiler_is_not_skipped(tmp_path: Path) -> None:
    assert run(path_without_bicep(tmp_path), BICEP_VERSION="v9").returncode == 1


def test_workflow_installs_the_version() -> None:
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())["jobs"]["infra"]
    assert job["env"]["BICEP_VERSION"] == f"v{PINNED}"
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/tools infra", "scripts/infra-check"]
