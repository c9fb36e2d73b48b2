"""Readers of the language benchmarks on tiny files of their layouts: what is kept, dropped, shared and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import neuropolis as npl
import pytest
from neuropolis.corpora.formats import guess_formats
from tiny_language_files import BUILDERS, SENTENCES, put


def read(format: str, folder: Path, **options: Any) -> npl.Reading:
    return npl.read_format(BUILDERS[format](folder), format, **options)


def by_id(reading: npl.Reading) -> dict[str, npl.Example]:
    return {example.id: example for example in reading.corpus}


@pytest.mark.parametrize("format", BUILDERS)
def test_a_benchmark_looks_like_itself_alone(format: str, tmp_path: Path) -> None:
    assert guess_formats(BUILDERS[format](tmp_path / "a")) == (format,)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "train.tsv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "odd" / "train.json").write_bytes(b"\xff{")
    assert guess_formats(tmp_path / "odd") == ()


@pytest.mark.parametrize("format", BUILDERS)
def test_every_example_says_its_language_or_task_and_is_read_again_from_json_lines(format: str, tmp_path: Path) -> None:
    reading = read(format, tmp_path / "a")
    assert reading.rows == len(reading.corpus) + len(reading.dropped)
    assert all("item" in example.tags and "language" in example.tags for example in reading.corpus)
    npl.write_jsonl(reading.corpus, tmp_path / "x.jsonl")
    assert npl.load_corpus(tmp_path / "x.jsonl").hash == reading.corpus.hash


@pytest.mark.parametrize("format", BUILDERS)
def test_an_empty_folder_is_told_in_one_line(format: str, tmp_path: Path) -> None:
    with pytest.raises(npl.CorpusError, match=r"no file|no folder|no tasks") as told:
        npl.read_format(tmp_path, format)
    assert "\n" not in str(told.value)


def test_xcopa_asks_for_cause_and_effect_in_the_language(tmp_path: Path) -> None:
    reading = read("xcopa", tmp_path)
    rows = by_id(reading)
    wet = rows["tr/dev/0"]
    assert (wet.prompt, wet.answer, wet.choices) == (
        "Islandım, çünkü",
        " yağmur yağdı.",
        (" içeri girdim.", " yağmur yağdı."),
    )
    assert rows["zh/dev/0"].prompt + rows["zh/dev/0"].answer == "我淋湿了，因为下雨了。"
    assert wet.item == rows["zh/dev/0"].item == "xcopa/dev/0"
    assert (wet.control, rows["zh/dev/1"].control) == ("Üşüdüm, çünkü", "我淋湿了，因为")
    assert (wet.group, wet.tags["task"], wet.tags["split"]) == ("tr", "cause", "dev")
    assert reading.reasons == {"both choices are the same text": 1}


def test_xcopa_in_a_language_without_words_is_read_by_lines(tmp_path: Path) -> None:
    row = {"premise": "A.", "choice1": "B.", "choice2": "C.", "question": "effect", "label": 0, "idx": 4}
    file = put(tmp_path / "test.xx.jsonl", [row], lines=True)
    with pytest.raises(npl.CorpusError, match="no words for because and so in 'xx'; read it with joint=line"):
        npl.read_format(file, "xcopa")
    example = npl.load_corpus(file, format="xcopa", joint="line")[0]
    assert (example.prompt + example.answer, example.control) == ("A.\nB.", None)
    put(file, [row | {"label": 2}], lines=True)
    with pytest.raises(
        npl.CorpusError, match=r"test.xx.jsonl, line 1: expected question cause or effect, label 0 or 1"
    ):
        npl.read_format(file, "xcopa", joint="line")


def test_english_i_stays_large_and_turkish_letters_keep_their_dots() -> None:
    from neuropolis.corpora.readers.xcopa import _lowered

    asked = [
        ("I slept.", "en"),
        ("I'm in.", "en"),
        ("It fell.", "en"),
        ("Isındı.", "tr"),
        ("İçti.", "tr"),
        ("下雨了。", "zh"),
    ]
    assert [_lowered(*one) for one in asked] == ["I slept.", "I'm in.", "it fell.", "ısındı.", "içti.", "下雨了。"]


def test_sib200_by_language_asks_for_the_rest_of_the_sentence(tmp_path: Path) -> None:
    reading = read("sib200", tmp_path)
    rows = by_id(reading)
    dog, chinese = rows["deu_Latn/train/7"], rows["zho_Hans/train/7"]
    assert (dog.prompt, dog.answer) == ("Der Hund schläft", " im Garten.")
    assert chinese.prompt + chinese.answer == SENTENCES["zho_Hans"][0]
    assert set(dog.choices) == {" im Garten.", " gern Milch.", " dort am Ufer."}
    assert dict(dog.tags) == {"item": "sib200/7", "language": "deu_Latn", "split": "train", "topic": "animals"}
    assert (dog.item, dog.control) == (chinese.item, None)
    assert reading.reasons == {"a single character": 2}


def test_sib200_by_topic_asks_for_the_topic_and_its_control_leaves_the_sentence_out(tmp_path: Path) -> None:
    rows = by_id(read("sib200", tmp_path, ask="topic", group="topic", languages="deu_Latn"))
    boat = rows["deu_Latn/train/9"]
    assert boat.prompt == "Das Boot liegt dort am Ufer.\nTopics: animals, boats\nTopic:"
    assert boat.control == "Topics: animals, boats\nTopic:"
    assert (boat.group, boat.choices, boat.answer) == ("boats", (" animals", " boats"), " boats")
    assert {row.tags["language"] for row in rows.values()} == {"deu_Latn"}


def test_sib200_tells_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(npl.CorpusError, match="no folder of the language 'fra_Latn'; there are deu_Latn, zho_Hans"):
        read("sib200", tmp_path, languages="fra_Latn")
    with pytest.raises(npl.CorpusError, match="expected ask rest or topic, found 'half'"):
        read("sib200", tmp_path, ask="half")
    file = tmp_path / "data" / "annotated" / "deu_Latn" / "test.tsv"
    put(file, "index_id\tcategory\ttext\n1\tweather\tEs regnet.\n")
    with pytest.raises(npl.CorpusError, match=r"test.tsv, line 2: the topic 'weather' is none of those in labels.txt"):
        npl.read_format(tmp_path, "sib200")
    put(file, "index_id\tcategory\ttext\n1\tboats\n")
    with pytest.raises(npl.CorpusError, match=r"test.tsv, line 2: expected 3 fields, found 2"):
        npl.read_format(tmp_path, "sib200")


def test_flores_is_text_by_language_or_translations_by_pair(tmp_path: Path) -> None:
    reading = read("flores", tmp_path)
    rows = by_id(reading)
    cat = rows["deu_Latn/dev/2"]
    assert (cat.prompt + cat.answer, cat.tags["topic"], cat.control) == (SENTENCES["deu_Latn"][1], "b", None)
    assert cat.item == rows["zho_Hans/dev/2"].item == "flores/dev/2"
    assert rows["deu_Latn/devtest/1"].tags["split"] == "test"
    assert reading.reasons == {"an empty line or a single character": 2}
    pairs = by_id(npl.read_format(tmp_path, "flores", pairs="deu_Latn>zho_Hans,zho_Hans>deu_Latn"))
    there, back = pairs["deu_Latn-zho_Hans/dev/2"], pairs["zho_Hans-deu_Latn/dev/2"]
    assert (there.group, there.prompt) == ("deu_Latn-zho_Hans", "deu_Latn: Die Katze trinkt gern Milch.\nzho_Hans:")
    assert (there.answer, back.answer) == ("猫喜欢喝牛奶。", " Die Katze trinkt gern Milch.")
    assert there.item == back.item == cat.item
    assert there.control in {f"deu_Latn: {SENTENCES['deu_Latn'][n]}\nzho_Hans:" for n in (0, 2)}
    assert set(there.choices) == set(SENTENCES["zho_Hans"])


def test_flores_files_that_are_not_aligned_or_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(npl.CorpusError, match=r"expected pairs such as eng_Latn>deu_Latn .* found 'deu_Latn-zho_Hans'"):
        read("flores", tmp_path, pairs="deu_Latn-zho_Hans")
    put(tmp_path / "dev" / "deu_Latn.dev", "Eins.\n")
    with pytest.raises(npl.CorpusError, match=r"deu_Latn\.dev has 1 lines, zho_Hans\.dev 3"):
        npl.read_format(tmp_path, "flores")


def test_mgsm_answers_with_the_number_alone(tmp_path: Path) -> None:
    reading = read("mgsm", tmp_path)
    rows = by_id(reading)
    assert (rows["de/2"].prompt, rows["de/2"].answer) == ("Tausend und eins?\nAntwort:", " 1001")
    assert (rows["zh/2"].prompt, rows["zh/2"].answer) == ("一千加一？\n答案：", "1001")
    assert sorted(rows["de/1"].choices) == [" 1001", " 2", " 3"]
    assert rows["de/3"].item == rows["zh/3"].item == "mgsm/3"
    assert rows["de/1"].control in {"Tausend und eins?\nAntwort:", "Zwei und eins?\nAntwort:"}
    assert reading.reasons == {"the answer is not one number": 2}
    put(tmp_path / "mgsm_de.tsv", "Eins und eins? 2\n")
    with pytest.raises(npl.CorpusError, match=r"mgsm_de.tsv, line 1: expected a question, a tab and an answer"):
        npl.read_format(tmp_path, "mgsm")


def test_xquad_asks_about_a_paragraph_and_its_control_leaves_the_paragraph_out(tmp_path: Path) -> None:
    reading = read("xquad", tmp_path)
    where = by_id(reading)["en/q2"]
    assert where.prompt == "Ann lives in Rome with Bob since 1990.\nWhere?\nAnswer:"
    assert (where.control, where.answer) == ("Where?\nAnswer:", " Rome")
    assert set(where.choices) == {" Rome", " 1990", " Ann", " mountain"}
    spanish = by_id(reading)["es/q2"]
    assert (spanish.item, spanish.answer_index) == (where.item, where.answer_index)
    assert spanish.prompt.endswith("¿Dónde?\nRespuesta:")
    assert reading.reasons == {"the answer does not stand in its paragraph": 2}
    both, alone = (npl.read_format(tmp_path, "xquad", longest=63, languages=names) for names in ("en,es", "en"))
    assert [row.id for row in both.corpus] == ["en/q2", "es/q2"]  # q3 has 63 characters in English, 68 in Spanish
    assert [row.id for row in alone.corpus] == ["en/q2", "en/q3"]


def test_xquad_choices_do_not_hold_one_another() -> None:
    from neuropolis.corpora.readers.xquad import _apart

    assert _apart("the red car", iter(["Red", "a bus", "bus", "the red car park", "two", "six", "ten"])) == [
        "a bus",
        "two",
        "six",
    ]


def test_xquad_that_is_not_squad_is_told(tmp_path: Path) -> None:
    put(tmp_path / "xquad.en.json", {"data": [{"title": "T", "paragraphs": []}]})
    with pytest.raises(npl.CorpusError, match="article 'T': expected a list of objects under 'paragraphs'"):
        npl.read_format(tmp_path, "xquad")


def test_tatoeba_pairs_share_the_english_sentence_as_their_item(tmp_path: Path) -> None:
    reading = read("tatoeba", tmp_path, direction="both")
    rows = by_id(reading)
    assert (rows["jpn-eng/1"].prompt, rows["jpn-eng/1"].answer) == ("jpn: 犬だ。\neng:", " It is a dog.")
    assert (rows["eng-jpn/1"].prompt, rows["eng-jpn/1"].answer) == ("eng: It is a dog.\njpn:", "犬だ。")
    assert rows["jpn-eng/1"].item == rows["eng-deu/1"].item == "It is a dog."
    assert rows["deu-eng/1"].control == "deu: Es regnet.\neng:"
    assert reading.reasons == {"an empty line": 2, "the same sentence stood before": 1}
    put(tmp_path / "tatoeba.deu-eng.deu", "Ein Hund.\n")
    with pytest.raises(npl.CorpusError, match=r"has 1 lines, .* 2; expected files that are aligned"):
        npl.read_format(tmp_path, "tatoeba")
