"""The fuzzing targets with their corpora, and with thousands of mutations of these."""

from __future__ import annotations

from itertools import islice

import pytest

from tests.fuzz.corpus import escaped, load, unescaped
from tests.fuzz.mutation import mutations
from tests.fuzz.targets import NAMES, Target, target

MUTATIONS = 600
SEED = "cartd"


def checked(fuzzed: Target, data: bytes) -> None:
    try:
        fuzzed.check(data)
    except Exception as error:
        error.add_note(f"by this line of the corpus: {escaped(data)}")
        raise


@pytest.mark.parametrize("name", NAMES)
def test_all_inputs_of_the_corpus(name: str) -> None:
    corpus = load(name)
    assert len(corpus) >= 10
    for data in corpus:
        checked(target(name), data)


@pytest.mark.parametrize("name", NAMES)
def test_mutations_of_the_corpus(name: str) -> None:
    fuzzed = target(name)
    for data in islice(mutations(SEED, load(name), fuzzed.words), MUTATIONS):
        checked(fuzzed, data)


@pytest.mark.parametrize("data", [b"a\\b\r\n\t'\"", bytes(range(256)), "é\u2028".encode()])
def test_a_line_of_a_corpus_stands_for_just_its_input(data: bytes) -> None:
    assert unescaped(escaped(data)) == data
    assert escaped(data).isascii() and escaped(data).isprintable()
