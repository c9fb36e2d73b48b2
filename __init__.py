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
    from .analysis.along import dose_response as dose_response
    from .analysis.along import layer_sweep as layer_sweep
    from .analysis.cards import Cards as Cards
    from .analysis.cards import neuron_card as neuron_card
    from .analysis.cards import neuron_cards as neuron_cards
    from .analysis.choices import answer_correct as answer_correct
    from .analysis.choices import choice_losses as choice_losses
    from .analysis.comparison import Comparison as Comparison
    from .analysis.comparison import compare_studies as compare_studies
    from .analysis.curves import Curve as Curve
    from .analysis.distances import load_distances as load_distances
    from .analysis.distances import load_performance as load_performance
    from .analysis.effects import Effects as Effects
    from .analysis.evaluation import Evaluation as Evaluation
    from .analysis.evaluation import HarnessError as HarnessError
    from .analysis.harness import as_lm as as_lm
    from .analysis.harness import evaluate as evaluate
    from .analysis.harness_tasks import harness_task as harness_task
    from .analysis.many_sets import choice_losses_off as choice_losses_off
    from .analysis.metrics import Metric as Metric
    from .analysis.movement import Movement as Movement
    from .analysis.movement import movement as movement
    from .analysis.overlap import Overlap as Overlap
    from .analysis.overlap import combine as combine
    from .analysis.overlap import overlap as overlap
    from .analysis.ranks import RankAgreement as RankAgreement
    from .analysis.ranks import rank_agreement as rank_agreement
    from .analysis.redundancy import Redundancy as Redundancy
    from .analysis.redundancy import redundancy as redundancy
    from .analysis.representations import Representations as Representations
    from .analysis.representations import representations as representations
    from .analysis.similarity import Similarity as Similarity
    from .analysis.similarity import similarity as similarity
    from .analysis.study import Study as Study
    from .analysis.study import load as load
    from .analysis.study import save as save
    from .analysis.trained import similarity_in_each as similarity_in_each
    from .analysis.transfer import Transfer as Transfer
    from .analysis.transfer import measured_gains as measured_gains
    from .analysis.transfer import transfer as transfer
    from .analysis.trees import Mantel as Mantel
    from .analysis.trees import Tree as Tree
    from .analysis.trees import mantel as mantel
    from .analysis.trees import tree as tree
    from .analysis.value_alignment import Alignment as Alignment
    from .analysis.value_alignment import alignment as alignment
    from .attribution.activations import reference as reference
    from .attribution.attribute import attribute as attribute
    from .attribution.difficulty import Difficulty as Difficulty
    from .attribution.difficulty import difficulty as difficulty
    from .attribution.difficulty import dual_scores as dual_scores
    from .attribution.entropy import lape_sets as lape_sets
    from .attribution.exact import evaluated as evaluated
    from .attribution.fidelity import fidelity as fidelity
    from .attribution.fidelity_result import Fidelity as Fidelity
    from .attribution.importance import Importance as Importance
    from .attribution.language_pairs import PairNeurons as PairNeurons
    from .attribution.language_pairs import pair_neurons as pair_neurons
    from .attribution.layer_change import LayerChange as LayerChange
    from .attribution.layer_change import relevant_layers as relevant_layers
    from .attribution.located import Located as Located
    from .attribution.methods import register_method as register_method
    from .attribution.own_text import own_text as own_text
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
    from .corpora.agent_pairs import AgentPairs as AgentPairs
    from .corpora.agent_pairs import evolve as evolve
    from .corpora.examples import Corpus as Corpus
    from .corpora.examples import CorpusError as CorpusError
    from .corpora.examples import Example as Example
    from .corpora.formats import Reading as Reading
    from .corpora.formats import formats as formats
    from .corpora.formats import read_format as read_format
    from .corpora.formats import register_format as register_format
    from .corpora.hygiene import Hygiene as Hygiene
    from .corpora.hygiene import check_corpus as check_corpus
    from .corpora.jsonl import write_jsonl as write_jsonl
    from .corpora.loading import load_corpus as load_corpus
    from .corpora.picking import pick as pick
    from .corpora.readers.o_lora import read_o_lora as read_o_lora
    from .corpora.splitting import split_corpus as split_corpus
    from .corpora.translations import language_pairs as language_pairs
    from .corpora.translations import parallel_corpus as parallel_corpus
    from .corpora.wvs import read_survey as read_survey
    from .corpora.wvs import survey_corpus as survey_corpus
    from .figures.comparison import compare_page as compare_page
    from .figures.report import report as report
    from .figures.report import save_figures as save_figures
    from .finetune.algebra import stack_deltas as stack_deltas
    from .finetune.calibration import calibrate as calibrate
    from .finetune.calibration_result import Calibration as Calibration
    from .finetune.compare_translation import TranslationTable as TranslationTable
    from .finetune.compare_translation import compare_translation as compare_translation
    from .finetune.continual import continual as continual
    from .finetune.continual_result import Continual as Continual
    from .finetune.delta import Delta as Delta
    from .finetune.delta_files import load_delta as load_delta
    from .finetune.errors import DeltaError as DeltaError
    from .finetune.errors import TuneError as TuneError
    from .finetune.landermt import RoutedDelta as RoutedDelta
    from .finetune.landermt import landermt as landermt
    from .finetune.landermt_files import load_routed_delta as load_routed_delta
    from .finetune.location import Location as Location
    from .finetune.plant_files import load_plant as load_plant
    from .finetune.plant_files import save_plant as save_plant
    from .finetune.planting import PlantRecipe as PlantRecipe
    from .finetune.plants import Plant as Plant
    from .finetune.plants import plant as plant
    from .finetune.plants import prove_plant as prove_plant
    from .finetune.rates import search_rates as search_rates
    from .finetune.retention import Retention as Retention
    from .finetune.retention import compare_tuning as compare_tuning
    from .finetune.streams import Task as Task
    from .finetune.streams import tasks_of as tasks_of
    from .finetune.studies import overlap_ablation as overlap_ablation
    from .finetune.studies import proportion as proportion
    from .finetune.sweep import Sweep as Sweep
    from .finetune.trainer import prepared as prepared
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
    "AgentPairs": "corpora.agent_pairs",
    "Alignment": "analysis.value_alignment",
    "AtlasError": "neurons.errors",
    "Calibration": "finetune.calibration_result",
    "Cards": "analysis.cards",
    "Checkpoint": "attribution.resume",
    "CheckpointError": "attribution.resume",
    "Comparison": "analysis.comparison",
    "Continual": "finetune.continual_result",
    "Corpus": "corpora.examples",
    "CorpusError": "corpora.examples",
    "Curve": "analysis.curves",
    "Delta": "finetune.delta",
    "DeltaError": "finetune.errors",
    "Difficulty": "attribution.difficulty",
    "Effects": "analysis.effects",
    "Evaluation": "analysis.evaluation",
    "Example": "corpora.examples",
    "Fidelity": "attribution.fidelity_result",
    "HarnessError": "analysis.evaluation",
    "Hygiene": "corpora.hygiene",
    "Importance": "attribution.importance",
    "LayerChange": "attribution.layer_change",
    "Located": "attribution.located",
    "Location": "finetune.location",
    "Mantel": "analysis.trees",
    "Metric": "analysis.metrics",
    "Movement": "analysis.movement",
    "NeuronSet": "neurons.sets",
    "Overlap": "analysis.overlap",
    "PairNeurons": "attribution.language_pairs",
    "Plant": "finetune.plants",
    "PlantRecipe": "finetune.planting",
    "RankAgreement": "analysis.ranks",
    "Reading": "corpora.formats",
    "Redundancy": "analysis.redundancy",
    "Reference": "neurons.interventions",
    "Representations": "analysis.representations",
    "Retention": "finetune.retention",
    "RoutedDelta": "finetune.landermt",
    "Scores": "neurons.scores",
    "SetError": "neurons.errors",
    "Significance": "attribution.permutation",
    "Similarity": "analysis.similarity",
    "SiteError": "neurons.errors",
    "Stability": "attribution.stability",
    "Study": "analysis.study",
    "Subject": "neurons.subject",
    "SubjectError": "neurons.errors",
    "Sweep": "finetune.sweep",
    "Task": "finetune.streams",
    "Transfer": "analysis.transfer",
    "TranslationTable": "finetune.compare_translation",
    "Tree": "analysis.trees",
    "TuneError": "finetune.errors",
    "ablate": "analysis.ablate",
    "alignment": "analysis.value_alignment",
    "answer_correct": "analysis.choices",
    "as_lm": "analysis.harness",
    "attribute": "attribution.attribute",
    "calibrate": "finetune.calibration",
    "check_corpus": "corpora.hygiene",
    "choice_losses": "analysis.choices",
    "choice_losses_off": "analysis.many_sets",
    "combine": "analysis.overlap",
    "compare_page": "figures.comparison",
    "compare_studies": "analysis.comparison",
    "compare_translation": "finetune.compare_translation",
    "compare_tuning": "finetune.retention",
    "continual": "finetune.continual",
    "difficulty": "attribution.difficulty",
    "dose_response": "analysis.along",
    "dual_scores": "attribution.difficulty",
    "evaluate": "analysis.harness",
    "evaluated": "attribution.exact",
    "evolve": "corpora.agent_pairs",
    "exclusive": "attribution.selection",
    "export_silenced": "neurons.edits",
    "fidelity": "attribution.fidelity",
    "finetune": "finetune.training",
    "finetune_full": "finetune.training",
    "formats": "corpora.formats",
    "harness_task": "analysis.harness_tasks",
    "in_common": "attribution.selection",
    "intervene": "neurons.interventions",
    "landermt": "finetune.landermt",
    "language_pairs": "corpora.translations",
    "lape_sets": "attribution.entropy",
    "layer_sweep": "analysis.along",
    "load": "analysis.study",
    "load_corpus": "corpora.loading",
    "load_delta": "finetune.delta_files",
    "load_distances": "analysis.distances",
    "load_model": "neurons.subject",
    "load_performance": "analysis.distances",
    "load_plant": "finetune.plant_files",
    "load_routed_delta": "finetune.landermt_files",
    "mantel": "analysis.trees",
    "measured_gains": "analysis.transfer",
    "movement": "analysis.movement",
    "neuron_card": "analysis.cards",
    "neuron_cards": "analysis.cards",
    "overlap": "analysis.overlap",
    "overlap_ablation": "finetune.studies",
    "own_text": "attribution.own_text",
    "pair_neurons": "attribution.language_pairs",
    "parallel_corpus": "corpora.translations",
    "permutation": "attribution.permutation",
    "pick": "corpora.picking",
    "plant": "finetune.plants",
    "prepared": "finetune.trainer",
    "preset": "attribution.presets",
    "proportion": "finetune.studies",
    "prove_plant": "finetune.plants",
    "rank_agreement": "analysis.ranks",
    "read_format": "corpora.formats",
    "read_o_lora": "corpora.readers.o_lora",
    "read_survey": "corpora.wvs",
    "redundancy": "analysis.redundancy",
    "reference": "attribution.activations",
    "register_format": "corpora.formats",
    "register_method": "attribution.methods",
    "relevant_layers": "attribution.layer_change",
    "report": "figures.report",
    "representations": "analysis.representations",
    "save": "analysis.study",
    "save_figures": "figures.report",
    "save_plant": "finetune.plant_files",
    "search_rates": "finetune.rates",
    "select": "attribution.selection",
    "similarity": "analysis.similarity",
    "similarity_in_each": "analysis.trained",
    "split_corpus": "corpora.splitting",
    "stability": "attribution.stability",
    "stable": "attribution.stability",
    "stack_deltas": "finetune.algebra",
    "survey_corpus": "corpora.wvs",
    "tasks_of": "finetune.streams",
    "transfer": "analysis.transfer",
    "translate": "finetune.translation",
    "tree": "analysis.trees",
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
