"""Bicubic interpolation against torch, and of position embeddings against transformers."""

import numpy as np
import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from sail_jax.errors import SailError
from sail_jax.models.bicubic import bicubic_matrix, resize_grid


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("size_in", "size_out"), [(1001, 1024), (101, 128), (2, 7), (64, 65), (32, 9), (5, 1)])
def test_matrix_equals_torch(size_in, size_out, align_corners):
    signal = np.random.default_rng(3).normal(size=(1, 1, size_in, 5)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(signal), (size_out, 5), mode="bicubic", align_corners=align_corners
    )
    matrix = bicubic_matrix(size_in, size_out, align_corners=align_corners)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix @ signal[0, 0], theirs[0, 0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("side", [3, 5, 11], ids=["down", "up", "far up"])
def test_grid_is_resized_as_by_transformers(side):
    config = SiglipVisionConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=4
    )
    embeddings = SiglipVisionModel(config).embeddings
    torch.nn.init.normal_(embeddings.position_embedding.weight)
    with torch.no_grad():
        theirs = embeddings.interpolate_pos_encoding(torch.zeros(1, side**2, 8), 4 * side, 4 * side)[0].numpy()
    ours = resize_grid(embeddings.position_embedding.weight.detach().numpy(), side)
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


def test_grid_of_the_same_side_is_untouched_and_others_are_float32():
    table = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float16)
    assert resize_grid(table, 4) is table
    np.testing.assert_array_equal(resize_grid(table, 6), resize_grid(table.astype(np.float32), 6))


def test_grid_that_is_no_square_is_refused():
    with pytest.raises(SailError, match="17 positions is no square grid"):
        resize_grid(np.zeros((17, 3), np.float32), 4)
