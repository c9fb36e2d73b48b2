"""neuropolis: neuron-level interpretability for language models.

The flat public API. Names are imported when they are first asked for, so that importing the package is quick.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analysis.ablate import ablate as ablate
    from .analysis.choices import answer_correct as answer_correct
    from .analysis.choices import choice_losses as choice_losses
    from .analysis.effects import Effects as Effects
    from .analysis.overlap import Overlap as Overlap
    from .analysis.overlap import overlap as overlap
    from .analysis.similarity import Similarity as Similarity
    from .analysis.similarity import similarity as similarity
    from .analysis.study import Study as Study
    from .analysis.study import load as load
    from .analysis.study import save as save
    from .attribution.activations import reference as reference
    from .attribution.attribute import attribute as attribute
    from .attribution.entropy import lape_sets as lape_sets
    from .attribution.exact import evaluated as evaluated
    from .attribution.fidelity import fidelity as fidelity
    from .attribution.fidelity_result import Fidelity as Fidelity
    from .attribution.importance import Importance as Importance
    from .attribution.located import Located as Located
    from .attribution.methods import register_method as register_method
    from .attribution.permutation import Significance as Significance
    from .attribution.permutation import permutation as permutation
    from .attribution.presets import preset as preset
    from .attribution.resume import Checkpoint as Checkpoint
    from .attribution.resume import CheckpointError as CheckpointError
    from .attribution.selection import exclusive as exclusive
    from .attribution.selection import in_common as in_common
    from .attribution.selection import select as select
    from .attribution.stability import Stability as Stability
    from .attribution.stability import stability as stability
    from .attribution.stability import stable as stable
    from .corpora.examples import Corpus as Corpus
    from .corpora.examples import CorpusError as CorpusError
    from .corpora.examples import Example as Example
    from .corpora.jsonl import write_jsonl as write_jsonl
    from .corpora.loading import load_corpus as load_corpus
    from .figures.report import report as report
    from .finetune.delta import Delta as Delta
    from .finetune.delta_files import load_delta as load_delta
    from .finetune.retention import Retention as Retention
    from .finetune.retention import compare_tuning as compare_tuning
    from .finetune.training import finetune as finetune
    from .finetune.training import finetune_full as finetune_full
    from .neurons.edits import export_silenced as export_silenced
    from .neurons.errors import AtlasError as AtlasError
    from .neurons.errors import SetError as SetError
    from .neurons.errors import SiteError as SiteError
    from .neurons.errors import SubjectError as SubjectError
    from .neurons.interventions import Reference as Reference
    from .neurons.interventions import intervene as intervene
    from .neurons.scores import Scores as Scores
    from .neurons.sets import NeuronSet as NeuronSet
    from .neurons.subject import Subject as Subject
    from .neurons.subject import load_model as load_model

__version__ = "0.1.0"
_HOME = {
    "AtlasError": "neurons.errors",
    "Checkpoint": "attribution.resume",
    "CheckpointError": "attribution.resume",
    "Corpus": "corpora.examples",
    "CorpusError": "corpora.examples",
    "Delta": "finetune.delta",
    "Effects": "analysis.effects",
    "Example": "corpora.examples",
    "Fidelity": "attribution.fidelity_result",
    "Importance": "attribution.importance",
    "Located": "attribution.located",
    "NeuronSet": "neurons.sets",
    "Overlap": "analysis.overlap",
    "Reference": "neurons.interventions",
    "Retention": "finetune.retention",
    "Scores": "neurons.scores",
    "SetError": "neurons.errors",
    "Significance": "attribution.permutation",
    "Similarity": "analysis.similarity",
    "SiteError": "neurons.errors",
    "Stability": "attribution.stability",
    "Study": "analysis.study",
    "Subject": "neurons.subject",
    "SubjectError": "neurons.errors",
    "ablate": "analysis.ablate",
    "answer_correct": "analysis.choices",
    "attribute": "attribution.attribute",
    "choice_losses": "analysis.choices",
    "compare_tuning": "finetune.retention",
    "evaluated": "attribution.exact",
    "exclusive": "attribution.selection",
    "export_silenced": "neurons.edits",
    "fidelity": "attribution.fidelity",
    "finetune": "finetune.training",
    "finetune_full": "finetune.training",
    "in_common": "attribution.selection",
    "intervene": "neurons.interventions",
    "lape_sets": "attribution.entropy",
    "load": "analysis.study",
    "load_corpus": "corpora.loading",
    "load_delta": "finetune.delta_files",
    "load_model": "neurons.subject",
    "overlap": "analysis.overlap",
    "permutation": "attribution.permutation",
    "preset": "attribution.presets",
    "reference": "attribution.activations",
    "register_method": "attribution.methods",
    "report": "figures.report",
    "save": "analysis.study",
    "select": "attribution.selection",
    "similarity": "analysis.similarity",
    "stability": "attribution.stability",
    "stable": "attribution.stability",
    "write_jsonl": "corpora.jsonl",
}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


class _Face(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # importing a room binds it here; the room `finetune` must not hide the function of that name
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'neuropolis' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
