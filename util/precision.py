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


SHORT = 32  # patches up to which a CPU takes plain products in float32 too; of longer sequences they keep large weights


def choose_attention(model: nn.Module, device: torch.device, amp: torch.dtype | None) -> None:
    """Choose between torch's fused attention kernel and plain matrix products by what benchmarks.attention measured.

    Accelerators have a fast fused kernel. On CPUs it is the slower one in bf16, and in float32 for short sequences. A rule and
    no timing at the start of a run, because the two differ in rounding: a run that is continued must go on with the same
    numbers.
    """
    height, width = model.patch_embed.grid_size
    fused = device.type != "cpu" or (amp is None and height * width > SHORT)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused


def check_compiler(device: torch.device) -> None:
    """Raise ValueError where torch.compile cannot build for this device, before a run has begun."""
    try:
        torch.compile(lambda x: (x * 2).sin())(torch.ones(8, device=device))
    except Exception as error:  # whatever the tools under it raise
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"--compile cannot build for {device.type} here ({first.strip()}): install a C++ compiler (for a GPU "
                         "also Triton), or leave --compile out") from None


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Compile the transformer blocks of either stage's model in place, and stage 1's loss: names, draws and, to rounding,
    numbers stay.

    The blocks of a tower share one compilation, which takes seconds where a whole model takes minutes. What is drawn (masks,
    dropped paths) is drawn outside of it. A batch of another size is compiled once more, for any size.
    """
    # One function for both towers, training and evaluation, full and short batches: more variants than torch allows by itself.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
    blocks = [*model.blocks, *getattr(model, "decoder_blocks", ())]
    for part in (*blocks, *([model.patch_loss] if hasattr(model, "patch_loss") else [])):
        part.compile(backend=backend)


def cpu_flags() -> set[str]:
    """Instruction sets of the CPU as Linux names them; empty where it does not tell."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((set(line.split(":")[1].split()) for line in file if line.startswith("flags")), set())
    except OSError:
        return set()
