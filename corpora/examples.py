"""Examples and corpora: what is asked, what the right answer is, and whose question it is."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from types import MappingProxyType
from typing import Any

Messages = tuple[Mapping[str, str], ...]

_PURPOSES = {
    "id": "a name that no other example of the corpus has",
    "group": "the culture, task or language it is a question of",
    "prompt": "the text that stands before the answer",
    "answer": "the text whose tokens are scored",
}


class CorpusError(ValueError):
    """A corpus or a row of it is not what was expected."""


@dataclass(frozen=True)
class Example:
    """One question of one group.

    The text of an example is `prompt + answer` exactly as given; a reader puts the space where it belongs. A prompt may
    also be a tuple of chat messages (`{"role", "content"}`), which the subject renders with its tokenizer's template.

    `choices` includes the right answer at `answer_index`. `control` is the prompt of the control twin: a question of
    the same form with the same answer and choices that can be answered without what the group stands for.
    """

    id: str
    group: str
    prompt: str | Messages
    answer: str
    choices: tuple[str, ...] = ()
    answer_index: int | None = None
    control: str | Messages | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        object.__setattr__(self, "tags", MappingProxyType(dict(self.tags)))
        for name in ("prompt", "control"):
            if isinstance(messages := getattr(self, name), list):
                object.__setattr__(self, name, tuple(messages))
        for name, purpose in _PURPOSES.items():
            if not getattr(self, name):
                raise CorpusError(f"example {self.id!r}: {name!r} is empty; give {purpose}")
        if "" in self.choices or self.control in ("", ()):
            raise CorpusError(f"example {self.id!r}: a choice or 'control' is empty; give its text or leave it out")
        if self.choices and self.answer_index is None:
            raise CorpusError(f"example {self.id!r}: has 'choices' but no 'answer_index'; say which choice is right")
        if self.answer_index is not None and not 0 <= self.answer_index < len(self.choices):
            raise CorpusError(
                f"example {self.id!r}: 'answer_index' is {self.answer_index}, expected 0 to {len(self.choices) - 1} "
                f"({len(self.choices)} choices)"
            )
        if self.answer_index is not None and self.choices[self.answer_index] != self.answer:
            raise CorpusError(
                f"example {self.id!r}: choice {self.answer_index} is {self.choices[self.answer_index]!r} "
                f"but 'answer' is {self.answer!r}; they must be the same text"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle by value: the read-only view of the tags is not picklable."""
        values = {f.name: getattr(self, f.name) for f in fields(self)} | {"tags": dict(self.tags)}
        return partial(Example, **values), ()

    @property
    def item(self) -> str:
        """What the example is about: rows of one item (paraphrases, translations, twins) are not independent."""
        return self.tags.get("item", self.id)

    def to_json(self) -> dict[str, Any]:
        """The example as a row of the native JSON Lines format; empty fields are left out."""
        row: dict[str, Any] = {"id": self.id, "group": self.group, "prompt": _plain(self.prompt), "answer": self.answer}
        if self.choices:
            row |= {"choices": list(self.choices), "answer_index": self.answer_index}
        if self.control is not None:
            row["control"] = _plain(self.control)
        if self.tags:
            row["tags"] = dict(self.tags)
        return row


@dataclass(frozen=True)
class Corpus:
    """Examples of one or more groups, in a fixed order, with ids that are unique."""

    examples: tuple[Example, ...]
    name: str = "corpus"

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", tuple(self.examples))
        if not self.examples:
            raise CorpusError(f"corpus {self.name!r} is empty; expected at least one example")
        id, count = Counter(e.id for e in self.examples).most_common(1)[0]
        if count > 1:
            raise CorpusError(f"corpus {self.name!r}: id {id!r} stands {count} times; ids must be unique")

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def __add__(self, other: Corpus) -> Corpus:
        """The examples of both, in order; ids must differ."""
        return Corpus((*self.examples, *other.examples), name=f"{self.name} + {other.name}")

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups in order of first appearance."""
        return tuple(dict.fromkeys(e.group for e in self.examples))

    @property
    def counts(self) -> dict[str, int]:
        """Examples per group."""
        return dict(Counter(e.group for e in self.examples))

    @property
    def splits(self) -> tuple[str, ...]:
        """Values of the tag `split` in order of first appearance; empty when no example has one."""
        return tuple(dict.fromkeys(e.tags["split"] for e in self.examples if "split" in e.tags))

    @property
    def hash(self) -> str:
        """SHA-256 of the rows in order, as hexadecimal text."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(json.dumps(example.to_json(), sort_keys=True, ensure_ascii=False).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def only(self, groups: Iterable[str] | str | None = None, **tags: str) -> Corpus:
        """The examples of these groups (all by default) whose tags have these values.

        Raises CorpusError when a group or a tag's value is not in the corpus; the text lists what is.
        """
        examples = self.examples
        if groups is not None:
            wanted = (groups,) if isinstance(groups, str) else tuple(groups)
            missing = [g for g in wanted if g not in self.groups]
            if missing:
                raise CorpusError(f"corpus {self.name!r} has no group {missing[0]!r}; it has {', '.join(self.groups)}")
            examples = tuple(e for e in examples if e.group in wanted)
        for tag, value in tags.items():
            known = sorted({e.tags[tag] for e in examples if tag in e.tags})
            examples = tuple(e for e in examples if e.tags.get(tag) == value)
            if not examples:
                raise CorpusError(
                    f"corpus {self.name!r} has no example with {tag}={value!r}; "
                    f"{'values are ' + ', '.join(known) if known else f'no example has the tag {tag!r}'}"
                )
        return replace(self, examples=examples)

    def part(self, split: str | None, *, auto: str) -> Corpus:
        """The examples of a split: None takes all; "auto" takes those tagged `auto` if any example has a split, else all.

        Raises CorpusError when some examples have a split and others none: they would be left out unseen.
        """
        if split is None or (split == "auto" and not self.splits):
            return self
        untagged = [e.id for e in self.examples if "split" not in e.tags]
        if untagged and self.splits:
            raise CorpusError(
                f"corpus {self.name!r}: {len(untagged)} of {len(self)} examples have no tag 'split' (first {untagged[0]!r}), "
                f"the others have {', '.join(self.splits)}; tag them, or take all rows (split=None, --split all)"
            )
        return self.only(split=auto if split == "auto" else split)

    def by(self, tag: str) -> Corpus:
        """The same examples grouped by a tag (language, task, ...); the former group becomes the tag `group`."""
        for example in self.examples:
            if tag not in example.tags:
                raise CorpusError(
                    f"example {example.id!r} has no tag {tag!r} to group by; "
                    f"its tags are {', '.join(sorted(example.tags)) or 'none'}"
                )
        regrouped = (replace(e, group=e.tags[tag], tags={**e.tags, "group": e.group}) for e in self.examples)
        return replace(self, examples=tuple(regrouped), name=f"{self.name} by {tag}")

    def controls(self) -> Corpus:
        """The control twins, each under its question's group. Raises CorpusError when an example has none."""
        for example in self.examples:
            if example.control is None:
                raise CorpusError(
                    f"example {example.id!r} has no 'control'; contrast with controls needs a twin for every example"
                )
        twins = (
            replace(e, id=f"{e.id}#control", prompt=e.control, control=None)
            for e in self.examples
            if e.control is not None
        )
        return replace(self, examples=tuple(twins), name=f"{self.name} (controls)")


def _plain(prompt: str | Messages) -> str | list[dict[str, str]]:
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]
