"""Fragments of the changelog are such that towncrier takes them, and a branch that changes behaviour brings one."""

import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

import wsi_prep
from tests.support.paths import ROOT

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
TYPES = [kind["directory"] for kind in SETTINGS["type"]]
FRAGMENTS = sorted(path for path in (ROOT / SETTINGS["directory"]).glob("*") if path.name != ".gitignore")
SURROUNDING = {
    **{name: text for name, text in os.environ.items() if not name.startswith("GIT_")},
    **{f"GIT_{who}_{what}": "a@b.example" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    "GIT_CONFIG_GLOBAL": os.devnull,
}


def run(folder, *command, check=True):
    return subprocess.run(command, cwd=folder, env=SURROUNDING, check=check, capture_output=True, text=True)


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)


def commit(folder, *names, message="x"):
    write(folder, *names)
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "-qm", message)


@pytest.fixture
def branch(tmp_path):
    """A clone of a main of one commit, on a branch of its own."""
    main, clone, script = tmp_path / "main", tmp_path / "clone", ROOT / ".ci" / "fragments"
    if not script.exists():
        pytest.skip("needs a clone: a source distribution holds no .ci")
    (main / ".ci").mkdir(parents=True)
    shutil.copy(script, main / ".ci")
    run(main, "git", "init", "-qb", "main")
    commit(main, "wsi_prep/code.py", "docs/page.md", "changelog.d/+old.fixed.md")
    run(tmp_path, "git", "clone", "-q", "main", "clone")
    run(clone, "git", "checkout", "-qb", "work")
    return clone


def judged(folder):
    said = run(folder, ".ci/fragments", check=False)
    return said.returncode, said.stderr


def test_a_change_of_code_without_a_fragment_is_refused_in_a_line(branch):
    commit(branch, "docs/more.md")
    assert judged(branch) == (0, "")
    commit(branch, "pretrain/code.py")
    code, said = judged(branch)
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith("changelog: pretrain/code.py changed, and changelog.d has nothing new.")


def test_a_change_that_is_not_committed_is_seen_too(branch):
    (branch / "wsi_prep" / "code.py").write_text("other")
    assert judged(branch)[0] == 1
    write(branch, "changelog.d/+mine.added.md")
    assert judged(branch) == (0, "")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["wsi_prep/code2.py", "changelog.d/+mine.fixed.md"], "x"),
        (["wsi_prep/code2.py", "CHANGELOG.md"], "A release"),
        (["wsi_prep/code2.py"], "Files move\n\nChangelog: none, nobody meets it"),
        (["tests/test_more.py", "README.md"], "x"),
    ],
)
def test_what_is_told_or_met_by_nobody_passes(branch, names, message):
    commit(branch, *names, message=message)
    assert judged(branch) == (0, "")


def test_a_fragment_that_goes_tells_nothing(branch):
    (branch / "changelog.d" / "+old.fixed.md").unlink()
    commit(branch, "wsi_prep/code2.py")
    assert judged(branch)[0] == 1


def test_what_main_got_meanwhile_is_not_asked_of_the_branch(branch):
    commit(branch.parent / "main", "wsi_prep/theirs.py")
    run(branch, "git", "fetch", "-q")
    commit(branch, "docs/more.md")
    assert judged(branch) == (0, "")


@pytest.mark.parametrize("how", [["--single-branch"], ["--depth=1"]])
def test_a_clone_without_main_cannot_tell_and_passes(branch, how):
    commit(branch, "wsi_prep/code2.py")
    run(branch.parent, "git", "clone", "-q", *how, "--branch=work", branch.as_uri(), "part")
    code, said = judged(branch.parent / "part")
    assert (code, said.count("\n"), "cannot tell" in said) == (0, 1, True)


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=lambda path: path.name)
def test_a_fragment_is_one_sentence_or_more_of_a_type_that_is_known(fragment):
    assert re.fullmatch(rf"\+[a-z0-9-]+\.({'|'.join(TYPES)})\.md", fragment.name)
    text = fragment.read_text()
    assert re.fullmatch(r"\S.*\.\n", text)
    assert len(text) < 400


def test_towncrier_takes_them():
    pytest.importorskip("towncrier")
    if not FRAGMENTS:
        pytest.skip("nothing has changed since the last version")
    draft = run(ROOT, sys.executable, "-m", "towncrier", "build", "--draft", "--version", "9.9.9").stdout
    for fragment in FRAGMENTS:
        assert fragment.read_text().strip() in draft


def test_the_changelog_knows_this_version_and_where_the_next_goes():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text.count("<!-- towncrier release notes start -->\n") == 1
    assert f"\n## {wsi_prep.__version__} (" in text
