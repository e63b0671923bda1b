"""Learns a residual vector quantiser: codebooks by moving averages, and optionally an autoencoder.

Sources: residual quantisation and its k-means start, SoundStream (arXiv 2107.03312, sec. III-C); semantic IDs from it,
TIGER (arXiv 2305.05065, sec. 3.1); moving averages with Laplace smoothing, VQ-VAE (arXiv 1711.00937, appendix A.1) and
its reference implementation (Sonnet, `VectorQuantizerEMA`).

Axes: B batch, N rows, D width of the vectors, W width that is quantised, K codes of a level, L levels.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sail_jax.config.semantic_ids import VQSettings
from sail_jax.errors import SailError
from sail_jax.progress import track
from sail_jax.semantic_ids.residual_kmeans import quantize, require_rows, residual_kmeans

_FIRST_ROUNDS = 10  # of the k-means that initialises the codebooks
_FIRST_ROWS_PER_CODE = 32


@flax.struct.dataclass
class Codebook:
    """The codes of one level, with the moving averages that update them.

    Attributes:
        codes: [K, W] float32.
        counts: [K] float32, moving average of the number of rows of a batch that choose a code.
        sums: [K, W] float32, moving average of the sum of these rows.
        idle: [K] int32, steps since a row chose a code.
    """

    codes: jax.Array
    counts: jax.Array
    sums: jax.Array
    idle: jax.Array

    @staticmethod
    def start(codes: np.ndarray, counts: np.ndarray) -> "Codebook":
        """Returns a new level with codes [K, W], each chosen by counts [K] rows of a batch."""
        codes, counts = jnp.asarray(codes, jnp.float32), jnp.asarray(counts, jnp.float32)
        return Codebook(codes, counts, codes * counts[:, None], jnp.zeros(len(codes), jnp.int32))


@functools.partial(jax.jit, static_argnames="settings")
def update(book: Codebook, x: jax.Array, chosen: jax.Array, settings: VQSettings, key: jax.Array) -> Codebook:
    """Moves each code to the moving average of the rows that chose it, and replaces dead codes.

        counts <- decay counts + (1 - decay) n,    sums <- decay sums + (1 - decay) (sum of the n rows)
        codes  <- sums / smoothed counts,          smoothed = (counts + eps) / (total + K eps) * total

    A dead code (see `VQSettings.dead_after`) becomes a row of the batch (different rows while K <= B), as if one row of
    every batch chose it.

    Args:
        book: the level.
        x: [B, W] float32, the rows quantised at this level.
        chosen: [B] int32, the code of each row.
        settings: decay, epsilon and dead_after.
        key: key of the draw of rows.
    """
    size, keep = len(book.codes), settings.decay
    rows = jax.nn.one_hot(chosen, size, dtype=jnp.float32)  # a product sums in the same order on every device
    members = rows.sum(axis=0)
    counts = keep * book.counts + (1 - keep) * members
    sums = keep * book.sums + (1 - keep) * jnp.matmul(rows.T, x, precision=jax.lax.Precision.HIGHEST)
    total = counts.sum()
    smoothed = (counts + settings.epsilon) / (total + size * settings.epsilon) * total
    codes = sums / smoothed[:, None]
    idle = jnp.where(members > 0, 0, book.idle + 1)

    dead = idle >= math.ceil(settings.dead_after * size / len(x))
    drawn = x[jax.random.permutation(key, len(x))[jnp.arange(size) % len(x)]]
    return Codebook(
        codes=jnp.where(dead[:, None], drawn, codes),
        counts=jnp.where(dead, 1.0, counts),
        sums=jnp.where(dead[:, None], drawn, sums),
        idle=jnp.where(dead, 0, idle),
    )


def choose(x: jax.Array, codes: jax.Array) -> jax.Array:
    """Returns the code [K, W] nearest to each row [B, W], [B] int32; of equally near codes the first."""
    products = jnp.matmul(x, codes.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmax(products - jnp.sum(codes * codes, axis=-1) / 2, axis=-1).astype(jnp.int32)


class Autoencoder(nn.Module):
    """Encoder and decoder around the codebooks: dense, GELU, dense each; the identity if `latent` is 0.

    Attributes:
        dims: D.
        latent: W, or 0.
    """

    dims: int
    latent: int

    def setup(self) -> None:
        """Declares the layers."""
        if self.latent:
            self.encoder = [nn.Dense(self.dims), nn.Dense(self.latent)]
            self.decoder = [nn.Dense(self.dims), nn.Dense(self.dims)]

    def encode(self, z: jax.Array) -> jax.Array:
        """Encodes vectors, [B, D] -> [B, W]."""
        return self.encoder[1](nn.gelu(self.encoder[0](z))) if self.latent else z

    def decode(self, x: jax.Array) -> jax.Array:
        """Decodes latents, [B, W] -> [B, D]."""
        return self.decoder[1](nn.gelu(self.decoder[0](x))) if self.latent else x

    def __call__(self, z: jax.Array) -> jax.Array:
        """Encodes and decodes vectors without quantising them, [B, D] -> [B, D]."""
        return self.decode(self.encode(z))


@functools.partial(jax.jit, static_argnames=("module", "method"))
def apply(module: Autoencoder, params: Any, x: np.ndarray, method: str) -> jax.Array:
    """Applies "encode" or "decode" of an autoencoder to rows; `params` are empty if `latent` is 0."""
    return module.apply({"params": params}, x, method=method)


def loss_and_codes(
    params: Any, books: Sequence[Codebook], z: jax.Array, module: Autoencoder, settings: VQSettings
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Returns the loss of encoder and decoder, and the residuals and codes of each level.

        loss = mean over prefixes l of |z - decode(x + sg(q_l - x))|^2 + commitment * sum over levels |r_l - sg(c_l)|^2

    with x = encode(z), r_l = x - q_{l-1} the residual at level l, c_l the code chosen for it, q_l = c_1 + ... + c_l,
    and sg the stopped gradient: the decoder's gradient passes straight through the codes to the encoder. Every prefix
    is decoded, so that each is a usable ID by itself (SoundStream draws the number of levels for the same purpose).

    Returns:
        loss: scalar, mean over the batch.
        levels: L pairs of r_l [B, W], without gradient, and the chosen codes [B] int32.
    """
    x = module.apply({"params": params}, z, method="encode")
    total, levels, reconstruction, commitment = jnp.zeros_like(x), [], 0.0, 0.0
    for book in books:
        residual = x - jax.lax.stop_gradient(total)
        chosen = choose(jax.lax.stop_gradient(residual), book.codes)
        levels.append((jax.lax.stop_gradient(residual), chosen))
        code = jax.lax.stop_gradient(book.codes[chosen])
        commitment += jnp.sum((residual - code) ** 2, axis=-1).mean()
        total += code
        decoded = module.apply({"params": params}, x + jax.lax.stop_gradient(total - x), method="decode")
        reconstruction += jnp.sum((z - decoded) ** 2, axis=-1).mean() / len(books)
    return reconstruction + settings.commitment * commitment, levels


@functools.partial(jax.jit, static_argnames=("module", "settings"))
def train_step(state: dict, z: jax.Array, key: jax.Array, *, module: Autoencoder, settings: VQSettings) -> dict:
    """Updates encoder and decoder (Adam) and codebooks (moving averages) once, and returns the state.

    Args:
        state: "params", "optimizer", and "books", L of `Codebook`.
        z: [B, D] float32.
        key: key of this step's draws.
        module: the autoencoder.
        settings: settings of the training.
    """
    gradient, levels = jax.grad(loss_and_codes, has_aux=True)(state["params"], state["books"], z, module, settings)
    updates, optimizer = optax.adam(settings.learning_rate).update(gradient, state["optimizer"])
    keys = jax.random.split(key, len(levels))
    books = [
        update(book, residual, chosen, settings, keys[level])
        for level, (book, (residual, chosen)) in enumerate(zip(state["books"], levels, strict=True))
    ]
    return {"params": optax.apply_updates(state["params"], updates), "optimizer": optimizer, "books": books}


def fit_residual_vq(
    z: np.ndarray, sizes: Sequence[int], settings: VQSettings, *, seed: int
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Trains codebooks, and encoder and decoder if `settings.latent` is not 0.

    The codebooks start from the k-means of the first rows drawn; the rows of a step depend only on the seed and the
    step. On a CPU, every call gives the same result.

    Args:
        z: [N, D] float32, finite.
        sizes: L sizes of codebooks.
        settings: settings of the training.
        seed: seed of all draws.

    Returns:
        codebooks: L arrays [K, W] float32.
        params: parameters of the `Autoencoder`; empty without `latent`.

    Raises:
        SailError: there are fewer rows than codes of a level, the batch is empty, or training diverged.
    """
    require_rows(len(z), sizes)
    if settings.batch < 1:
        raise SailError(f"An update needs at least one vector, not a batch of {settings.batch}.")
    module = Autoencoder(z.shape[1], settings.latent)
    key = jax.random.key(seed)
    params = jax.jit(module.init)(key, z[:1]).get("params", {})
    batch = min(settings.batch, len(z))
    first = z[_rows(len(z), max(batch, _FIRST_ROWS_PER_CODE * max(sizes)), seed, 0)]
    latents = np.asarray(apply(module, params, first, "encode"))
    books = _first_books(latents, sizes, batch, seed)
    state = {"params": params, "optimizer": optax.adam(settings.learning_rate).init(params), "books": books}
    for step in track(range(1, settings.steps + 1), f"residual VQ {'-'.join(map(str, sizes))}"):
        rows = z[_rows(len(z), batch, seed, step)]
        state = train_step(state, rows, jax.random.fold_in(key, step), module=module, settings=settings)
    codebooks = [np.asarray(book.codes) for book in state["books"]]
    if not all(np.isfinite(codebook).all() for codebook in codebooks):
        raise SailError("The residual VQ diverged; train it with a lower learning rate.")
    return codebooks, jax.tree.map(np.asarray, state["params"])


def _rows(count: int, wanted: int, seed: int, step: int) -> np.ndarray:
    """Draws at most `wanted` rows without replacement."""
    return np.random.default_rng([seed, step]).choice(count, min(wanted, count), replace=False)


def _first_books(x: np.ndarray, sizes: Sequence[int], batch: int, seed: int) -> list[Codebook]:
    codebooks = residual_kmeans(x, sizes, rounds=_FIRST_ROUNDS, seed=seed)
    codes = quantize(x, codebooks)
    counts = [np.bincount(codes[:, level], minlength=size) * (batch / len(x)) for level, size in enumerate(sizes)]
    return [Codebook.start(codebook, of_level) for codebook, of_level in zip(codebooks, counts, strict=True)]
