"""Exports a trained model as a directory for sentence-transformers and plain PyTorch.

DIR/
  model.safetensors          the parameters, named as in transformers' modules (large ones: several files, an index)
  config.json                sizes, a config of transformers for each tower
  processor_config.json, tokenizer*    tokens, pixels and log-mel features as in training
  modules.json, config_sentence_transformers.json    for sentence-transformers, with the prompts
  *_sail_embedding.py, ...   the code that loads it (sail_jax/convert/exported_code)
  README.md                  the model card
  export.json                the step, and a hash of what was asked for
  adapter/                   LoRA adapters in PEFT's format, if they are not merged
"""

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import transformers

from sail_jax.buckets import fetch, place
from sail_jax.config import Config
from sail_jax.convert import hf_configs
from sail_jax.convert.architectures import EXPORTED_TYPE
from sail_jax.convert.model_card import model_card, prompts
from sail_jax.convert.to_peft import write_adapters
from sail_jax.convert.to_torch import model_tensors, write_weights
from sail_jax.data.instructions import instructions_of
from sail_jax.data.prompts import load_tokenizer
from sail_jax.errors import SailError
from sail_jax.files import partial_folder, written_before
from sail_jax.runs.checkpoints import Checkpoints, HostParams
from sail_jax.runs.directory import RunDirectory

_REQUEST = "export.json"
_CODE = Path(__file__).parent / "exported_code"


def export(
    workdir: Path,
    output: Path,
    config: Config | None = None,
    *,
    dtype: str = "float32",
    license_name: str = "other",
    adapters: bool = False,
    step: int | None = None,
) -> int:
    """Exports a checkpoint of a run as a directory for PyTorch.

    Parameters are read from the checkpoint layer by layer and written at once, so the model has to fit neither a device
    nor the host.

    Args:
        workdir: the run directory.
        output: the directory to write; it appears under its name when it is complete.
        config: replaces the settings of the run, for example if its data has moved.
        dtype: "float32", or "bfloat16" for half the size.
        license_name: the `license` of the model card.
        adapters: whether to write LoRA adapters beside the base model, in PEFT's format, instead of merging them.
        step: the step of the checkpoint; by default the newest one that is whole.

    Returns:
        The steps done at the checkpoint. What the same call has written before is left as it is.

    Raises:
        SailError: there is no run or no checkpoint, the model is not a fusion model, the output holds something else,
            transformers has no class for a tower, or the run has no adapters to write.
    """
    run = RunDirectory(workdir)
    config = config or run.load_config()
    if config.model.kind != "fusion":
        raise SailError(
            f"{run.path} holds a model of config.model.kind {config.model.kind!r}, but only the fusion model can be "
            "exported. Use the baseline from Python, with sail_jax.load()."
        )
    output = place(output).resolve()
    fetch(output / _REQUEST)
    if adapters and not config.lora.rank:
        raise SailError(f"{run.path} was trained without LoRA (config.lora.rank is 0): there are no adapters to write.")
    values = config_json(config)
    # Raise all errors before loading the weights, which takes long.
    tokenizer = load_tokenizer(config.prompt, place(config.data.dir), config.model.text_vocab)
    checkpoints = Checkpoints(run, saves=False, step=step)
    try:
        steps = checkpoints.latest()
        card = model_card(config, run, steps, output, license_name, adapters=adapters)
        request = {"step": steps, "of": _digest(run, steps, card, values, dtype)}
        if output.exists():
            return written_before(output / _REQUEST, request, output)["step"]
        params = HostParams(checkpoints, config, merged=not adapters)
        with partial_folder(output) as partial:
            write_weights(model_tensors(params.shapes, config.model, params.read), partial, dtype)
            if adapters:
                write_adapters(params.lora, config, partial / "adapter")
            _write_json(partial / "config.json", values | {"dtype": dtype})
            tokenizer.save_pretrained(partial)
            _write_processor(config, partial)
            _write_modules(config, partial)
            for path in sorted(_CODE.glob("*.py")):
                shutil.copy(path, partial)
            (partial / "README.md").write_text(card, encoding="utf-8")
            _write_json(partial / _REQUEST, request)
    finally:
        checkpoints.close()
    return steps


def _digest(run: RunDirectory, steps: int | None, *parts: Any) -> str:
    """Returns a hash of a checkpoint, by when it was saved, and of what else decides the content of the folder."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8)
    with contextlib.suppress(OSError):
        digest.update((run.checkpoints / str(steps) / "_CHECKPOINT_METADATA").read_bytes())
    return digest.hexdigest()


def config_json(config: Config) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        SailError: transformers has no class for a tower.
    """
    model = config.model
    return {
        "architectures": ["SailEmbeddingModel"],
        "auto_map": {
            "AutoConfig": "configuration_sail_embedding.SailEmbeddingConfig",
            "AutoModel": "modeling_sail_embedding.SailEmbeddingModel",
        },
        "model_type": EXPORTED_TYPE,
        "llm_config": hf_configs.llm_config(model.llm),
        "vision_config": hf_configs.vision_config(model.vit),
        "audio_config": hf_configs.audio_config(model.audio),
        "perceiver_config": hf_configs.perceiver_config(model),
        "causal": model.llm.causal,
        "normalize_sound": model.audio.normalize,
        "pool_prompt": model.pool_prompt,
        "embedding_dim": model.llm.width,
        "matryoshka_dims": sorted(config.objective.matryoshka, reverse=True),
        "transformers_version": transformers.__version__,
    }


def _write_processor(config: Config, output: Path) -> None:
    vit, audio = config.model.vit, config.model.audio
    image_processor = transformers.CLIPImageProcessorPil(
        size={"height": vit.image_size, "width": vit.image_size},
        resample=3,
        do_center_crop=False,
        image_mean=list(vit.image_mean),
        image_std=list(vit.image_std),
    )
    feature_extractor = transformers.ClapFeatureExtractor(
        feature_size=audio.mel_bins,
        sampling_rate=audio.sample_rate,
        hop_length=audio.hop,
        max_length_s=audio.clip_seconds,
        fft_window_size=audio.n_fft,
        frequency_min=audio.f_min,
        frequency_max=audio.f_max,
        truncation="rand_trunc" if audio.mel_scale == "slaney" else "fusion",
    )
    roles = instructions_of(config)
    values = {
        "processor_class": "SailEmbeddingProcessor",
        "auto_map": {"AutoProcessor": "processing_sail_embedding.SailEmbeddingProcessor"},
        "image_processor": image_processor.to_dict(),
        "feature_extractor": feature_extractor.to_dict(),
        "template": config.prompt.template,
        "instruction": roles.document,
        "query_instruction": roles.query,
        "max_tokens": config.prompt.max_tokens,
        "vision_tokens": config.model.perceiver.latents,
        "max_frames": config.model.perceiver.max_frames,
        "max_clips": audio.max_clips,
    }
    _write_json(output / "processor_config.json", values)


def _write_modules(config: Config, output: Path) -> None:
    modules = (
        "sentence_transformers_module.SailEmbeddingModule",
        "sentence_transformers.sentence_transformer.modules.Normalize",
    )
    entries = [
        {"idx": i, "name": str(i), "path": f"{i}_Normalize" if i else "", "type": name}
        for i, name in enumerate(modules)
    ]
    _write_json(output / "modules.json", entries)
    values = {
        "model_type": "SentenceTransformer",
        "prompts": prompts(config),
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
        "requirements": {"sentence-transformers": ">=6", "transformers": ">=5.23"},
    }
    _write_json(output / "config_sentence_transformers.json", values)


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
