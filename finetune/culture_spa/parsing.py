"""From what a model wrote to a survey question: reading it, and mending or refusing its options."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

MOST_OPTIONS = 10  # answers above 10 do not count in the alignment score
_NUMBERED = re.compile(r"\s*\(?(\d{1,9})\s*[.):=–—-]\s*(?=\S)")
_NUMBER = r"['\"‘“]?\d+['\"’”]?"
_SCALE = re.compile(
    rf"on a scale|\b(?:with|where|which) {_NUMBER} (?:being|means|meaning|is)\b|from {_NUMBER}.* to {_NUMBER}",
    re.IGNORECASE,
)


class Refused(ValueError):
    """A question that is not used, and why."""


def parsed_question(text: str) -> tuple[str, list[str]]:
    """The first JSON object with "Question" and "Options" in a text. Raises Refused when there is none."""
    decoder = json.JSONDecoder()
    reason = "no JSON object"
    for place in (found.start() for found in re.finditer(r"\{", text)):
        try:
            row, _ = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            reason = "no whole JSON object"
            continue
        named = {str(key).casefold(): value for key, value in row.items()}
        question, options = named.get("question"), _texts(named.get("options"))
        if isinstance(question, str) and question.strip() and len(options) > 1:
            return question.strip(), options
        reason = "no Question with two or more Options"
    raise Refused(reason)


def mended(question: str, options: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The question with options that can be numbered from 1. Raises Refused where they cannot.

    Numbers in front of all options that count up from 0 or 1 are taken away. Options that label places of a longer scale
    ("1 - Never", "10 - Always") become that scale, and the labels go into the question. Options that are numbers alone need
    a question that says what they mean.
    """
    numbered = [_NUMBERED.match(option) for option in options]
    if all(numbered):
        numbers = [int(match[1]) for match in numbered if match]
        labels = [option[match.end() :].strip() for option, match in zip(options, numbered, strict=True) if match]
        if numbers in (list(range(len(options))), list(range(1, len(options) + 1))):
            options = labels
        else:
            question, options = _scale(question, numbers, labels)
    options = tuple(option.strip() for option in options)
    if not 2 <= len(options) <= MOST_OPTIONS:
        raise Refused(f"{len(options)} options; 2 to {MOST_OPTIONS} can be answered")
    if len({option.casefold() for option in options}) < len(options):
        raise Refused("two options are the same")
    if all(option.isdigit() for option in options) and not _SCALE.search(question):
        raise Refused("options are numbers and the question does not say what they mean")
    return question, options


def normal(text: str) -> str:
    """A text by which duplicates are known: without case, punctuation at the end and repeated blanks."""
    return " ".join(text.casefold().split()).rstrip(" ?.!:")


def _scale(question: str, numbers: Sequence[int], labels: Sequence[str]) -> tuple[str, list[str]]:
    if numbers[0] != 1 or not all(one < two for one, two in pairwise(numbers)):
        raise Refused(f"options are numbered {', '.join(map(str, numbers))}")
    if numbers[-1] > MOST_OPTIONS:
        raise Refused(f"{numbers[-1]} options; 2 to {MOST_OPTIONS} can be answered")
    told = ", ".join(f"{number} means '{label}'" for number, label in zip(numbers, labels, strict=True))
    return f"{question} On a scale where {told}.", [str(number) for number in range(1, numbers[-1] + 1)]


def _texts(options: Any) -> list[str]:
    """A list of options, or the values of an object of them, as texts; empty for anything else."""
    values = list(options.values()) if isinstance(options, dict) else options
    if not isinstance(values, list) or not all(isinstance(one, str | int | float) for one in values):
        return []
    return [str(one).strip() for one in values if str(one).strip()]
