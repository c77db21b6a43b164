"""GitHub's workflows call the repository's own scripts, with no more rights and no more time than a job needs."""

import functools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
EVENTS = {"push", "pull_request", "workflow_call"}
PERMISSIONS = {"contents", "packages", "id-token", "attestations"}
REFERENCE = re.compile(r"[\w.-]+/[\w.-]+@(v\d+|[0-9a-f]{40})")


@functools.cache
def read(path: Path) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text())
    assert isinstance(document, dict)
    if True in document:  # YAML 1.1 reads the key `on` as true
        document["on"] = document.pop(True)
    return document


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in WORKFLOWS:
        for name, job in read(path)["jobs"].items():
            yield f"{path.stem}.{name}", job


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, job in jobs():
        for number, step in enumerate(job.get("steps", ())):
            yield f"{name}[{number}]", step


def commands() -> set[str]:
    """The script of each `run:` step, without the arguments."""
    found = set()
    for name, step in steps():
        if "run" in step:
            words = step["run"].split()
            script = next((word for word in words if word.startswith(("scripts/", ".ci/"))), None)
            assert script, f"{name} runs no script of the repository: {step['run']}"
            found.add(script)
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_events_and_rights(path: Path) -> None:
    workflow = read(path)
    assert workflow.keys() == {"name", "on", "permissions", "concurrency", "jobs"}
    assert workflow["on"].keys() <= EVENTS
    assert workflow["permissions"] == {}
    assert "${{ github.ref }}" in workflow["concurrency"]["group"]


@pytest.mark.parametrize(("name", "job"), list(jobs()))
def test_job_has_bounded_time_and_named_rights(name: str, job: dict[str, Any]) -> None:
    assert job["permissions"].keys() <= PERMISSIONS
    assert set(job["permissions"].values()) <= {"read", "write"}
    if "uses" in job:  # GitHub takes no timeout here; the called workflow's jobs have theirs
        assert (ROOT / job["uses"]).is_file()
        return
    assert 0 < job["timeout-minutes"] <= 60
    assert job["runs-on"] == "ubuntu-24.04"
    assert job["steps"]


@pytest.mark.parametrize(("name", "step"), list(steps()))
def test_step_is_one_script_or_one_pinned_action(name: str, step: dict[str, Any]) -> None:
    assert ("run" in step) != ("uses" in step)
    assert step.keys() <= {"id", "run", "uses", "with", "env"}
    if "run" in step:
        assert "\n" not in step["run"], "what takes several lines belongs into a script"
        assert "${{" not in step["run"], "an expression in a command can be injected; hand it over by `env`"
    else:
        assert REFERENCE.fullmatch(step["uses"])


def test_scripts_exist_and_can_be_executed() -> None:
    for script in commands():
        path = ROOT / script
        assert path.is_file(), script
        assert path.stat().st_mode & 0o100, script


def test_checkouts_keep_no_credentials() -> None:
    checkouts = [step for _, step in steps() if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_needed_jobs_and_outputs_exist() -> None:
    for path in WORKFLOWS:
        workflow = read(path)
        for job in workflow["jobs"].values():
            needs = job.get("needs", [])
            assert set([needs] if isinstance(needs, str) else needs) <= workflow["jobs"].keys()
            ids = {step["id"] for step in job.get("steps", ()) if "id" in step}
            assert set(re.findall(r"steps\.(\w+)\.outputs", json.dumps(job))) <= ids


def test_ci_and_workflows_run_the_same_scripts() -> None:
    local = set(re.findall(r"^scripts/\S+", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    assert local
    assert local <= commands()


def test_oldest_and_newest_python_are_tested() -> None:
    matrix = read(GITHUB / "workflows" / "check.yml")["jobs"]["test"]["strategy"]["matrix"]
    pythons = {row["python"] for row in matrix["include"]}
    project = (ROOT / "pyproject.toml").read_text()
    named = re.findall(r"Programming Language :: Python :: (3\.\d+)", project)
    assert {named[0], named[-1]} <= pythons


@pytest.mark.parametrize("part", ["format", "lint", "types", "layers", "infra"])
def test_every_check_is_a_commit_hook(part: str) -> None:
    (local,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    assert f"scripts/check {part}" in [hook["entry"] for hook in local["hooks"]]
    assert re.search(rf"^    {part}\) ", (ROOT / "scripts" / "check").read_text(), re.MULTILINE)


def test_dependabot_watches_real_folders() -> None:
    manifests = {
        "pip": "pyproject.toml",
        "npm": "package-lock.json",
        "docker": "Containerfile",
        "github-actions": ".github/workflows",
        "devcontainers": ".devcontainer/devcontainer.json",
    }
    updates = read(GITHUB / "dependabot.yml")["updates"]
    assert {update["package-ecosystem"] for update in updates} == manifests.keys()
    for update in updates:
        for folder in update.get("directories", [update.get("directory")]):
            assert (ROOT / folder.lstrip("/") / manifests[update["package-ecosystem"]]).exists()


def test_bug_report_asks_for_diagnostics() -> None:
    fields = {field["id"]: field for field in read(GITHUB / "ISSUE_TEMPLATE" / "bug.yml")["body"] if "id" in field}
    assert fields["doctor"]["attributes"]["label"] == "token-broker doctor --json"
    assert fields["correlation"]["attributes"]["label"] == "correlation_id"


def release_notes(root: Path, tag: str) -> subprocess.CompletedProcess[str]:
    """`scripts/release-notes` in a checkout of its own, whose version is 1.2.3."""
    (root / "scripts").mkdir()
    (root / "scripts" / "release-notes").write_bytes((ROOT / "scripts" / "release-notes").read_bytes())
    (root / "token_broker").mkdir()
    (root / "token_broker" / "__init__.py").write_text('"""A broker."""\n\n__version__ = "1.2.3"\n')
    (root / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 - 2026-12-01\n\n- New.\n\n## 1.2.2\n\n- Old.\n")
    return subprocess.run(
        ["bash", root / "scripts" / "release-notes", tag], capture_output=True, text=True, timeout=20, check=False
    )


def test_release_notes_are_the_versions_section(tmp_path: Path) -> None:
    printed = release_notes(tmp_path, "v1.2.3")
    assert (printed.returncode, printed.stdout.strip()) == (0, "- New.")


def test_tag_of_another_version_is_refused(tmp_path: Path) -> None:
    printed = release_notes(tmp_path, "v1.2.2")
    assert printed.returncode == 1
    assert "v1.2.3" in printed.stderr
