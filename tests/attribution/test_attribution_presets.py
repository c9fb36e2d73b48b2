"""Presets: each pipeline against the same thing done step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from neuropolis.analysis.study import load, save
from neuropolis.attribution.attribute import attribute
from neuropolis.attribution.entropy import lape_sets
from neuropolis.attribution.located import PRESETS, preset_options, top_pooled
from neuropolis.attribution.presets import preset
from neuropolis.attribution.selection import select
from neuropolis.corpora.examples import Corpus, CorpusError, Example
from neuropolis.neurons.errors import SetError, SiteError
from neuropolis.neurons.interventions import intervene
from neuropolis.neurons.subject import Subject


@pytest.fixture
def single() -> Corpus:
    """Three groups of unequal size, answers of one token, control twins."""
    rows = [("x", "abcd"), ("y", "bcd"), ("z", "acd")]
    return Corpus(
        tuple(
            Example(id=f"{g}/{p}", group=g, prompt=f"{p} {g}", answer=chr(ord(p) + 4), control=p)
            for g, prompts in rows
            for p in prompts
        )
    )


@pytest.fixture
def countries(single: Corpus) -> Corpus:
    """What names the group and asks nothing of it."""
    return Corpus(tuple(Example(id=f"c/{e.id}", group=e.group, prompt=f"{e.group} is", answer="k") for e in single))


def forwards(subject: Subject) -> tuple[list[int], Any]:
    seen: list[int] = []
    return seen, subject.model.register_forward_hook(lambda *_: seen.append(1))


def test_tsn_is_the_top_tenth_by_taylor(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    found = preset("tsn", subject, corpus)
    assert found.sets == select(attribute(subject, corpus), top=0.10)
    assert found.options["scope"] == "global"
    layered = preset("tsn", subject, corpus, scope="layer", top=5, tokens="abs", by="signed", contrast="controls")
    scores = attribute(subject, corpus, tokens="abs", controls=True)
    assert layered.sets == select(scores, top=5, scope="layer", by="signed", contrast="controls")


def test_tsn_pools_sites(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    for site in ("up", "mlp_out"):
        subject.site(site)
    seen, handle = forwards(subject)
    found = preset("tsn", subject, corpus, site=("up", "mlp_out"), top=0.25, max_tokens=10_000)
    handle.remove()
    assert len(seen) == 1
    assert found.sites == ("up", "mlp_out")
    both = torch.cat([found.scores[f"taylor/{s}"].values.flatten(1) for s in found.sites], dim=1)
    for row, group in enumerate(corpus.groups):
        sets = found.of(group)
        mask = torch.cat([sets[s].mask.flatten() for s in found.sites])
        assert int(mask.sum()) == round(0.25 * 3 * (48 + 32))
        assert float(both[row][mask].min()) >= float(both[row][~mask].max())
    apart = preset("tsn", subject, corpus, site=("up", "mlp_out"), top=0.25, scope="site")
    assert {len(one) for one in apart.on("mlp_out").values()} == {24}
    for wrong in (0.0, 1.5, 241, True):
        with pytest.raises(SetError, match="whole number from 1 to 240"):
            preset("tsn", subject, corpus, site=("up", "mlp_out"), top=wrong)
    with pytest.raises(SetError, match="unknown scope 'all'; scopes are global, site, layer"):
        preset("tsn", subject, corpus, scope="all")


def test_ties_in_a_pool_fall_to_the_earlier_site() -> None:
    masks = top_pooled({"a": torch.tensor([[0.0, 1.0]]), "b": torch.tensor([[1.0, 2.0]])}, 2)
    assert masks["a"].tolist() == [[False, True]]
    assert masks["b"].tolist() == [[False, True]]


@pytest.mark.parametrize(("family", "place"), [("llama", "gate"), ("gpt2", "mlp")])
def test_lape_gives_sets_of_units(make_subject: Any, corpus: Corpus, family: str, place: str) -> None:
    subject = make_subject(family)
    subject.site("mlp"), subject.site(place)
    found = preset("lape", subject, corpus, top=0.05, bar=0.8)
    assert found.scores["active"].site == place
    assert found.sites == ("mlp",)
    assert found.sets == lape_sets(
        attribute(subject, corpus, method="active", site=place), top=0.05, bar=0.8, site="mlp"
    )
    union = found.sets["north"] | found.sets["south"] | found.sets["east"]
    assert len(union) == round(0.05 * 3 * subject.site("mlp").width)
    with intervene(subject, found.sets["north"]):
        pass
    best = found.scores["lape"].values.amax(dim=0)
    assert float(best[union.mask].min()) > 0


def test_lape_reads_where_it_is_told(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    assert preset("lape", subject, corpus, top=0.03, read_at="up").scores["active"].site == "up"
    with pytest.raises(CorpusError, match="site 'q' has 32 neurons in a layer, the units at 'mlp' are 48"):
        preset("lape", subject, corpus, read_at="q")
    with pytest.raises(CorpusError, match="needs at least two, corpus 'toy' has north alone"):
        preset("lape", subject, corpus.only("north"))


def test_cape_sets_cultures_against_languages(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    spoken = {"north": "en", "south": "fr", "east": "en"}
    tagged = Corpus(tuple(replace(e, tags={"language": spoken[e.group]}) for e in corpus), name="toy")
    found = preset("cape", subject, tagged, top=0.1, bar=0.7)
    cultures = preset("lape", subject, tagged, top=0.1, bar=0.7).sets
    languages = preset("lape", subject, tagged.by("language"), top=0.1, bar=0.7).sets
    for culture, language in spoken.items():
        assert found.sets[culture] == cultures[culture]
        assert found.sets[f"pure/{culture}"] == cultures[culture] - languages[language]
        assert found.sets[f"compound/{culture}"] == cultures[culture] & languages[language]
    assert any(found.sets[f"compound/{c}"] for c in spoken)
    assert found.sets["language/fr"] == languages["fr"]
    second = preset("cape", subject, corpus, languages=tagged.by("language"), language_of=spoken, top=0.1, bar=0.7)
    assert second.sets == found.sets
    assert second.options["language_of"] == spoken


def test_cape_wants_to_know_each_language(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    mixed = Corpus(tuple(replace(e, tags={"language": "en" if i % 2 else "fr"}) for i, e in enumerate(corpus)))
    with pytest.raises(CorpusError, match=r"language is culture 'north' of\? its examples have several \(en, fr\)"):
        preset("cape", subject, mixed)
    bare = Corpus(tuple(replace(e, tags={}) for e in corpus))
    with pytest.raises(CorpusError, match=r"which language is culture 'north' of\? none is given"):
        preset("cape", subject, bare, languages=mixed.by("language"))
    with pytest.raises(CorpusError, match="language 'de' of culture 'north' is not scored; there are fr, en"):
        preset("cape", subject, bare, languages=mixed.by("language"), language_of={"north": "de"})


def test_culnig_step_by_step(make_subject: Any, single: Corpus, countries: Corpus) -> None:
    subject = make_subject("llama", torch.float64)
    shares = {"mlp_top": 0.1, "attention_top": 0.05, "specific_top": 0.1, "countries_top": 0.1}
    found = preset("culnig", subject, single, countries=countries, **shares)
    sites = ("gate", "q", "k", "v")
    own = attribute(subject, single, method="culnig", site=sites, objective="probability", controls=True)
    named = attribute(subject, countries, method="culnig", site=sites, objective="probability")
    counts = torch.tensor([4.0, 3.0, 3.0])[:, None, None]
    score = {s: counts * (own[s].signed - own[s].control_signed) / 10 for s in sites}
    plain = {s: counts * named[s].signed / 10 for s in sites}
    widths = {s: own[s].width for s in sites}

    def best(tensors: list[torch.Tensor], share: float) -> set[int]:
        flat = torch.cat([t.flatten() for t in tensors])
        return set(flat.argsort(descending=True)[: int(share * len(flat))].tolist())

    def members(group: str, of: tuple[str, ...]) -> set[int]:
        sets = found.of(group)
        return set(torch.cat([sets[s].mask.flatten() for s in of]).nonzero().flatten().tolist())

    for part, top in ((("gate",), 0.1), (("q", "k", "v"), 0.05)):
        expected = best([score[s].sum(dim=0) for s in part], top) - best([plain[s].sum(dim=0) for s in part], 0.1)
        assert members("general", part) == expected
        assert expected
    removed = 0
    for row, group in enumerate(single.groups):
        flat = torch.cat([score[s].flatten(1) for s in sites], dim=1)
        z = (flat[row] - flat.mean(dim=0)) / flat.std(dim=0, unbiased=False)
        high = set((z >= 0.5).nonzero().flatten().tolist())
        top = best([score[s][row] for s in sites], 0.1)
        expected = (top - best([plain[s][row] for s in sites], 0.1)) & high
        removed += len(top) - len(expected)
        assert members(group, sites) == expected
    assert removed
    assert found.sites == sites
    assert sum(widths.values()) == 48 + 32 + 16 + 16
    unfiltered = preset("culnig", subject, single, **shares)
    assert len(unfiltered.of("general")["gate"]) == int(0.1 * 3 * 48)


def test_culnig_numbers_of_the_published_models() -> None:
    """How many are chosen before country-name neurons are taken out: never fewer than the paper's counts after it."""
    models = {  # layers, FFN, q + k + v: gemma-3-12b-it, Qwen3-14B, Llama-3.1-8B-Instruct
        8087: (48, 15360, 4096 + 2 * 2048), 7340: (40, 17408, 5120 + 2 * 1024), 4268: (32, 14336, 4096 + 2 * 1024),
    }  # fmt: skip
    options = preset_options("culnig")
    for published, (layers, ffn, attention) in models.items():
        chosen = int(options["mlp_top"] * layers * ffn) + int(options["attention_top"] * layers * attention)
        assert 0.85 * chosen < published < chosen


def test_culnig_says_what_it_lacks(make_subject: Any, single: Corpus, countries: Corpus) -> None:
    subject = make_subject("llama")
    with pytest.raises(CorpusError, match="culnig's z over groups needs at least three, corpus 'corpus' has x, y"):
        preset("culnig", subject, single.only(("x", "y")))
    with pytest.raises(CorpusError, match="has no examples of z; the country-name filter needs every group"):
        preset("culnig", subject, single, countries=countries.only(("x", "y")))
    with pytest.raises(CorpusError, match="has no 'control'"):
        preset("culnig", subject, countries)
    with pytest.raises(SetError, match="a share of the neurons is 2"):
        preset("culnig", subject, single, specific_top=2)
    with pytest.raises(SiteError, match="site 'gate' is not in layer 0"):
        preset("culnig", make_subject("gpt2"), single)
    assert preset("culnig", make_subject("gpt2"), single, mlp=["up"]).sites == ("up", "q", "k", "v")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_fuxitranyu_sums_seven_components(make_subject: Any, corpus: Corpus, family: str, tmp_path: Any) -> None:
    subject = make_subject(family)
    found = preset("fuxitranyu", subject, corpus)
    table = found.importance
    assert table is not None
    assert not found.sets
    assert len(table.components) == 7
    assert table.values.shape == (3, 3, 7)
    for number, site in enumerate(table.components):
        expected = attribute(subject, corpus, site=site).values.sum(dim=2)
        torch.testing.assert_close(table.values[:, :, number], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(table.of_layers.sum(dim=1), table.of_components.sum(dim=1))
    save(tmp_path / "s.h5", table, subject=subject)
    back = load(tmp_path / "s.h5").get("importance")
    assert torch.equal(back.values, table.values)
    assert (back.groups, back.components, back.subject) == (table.groups, table.components, table.subject)


def test_up_scores_as_mlp_does_where_there_is_a_gate(make_subject: Any, corpus: Corpus) -> None:
    """Why `mlp` is no component of a gated model."""
    scores = attribute(make_subject("llama"), corpus, site=("up", "mlp"))
    torch.testing.assert_close(scores["up"].values, scores["mlp"].values, rtol=1e-4, atol=1e-6)


def test_values_score_as_what_the_output_projection_reads(make_subject: Any, corpus: Corpus) -> None:
    """Why `attn` is no component: it is linear in `v`."""
    scores = attribute(make_subject("gpt_neox"), corpus, site=("v", "attn"))
    torch.testing.assert_close(scores["v"].values, scores["attn"].values, rtol=1e-4, atol=1e-6)


def test_random_is_a_preset(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    found = preset("random", subject, corpus, top=7, seed=1)
    assert {len(one) for one in found.sets.values()} == {7}
    assert found.sets == preset("random", subject, corpus, top=7, seed=1).sets
    assert found.sets != preset("random", subject, corpus, top=7, seed=2).sets


def test_a_located_thing_can_be_saved_and_looked_through(make_subject: Any, corpus: Corpus, tmp_path: Any) -> None:
    subject = make_subject("llama")
    found = preset("tsn", subject, corpus, site=("mlp", "v"), progress=lambda _done, _total: None)
    save(tmp_path / "s.h5", found.scores, found.sets, subject=subject)
    study = load(tmp_path / "s.h5")
    assert study.sets == dict(found.sets)
    assert study.names("scores") == ("taylor/mlp", "taylor/v")
    assert found.summary[0]["set"] == "north/mlp"
    assert sum(found.summary[0]["layers"]) == found.summary[0]["neurons"]
    with pytest.raises(KeyError, match="no sets of 'west'; there are north, south, east"):
        found.of("west")
    with pytest.raises(KeyError, match="no sets of site 'q'; there are mlp, v"):
        found.on("q")


def test_unknown_names_list_what_there_is(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    assert set(PRESETS) == {"tsn", "random", "fuxitranyu", "lape", "cape", "culnig"}
    with pytest.raises(ValueError, match=r"unknown preset 'leng'; presets are .*tsn"):
        preset("leng", subject, corpus)
    with pytest.raises(ValueError, match=r"'topp' is no option of preset 'tsn'; options are top, site, .*max_tokens"):
        preset("tsn", subject, corpus, topp=0.1)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("culnig", {"countries": "bla"}, "countries is 'bla'; expected a corpus"),
        ("culnig", {"z": "x"}, "z is 'x'; expected"),
        ("culnig", {"mlp_top": "x"}, "a share of the neurons is 'x'"),
        ("lape", {"top": "x"}, "top is 'x'; expected a share"),
        ("lape", {"bar": "x"}, "bar is 'x'; expected a quantile"),
        ("cape", {"languages": 5}, "languages is 5; expected a tag"),
        ("lape", {"on_not_finite": "raise"}, "unknown on_not_finite 'raise'; it is stop or skip"),
    ],
)
def test_options_of_another_type_are_named(
    make_subject: Any, single: Corpus, name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        preset(name, make_subject("llama"), single, **options)


def test_one_site_may_be_given_by_its_name(make_subject: Any, single: Corpus) -> None:
    assert preset("culnig", make_subject("llama"), single, mlp="up", attention="q").sites == ("up", "q")
    assert preset("fuxitranyu", make_subject("llama"), single, components="mlp").options["components"] == ["mlp"]


def test_groups_are_told_as_the_split_leaves_them(make_subject: Any, single: Corpus) -> None:
    tagged = Corpus(
        tuple(replace(e, tags={"split": "train" if e.group == "x" else "test", "topic": e.group}) for e in single)
    )
    with pytest.raises(CorpusError, match="has x alone"):
        preset("lape", make_subject("llama"), tagged)
    with pytest.raises(CorpusError, match="has x alone"):
        preset("cape", make_subject("llama"), tagged, languages="topic", language_of={"x": "x"})


def test_rows_are_kept_of_what_was_scored_alone(make_subject: Any, corpus: Corpus) -> None:
    found = preset("lape", make_subject("llama"), corpus, keep_rows=True, top=0.05)
    assert found.scores["active"].rows is not None
    assert found.scores["lape"].rows is None
