"""The word that stands before an answer, in the languages of the benchmarks that have no prompts of their own."""

from __future__ import annotations

from .parts import space_before

ANSWER = {
    "ar": "الجواب:",
    "bn": "উত্তর:",
    "de": "Antwort:",
    "el": "Απάντηση:",
    "en": "Answer:",
    "es": "Respuesta:",
    "fr": "Réponse :",
    "hi": "उत्तर:",
    "ja": "答え：",
    "ro": "Răspuns:",
    "ru": "Ответ:",
    "sw": "Jibu:",
    "te": "సమాధానం:",
    "th": "คำตอบ:",
    "tr": "Cevap:",
    "vi": "Trả lời:",
    "zh": "答案：",
}


def answer_cue(language: str, own: str | None = None) -> tuple[str, str]:
    """The cue before an answer and the blank after it: `own` if given, else the language's, English for others."""
    cue = own if own is not None else ANSWER.get(language, ANSWER["en"])
    return cue, space_before("en", cue)
