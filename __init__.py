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
    from .attribution.language_pairs import PairNeurons as PairNeurons
    from .attribution.language_pairs import pair_neurons as pair_neurons
    from .attribution.layer_change import LayerChange as LayerChange
    from .attribution.layer_change import relevant_layers as relevant_layers
    from .attribution.methods import register_method as register_method
    from .attribution.selection import select as select
    from .corpora.examples import Corpus as Corpus
    from .corpora.examples import CorpusError as CorpusError
    from .corpora.examples import Example as Example
    from .corpora.jsonl import write_jsonl as write_jsonl
    from .corpora.loading import load_corpus as load_corpus
    from .corpora.translations import language_pairs as language_pairs
    from .corpora.translations import parallel_corpus as parallel_corpus
    from .figures.report import report as report
    from .finetune.compare_translation import TranslationTable as TranslationTable
    from .finetune.compare_translation import compare_translation as compare_translation
    from .finetune.delta import Delta as Delta
    from .finetune.delta_files import load_delta as load_delta
    from .finetune.landermt import RoutedDelta as RoutedDelta
    from .finetune.landermt import landermt as landermt
    from .finetune.landermt_files import load_routed_delta as load_routed_delta
    from .finetune.retention import Retention as Retention
    from .finetune.retention import compare_tuning as compare_tuning
    from .finetune.training import finetune as finetune
    from .finetune.training import finetune_full as finetune_full
    from .finetune.translation import translate as translate
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
    "Corpus": "corpora.examples",
    "CorpusError": "corpora.examples",
    "Delta": "finetune.delta",
    "Effects": "analysis.effects",
    "Example": "corpora.examples",
    "LayerChange": "attribution.layer_change",
    "NeuronSet": "neurons.sets",
    "Overlap": "analysis.overlap",
    "PairNeurons": "attribution.language_pairs",
    "Reference": "neurons.interventions",
    "Retention": "finetune.retention",
    "RoutedDelta": "finetune.landermt",
    "Scores": "neurons.scores",
    "SetError": "neurons.errors",
    "Similarity": "analysis.similarity",
    "SiteError": "neurons.errors",
    "Study": "analysis.study",
    "Subject": "neurons.subject",
    "SubjectError": "neurons.errors",
    "TranslationTable": "finetune.compare_translation",
    "ablate": "analysis.ablate",
    "answer_correct": "analysis.choices",
    "attribute": "attribution.attribute",
    "choice_losses": "analysis.choices",
    "compare_translation": "finetune.compare_translation",
    "compare_tuning": "finetune.retention",
    "export_silenced": "neurons.edits",
    "finetune": "finetune.training",
    "finetune_full": "finetune.training",
    "intervene": "neurons.interventions",
    "landermt": "finetune.landermt",
    "language_pairs": "corpora.translations",
    "load": "analysis.study",
    "load_corpus": "corpora.loading",
    "load_delta": "finetune.delta_files",
    "load_model": "neurons.subject",
    "load_routed_delta": "finetune.landermt_files",
    "overlap": "analysis.overlap",
    "pair_neurons": "attribution.language_pairs",
    "parallel_corpus": "corpora.translations",
    "reference": "attribution.activations",
    "register_method": "attribution.methods",
    "relevant_layers": "attribution.layer_change",
    "report": "figures.report",
    "save": "analysis.study",
    "select": "attribution.selection",
    "similarity": "analysis.similarity",
    "translate": "finetune.translation",
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
