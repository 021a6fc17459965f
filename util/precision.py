"""Which number type the matrix products run in."""
import torch
from torch import nn


def choose_amp(amp: str, device: torch.device) -> tuple[torch.dtype | None, str]:
    """--amp {auto, bf16, fp16, off} -> (autocast type or None for float32, the reason to print).

    "auto" takes bf16 where the device multiplies it natively. fp16 only when asked for, and only on an accelerator,
    where the loss can be scaled.
    """
    if amp == "auto":
        native, where = native_bf16(device)
        return (torch.bfloat16 if native else None), f"{'bf16' if native else 'fp32'} (auto: {where})"
    if amp == "fp16" and device.type == "cpu":
        raise ValueError("--amp fp16 on a CPU is neither fast nor scaled: use --amp bf16, off or auto")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp]
    return dtype, f"{'fp32' if dtype is None else amp} (--amp {amp})"


def native_bf16(device: torch.device) -> tuple[bool, str]:
    """Whether the device has bf16 products in hardware, and the words that say so."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return native, f"{torch.cuda.get_device_name(device)} {'has' if native else 'has no'} native bf16"
    if device.type == "cpu":
        flags = cpu_flags()
        native = bool(flags & {"avx512_bf16", "amx_bf16"})
        return native, f"this CPU {'has' if native else 'has no'} native bf16"
    return False, f"bf16 is not chosen by itself on {device.type}"


def choose_attention(model: nn.Module, device: torch.device) -> None:
    """Take attention apart into plain matrix products on a CPU, where torch's fused kernel is the slower one for the short
    sequences of small images, and keep the fused kernel elsewhere. The numbers agree to rounding.
    """
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = device.type != "cpu"


def cpu_flags() -> set[str]:
    """Instruction sets of the CPU as Linux names them; empty where it does not tell."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((set(line.split(":")[1].split()) for line in file if line.startswith("flags")), set())
    except OSError:
        return set()
