"""LANDeRMT beside other ways of tuning for translation: what is learned in one language pair, what is lost in the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attribution.language_pairs import PairNeurons
from ..corpora.examples import Corpus
from ..neurons.atlas import Record, record_type
from ..neurons.pickling import by_fields
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .errors import TuneError
from .landermt import landermt
from .rivals import lora_rank, tuned_layers, tuned_lora
from .slices import slice_entries, slice_parts
from .training import Recipe, finetune, finetune_full
from .translation import METRICS, pair_quality

RATES: Mapping[str, float] = MappingProxyType(
    {"landermt": 3e-4, "slice": 3e-4, "random": 3e-4, "lora": 3e-4, "layers": 1e-4, "full": 3e-5}
)
PARTS = ("new", "known")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class TranslationTable:
    """chrF and BLEU before and after tuning on some language pairs, by method.

    `learned` are the pairs that were trained on. A column is a part (`new`: what there was to learn; `known`: what the
    subject could translate before) and a pair. `before` [metric, column] and `after` [method, seed, metric, column]
    hold chrF and BLEU from 0 to 100; `trainable` [method] counts the numbers that were trained.
    """

    subject: str
    learned: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    columns: tuple[tuple[str, str], ...]
    before: Float[Tensor, "metric column"]
    after: Float[Tensor, "method seed metric column"]
    trainable: Int[Tensor, " method"]
    origin: Mapping[str, Any] = field(default_factory=dict)

    __reduce__ = by_fields

    def __post_init__(self) -> None:
        for name in ("learned", "methods", "seeds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "columns", tuple((str(part), str(pair)) for part, pair in self.columns))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))
        shape = [len(self.methods), len(self.seeds), len(METRICS), len(self.columns)]
        if list(self.after.shape) != shape or list(self.before.shape) != shape[2:]:
            raise TuneError(
                f"after must be [method, seed, metric, column] {shape} and before {shape[2:]}, got "
                f"{list(self.after.shape)} and {list(self.before.shape)}"
            )

    def change(self, part: str, *, own: bool, metric: str = "chrf") -> Float[Tensor, "method seed"]:
        """After less before, meaned over the pairs of a part: the learned ones (`own`) or the others. NaN without a pair."""
        places = [i for i, (p, pair) in enumerate(self.columns) if p == part and (pair in self.learned) == own]
        row = METRICS.index(metric)
        return (self.after[:, :, row, places] - self.before[row, places]).mean(dim=-1)

    def gain(self, metric: str = "chrf") -> Float[Tensor, "method seed"]:
        """What was learned: the rise on what is new, in the learned pairs."""
        return self.change("new", own=True, metric=metric)

    def forgetting(self, metric: str = "chrf") -> Float[Tensor, "method seed"]:
        """What was lost between languages: the fall on what was known, meaned over the pairs not trained on."""
        return -self.change("known", own=False, metric=metric)

    def to_record(self, name: str = "translations") -> Record:
        """The table as a record of the atlas."""
        arrays = {key: getattr(self, key).cpu().numpy() for key in ("before", "after", "trainable")}
        meta = {
            "subject": self.subject, "learned": list(self.learned), "methods": list(self.methods),
            "seeds": list(self.seeds), "columns": [list(column) for column in self.columns], "origin": dict(self.origin),
        }  # fmt: skip
        return Record("translations", name, arrays, meta)


@record_type("translations")
def translations_from_record(record: Record) -> TranslationTable:
    """A table back from an atlas."""
    arrays = {key: torch.from_numpy(array) for key, array in record.arrays.items()}
    return TranslationTable(**{**record.meta, **arrays})


def compare_translation(
    subject: Subject,
    lesson: Corpus,
    neurons: PairNeurons,
    *,
    new: Corpus,
    known: Corpus,
    layers: Iterable[int],
    methods: Sequence[str] = tuple(RATES),
    rates: Mapping[str, float] = RATES,
    seeds: Sequence[int] = (0,),
    steps: int = 100,
    batch_size: int = 16,
    rank: int | None = None,
    max_new_tokens: int = 64,
    progress: Progress | None = None,
) -> TranslationTable:
    """Learn the translations of `lesson` by several methods, each from the untouched subject, and measure every pair.

    All corpora are grouped by language pair (`language_pairs`) and taken whole: choose splits before. `new` asks for what
    there is to learn, `known` for what the subject could translate before, in the learned pairs and in others. Answers are
    trained on with the tokenizer's end-of-text token behind them. Methods:

    - `landermt`: the general neurons and those specific to the lesson's pairs, with gates (`landermt`).
    - `slice`: the same neurons without gates. `random`: as many random neurons in each layer, without gates.
    - `lora`: PEFT on the FFN projections of all layers, at `rank`, by default the one that trains as many numbers as
      `landermt` does, as nearly as a whole rank can.
    - `layers`: every parameter of `layers` (those the neurons were looked for in). `full`: every parameter.

    Every method takes the same steps over the same batches (a seed decides their order, LoRA's initial values and the
    random set), each at its own learning rate: none is searched for here. `progress` is called with (runs done, runs).

    Raises TuneError for an unknown method or one without a rate, or a lesson whose pairs are not measured, and what
    `finetune` and `landermt` raise.
    """
    _check(methods, seeds, rates, lesson, new)
    exams = {"new": new, "known": known}

    def measure(tuned: Subject) -> Float[Tensor, "metric column"]:
        found = [pair_quality(tuned, exams[part], max_new_tokens=max_new_tokens) for part in PARTS]
        return torch.tensor([quality for part in found for quality in part.values()]).t()

    chosen = neurons.of(*lesson.groups)
    ways = _Ways(ended(subject, lesson), neurons, chosen, tuple(layers), rank)
    before, after, trainable = measure(subject), [], list[int]()
    for method in methods:
        rows: list[Tensor] = []
        counts: list[int] = []
        for seed in seeds:
            recipe = Recipe(lr=rates[method], steps=steps, batch_size=batch_size, seed=seed)
            with ways.tuned(subject, method, recipe) as (tuned, count):
                rows.append(measure(tuned))
                counts.append(count)
            if progress is not None:
                progress(len(after) * len(seeds) + len(rows), len(methods) * len(seeds))
        after.append(torch.stack(rows))
        trainable.append(counts[-1])
    columns = [(part, pair) for part in PARTS for pair in exams[part].groups]
    origin = {
        "lesson": lesson.hash, "new": new.hash, "known": known.hash, "neurons": chosen.digest, "steps": steps,
        "batch_size": batch_size, "rates": {method: rates[method] for method in methods}, "layers": list(ways.layers),
        "num_lesson": len(lesson), "num_sentences": {f"{part} {g}": exams[part].counts[g] for part, g in columns},
    }  # fmt: skip
    return TranslationTable(
        subject.fingerprint, lesson.groups, tuple(methods), tuple(seeds), tuple(columns), before, torch.stack(after),
        torch.tensor(trainable), origin,
    )  # fmt: skip


def _check(
    methods: Sequence[str], seeds: Sequence[int], rates: Mapping[str, float], lesson: Corpus, new: Corpus
) -> None:
    if not methods:
        raise TuneError(f"no method to compare; methods are {', '.join(RATES)}")
    for method in methods:
        if method not in RATES or method not in rates:
            raise TuneError(f"unknown method {method!r}, or no rate for it; methods are {', '.join(RATES)}")
    if not seeds:
        raise TuneError("no seed to train with; give one or more, such as seeds=(0, 1, 2)")
    if missing := [pair for pair in lesson.groups if pair not in new.groups]:
        raise TuneError(f"the lesson is of {missing[0]!r}, but 'new' asks for {', '.join(new.groups)} only")


@dataclass(frozen=True, eq=False)
class _Ways:
    """What every method is given."""

    lesson: Corpus
    neurons: PairNeurons
    chosen: NeuronSet
    layers: tuple[int, ...]
    rank: int | None

    @contextmanager
    def tuned(self, subject: Subject, method: str, recipe: Recipe) -> Iterator[tuple[Subject, int]]:
        """A subject tuned by a method, and how many numbers were trained; the one given is as before afterwards."""
        if method == "layers":
            yield tuned_layers(subject, self.lesson, self.layers, recipe)
            return
        if method == "lora":
            rank = self.rank or lora_rank(subject, _slice_size(subject, self.chosen))
            yield tuned_lora(subject, self.lesson, rank, recipe)
            return
        arguments: Any = {
            "lr": recipe.lr, "steps": recipe.steps, "batch_size": recipe.batch_size, "seed": recipe.seed, "split": None,
        }  # fmt: skip
        if method == "landermt":
            delta = landermt(subject, self.lesson, self.neurons, **arguments)
        elif method == "full":
            delta = finetune_full(subject, self.lesson, **arguments)
        else:
            picked = self.chosen if method == "slice" else NeuronSet.random(self.chosen, seed=recipe.seed)
            delta = finetune(subject, self.lesson, picked, **arguments)
        with delta.applied(subject):
            yield subject, delta.num_parameters


def _slice_size(subject: Subject, neurons: NeuronSet) -> int:
    return sum(math.prod(entry.shape) for entry in slice_entries(slice_parts(subject, neurons)))


def ended(subject: Subject, corpus: Corpus) -> Corpus:
    """The same examples with the tokenizer's end-of-text token behind the answer, so that its end is learned too."""
    end = subject.tokenizer.eos_token or ""
    return replace(
        corpus, examples=tuple(replace(e, answer=e.answer + end, choices=(), answer_index=None) for e in corpus)
    )
