"""Installs sail_jax. Ranges say what is supported; constraints.txt pins the versions that the tests run with."""

from setuptools import find_packages, setup

setup(
    name="sail_jax",
    version="0.1.0",
    description="SAIL-Embedding in JAX: an omni-modal embedding foundation model for search and recommendation",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The experiments stand at the top of the checkout, and inside of the package where it is installed.
    packages=[*find_packages(include=["sail_jax", "sail_jax.*"]), "sail_jax.configs", "sail_jax.configs.sweeps"],
    package_dir={"sail_jax.configs": "configs"},
    # Data of GPUs to compile for, files that exported models ship with (they are copied, never imported from here), and
    # the page of `serve`.
    package_data={
        "sail_jax.aot": ["gpus/*.txtpb"],
        "sail_jax.convert": ["exported_code/*.py"],
        "sail_jax.search": ["search_page.html"],
    },
    entry_points={"console_scripts": ["sail-jax = sail_jax.__main__:run"]},
    install_requires=[
        "absl-py>=2.0",
        "argcomplete>=3.4",
        "jax>=0.10,<0.12",
        "flax>=0.12",
        "optax>=0.2.5",
        "ott-jax>=0.5",
        "orbax-checkpoint>=0.11.30",
        "etils[epath]>=1.6",
        "grain>=0.2.15",
        "array-record>=0.8",
        "transformers>=5.0,<6",
        "huggingface_hub>=1.0",
        "safetensors>=0.5",
        "ml_dtypes>=0.5",
        "tensorflow-datasets>=4.9.9",
        "importlib_resources",  # tensorflow-datasets needs it and does not declare it
        "ml_collections>=1.0",
        "msgpack>=1.0",
        "numpy>=2.0",
        "jaxtyping>=0.3",
        "pyarrow>=16",
        "polars>=1.30,<3",
        "pillow>=11",
        "simplejpeg>=1.9",
        "av>=18",
        "soundfile>=0.13",
        "soxr>=0.5",
        "scipy>=1.11",
        "scikit-learn>=1.5",
        "faiss-cpu>=1.9",
        "matplotlib>=3.9",
        "tensorboardX>=2.6.2",
        "rich>=13",
    ],
    extras_require={
        "cuda": ["jax[cuda12]>=0.10,<0.12"],
        "tpu": ["jax[tpu]>=0.10,<0.12"],
        "torch": ["torch>=2.4"],
        "mteb": ["mteb>=2.26", "sentence-transformers>=6"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3",
            "beartype>=0.22",
            "psutil",
            "setuptools>=77",  # builds the wheel that a test installs
            "ruff",
            "torch>=2.4",
            "sentence-transformers>=6",
            "peft>=0.18",
            "mteb>=2.26",
            "pytrec-eval-terrier>=0.5.6",
            "playwright>=1.50",
        ],
    },
)
