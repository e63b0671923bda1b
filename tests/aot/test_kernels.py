"""Attention kernels by tower, from lines as GPUs and TPUs have them."""

from sail_jax.aot.kernels import attention_kernels


def test_kernels_by_tower():
    lines = """
  %ffi_call.9 = (bf16[8,4,150,64]{3,1,2,0}) custom-call(%q), custom_call_target="__cudnn$fmhaSoftmax", \
metadata={op_name="jit(step)/jvp(Fusion)/llm/while/body/layers/attention/ffi_call"}
  %ffi_call.8 = (bf16[8,4,150,64]{3,1,2,0}) custom-call(%q), custom_call_target="__cudnn$fmhaSoftmaxBackward", \
metadata={op_name="jit(step)/transpose(jvp(Fusion))/llm/while/body/layers/attention/ffi_call"}
  %custom-call.3 = bf16[4,16] custom-call(%q), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(step)/jvp(Fusion)/perceiver/layers/attention/splash_mha_fwd/pallas_call"}
  %fusion.2 = f32[8,4,9,9] fusion(%q), metadata={op_name="jit(step)/jvp(Fusion)/vit/bgmk,bgsk->bgms/dot_general"}
  %fusion.3 = f32[8,4,9,9] fusion(%q), metadata={op_name="jit(step)/jvp(Fusion)/head/dot_general"}
"""
    found = attention_kernels([lines])
    assert found == {"vit": ("plain",), "perceiver": ("splash attention",), "llm": ("cuDNN flash attention",)}
