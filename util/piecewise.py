"""Attention of long sequences on a CPU, a few images at a time."""
import torch
from torch.autograd.function import once_differentiable

LONG = 128  # tokens from which on it is worth computing the weights twice
PIECE = 2 ** 20  # bytes of weights at a time: what stays in a core's cache


def pieces(heads: int, *batches: torch.Tensor):
    """Split tensors (N, T, ..., D) into runs of images whose weights, (n, heads, T, T), are a PIECE, one image at least."""
    tokens = batches[0].shape[1]
    images = max(1, PIECE // (heads * tokens ** 2 * batches[0].element_size()))
    return zip(*(batch.split(images) for batch in batches), strict=True)


def weights_of(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Scaled queries and keys (n, heads, T, d) -> attention weights (n, heads, T, T)."""
    return (q @ k.transpose(-2, -1)).softmax(dim=-1)


class PiecewiseAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(d)) v, whose backward pass computes the weights again instead of keeping N * heads * T * T of them.

    At 197 tokens that is faster than keeping them too, since a piece's weights stay in the cache.
    """

    @staticmethod
    def forward(ctx, qkv: torch.Tensor, heads: int) -> torch.Tensor:
        """qkv (N, T, 3 D), as one linear layer gives queries, keys and values -> (N, T, D)."""
        N, tokens, width = qkv.shape
        ctx.save_for_backward(qkv)
        ctx.heads = heads
        out = qkv.new_empty(N, tokens, heads, width // 3 // heads)
        with torch.autocast(qkv.device.type, enabled=False):
            for part, result in pieces(heads, qkv.view(N, tokens, 3, heads, -1), out):
                q, k, v = part.permute(2, 0, 3, 1, 4).unbind(0)
                result.copy_((weights_of(q * q.shape[-1] ** -0.5, k) @ v).transpose(1, 2))
        return out.view(N, tokens, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        """(N, T, D) -> (N, T, 3 D)."""
        (qkv,), heads = ctx.saved_tensors, ctx.heads
        N, tokens, _ = qkv.shape
        result = torch.empty_like(qkv)
        shape = N, tokens, 3, heads, -1
        with torch.autocast(qkv.device.type, enabled=False):
            for part, of_out, of_part in pieces(heads, qkv.view(shape), grad.reshape(N, tokens, heads, -1), result.view(shape)):
                q, k, v = part.permute(2, 0, 3, 1, 4).contiguous().unbind(0)
                of_q, of_k, of_v = of_part.permute(2, 0, 3, 1, 4).unbind(0)
                scale = q.shape[-1] ** -0.5
                q, of_out = q * scale, of_out.transpose(1, 2).contiguous()
                weights = weights_of(q, k)
                of_v.copy_(weights.transpose(-2, -1) @ of_out)
                of_weights = of_out @ v.transpose(-2, -1)
                scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
                of_q.copy_((scores @ k).mul_(scale))
                of_k.copy_(scores.transpose(-2, -1) @ q)
        return result, None
