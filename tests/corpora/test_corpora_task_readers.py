"""Readers of task and fact benchmarks on tiny files of their layouts: what is kept, dropped, shared and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import neuropolis as npl
import pytest
from tiny_language_files import BUILDERS, put


def read(format: str, folder: Path, **options: Any) -> npl.Reading:
    return npl.read_format(BUILDERS[format](folder), format, **options)


def by_id(reading: npl.Reading) -> dict[str, npl.Example]:
    return {example.id: example for example in reading.corpus}


def test_superni_tasks_are_groups_and_few_outputs_are_choices(tmp_path: Path) -> None:
    reading = read("superni", tmp_path)
    rows = by_id(reading)
    judged, written = rows["task1_judge/t1-1"], rows["task2_write/t2-0"]
    assert judged.prompt == "Say yes or no.\n\nInput: Word 1?\nOutput:"
    assert (judged.answer, judged.choices, judged.tags["outputs"]) == (" no", (" no", " yes"), "2")
    assert judged.control in {f"Say yes or no.\n\nInput: Word {n}?\nOutput:" for n in range(0, 10, 2)}
    assert (written.choices, written.tags["target"], written.tags["topic"]) == ((), "French", "Judging")
    assert reading.corpus.splits == ()
    assert reading.reasons == {"no input or no output": 1}
    assert reading.notes == ("1 instances have more than one right output; the first is the answer (tag 'outputs')",)


def test_superni_in_sapts_layout_has_splits_and_shows_examples(tmp_path: Path) -> None:
    task = json.loads((BUILDERS["superni"](tmp_path / "a") / "tasks" / "task1_judge.json").read_text())
    rows = task["Instances"][:10]
    for part, chosen in (("train", rows[:8]), ("test", [*rows[8:], rows[0] | {"id": "again", "output": "no"}])):
        put(tmp_path / "b" / "SuperNI" / "task1_judge" / f"{part}.json", task | {"Instances": chosen})
    reading = npl.read_format(tmp_path / "b", "superni", shots=1, most=4)
    assert reading.corpus.splits == ("train", "test")
    assert {split: len(reading.corpus.only(split=split)) for split in ("train", "test")} == {"train": 4, "test": 3}
    shown = by_id(reading)["task1_judge/train/t1-0"]
    assert shown.prompt == "Say yes or no.\n\nInput: Word A?\nOutput: yes\n\nInput: Word 0?\nOutput:"
    assert shown.item == by_id(reading)["task1_judge/test/again"].item  # the same input in both parts
    assert by_id(reading)["task1_judge/test/again"].answer == " no"  # a single text as output


def test_superni_tells_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(npl.CorpusError, match=r"task2_write.json: 0 positive examples, expected 1 to show"):
        read("superni", tmp_path, shots=1)
    put(tmp_path / "tasks" / "task3.json", {"Instances": [], "Positive Examples": []})
    with pytest.raises(npl.CorpusError, match=r"task3.json: expected a task with the field 'Definition'"):
        npl.read_format(tmp_path, "superni")
    put(tmp_path / "tasks" / "task3.json", '{"Definition": "x", "Inst')
    with pytest.raises(npl.CorpusError, match=r"task3.json: cannot be read as JSON .* is the file whole"):
        npl.read_format(tmp_path, "superni")


def test_function_vectors_show_demonstrations_that_are_not_asked(tmp_path: Path) -> None:
    reading = read("function-vectors", tmp_path, shots=2)
    assert reading.corpus.counts == {"feeling": 10, "next": 24, "middle": 10}
    assert reading.reasons == {
        "set aside for demonstrations": 2 + 6 + 2,
        "the pair stands twice": 1,
        "the output is not one of the words listed": 1,
    }
    asked = {example.item for example in reading.corpus}
    for example in reading.corpus:
        first, second, question = example.prompt.split("\n\n")
        assert question == f"Q: {example.item}\nA:"
        shown = [pair.removeprefix("Q: ").split("\nA: ") for pair in (first, second)]
        assert not asked & {given for given, _ in shown}
        turned = [f"Q: {given}\nA: {output}" for (given, _), (_, output) in zip(shown, shown[::-1], strict=True)]
        assert example.control == "\n\n".join([*turned, question])


def test_function_vectors_choices_come_from_the_task(tmp_path: Path) -> None:
    corpus = read("function-vectors", tmp_path, shots=0).corpus
    middle, feeling, following = (corpus.only(task) for task in ("middle", "feeling", "next"))
    assert (middle[0].choices, middle[0].answer) == ((" a0", " b0", " c0"), " b0")
    assert {frozenset(row.choices) for row in feeling} == {frozenset({" good", " bad"})}
    assert {len(row.choices) for row in following} == {4}
    assert (following[3].prompt, following[3].answer, following[3].control) == ("Q: n3\nA:", " m3", None)


def test_function_vectors_are_drawn_by_the_seed_and_worded_by_the_frame(tmp_path: Path) -> None:
    first, again, other = (read("function-vectors", tmp_path, shots=3, seed=seed).corpus.hash for seed in (0, 0, 1))
    assert first == again != other
    example = read("function-vectors", tmp_path, shots=0, frame="{input}→{output}").corpus.only("next")[0]
    assert (example.prompt, example.answer) == ("n0→", "m0")
    with pytest.raises(npl.CorpusError, match="output"):
        read("function-vectors", tmp_path, frame="{output} of {input}")
    with pytest.raises(npl.CorpusError, match="task 'few' has 2 inputs, too few for 5 demonstrations"):
        npl.read_format(
            put(tmp_path / "few.json", [{"input": str(n), "output": "x"} for n in range(2)]), "function-vectors"
        )
    with pytest.raises(npl.CorpusError, match=r"few.json, row 1: expected a text under 'output', found 'None'"):
        npl.read_format(put(tmp_path / "few.json", [{"input": "a"}]), "function-vectors")


def test_pararel_keeps_wordings_that_end_with_the_object(tmp_path: Path) -> None:
    reading = read("pararel", tmp_path)
    rows = by_id(reading)
    assert (rows["P36/1/Peru/Lima"].prompt, rows["P36/1/Peru/Lima"].answer) == ("The capital of Peru is", " Lima")
    assert rows["P36/3/Peru/Lima"].prompt == "Peru's capital is"
    assert rows["P36/1/Peru/Lima"].item == rows["P36/3/Peru/Lima"].item == "P36/Peru"
    assert set(rows["P36/1/Mali/Bamako"].choices) == {" Bamako", " Lima", " Madrid"}  # Ségou is right too
    assert rows["P36/3/Peru/Lima"].control in {"Spain's capital is", "Mali's capital is"}
    assert dict(rows["P36/1/Peru/Lima"].tags)["topic"] == "capital-of"
    assert reading.reasons == {
        "the wording does not end with the object": 1,
        "the fact stands twice": 2,
        "no file of wordings for this relation": 1,
    }


def test_pararel_takes_fewer_facts_and_wordings_and_tells_what_is_wrong(tmp_path: Path) -> None:
    corpus = read("pararel", tmp_path, facts=2, wordings=1, relations="P36").corpus
    assert [example.id for example in corpus] == ["P36/1/Spain/Madrid", "P36/1/Mali/Bamako"]
    with pytest.raises(npl.CorpusError, match="no file of the relation 'P9'; there are P31, P36"):
        npl.read_format(tmp_path, "pararel", relations="P9")
    file = tmp_path / "data" / "trex_lms_vocab" / "P36.jsonl"
    file.write_text(file.read_text() + '{"sub_label": "Chi')
    with pytest.raises(npl.CorpusError, match=r"P36.jsonl, line 6: not JSON .*it may have been cut off"):
        npl.read_format(tmp_path, "pararel")


def test_names_of_several_languages_are_nobodys(tmp_path: Path) -> None:
    reading = read("names", tmp_path, num=3)
    assert reading.corpus.counts == {"Irish": 1, "Korean": 1, "Russian": 2}
    pak = by_id(reading)["Korean/Pak"]
    assert (pak.prompt, pak.answer) == ("The surname Pak comes from the language", " Korean")
    assert set(pak.choices) == {" Irish", " Korean", " Russian"}
    assert pak.control == "The surname comes from the language"
    assert reading.reasons == {"the name stands under several languages": 2, "the name stands twice": 1}
    with pytest.raises(npl.CorpusError, match=r"1 file LANGUAGE.txt, expected two or more"):
        npl.read_format(tmp_path / "data" / "names" / "Irish.txt", "names")
