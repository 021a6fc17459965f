"""--compile and the choice of the attention kernel change no number beyond rounding, no draw and no name."""
import copy

import pytest
import torch

from models_mae import build_mae
from models_vit import build_vit
from util import precision
from util.precision import check_compiler, choose_attention, compile_blocks
from util.seed import seeded

CPU = torch.device("cpu")
SHAPE = dict(img_size=16, patch_size=4, in_chans=1, embed_dim=16, depth=3, num_heads=2)


def mae():
    torch.manual_seed(0)
    decoder = dict(decoder_embed_dim=8, decoder_depth=2, decoder_num_heads=2)
    return build_mae("mae_vit_tiny_patch16", **SHAPE, **decoder, norm_pix_loss=True)


def vit(drop_path=0.5):
    torch.manual_seed(0)
    model = build_vit("vit_tiny_patch16", 5, drop_path=drop_path, **SHAPE)
    torch.nn.init.normal_(model.head.weight)
    return model


def gradients(model, forward, batch):
    """Loss and gradients of a step with drawn masks and drop path."""
    model.zero_grad()
    images = torch.randn(batch, 1, 16, 16, generator=torch.Generator().manual_seed(batch))
    with seeded(batch):
        loss = forward(model.train(), images)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def evaluated(model, forward):
    with seeded(0):
        return forward(model.eval(), torch.randn(3, 1, 16, 16))


@pytest.mark.parametrize(("build", "forward"), [
    (mae, lambda model, images: model(images, loss_only=True)), (vit, lambda model, images: model(images).square().sum())],
    ids=["stage 1", "stage 2"])
def test_compiled_blocks_compute_the_same_on_full_and_short_batches(build, forward):
    """Without code generation, which takes minutes: what torch traces, shares between blocks and leaves out is the same."""
    torch.compiler.reset()
    plain, compiled = build(), build()
    compile_blocks(compiled, backend="aot_eager")
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for batch in (6, 6, 4, 5):
        (loss, grads), (loss_too, grads_too) = gradients(plain, forward, batch), gradients(compiled, forward, batch)
        torch.testing.assert_close(loss_too, loss)
        assert grads.keys() == grads_too.keys()
        for name, grad in grads.items():
            torch.testing.assert_close(grads_too[name], grad, msg=name)
    with torch.no_grad():  # a copy, as a moving average is, in evaluation
        loss, loss_too = (evaluated(copy.deepcopy(model), forward) for model in (plain, compiled))
    torch.testing.assert_close(loss_too, loss)


def test_blocks_share_their_compilations():
    """Twelve blocks of twelve rates of drop path must not be twelve compilations: torch gives up after some."""
    torch.compiler.reset()
    model, graphs = build_vit("vit_tiny_patch16", 5, drop_path=0.5, **{**SHAPE, "depth": 12}), []

    def count(graph, _inputs):
        graphs.append(graph)
        return graph.forward
    compile_blocks(model, backend=count)
    model.train()(torch.randn(2, 1, 16, 16)).sum().backward()
    assert len(graphs) == 2  # the first block drops nothing


@pytest.mark.large
def test_generated_code_computes_the_same():
    torch.compiler.reset()
    plain, compiled = mae(), mae()
    compile_blocks(compiled)
    for batch in (6, 5):
        loss, loss_too = (gradients(model, lambda m, x: m(x, loss_only=True), batch)[0] for model in (plain, compiled))
        torch.testing.assert_close(loss_too, loss)


def test_a_machine_that_cannot_compile_is_named(monkeypatch):
    def broken(*_):
        raise RuntimeError("no C++ compiler\nand a long story")
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ValueError, match=r"^--compile cannot .* \(no C\+\+ compiler\): install .* leave --compile out$"):
        check_compiler(CPU)


@pytest.mark.parametrize(("device", "amp", "size", "fused"), [
    ("cpu", None, 16, False), ("cpu", None, 32, True), ("cpu", torch.bfloat16, 32, False), ("cuda", None, 16, True),
    ("cuda", torch.bfloat16, 16, True)])
def test_the_attention_kernel_of_a_device_type_and_shape(device, amp, size, fused):
    model = build_vit("vit_tiny_patch16", 5, **{**SHAPE, "img_size": size})
    choose_attention(model, torch.device(device), amp)
    assert {block.attn.fused_attn for block in model.blocks} == {fused}
    assert precision.SHORT == 32


@pytest.mark.parametrize("amp", [False, True])
def test_plain_and_fused_attention_agree(amp):
    model, images = vit(0).eval(), torch.randn(3, 1, 16, 16)
    outputs = []
    for fused in (True, False):
        for block in model.blocks:
            block.attn.fused_attn = fused
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
            outputs.append(model(images).float())
    torch.testing.assert_close(*outputs, atol=0.05 if amp else 1e-5, rtol=0.02 if amp else 1e-5)
