from __future__ import annotations

import pytest
from neuropolis.corpora.examples import Corpus
from tiny_families import tiny_corpus


@pytest.fixture
def corpus() -> Corpus:
    return tiny_corpus()
