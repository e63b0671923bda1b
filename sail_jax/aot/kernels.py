"""Finds the attention kernels of a compiled program, from its HLO text."""

import re
from collections.abc import Iterable

from sail_jax.models.gpu_attention import CALL

# What a kernel leaves in the text of an instruction.
_KERNELS = {
    "cuDNN flash attention": re.compile(rf'custom_call_target="{re.escape(CALL)}'),
    "splash attention": re.compile(r'custom_call_target="tpu_custom_call".*splash'),
    "plain": re.compile(r"bgmk,bgsk->bgms"),  # the product of `transformer.attend` for the scores
}
_OPERATION = re.compile(r'op_name="([^"]*)"')
TOWERS = ("vit", "perceiver", "bert", "llm", "sequence")


def attention_kernels(programs: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Returns tower -> names of its attention kernels, of programs as `compiled.as_text()`."""
    found: dict[str, set[str]] = {}
    for program in programs:
        for line in program.splitlines():
            for name, mark in _KERNELS.items():
                if mark.search(line) and (operation := _OPERATION.search(line)):
                    parts = re.split(r"[/()]", operation.group(1))
                    tower = next((tower for tower in TOWERS if tower in parts), "others")
                    found.setdefault(tower, set()).add(name)
    return {tower: tuple(sorted(found[tower])) for tower in (*TOWERS, "others") if tower in found}
