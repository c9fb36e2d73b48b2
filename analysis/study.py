"""Studies: saving what was found about one subject in an atlas, and reading it back piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..attribution import importance as _importance  # noqa: F401  (its records are registered on import)
from ..attribution.fidelity_result import Fidelity
from ..attribution.stability import Stability
from ..finetune.calibration_result import Calibration
from ..finetune.compare_translation import TranslationTable
from ..finetune.continual_result import Continual
from ..finetune.retention import Retention
from ..finetune.sweep import Sweep
from ..neurons.atlas import Atlas, Record, decode, write_atlas
from ..neurons.errors import AtlasError
from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject, tokenizer_fingerprint
from . import cards, movement, ranks, redundancy, representations, transfer, trees, value_alignment  # noqa: F401  (likewise)
from .curves import Curve
from .effects import Effects
from .evaluation import Evaluation
from .overlap import Overlap
from .similarity import Similarity

MADE_BY = {
    "scores": "neuropolis locate", "set": "neuropolis select", "effects": "neuropolis ablate",
    "overlap": "neuropolis compare", "similarity": "neuropolis compare", "retention": "neuropolis tune",
    "importance": "neuropolis locate --preset fuxitranyu",
    "fidelity": "neuropolis fidelity", "calibration": "neuropolis calibrate", "stability": "neuropolis stability",
    "layer_sweep": "neuropolis sweep", "dose_response": "neuropolis dose",
    "continual": "neuropolis continual", "sweep": "neuropolis proportion",
    "ranks": "neuropolis overlap", "tree": "neuropolis overlap", "mantel": "neuropolis overlap --distances FILE",
    "movement": "neuropolis similarity --after MODEL", "transfer": "neuropolis similarity --gains STUDY",
    "representations": "neuropolis represent", "redundancy": "neuropolis redundancy", "cards": "neuropolis neuron",
    "evaluation": "neuropolis evaluate", "alignment": "neuropolis culture-spa evaluate",
    "difficulty": "npl.save(study, npl.difficulty(...))",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Study:
    """An atlas, verified once; its records are read when they are asked for and kept.

    `subject` describes the model that it is about (`fingerprint`, `name`, ...), `versions` the libraries that wrote it.
    """

    path: Path
    subject: Mapping[str, Any]
    versions: Mapping[str, str]
    keys: tuple[tuple[str, str], ...]
    _read: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)

    def has(self, kind: str) -> bool:
        """Whether there is a record of this kind."""
        return any(kind == k for k, _ in self.keys)

    def names(self, kind: str) -> tuple[str, ...]:
        """Names of the records of a kind, in the order of writing."""
        return tuple(name for k, name in self.keys if k == kind)

    def get(self, kind: str, name: str | None = None) -> Any:
        """One artefact: the named one, else the one that has its kind's name, else the only one.

        Raises AtlasError that says what there is, or which command makes it.
        """
        name = self._named(kind, name)
        if (kind, name) not in self._read:
            with Atlas(self.path, verify=False) as atlas:
                self._read[kind, name] = decode(atlas.record(kind, name))
        return self._read[kind, name]

    @contextmanager
    def lazily(self, kind: str, name: str | None = None) -> Iterator[Record]:
        """One record whose arrays are read when they are indexed (`record.arrays["values"][group]`), inside the block.

        For artefacts that are larger than memory should hold. Raises what `get` raises.
        """
        name = self._named(kind, name)
        if (kind, name) in self._read:
            yield self._read[kind, name].to_record(name)
            return
        with Atlas(self.path, verify=False) as atlas:
            yield atlas.lazily(kind, name)

    def _named(self, kind: str, name: str | None) -> str:
        names = self.names(kind)
        if not names:
            made = f"; make it with '{MADE_BY[kind]}'" if kind in MADE_BY else ""
            raise AtlasError(f"{self.path} has no {kind}{made} (it has {self._contents()})")
        if name is None:
            name = kind if kind in names else names[0] if len(names) == 1 else None
        if name is None or name not in names:
            asked = "several" if name is None else f"no {name!r} among its"
            raise AtlasError(f"{self.path} has {asked} records of kind {kind}: {', '.join(names)}; name one of them")
        return name

    @property
    def scores(self) -> Scores:
        return self.get("scores")

    @property
    def sets(self) -> dict[str, NeuronSet]:
        """The sets by name."""
        return {name: self.get("set", name) for name in self.names("set")} or self.get("set")

    @property
    def effects(self) -> Effects:
        return self.get("effects")

    @property
    def layer_sweep(self) -> Curve:
        """What one layer's share of each set does."""
        return self.get("layer_sweep")

    @property
    def dose_response(self) -> Curve:
        """What larger and larger sets do."""
        return self.get("dose_response")

    @property
    def overlap(self) -> Overlap:
        return self.get("overlap")

    @property
    def similarity(self) -> Similarity:
        return self.get("similarity")

    @property
    def retention(self) -> Retention:
        """What tuning learned of a new group and forgot of the others."""
        return self.get("retention")

    @property
    def fidelity(self) -> Fidelity:
        """How far methods' scores can be trusted."""
        return self.get("fidelity")

    @property
    def calibration(self) -> Calibration:
        """How well methods find neurons whose role is known."""
        return self.get("calibration")

    @property
    def stability(self) -> Stability:
        """How far a selection moves when one thing about it is changed."""
        return self.get("stability")

    @property
    def evaluation(self) -> Evaluation:
        """What lm-evaluation-harness measured, intact and under each condition."""
        return self.get("evaluation")

    @property
    def continual(self) -> Continual:
        """What methods kept of a stream of tasks."""
        return self.get("continual")

    def sweep(self, name: str) -> Sweep:
        """A study of what is tuned: "proportion" or "overlap"."""
        return self.get("sweep", name)

    @property
    def translations(self) -> dict[str, TranslationTable]:
        """What tuning learned and lost in translation, by name."""
        return {name: self.get("translations", name) for name in self.names("translations")}

    def check(self, subject: Subject) -> None:
        """Raise AtlasError unless this study is about that subject."""
        if self.subject.get("fingerprint") != subject.fingerprint:
            raise AtlasError(
                f"{self.path} is about subject {self.subject.get('fingerprint')} "
                f"({self.subject.get('name', 'unnamed')}), but {subject.name!r} is {subject.fingerprint}; load the "
                "model that the study was made with, or start a new study"
            )

    def _contents(self) -> str:
        return ", ".join(sorted({kind for kind, _ in self.keys})) or "nothing"


def save(path: str | Path, *artefacts: Any, subject: Subject | Mapping[str, Any] | None = None, **named: Any) -> Path:
    """Write artefacts of one subject into an atlas; what it holds under other names stays.

    An artefact is anything with `subject` (a fingerprint) and `to_record(name)`, or a dictionary of such by name (the
    sets of `select`). One given without a name is called after its kind, a set after its group. `subject` adds the
    model's name and tokenizer to the file; another study's `subject` will do.

    Raises AtlasError when there is nothing to save, when artefacts or the file are about different subjects, when two
    have one kind and name, or when writing fails; the file is then as it was.
    """
    pairs = [pair for artefact in artefacts for pair in _named(None, artefact)]
    pairs += [pair for name, artefact in named.items() for pair in _named(name, artefact)]
    if not pairs:
        raise AtlasError(f"nothing to save in {path}; give scores, sets, effects, overlap or similarity")
    records: dict[tuple[str, str], Record] = {}
    described = _description(subject)
    owner = described.get("fingerprint", pairs[0][1].subject)
    for name, artefact in pairs:
        record = artefact.to_record() if name is None else artefact.to_record(name)
        if artefact.subject != owner:
            raise AtlasError(
                f"{record.kind} {record.name!r} is about subject {artefact.subject}, the study about {owner}; "
                "keep one atlas for each subject"
            )
        if record.key in records:
            raise AtlasError(f"two artefacts to save are both {record.kind} {record.name!r}; give one another name")
        records[record.key] = record
    return write_atlas(path, records.values(), subject={"fingerprint": owner} | described)


def load(path: str | Path, *, subject: Subject | None = None) -> Study:
    """Open a study: the file is verified now and read when its parts are asked for.

    Raises AtlasError when the file is missing, damaged, no atlas or not about `subject`.
    """
    with Atlas(path) as atlas:
        study = Study(Path(path), atlas.subject, atlas.versions, atlas.records)
    if subject is not None:
        study.check(subject)
    return study


def _named(name: str | None, artefact: Any) -> Iterator[tuple[str | None, Any]]:
    if isinstance(artefact, Mapping):
        for key, value in artefact.items():
            yield from _named(str(key), value)
        return
    if not hasattr(artefact, "to_record") or not isinstance(getattr(artefact, "subject", None), str):
        raise AtlasError(
            f"cannot save a {type(artefact).__name__}; expected scores, a set, {{name: set}}, effects, overlap, "
            "similarity or another object with 'subject' and 'to_record'"
        )
    if name is None and isinstance(artefact, NeuronSet):
        name = str(artefact.origin.get("group", f"set-{artefact.digest}"))
    yield name, artefact


def _description(subject: Subject | Mapping[str, Any] | None) -> dict[str, Any]:
    if not isinstance(subject, Subject):
        return dict(subject or {})
    return {
        "fingerprint": subject.fingerprint,
        "name": subject.name, "tokenizer": tokenizer_fingerprint(subject.tokenizer),
        "class": type(subject.model).__name__,
        "num_layers": subject.num_layers, "num_parameters": subject.num_parameters, "dtype": str(subject.dtype),
    }  # fmt: skip
