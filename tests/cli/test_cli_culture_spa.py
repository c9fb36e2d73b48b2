"""The commands of CultureSPA's loop, from a survey's files to a table of alignment, with a server whose replies are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from neuropolis.attribution.generators import LocalGenerator, Reply
from neuropolis.attribution.server import ServerGenerator
from neuropolis.corpora.jsonl import read_jsonl

Run = Callable[..., str]
HERE = ("--survey", "survey")


@pytest.fixture
def survey(folder: Path) -> Path:
    place = folder / "survey"
    place.mkdir()
    rows = [{"Q_id": f"Q{i}", "question": f"Is {i} good?", "option_lst": ["Yes", "Perhaps", "No"]} for i in (1, 2, 50)]
    shares = {"USA": {"Q1": {"1": 1}, "Q2": {"3": 1}}, "CHN": {"Q1": {"3": 1}, "Q50": {"2": 1}}}
    (place / "wvs_questions.json").write_text(json.dumps(rows))
    (place / "proportions_group_by_country.json").write_text(json.dumps(shares))
    return place


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replies of a server: JSON questions to a writer; 1 to nobody, 2 to Americans, 3 to Chinese."""
    keys: list[str] = []

    def speak(self: ServerGenerator, prompts: Sequence[Any], *, seeds: Sequence[int], **_: Any) -> list[Reply]:
        keys.append(str(self.key))
        return [Reply(_reply(prompt[0]["content"], seed)) for prompt, seed in zip(prompts, seeds, strict=True)]

    monkeypatch.setattr(ServerGenerator, "__call__", speak)
    return keys


def _reply(system: str, seed: int) -> str:
    if "social scientist" in system:
        return json.dumps({"Question": f"New {seed % 7}?", "Options": ["1. Yes", "2. Perhaps", "3. No"]})
    return "3" if "Chinese" in system else "2" if "American" in system else "1"


def test_the_loop_from_a_surveys_files_to_alignment(
    run: Run, survey: Path, server: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "k")
    remote = ("--server", "http://127.0.0.1:9/v1", "--key-env", "MY_KEY")
    said = run(
        "culture-spa", "generate", "big", *HERE, "--out", "g.jsonl", "--per-topic", "9", "--batch-size", "8", *remote
    )
    assert "next: neuropolis culture-spa filter g.jsonl" in said
    assert set(server) == {"k"}
    assert "k" not in Path("g.jsonl").read_text().split('"')
    assert "a question that there is" in run("culture-spa", "filter", "g.jsonl", *HERE, "--out", "f.jsonl")
    with Path("g.jsonl").open("a") as file:
        file.write('{"half')
    again = run(
        "culture-spa", "generate", "big", *HERE, "--out", "g.jsonl", "--per-topic", "9", "--batch-size", "8", *remote
    )
    assert "going on with g.jsonl" in again
    assert "cut off after 6 bytes" in again
    run("culture-spa", "answer", "big", *HERE, "--questions", "f.jsonl", "--out", "a.jsonl", *remote)
    table = run("culture-spa", "collect", "a.jsonl", *HERE, "--questions", "f.jsonl", "--out", "i.jsonl", "--plain")
    assert [line.split() for line in table.splitlines() if line.startswith(("USA", "CHN"))] == [
        ["USA", "7", "7", "0"], ["CHN", "7", "7", "0"]
    ]  # fmt: skip
    assert read_jsonl("i.jsonl").counts == {"USA": 7, "CHN": 7}
    said = run(
        "culture-spa", "tune", "model", "--data", "i.jsonl", "--out", "t", "--each", "--rank", "2", "--batch-size", "4"
    )
    assert "tuned USA:" in said
    assert "tuned CHN:" in said
    run("culture-spa", "answer", "big", *HERE, "--out", "s.jsonl", *remote)
    table = run("culture-spa", "evaluate", *HERE, "--answers", "s.jsonl")
    # USA: 2 for 1 and 2 for 3, of ranges 2 and 2; CHN: 3 for 3 and 3 for 2
    rows = {line.split()[0]: line.split() for line in table.splitlines() if line.startswith(("USA", "CHN", "mean"))}
    assert (rows["USA"][1], rows["CHN"][1], rows["mean"][1]) == ("50.00", "64.64", "57.32")
    assert rows["USA"][-3:] == ["2", "of", "2"]
    unaware = run("culture-spa", "evaluate", *HERE, "--answers", "s.jsonl", "--asking", "unaware")
    assert [line.split()[1] for line in unaware.splitlines() if line.startswith("USA")] == ["29.29"]


def test_neurons_are_located_on_what_was_collected_tuned_and_asked(run: Run, survey: Path, server: list[str]) -> None:
    remote = ("--server", "http://127.0.0.1:9/v1")
    run("culture-spa", "answer", "big", *HERE, "--out", "a.jsonl", *remote)
    run("culture-spa", "collect", "a.jsonl", *HERE, "--out", "i.jsonl", "--plain")
    run("locate", "model", "--data", "i.jsonl", "--out", "s.h5")
    run("select", "s.h5", "--top", "5%")
    said = run("culture-spa", "tune", "model", "--data", "i.jsonl", "--out", "t", "--way", "neurons", "--study", "s.h5")
    assert "tuned joint:" in said
    # the tiny model knows no digit, so that its answers are of no use, which is said and not hidden
    said = run(
        "culture-spa", "evaluate", *HERE, "--answers", "e.jsonl", "--model", "model", "--tuned", "t", "--general", "my.jsonl",
        "--study", "s.h5", "--max-new-tokens", "4",
    )  # fmt: skip
    assert "0 of 4" in said
    assert "joint:" in said
    assert "points lost" in said
    assert "alignment" in run("info", "s.h5")


def test_replies_of_no_use_are_counted_and_nothing_else_is_a_failure(
    run: Run, survey: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str | None] = [None]

    def speak(self: ServerGenerator, prompts: Sequence[Any], **_: Any) -> list[Reply]:
        return [Reply(failed="gone") if texts[0] is None else Reply(texts[0]) for _ in prompts]

    monkeypatch.setattr(ServerGenerator, "__call__", speak)
    command = ("culture-spa", "answer", "big", *HERE, "--out", "a.jsonl", "--server", "http://127.0.0.1:9/v1")
    said = "a.jsonl: none of 3 replies is of use, most often: gone; --retry-failed asks them again"
    assert said in run(*command, "--asking", "unaware", fails=True)
    assert said in run(*command, "--asking", "unaware", fails=True)
    texts[0] = "2"
    shown = run(*command, "--asking", "unaware,aware")
    assert "6 of 9 replies in a.jsonl are of use; 3 are not, most often: gone; --retry-failed" in shown
    assert "9 of 9 replies in a.jsonl are of use\n" in run(*command, "--retry-failed")
    texts[0] = '{"Question": "New?", "Options": ["Yes", "No"]}'
    command = ("culture-spa", "generate", "big", *HERE, "--out", "g.jsonl", "--server", "http://127.0.0.1:9/v1")
    assert " replies in g.jsonl are of use\n" in run(*command, "--per-topic", "1", "--batch-size", "1")


def test_a_model_without_a_template_is_told_to_collect_plain_texts(
    run: Run, survey: Path, server: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def speak(_: LocalGenerator, prompts: Sequence[Any], **__: Any) -> list[Reply]:
        return [Reply(_reply(prompt[0]["content"], 0)) for prompt in prompts]

    monkeypatch.setattr(LocalGenerator, "__call__", speak)
    said = run("culture-spa", "answer", "model", *HERE, "--out", "a.jsonl")
    assert "next: neuropolis culture-spa collect a.jsonl --survey survey --plain --out instances.jsonl" in said
    said = run("culture-spa", "answer", "m", *HERE, "--out", "b.jsonl", "--server", "http://127.0.0.1:9/v1")
    assert "next: neuropolis culture-spa collect b.jsonl --survey survey --out instances.jsonl" in said


def test_a_file_is_replaced_when_told_to_and_its_source_never(run: Run, survey: Path, server: list[str]) -> None:
    remote = ("--server", "http://127.0.0.1:9/v1")
    run("culture-spa", "generate", "big", *HERE, "--out", "g.jsonl", "--per-topic", "1", "--batch-size", "2", *remote)
    run("culture-spa", "filter", "g.jsonl", *HERE, "--out", "f.jsonl")
    run("culture-spa", "answer", "big", *HERE, "--questions", "f.jsonl", "--out", "a.jsonl", *remote)
    before = {name: Path(name).read_bytes() for name in ("g.jsonl", "f.jsonl", "a.jsonl", "my.jsonl")}
    asked = ("culture-spa", "collect", "a.jsonl", *HERE, "--questions", "f.jsonl", "--out")
    for out in ("a.jsonl", "./f.jsonl"):
        assert "it is the file that is read" in run(*asked, out, "--force", fails=True)
    same = run(
        "culture-spa", "filter", "g.jsonl", *HERE, "--out", str(Path("g.jsonl").absolute()), "--force", fails=True
    )
    assert "it is the file that is read" in same
    for command in (asked, ("culture-spa", "filter", "g.jsonl", *HERE, "--out")):
        assert "my.jsonl: the file exists already; give another name, or --force" in run(
            *command, "my.jsonl", fails=True
        )
    assert before == {name: Path(name).read_bytes() for name in before}
    run(*asked, "my.jsonl", "--force")
    assert read_jsonl("my.jsonl").groups == ("USA", "CHN")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("generate", "m", "--survey", "nowhere", "--out", "g.jsonl"),
            "no such file; expected a folder with wvs_questions",
        ),
        (("generate", "m", *HERE, "--out", "g.jsonl", "--server", "localhost"), "expected http://... or https://"),
        (
            ("answer", "m", *HERE, "--out", "a.jsonl", "--culture", "FRA", "--server", "http://x"),
            "has no culture 'FRA'",
        ),
        (
            ("answer", "m", *HERE, "--out", "a.jsonl", "--asking", "awrae", "--server", "http://x"),
            "unknown way of asking 'awrae'",
        ),
        (("filter", "my.jsonl", *HERE, "--out", "f.jsonl"), "expected a file of the stage 'generate'"),
        (("tune", "model", "--data", "my.jsonl", "--out", "t", "--way", "neurons"), "give the atlas with --study"),
        (("tune", "model", "--data", "my.jsonl", "--out", "t", "--way", "x"), "expected lora, full, neurons"),
        (("evaluate", *HERE, "--answers", "a.jsonl", "--tuned", "t"), "name it with --model"),
        (("evaluate", *HERE, "--answers", "a.jsonl"), "no such file; expected what the stage 'answer' wrote"),
    ],
)
def test_a_wrong_argument_is_one_line(run: Run, survey: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in run("culture-spa", *arguments, fails=True)
    assert not Path("a.jsonl").exists()
