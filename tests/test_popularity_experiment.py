"""The experiment on popularity: its pairs, its recall and its intervals by hand."""

import csv

import numpy as np
import pytest

from experiments import popularity


@pytest.fixture
def source(tmp_path):
    """Four train users and two test users, who all play six items in the same order."""
    items = [{"artist_id": f"a{n}", "name": f"name {n}", "tags": "rock|slow" if n % 2 else ""} for n in range(200)]
    plays = [
        {"user_id": f"u{user}", "artist_id": f"a{n}", "listens": 100 - n, "split": "test" if user > 3 else "train"}
        for user in range(6)
        for n in range(6)
    ]
    for name, rows in (("items", items), ("plays", plays)):
        with (tmp_path / f"{name}.csv").open("w", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return tmp_path


def test_pairs_and_recall(source):
    data = popularity.read(source)
    one_user = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (2, 5), (3, 4), (3, 5), (4, 5)]
    assert data.train.tolist() == [list(pair) for pair in one_user] * 4 and data.words.shape[0] == 200
    # Items 0 to 9 first: all partners are found.
    best = popularity.recalls(data, lambda rows: -np.arange(200.0)[None].repeat(len(rows), 0))
    assert best == {"R@10": 100, "R@50": 100, "R@100": 100}
    worst = popularity.recalls(data, lambda rows: np.arange(200.0)[None].repeat(len(rows), 0))
    assert worst["R@100"] == 0


def test_differences_are_paired_by_seed():
    def runs(*values):
        return [{"R@50": value} for value in values]

    found = {"uncorrected": runs(1.0, 5.0, 9.0), "other": runs(2.0, 7.0, 10.0)}
    # 1, 2 and 1: mean 1.33, standard error 1/3, and 4.30 of it at two degrees of freedom.
    assert popularity.difference(found, "other") == "+1.33 ± 1.43"
