"""Checkpoints of a training run: one file, replaced whole, from which the run goes on as if it had never stopped."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..neurons.atlas import library_versions
from .errors import TuneError
from .recipe import Recipe

FORMAT = "neuropolis checkpoint"
VERSION = 1
FIXED = ("batch_size", "seed")  # the order of examples, of which a part has been seen
Resume = Literal["same", "changed", "never"]


@dataclass(frozen=True)
class Checkpointing:
    """Where and how often a run is kept, and what it does about a checkpoint that is there when it starts.

    `resume` "same" goes on from one of the same run and refuses any other; "changed" also takes one that was made with
    another recipe (a smaller learning rate after a divergence, more epochs), apart from batch size and seed; "never"
    starts over and replaces it. `about` names what is trained on what; it must be the same to go on.
    """

    path: Path
    every: int = 50
    resume: Resume = "same"
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if self.every < 1:
            raise TuneError(f"checkpoint_every is a number of steps, expected 1 or more, got {self.every}")
        if self.resume not in ("same", "changed", "never"):
            raise TuneError(f"unknown resume {self.resume!r}; expected same, changed or never")
        if self.path.is_dir():
            raise TuneError(f"{self.path} is a folder; a checkpoint is one file, give a path such as {self.path}/run")
        if not self.path.absolute().parent.is_dir():
            raise TuneError(f"cannot write {self.path}: there is no folder {self.path.parent}; make it first")


@dataclass
class Run:
    """How far a run is. `evals` are (step, held-out loss); `changes` are recipes it went on from with another one."""

    step: int = 0
    history: list[float] = field(default_factory=list)
    evals: list[tuple[int, float]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best_step(self) -> int | None:
        """The step after which the held-out loss was lowest, the earliest of equals."""
        return min(self.evals, key=lambda eval: eval[1])[0] if self.evals else None

    @property
    def waited(self) -> int:
        """Evaluations since the lowest."""
        return len([step for step, _ in self.evals if step > (self.best_step or 0)]) if self.evals else 0


def write_checkpoint(
    to: Checkpointing, run: Run, recipe: Recipe, num_steps: int, tensors: Mapping[str, Tensor]
) -> None:
    """Replace the checkpoint: written beside its place, forced to the disk, moved there.

    Raises TuneError when writing fails; the earlier checkpoint is then whole.
    """
    kept = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    said = {
        "format": FORMAT, "version": VERSION, "about": dict(to.about), "recipe": recipe.facts(), "num_steps": num_steps,
        **asdict(run), "versions": library_versions(), "tensors": digest_of(kept),
    }  # fmt: skip
    text = json.dumps(said, ensure_ascii=False)
    temporary = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{to.path.name}.", suffix=".part", dir=to.path.absolute().parent)
        os.close(handle)
        temporary = Path(name)
        _save(kept, temporary, {"neuropolis": text, "checksum": hashlib.sha256(text.encode()).hexdigest()})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, to.path)
    except (OSError, SafetensorError) as error:
        earlier = read_header(to.path)["step"] if to.path.exists() else None
        there = "there is no earlier one" if earlier is None else f"it still holds step {earlier}, whole"
        raise TuneError(
            f"could not write the checkpoint {to.path} after step {run.step} of {num_steps}: {error}; {there}; "
            "make room on the disk and give the same arguments again to go on, or name another file"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def read_header(path: str | Path) -> dict[str, Any]:
    """What a checkpoint says of itself: `about`, `recipe`, `step`, `num_steps`, `history`, `evals`, versions.

    Raises TuneError when the file is no checkpoint, is of a later version, or is damaged.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise TuneError(f"{path} is damaged or no checkpoint ({error}); delete it to start over") from error
    if "neuropolis" not in told:
        raise TuneError(f"{path} is there and is no checkpoint; name another file")
    if hashlib.sha256(told["neuropolis"].encode()).hexdigest() != told.get("checksum"):
        raise TuneError(f"{path} is damaged: its checksum does not match; delete it to start over")
    said = json.loads(told["neuropolis"])
    if (said["format"], said["version"]) != (FORMAT, VERSION):
        raise TuneError(f"{path} is {said['format']!r} version {said['version']}, expected {FORMAT!r} {VERSION}")
    return said


def read_checkpoint(
    to: Checkpointing, recipe: Recipe, num_steps: int, keys: Sequence[str]
) -> tuple[Run, dict[str, Tensor]] | None:
    """The run that a file holds and its tensors; None where there is no file or where it is not to be used.

    Raises TuneError when the file is damaged, or belongs to another run; the text says what differs.
    """
    from safetensors.torch import load_file

    if not to.path.exists():
        return None
    said = read_header(to.path)
    if to.resume == "never":
        return None
    _check_same(to, said, recipe, num_steps)
    tensors = load_file(to.path)
    if digest_of(tensors) != said["tensors"]:
        raise TuneError(f"{to.path} is damaged: its checksum does not match; delete it to start over")
    missing = [key for key in keys if f"masters/{key}" not in tensors]
    if missing:
        raise TuneError(f"{to.path} has no {missing[0]}; it belongs to another slice, name another file")
    run = Run(said["step"], said["history"], [(step, loss) for step, loss in said["evals"]], said["changes"])
    if said["recipe"] != recipe.facts():
        run.changes.append({"step": run.step, "recipe": said["recipe"]})
    return run, tensors


def rng_state() -> dict[str, Tensor]:
    """States of torch's global generators."""
    found = {"rng/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found |= {f"rng/cuda/{number}": state for number, state in enumerate(torch.cuda.get_rng_state_all())}
    return found


def set_rng(states: Mapping[str, Tensor]) -> None:
    """Put back what `rng_state` gave."""
    torch.set_rng_state(states["rng/cpu"].clone())
    for number in range(torch.cuda.device_count()):
        if f"rng/cuda/{number}" in states:
            torch.cuda.set_rng_state(states[f"rng/cuda/{number}"].clone(), number)


def _check_same(to: Checkpointing, said: Mapping[str, Any], recipe: Recipe, num_steps: int) -> None:
    """Raise unless the run may go on from a checkpoint that says this of itself."""
    now = {**to.about, **recipe.facts()}
    then = {**said["about"], **said["recipe"]}
    differ = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    lasting = [key for key in differ if key in FIXED or key not in said["recipe"]]
    texts = ", ".join(f"{key} {_short(then.get(key))} (now {_short(now.get(key))})" for key in differ)
    if lasting or (differ and to.resume != "changed"):
        hint = "" if lasting else ", or resume='changed' (--resume changed) to go on with the new ones"
        raise TuneError(
            f"{to.path} is the checkpoint of another run, which had {texts}; give the same again, name another file{hint}"
        )
    if said["step"] > num_steps:
        raise TuneError(f"{to.path} holds step {said['step']}, the run is to have {num_steps}; ask for more steps")


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path, metadata)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and bytes, in the order of names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(f"{key} {list(tensors[key].shape)} {tensors[key].dtype}\n".encode())
        digest.update(tensors[key].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _short(value: Any) -> str:
    return f"{value[:12]}" if isinstance(value, str) else str(value)
