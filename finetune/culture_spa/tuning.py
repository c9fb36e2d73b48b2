"""Tuning on collected instances: one model for all cultures or one each; all parameters, LoRA, or neurons alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from ...attribution.generators import LocalGenerator, row_seed
from ...corpora.examples import Corpus
from ...corpora.jsonl import replacing
from ...corpora.survey import Asking, Survey
from ...neurons.sets import NeuronSet
from ...neurons.subject import Subject
from ..compare_translation import ended
from ..delta_files import load_delta
from ..errors import TuneError
from ..recipe import Recipe
from ..training import finetune, finetune_full
from .adapters import adapted, train_adapter
from .answers import answer_questions

Way = Literal["lora", "full", "neurons"]
JOINT, ABOUT = "joint", "tuned.json"
RATES: Mapping[str, float] = MappingProxyType({"lora": 1e-4, "full": 1e-5, "neurons": 3e-4})


@dataclass(frozen=True)
class Tuned:
    """A folder of tuned parts: one under "joint", or one for each culture. `about` says how they were made."""

    folder: Path
    members: tuple[str, ...]
    about: Mapping[str, Any]

    def member(self, culture: str) -> str:
        """The part that answers for a culture. Raises TuneError where there is none."""
        name = JOINT if self.members == (JOINT,) else culture
        if name not in self.members:
            raise TuneError(f"{self.folder} has nothing tuned for {culture!r}; it has {', '.join(self.members)}")
        return name

    @contextmanager
    def applied(self, subject: Subject, member: str) -> Iterator[None]:
        """While the block runs the subject has this part's weights; what stood there comes back bit for bit."""
        if subject.fingerprint != self.about["subject"]:
            raise TuneError(
                f"{self.folder} was tuned from subject {self.about['subject']}, {subject.name!r} is {subject.fingerprint}"
            )
        place = self.folder / member
        with adapted(subject, place) if self.about["way"] == "lora" else load_delta(place).applied(subject):
            yield


def tune_cultures(
    subject: Subject,
    instances: Corpus,
    out: str | Path,
    *,
    way: Way = "lora",
    each: bool = False,
    sets: Mapping[str, NeuronSet] | None = None,
    rank: int = 8,
    recipe: Recipe | None = None,
    tell: Callable[[str, int], None] = lambda _member, _count: None,
) -> Tuned:
    """Tune the subject on collected instances, all cultures together (joint) or each on its own (specific).

    `way` trains LoRA adapters on every projection (with PEFT, of this `rank`), all parameters, or the neurons of `sets`:
    a culture's own, and their union for the joint model. The authors' recipe is one epoch of LoRA at 1e-4, cosine with a
    warm-up of 0.1, 128 rows a step; the rates of the others are ours. Answers are learned with the
    end-of-text token behind them. Parts that are in `out` already are kept, so that a stopped run goes on with the next;
    `tell(part, numbers trained)` is called after each.

    Raises TuneError when a culture has no set, for chat messages that the subject has no template for, when `out` was begun
    with other settings, and what training raises.
    """
    if way not in get_args(Way):
        raise TuneError(f"unknown way of tuning {way!r}; expected {', '.join(get_args(Way))}")
    recipe = recipe or default_recipe(way)
    members = instances.groups if each else (JOINT,)
    chosen = _chosen(instances, sets, each) if way == "neurons" else {}
    about = {
        "way": way, "members": list(members), "subject": subject.fingerprint, "instances": instances.hash,
        "recipe": asdict(recipe), "rank": rank if way == "lora" else None,
        "sets": {name: neurons.digest for name, neurons in chosen.items()},
    }  # fmt: skip
    _check_prompts(subject, instances)
    folder = _begun(Path(out), about, members)
    for member in members:
        if (folder / member).is_dir():
            continue
        lesson = ended(subject, instances.only(member) if each else instances)
        if way == "lora":
            count = train_adapter(subject, lesson, folder / member, recipe, rank=rank)
        else:
            settings: Any = {**asdict(recipe), "split": None}
            delta = (
                finetune_full(subject, lesson, **settings)
                if way == "full"
                else finetune(subject, lesson, chosen[member], **settings)
            )
            delta.save(folder / member)
            count = delta.num_parameters
        tell(member, count)
    return Tuned(folder, tuple(members), about)


def default_recipe(way: Way) -> Recipe:
    """One epoch of 128 rows a step at the way's rate; the rest is `Recipe`'s, which is the authors'."""
    return Recipe(lr=RATES[way], epochs=1, batch_size=128, accumulate=8)


def load_tuned(folder: str | Path) -> Tuned:
    """What `tune_cultures` wrote. Raises TuneError when it is not there or not finished."""
    folder = Path(folder)
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TuneError(
            f"{folder}: no {ABOUT} that can be read ({error}); expected what culture-spa tune wrote"
        ) from error
    if missing := [name for name in about["members"] if not (folder / name).is_dir()]:
        raise TuneError(f"{folder}: {missing[0]!r} is not tuned yet; give the tune command again to go on")
    return Tuned(folder, tuple(about["members"]), about)


def _chosen(instances: Corpus, sets: Mapping[str, NeuronSet] | None, each: bool) -> dict[str, NeuronSet]:
    if missing := [culture for culture in instances.groups if culture not in (sets or {})]:
        raise TuneError(
            f"no neurons for {missing[0]!r}; sets are for {', '.join(sets or {}) or 'nothing'}. Locate and select them on the "
            "collected instances first"
        )
    own = {culture: (sets or {})[culture] for culture in instances.groups}
    return own if each else {JOINT: reduce(or_, own.values())}


def _check_prompts(subject: Subject, instances: Corpus) -> None:
    if getattr(subject.tokenizer, "chat_template", None):
        return
    if chat := next((example.id for example in instances if not isinstance(example.prompt, str)), None):
        raise TuneError(
            f"{chat}: the prompt is a list of messages, but {subject.name} has no chat template; collect the instances as "
            "plain texts (culture-spa collect --plain)"
        )


def _begun(folder: Path, about: Mapping[str, Any], members: Sequence[str]) -> Path:
    """The folder, with what it is for; or that of an earlier run with the same settings."""
    file = folder / ABOUT
    if not folder.absolute().parent.is_dir():
        raise TuneError(f"cannot write {folder}: there is no folder {folder.parent}; make it first")
    if file.is_file() and (found := _about(file, members)):
        wanted = json.loads(json.dumps(about))
        if different := [name for name in wanted if found.get(name) != wanted[name]]:
            raise TuneError(
                f"{folder} was begun with another {different[0]} ({found.get(different[0])!r:.80}, now "
                f"{wanted[different[0]]!r:.80}); go on with the same, or give another folder"
            )
        return folder
    if folder.exists() and any(one != file for one in folder.iterdir() if not one.name.startswith(f".{ABOUT}.")):
        raise TuneError(f"{folder} is there, not empty and no folder of tuned cultures; give another")
    folder.mkdir(exist_ok=True)
    with replacing(file) as written:
        written.write(json.dumps(about, indent=1) + "\n")
    return folder


def _about(file: Path, members: Sequence[str]) -> dict[str, Any]:
    """What an earlier run says of a folder; nothing where it was stopped before it had said so and before any part."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no object")
        return found
    except ValueError as error:
        if any((file.parent / name).exists() for name in members):
            raise TuneError(
                f"{file}: cannot be read ({error}), and there are tuned parts; give another folder"
            ) from None
        return {}


def answer_tuned(
    subject: Subject,
    tuned: Tuned,
    survey: Survey,
    out: str | Path,
    *,
    cultures: Sequence[str] | None = None,
    asking: Asking = "aware",
    rows: int = 32,
    **answering: Any,
) -> Path:
    """Put the survey's own questions to the tuned subject, every culture to the part that answers for it.

    `rows` are generated at once; `answering` holds further arguments of `answer_questions`, which says what `out` holds.
    Raises TuneError for `unaware`, which is of no culture: put those questions to one part with `answer_questions`.
    """
    if asking == "unaware":
        raise TuneError("asking 'unaware' is of no culture; ask 'aware' or 'thinking'")
    made = (
        f"{row_seed(json.dumps(dict(tuned.about), sort_keys=True)):08x}"  # answers of another tuning are not mixed in
    )
    generator = LocalGenerator(subject, rows, f"{subject.name} ({subject.fingerprint}) tuned as {made}")
    by_member: dict[str, list[str]] = {}
    for culture in cultures or tuple(survey.cultures):
        by_member.setdefault(tuned.member(culture), []).append(culture)
    for member, own in by_member.items():
        with tuned.applied(subject, member):
            answer_questions(
                survey, survey.questions, generator, out, cultures=own, askings=(asking,), **answering
            )  # fmt: skip
    return Path(out)
