"""Parsing of patterns such as "VTA->T", and its errors."""

import itertools

import pytest

from sail_jax.errors import SailError
from sail_jax.patterns import MODALITIES, MODALITY_SETS, Pattern, parse_pattern, parse_patterns


def test_a_pattern_reads_as_it_is_written():
    assert parse_pattern("TV -> A", setting="x") == Pattern("VT", "A") == ("VT", "A")
    assert [str(Pattern("V", "V")), Pattern("V", "V").short, Pattern("V", "T").short] == ["V->V", "V", "V->T"]
    assert parse_patterns(["O->O", "VTA->T"], setting="x") == (("O", "O"), ("VTA", "T"))


@pytest.mark.parametrize("texts", [(), ("V",), ("V->",), ("V->X",), ("V->T->A",), ("VV->T",), ("V->T", "V -> T")])
def test_the_error_for_a_wrong_pattern_names_the_setting(texts):
    with pytest.raises(SailError, match=r"the\.setting"):
        parse_patterns(texts, setting="the.setting")


def test_the_matrix_crosses_every_set_of_modalities():
    sets = {"".join(some) for size in (1, 2, 3) for some in itertools.combinations(MODALITIES, size)}
    assert len(MODALITY_SETS) == len(sets) and set(MODALITY_SETS) == sets
