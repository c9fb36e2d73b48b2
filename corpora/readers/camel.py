"""Reader of CAMeL: Arabic sentences that an Arab or a Western name, dish or place can end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..examples import CorpusError, Example
from ..files import files_in
from ..formats import Dropped, Reading, check_option, gather, register_format
from ..lettered import drawn, place_by
from ..sheets import read_sheet

CULTURES = ("Arab", "Western")
MASK = "[MASK]"
PROMPTS = {
    "agnostic": ("prompts/camel-ag/*causal*.xlsx", "prompts/camel-ag/*.xlsx"),
    "contextual": ("prompts/camel-co/*causal*.xlsx", "prompts/camel-co/*.xlsx"),
}


@dataclass(frozen=True)
class _Prompt:
    where: str
    id: str
    kind: str
    text: str


@register_format(
    "camel",
    title="CAMeL: Arabic sentences to be ended by an Arab or a Western entity",
    source="https://github.com/tareknaous/camel",
    licence="MIT",
    looks=lambda path: path.is_dir() and any(path.glob("entities/*.xlsx")) and any(path.glob("prompts/camel-*/*.xlsx")),
)
def read_camel(
    path: Path,
    *,
    prompts: Annotated[str, "agnostic (either culture fits), or contextual (only Arab entities fit)."] = "agnostic",
    most: Annotated[int, "Pairs of entities for each prompt."] = 5,
    twin: Annotated[str, "The control: copy (the entity stands before, to be repeated), none."] = "copy",
) -> Reading:
    """A clone of the authors' repository (Naous et al. 2024, ACL): `entities/*.xlsx` and `prompts/camel-*/*.xlsx`.

    Every prompt that ends in [MASK] gets `most` pairs of an Arab and a Western entity of its type, drawn by its number
    alone. Agnostic prompts make an example of each culture of every pair: the group is the culture, the answer its entity,
    the choices both. There is no right answer then: the accuracy of a group is how often the model prefers that culture,
    and the two add up to 1. Contextual prompts make the Arab one only, which is right. The twin says the entity first. A
    prompt is one item. Dropped: prompts that go on after [MASK] (a causal model has not read that when it answers),
    entities of no culture or of both.
    """
    check_option(prompts, option="prompts", known=PROMPTS)
    check_option(twin, option="twin", known=("copy", "none"))
    if most < 1:
        raise CorpusError(f"the option most is {most}; expected 1 or more")
    dropped: list[Dropped] = []
    entities, num_entities = _entities(files_in(path, "entities/*.xlsx"), dropped)
    rows = list(_prompts(_first(path, PROMPTS[prompts])))
    examples: list[Example] = []
    for row in rows:
        kind = next((kind for kind in (row.kind, f"{row.kind}s") if kind in entities), None)
        before, _, after = row.text.partition(MASK)
        if kind is None or after.strip() or not before.strip():
            dropped.append(Dropped(row.where, _why(row, kind)))
            continue
        cultures = CULTURES if prompts == "agnostic" else CULTURES[:1]
        examples += _examples(row, entities[kind], cultures, most, twin)
    return gather(examples, name="camel", dropped=dropped, rows=len(rows) + num_entities)


def _why(row: _Prompt, kind: str | None) -> str:
    if kind is None:
        return f"no entities of the type {row.kind}"
    return f"there is nothing before, or something after, {MASK}" if MASK in row.text else f"no {MASK} in it"


def _first(path: Path, patterns: tuple[str, ...]) -> Path:
    """The workbook for causal models if there is one, otherwise the other."""
    found = [file for pattern in patterns for file in sorted(path.glob(pattern))]
    if not found:
        raise CorpusError(f"{path}: no file in it matches {' or '.join(patterns)}")
    return found[0]


def _prompts(file: Path) -> Iterator[_Prompt]:
    for number, (where, row) in enumerate(read_sheet(file, columns=("Entity Type", "Prompt")), start=1):
        yield _Prompt(where, str(number), row["Entity Type"].lower().replace(" ", "-"), row["Prompt"])


def _entities(files: list[Path], dropped: list[Dropped]) -> tuple[dict[str, dict[str, list[str]]], int]:
    """Type -> culture -> its entities in order, without those of both cultures or none; and how many rows were read."""
    entities: dict[str, dict[str, list[str]]] = {}
    count = 0
    for file in files:
        cultures: dict[str, dict[str, str]] = defaultdict(dict)  # entity -> culture -> where
        for where, row in read_sheet(file, columns=("Entity", "Culture")):
            count += 1
            if row["Culture"] not in CULTURES or not row["Entity"]:
                dropped.append(Dropped(where, f"no entity, or a culture other than {' and '.join(CULTURES)}"))
            else:
                cultures[row["Entity"]].setdefault(row["Culture"], where)
        for places in cultures.values():
            if len(places) > 1:
                dropped += [Dropped(where, "an entity of both cultures") for where in places.values()]
        entities[file.stem] = {
            culture: [entity for entity, places in cultures.items() if list(places) == [culture]]
            for culture in CULTURES
        }
    return entities, count


def _examples(
    row: _Prompt, entities: dict[str, list[str]], cultures: tuple[str, ...], most: int, twin: str
) -> Iterator[Example]:
    before = row.text.partition(MASK)[0]
    prompt, space = before.rstrip(), " " if before != before.rstrip() else ""
    drawn_by = {name: drawn(entities[name], most, key=f"{row.id}/{name}") for name in CULTURES}
    for number, pair in enumerate(zip(*drawn_by.values(), strict=False)):
        said = [space + entity for entity in pair]
        choices = tuple(said[:: -1 if place_by(f"{row.id}/{number}", 2) else 1])
        for culture in cultures:
            answer = said[CULTURES.index(culture)]
            yield Example(
                f"{row.kind}/{row.id}/{number}/{culture}", culture, prompt, answer, choices, choices.index(answer),
                f"{prompt}{answer}\n{prompt}" if twin == "copy" else None,
                {"item": f"{row.kind}/{row.id}", "topic": row.kind, "language": "ar"},
            )  # fmt: skip
