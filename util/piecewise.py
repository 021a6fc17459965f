"""Attention of long sequences on a CPU, a few heads at a time."""
import torch
from torch.autograd.function import once_differentiable

LONG = 160  # tokens from which on making the weights twice is no slower than keeping them (benchmarks.attention)
PIECE = 2 ** 20  # bytes of weights at a time: what stays in a core's cache


def pieces(*heads: torch.Tensor):
    """Split tensors (N * heads, T, ...) into runs of heads whose weights, (n, T, T), are a PIECE, one head at least."""
    count = max(1, PIECE // (heads[0].shape[1] ** 2 * heads[0].element_size()))
    return zip(*(tensor.split(count) for tensor in heads), strict=True)


def split_heads(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """(N, T, 3 D) -> queries, scaled, keys and values: (3, N * heads, T, d), a copy."""
    N, tokens, _ = qkv.shape
    parts = qkv.view(N, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4).flatten(1, 2).contiguous()
    parts[0] *= parts.shape[-1] ** -0.5
    return parts


def join_heads(parts: torch.Tensor, heads: int) -> torch.Tensor:
    """(k, N * heads, T, d) -> (N, T, k * D)."""
    return parts.unflatten(1, (-1, heads)).permute(1, 3, 0, 2, 4).flatten(2)


def weights_of(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Scaled queries and keys (n, T, d) -> attention weights (n, T, T)."""
    return (q @ k.transpose(-2, -1)).softmax(dim=-1)


class PiecewiseAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(d)) v, whose backward pass makes the weights again instead of keeping N * heads * T * T of them."""

    @staticmethod
    def forward(ctx, qkv: torch.Tensor, heads: int) -> torch.Tensor:
        """qkv (N, T, 3 D), as one linear layer gives queries, keys and values -> (N, T, D)."""
        ctx.save_for_backward(qkv)
        ctx.heads = heads
        with torch.autocast(qkv.device.type, enabled=False):
            parts = split_heads(qkv, heads)
            out = torch.empty_like(parts[:1])
            for q, k, v, result in pieces(*parts, out[0]):
                torch.bmm(weights_of(q, k), v, out=result)
        return join_heads(out, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        """(N, T, D) -> (N, T, 3 D)."""
        (qkv,), heads = ctx.saved_tensors, ctx.heads
        N, tokens, _ = qkv.shape
        with torch.autocast(qkv.device.type, enabled=False):
            parts = split_heads(qkv, heads)
            result = torch.empty_like(parts)
            towards = grad.reshape(N, tokens, heads, -1).transpose(1, 2).flatten(0, 1)
            for q, k, v, of_out, of_q, of_k, of_v in pieces(*parts, towards, *result):
                weights = weights_of(q, k)
                torch.bmm(weights.transpose(-2, -1), of_out, out=of_v)
                scores = torch.ops.aten._softmax_backward_data(of_out @ v.transpose(-2, -1), weights, -1, weights.dtype)
                torch.bmm(scores, k, out=of_q)
                torch.bmm(scores.transpose(-2, -1), q, out=of_k)
            result[0] *= result.shape[-1] ** -0.5
        return join_heads(result, heads), None
