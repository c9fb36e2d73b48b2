"""Files in the layouts of the language and task benchmarks, a few rows each, written by us."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

SENTENCES = {
    "deu_Latn": ["Der Hund schläft im Garten.", "Die Katze trinkt gern Milch.", "Das Boot liegt dort am Ufer."],
    "zho_Hans": ["狗在花园里睡觉。", "猫喜欢喝牛奶。", "船停在岸边。"],
}


def put(file: Path, content: str | list[Any] | dict[str, Any], *, lines: bool = False) -> Path:
    """Write text, JSON, or JSON Lines; the folders are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if lines:
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    file.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), "utf-8")
    return file


def xcopa(folder: Path) -> Path:
    def row(idx: int, premise: str, one: str, two: str, question: str, label: int) -> dict[str, Any]:
        return {
            "premise": premise, "choice1": one, "choice2": two, "question": question, "label": label, "idx": idx,
            "changed": False,
        }  # fmt: skip

    turkish = [
        row(0, "Islandım.", "İçeri girdim.", "Yağmur yağdı.", "cause", 1),
        row(1, "Üşüdüm.", "Kapı açıktı.", "Ay doğdu.", "cause", 0),
        row(2, "Yoruldum.", "Uyudum.", "Uyudum.", "effect", 0),
    ]
    chinese = [
        row(0, "我淋湿了。", "我进屋了。", "下雨了。", "cause", 1),
        row(1, "我很冷。", "门开着。", "月亮升起。", "cause", 0),
    ]
    put(folder / "data" / "tr" / "val.tr.jsonl", turkish, lines=True)
    put(folder / "data" / "zh" / "val.zh.jsonl", chinese, lines=True)
    return folder


def sib200(folder: Path) -> Path:
    for language, texts in SENTENCES.items():
        base = folder / "data" / "annotated" / language
        put(base / "labels.txt", "animals\nboats\n")
        rows = [f"{7 + n}\t{'boats' if n == 2 else 'animals'}\t{text}" for n, text in enumerate(texts)]
        put(base / "train.tsv", "\n".join(["index_id\tcategory\ttext", *rows]) + "\n")
        put(base / "test.tsv", "index_id\tcategory\ttext\n99\tboats\tX\n")
    return folder


def flores(folder: Path) -> Path:
    for language, texts in SENTENCES.items():
        put(folder / "dev" / f"{language}.dev", "\n".join(texts) + "\n")
        put(folder / "devtest" / f"{language}.devtest", f"{texts[0]}\n\n")
    columns = "URL\tdomain\ttopic\thas_image\thas_hyperlink\n"
    put(folder / "metadata_dev.tsv", columns + "".join(f"u\twikinews\t{topic}\tno\tno\n" for topic in "abc"))
    return folder


def mgsm(folder: Path) -> Path:
    put(folder / "mgsm_de.tsv", "Eins und eins?\t2\nTausend und eins?\t1,001\nZwei und eins?\t3\nWie viele?\tviele\n")
    put(folder / "mgsm_zh.tsv", "一加一？\t2\n一千加一？\t1,001\n二加一？\t3\n多少？\t多\n")
    return folder


def xquad(folder: Path) -> Path:
    def question(id: str, text: str, answer: str, context: str) -> dict[str, Any]:
        return {"id": id, "question": text, "answers": [{"text": answer, "answer_start": context.find(answer)}]}

    english, second = "Ann lives in Rome with Bob since 1990.", "The river is long."
    spanish, other = "Ana vive en Roma con Beto desde 1990.", "El río es largo."
    asked = [("q1", "Who lives in Rome?", "Ann"), ("q2", "Where?", "Rome"), ("q3", "Since when?", "1990")]
    gefragt = [("q1", "¿Quién vive en Roma?", "Ana"), ("q2", "¿Dónde?", "Roma"), ("q3", "¿Desde cuándo?", "1990")]
    for language, context, more, rows in (("en", english, second, asked), ("es", spanish, other, gefragt)):
        paragraphs = [
            {"context": context, "qas": [question(*row, context) for row in rows]},
            {"context": more, "qas": [question("q4", "?", "mountain", more)]},
        ]
        put(
            folder / f"xquad.{language}.json",
            {"data": [{"title": "Ann_of_Rome", "paragraphs": paragraphs}], "version": "1"},
        )
    return folder


def tatoeba(folder: Path) -> Path:
    put(folder / "tatoeba.jpn-eng.jpn", "犬だ。\n猫だ。\n犬だ。\n\n")
    put(folder / "tatoeba.jpn-eng.eng", "It is a dog.\nIt is a cat.\nA dog.\nNothing.\n")
    put(folder / "tatoeba.deu-eng.deu", "Ein Hund ist es.\nEs regnet.\n")
    put(folder / "tatoeba.deu-eng.eng", "It is a dog.\nIt rains.\n")
    return folder


def superni(folder: Path) -> Path:
    instances = [{"id": f"t1-{n}", "input": f"Word {n}?", "output": [("yes", "no")[n % 2]]} for n in range(10)]
    instances[1]["output"] = ["no", "nope"]
    instances.append({"id": "t1-10", "input": "Word 10?", "output": []})
    common = {"Categories": ["Judging"], "Input_language": ["English"], "Output_language": ["English"]}
    shown = [{"input": "Word A?", "output": "yes", "explanation": "It is."}]
    put(
        folder / "tasks" / "task1_judge.json",
        {"Definition": ["Say yes or no."], "Positive Examples": shown, "Instances": instances, **common},
    )
    open_end = [{"id": f"t2-{n}", "input": f"in {n}", "output": [f"out {n}"]} for n in range(3)]
    put(
        folder / "tasks" / "task2_write.json",
        {
            "Definition": "Write.",
            "Positive Examples": [],
            "Instances": open_end,
            **common,
            "Output_language": ["French"],
        },
    )
    return folder


def function_vectors(folder: Path) -> Path:
    numbers = [{"input": f"n{n}", "output": f"m{n}"} for n in range(30)]
    put(folder / "dataset_files" / "abstractive" / "next.json", [*numbers, {"input": "n29", "output": "m29"}])
    lists = [{"input": f"a{n}, b{n}, c{n}", "output": f"b{n}"} for n in range(12)]
    put(folder / "dataset_files" / "extractive" / "middle.json", [*lists, {"input": "x, y, z", "output": "w"}])
    feelings = [{"input": f"text {n}", "output": ("good", "bad")[n % 2]} for n in range(12)]
    put(folder / "dataset_files" / "abstractive" / "feeling.json", feelings)
    return folder


def pararel(folder: Path) -> Path:
    words = ["The capital of [X] is [Y] .", "[Y] is the capital of [X].", "[X]'s capital is [Y]."]
    rows = [{"pattern": text, "lemma": "capital", "extended_lemma": "capital-of", "tense": "present"} for text in words]
    put(folder / "data" / "pattern_data" / "graphs_json" / "P36.jsonl", rows, lines=True)
    pairs = [("Spain", "Madrid"), ("Peru", "Lima"), ("Mali", "Bamako"), ("Mali", "Ségou"), ("Spain", "Madrid")]
    facts = [{"sub_label": one, "obj_label": two, "uuid": str(n)} for n, (one, two) in enumerate(pairs)]
    put(folder / "data" / "trex_lms_vocab" / "P36.jsonl", facts, lines=True)
    put(folder / "data" / "trex_lms_vocab" / "P31.jsonl", facts, lines=True)
    return folder


def names(folder: Path) -> Path:
    for language, listed in {
        "Russian": "Ivanov\nPetrov\n",
        "Irish": "Kelly\nKelly\nLee\n",
        "Korean": "Lee\nPak\n",
    }.items():
        put(folder / "data" / "names" / f"{language}.txt", listed)
    return folder


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "xcopa": xcopa, "sib200": sib200, "flores": flores, "mgsm": mgsm, "xquad": xquad, "tatoeba": tatoeba,
    "superni": superni, "function-vectors": function_vectors, "pararel": pararel, "names": names,
}  # fmt: skip
