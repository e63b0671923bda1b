"""Settings of semantic IDs, given on the command line, since they do not belong to an experiment."""

import dataclasses

# Residual k-means by faiss, residual k-means on the accelerators, a learned residual VQ.
METHODS = ("kmeans", "device-kmeans", "vq")
# Maximum number of embeddings on which codebooks are fitted; they are held in memory.
SAMPLES = 500_000
# Number of items drawn to measure whether neighbours share their IDs.
ANCHORS = 1000


@dataclasses.dataclass(frozen=True)
class VQSettings:
    """Settings of the training of a residual VQ.

    Attributes:
        steps: number of updates.
        batch: rows per update, B; all rows if there are fewer.
        latent: W, the width between encoder and decoder; 0 quantises the vectors themselves, and only the codebooks are
            learned.
        decay: decay of the moving averages.
        epsilon: constant of the Laplace smoothing of the counts.
        dead_after: a code is replaced by a row of the batch if none of the last `dead_after` rows per code of its level
            chose it; if all codes are equally likely, that happens with probability exp(-dead_after).
        commitment: weight of the loss that keeps the encoder near the codes.
        learning_rate: learning rate of encoder and decoder (Adam).
    """

    steps: int = 1000
    batch: int = 1024
    latent: int = 0
    decay: float = 0.99
    epsilon: float = 1e-5
    dead_after: int = 100
    commitment: float = 0.25
    learning_rate: float = 1e-3
