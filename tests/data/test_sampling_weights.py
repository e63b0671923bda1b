import json

import pytest

from sail_jax.data.sampling_weights import read_weights
from sail_jax.errors import SailError

SETTING = "config.data.weights"


def written(tmp_path, content):
    path = tmp_path / "weights.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_weights_come_in_the_order_of_the_config(tmp_path):
    path = written(tmp_path, {"weights": {"a": 1, "b": 0.25, "c": 0}, "similarity": {}})
    weights = read_weights(path, ["c", "b", "a"], SETTING)
    assert list(weights.items()) == [("c", 0.0), ("b", 0.25), ("a", 1.0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", 'no field "weights"'),
        ({"similarity": {}}, 'no field "weights"'),
        ({"weights": [1, 2]}, 'no field "weights"'),
        ({"weights": {"a": 1}}, "leaves out 'b'.*has 'a', 'b'.*again"),
        ({"weights": {"a": 1, "b": 1, "c": 1}}, "names 'c'"),
        ({"weights": {"a": 1, "c": 1}}, "leaves out 'b' and names 'c'"),
        ({"weights": {"a": 1, "b": -0.5}}, "weights.b: -0.5 is not a weight"),
        ('{"weights": {"a": NaN, "b": 1}}', "weights.a: nan is not a weight"),
        ('{"weights": {"a": Infinity, "b": 1}}', "weights.a: inf is not a weight"),
        ({"weights": {"a": "1", "b": 1}}, "weights.a: '1' is not a weight"),
        ({"weights": {"a": True, "b": 1}}, "weights.a: True is not a weight"),
        ({"weights": {"a": 0, "b": 0}}, "every data set the weight 0"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_it_and_the_setting(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(SailError, match=message) as error:
        read_weights(path, ["a", "b"], SETTING)
    assert str(path) in str(error.value) and SETTING in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(SailError, match="There is no file .*weights.json .*Write it with `balance`"):
        read_weights(tmp_path / "weights.json", ["a"], SETTING)
