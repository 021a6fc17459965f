"""Attention in pieces against plain attention of the same numbers, and what it keeps."""
import pytest
import torch

from models_mae import Attention
from util import piecewise
from util.piecewise import LONG, PiecewiseAttention

HEADS, DIM = 3, 12


def plain(qkv):
    N, tokens, _ = qkv.shape
    q, k, v = qkv.reshape(N, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(N, tokens, -1)


@pytest.fixture(params=[1, 2 * 81 * 8, 10 ** 9], ids=["one head", "two heads", "all heads"])
def piece(request, monkeypatch):
    monkeypatch.setattr(piecewise, "PIECE", request.param)


@pytest.fixture
def qkv():
    return torch.randn(5, 9, 3 * DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def test_outputs_and_gradients_are_those_of_torch(piece, qkv):
    out, expected = PiecewiseAttention.apply(qkv, HEADS), plain(qkv)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    towards = torch.randn_like(out)
    (found,), (true,) = (torch.autograd.grad(value, qkv, towards) for value in (out, expected))
    torch.testing.assert_close(found, true, rtol=1e-12, atol=1e-12)


def test_gradcheck(piece, qkv):
    assert torch.autograd.gradcheck(lambda x: PiecewiseAttention.apply(x, HEADS), (qkv[:2, :4].detach().requires_grad_(),))


def kept(module, x) -> int:
    """Elements of the tensors that a forward pass keeps for the backward pass."""
    seen = {}

    def keep(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        module(x)
    return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in seen.values())


@pytest.mark.parametrize(("tokens", "expected"), [(LONG, False), (LONG - 1, True)])
def test_a_long_sequence_keeps_no_weights(tokens, expected):
    attention, x = Attention(DIM, HEADS, qkv_bias=True), torch.randn(2, tokens, DIM)
    attention.fused_attn = False
    assert (kept(attention, x) >= 2 * HEADS * tokens ** 2) == expected


@pytest.mark.parametrize("amp", [False, True])
def test_the_model_s_layer_computes_what_it_did(amp, monkeypatch):
    attention, x = Attention(DIM, HEADS, qkv_bias=True), torch.randn(3, LONG, DIM)
    attention.fused_attn = False
    results = []
    for in_pieces in (True, False):
        monkeypatch.setattr(Attention, "in_pieces", lambda *_, answer=in_pieces: answer)
        attention.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            out = attention(x)
        out.float().square().sum().backward()
        results.append([out, *(parameter.grad for parameter in attention.parameters())])
    for one, other in zip(*results, strict=True):
        rtol, atol = (0.02, 0.02 * other.abs().max().item()) if amp else (1e-5, 1e-6)
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)
