"""The face of the package: what it exports, where that stands, and how little an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import neuropolis
import pytest

ROOT = Path(neuropolis.__file__).parent


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running some code."""
    ending = "\nimport sys; print('\\n'.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


def test_importing_the_package_imports_nothing_heavy() -> None:
    loaded = modules_after("import neuropolis")
    assert "neuropolis" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "transformer_lens", "numpy", "scipy", "seaborn", "h5py"})


def test_the_help_of_the_command_line_imports_no_torch() -> None:
    code = (
        "import contextlib, io, runpy, sys\n"
        "sys.argv = ['neuropolis', '--help']\n"
        "said = io.StringIO()\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said):\n"
        "    runpy.run_module('neuropolis.cli.main', run_name='__main__')\n"
        "assert 'locate' in said.getvalue(), said.getvalue()\n"
    )
    assert modules_after(code).isdisjoint({"torch", "transformers", "transformer_lens", "seaborn", "scipy"})


@pytest.mark.parametrize("name", neuropolis.__all__)
def test_every_public_name_is_defined_in_its_home(name: str) -> None:
    home = ROOT / (neuropolis._HOME[name].replace(".", "/") + ".py")
    defined = {
        node.name for node in ast.parse(home.read_text()).body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert name in defined
    assert getattr(neuropolis, name) is getattr(import_module(f"neuropolis.{neuropolis._HOME[name]}"), name)


@pytest.mark.parametrize(
    "first", ["neuropolis.load_delta", "neuropolis.finetune", "import_module('neuropolis.finetune.delta')"]
)
def test_the_room_finetune_does_not_hide_the_function(first: str) -> None:
    code = f"import neuropolis; from importlib import import_module; {first}"
    code += "; assert neuropolis.finetune.__module__.endswith('.training')"
    assert "neuropolis" in modules_after(code)


def test_what_type_checkers_see_is_what_is_exported() -> None:
    seen = {}
    for block in ast.parse((ROOT / "__init__.py").read_text()).body:
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING":
            for node in block.body:
                assert isinstance(node, ast.ImportFrom)
                assert node.level == 1
                for alias in node.names:
                    assert alias.name == alias.asname
                    seen[alias.name] = node.module
    assert seen == neuropolis._HOME
    assert set(neuropolis.__all__) == set(seen)
    assert set(dir(neuropolis)) >= set(seen)


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'loacte'; it has .*AtlasError, .*attribute"):
        _ = neuropolis.loacte  # pyright: ignore[reportAttributeAccessIssue]


def test_rooms_are_imported_from_their_files() -> None:
    """The files of rooms hold the names: a room's own `__init__` stays empty."""
    for room in ("neurons", "corpora", "attribution", "finetune", "analysis", "figures"):
        assert (ROOT / room / "__init__.py").read_text() == ""
