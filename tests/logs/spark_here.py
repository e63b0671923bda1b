"""Spark on this machine, for tests: in a process of its own, with few tasks."""

import importlib.util
import multiprocessing
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from sail_jax.config.logs import EngineConfig

# Spark makes 200 tasks of every join by default, and compiles each query: minutes on so few rows.
_FEW = {
    "spark.sql.shuffle.partitions": "2",
    "spark.default.parallelism": "2",
    "spark.sql.adaptive.coalescePartitions.enabled": "false",  # so that sorted tables have two parts
    "spark.ui.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
}


def needs_spark(test: Callable) -> Callable:
    """Marks a test that runs Spark."""
    no_spark = pytest.mark.skipif(
        importlib.util.find_spec("pyspark") is None, reason="PySpark is not installed: sail_jax[spark]"
    )
    no_java = pytest.mark.skipif(
        shutil.which("java") is None, reason="there is no Java, which Spark needs: apt-get install openjdk-17-jre"
    )
    return pytest.mark.slow(no_java(no_spark(test)))


def engine_config(scratch: str = "") -> EngineConfig:
    return EngineConfig(spark_master="local[2]", spark_options=_FEW, scratch=scratch)


def alone(function: Callable, *arguments: Any) -> Any:
    """Calls a function in a process of its own.

    PySpark forks to start Java, and a fork of a process in which JAX has threads may never return.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
