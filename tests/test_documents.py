"""What the documents tell a newcomer to type is run, top to bottom, in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# the same commands on less, so that CI has time for all of them: fewer random sets, cultures and epochs
SHORTER = {
    "demo --out demo": "demo --out demo --quick",
    "--study study.h5 --controls 20": "--study study.h5 --controls 1 --group japan --group kenya",
    "--controls 20": "--controls 1",
    "--epochs 10": "--epochs 1",
    "controls=20": "controls=1",
    "epochs=10": "epochs=1",
    'load_corpus("bundled:polis")': 'load_corpus("bundled:polis", groups=["japan", "china", "kenya"])',
}


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf8"), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def shorter(text: str) -> str:
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    return text


def run(command: list[str] | str, folder: Path, environment: dict[str, str]) -> None:
    shell = isinstance(command, str)
    done = subprocess.run(
        command, cwd=folder, env=environment, shell=shell, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_the_python_example_of_the_readme(tmp_path: Path, environment: dict[str, str]) -> None:
    (example,) = blocks(ROOT / "README.md", "python")
    run([sys.executable, "-c", shorter(example)], tmp_path, environment)
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_the_commands_of_the_quick_start(tmp_path: Path, environment: dict[str, str]) -> None:
    lines = [
        line.removeprefix("$ ")
        for block in blocks(ROOT / "docs" / "index.md", "console")
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    assert sum(shlex.split(line)[0] == "neuropolis" for line in lines) >= 10
    for line in lines:
        run(shorter(line), tmp_path, environment)
    assert (tmp_path / "demo" / "report.html").exists()
    assert (tmp_path / "thailand-delta" / "config.json").exists()


def test_the_first_python_block_of_the_quick_start(tmp_path: Path, environment: dict[str, str]) -> None:
    code = "\n".join(blocks(ROOT / "docs" / "index.md", "python"))
    run([sys.executable, "-c", shorter(code)], tmp_path, environment)
    assert (tmp_path / "python-delta" / "config.json").exists()


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [t for t in targets if not t.startswith(("http:", "https:")) and not (path.parent / t).exists()]
    assert not missing
