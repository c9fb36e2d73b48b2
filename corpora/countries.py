"""Names of countries, so that a country is one group in every benchmark and reads well in a prompt."""

from __future__ import annotations

_NAMES = {
    "us": "United States", "usa": "United States", "united states of america": "United States",
    "uk": "United Kingdom", "great britain": "United Kingdom", "uae": "United Arab Emirates",
}  # fmt: skip
_WITH_THE = {"United States", "United Kingdom", "United Arab Emirates", "Netherlands", "Philippines", "Czech Republic"}
_SMALL = {"and", "of", "the"}


def country_name(text: str) -> str:
    """One name for a country as benchmarks write it: `South_Korea`, `south_korea` and `South Korea` are South Korea.

    Only spelling is unified; regions (Assam, West Java, Northern Nigeria) stay what they are.
    """
    words = text.replace("_", " ").split()
    plain = " ".join(words)
    if plain.casefold() in _NAMES:
        return _NAMES[plain.casefold()]
    if plain != plain.lower():
        return plain
    return " ".join(word if word in _SMALL and place else word.capitalize() for place, word in enumerate(words))


def with_article(name: str) -> str:
    """The name as it stands within a sentence: `the United States`, `Japan`."""
    return f"the {name}" if name in _WITH_THE else name
