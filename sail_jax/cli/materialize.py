"""The verb `materialize`: writes the records of a training set in the order of training."""

import argparse
from typing import Any

from sail_jax import config as config_lib
from sail_jax.buckets import place
from sail_jax.cli.common import console, declare, print_next


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "materialize",
        run,
        "write the records of a training set, pairs with their items, as shards in the order in which training reads "
        "them, for data on object storage",
        "--config configs/glyphs.py --config.data.dir=data/glyphs --dataset i2i --output data/glyphs/materialized/i2i",
        workdir="",
        kept="finished shards are kept, and the same command goes on.",
    )
    sub.add_argument("--dataset", required=True, help="name of the training set in config.data.datasets")
    sub.add_argument("--output", required=True, type=place, help="folder that is written")
    sub.add_argument("--epochs", type=int, default=1, help="number of epochs to write, each in its own order (1)")


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Writes the records, and prints how to train from them."""
    from sail_jax.data.pipeline import open_store
    from sail_jax.data.training_set import materialize

    config = config_lib.load(options.config, overrides)
    materialize(config, options.dataset, options.output, open_store(config), epochs=options.epochs)
    output = options.output.absolute()
    console.print(f"Written to {output}.")
    setting = f"--config.data.datasets.{options.dataset}.materialized={output}"
    data = f"--config.data.dir={config.data.dir}"
    print_next(options, "train", "--config", options.config, data, setting, "--workdir", "RUN")
