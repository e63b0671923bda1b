"""SAIL-Embedding as first module of a `SentenceTransformer`; needs sentence-transformers 6 or later."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from sentence_transformers.base.modules import InputModule
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin


class SailEmbeddingModule(InputModule):
    """Embeds texts, images, sound, and dicts of them; see `SailEmbeddingProcessor` for the items.

    A prompt is the instruction in the system turn of the chat template. Without one it goes by role: bare texts are
    queries, all else are items.

    The module is followed by `Normalize`; vectors that `truncate_dim` of `SentenceTransformer` cuts after that are
    normalised again, so that they have unit length too.

    Args:
        model: a `SailEmbeddingModel`.
        processor: a `SailEmbeddingProcessor`.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        super().__init__()
        self.model, self.processor = model, processor

    @property
    def modalities(self) -> list[str]:
        """What an item may hold; without "message", a batch of different kinds of items would be refused."""
        return ["text", "image", "audio", "video", "message"]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the processor."""
        return self.processor.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.processor.tokenizer = tokenizer

    @property
    def max_seq_length(self) -> int:
        """Tokens to which text is cut, prompt and media tokens included."""
        return self.processor.max_tokens

    @max_seq_length.setter
    def max_seq_length(self, tokens: int) -> None:
        self.processor.max_tokens = tokens

    def get_embedding_dimension(self) -> int:
        """Width of the embedding."""
        return self.model.config.embedding_dim

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Prepares items; `prompt` is the instruction."""
        return dict(self.processor(list(inputs), instruction=prompt))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds "sentence_embedding", [items, width] float32, to what `preprocess` returned."""
        arrays = {name: features[name] for name in self.processor.model_input_names if name in features}
        return _Features(features, sentence_embedding=self.model(**arrays).embedding)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        backend: str = "torch",
        **kwargs: Any,
    ) -> "SailEmbeddingModule":
        """Loads the model and the processor, as `SentenceTransformer` asks for it.

        Raises:
            ValueError: on another backend than "torch".
        """
        if backend != "torch":
            raise ValueError(f"The backend is {backend!r}; this model has 'torch' alone.")
        where = {
            "subfolder": subfolder,
            "token": token,
            "cache_dir": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
            "trust_remote_code": trust_remote_code,
        }
        config = AutoConfig.from_pretrained(model_name_or_path, **where, **(config_kwargs or {}))
        model = AutoModel.from_pretrained(model_name_or_path, config=config, **where, **(model_kwargs or {}))
        processor = AutoProcessor.from_pretrained(model_name_or_path, **where, **(processor_kwargs or {}))
        return cls(model, processor)

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Saves weights, configurations, tokenizer and the code that loads them."""
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)


class _Features(dict):
    """What the modules hand on; a narrower "sentence_embedding" is one that was cut, and gets unit length again."""

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "sentence_embedding" and value.shape[-1] < self[key].shape[-1]:
            value = F.normalize(value, dim=-1)
        super().__setitem__(key, value)
