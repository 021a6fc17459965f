"""Attention rollout against the weights that the model itself multiplies with, and the figure that shows it."""
import numpy as np
import pytest
import torch
from PIL import Image

from tests.checkpoints import write_classifier, write_mae
from tests.test_figures import check_all_inside
from util import attention, figures_pictures
from util.args import run_command
from util.attention import attention_rollout
from util.precision import choose_attention
from util.trained import load_classifier_model, load_split, own_pool

CLS, AVG = ["--cls_token"], []


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def own_weights(model, images):
    """(layers, N, heads, T, T): what timm's attention gives to its dropout, which is the identity in evaluation."""
    seen = []
    choose_attention(model, torch.device("cpu"), None)
    hooks = [block.attn.attn_drop.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for block in model.blocks]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen).double().numpy()


def rollout_by_loops(weights, pool):
    """The definition, one image and one product at a time, in float64."""
    maps = []
    for image in range(weights.shape[1]):
        total = np.eye(weights.shape[-1])
        for layer in weights[:, image]:
            mean = sum(layer) / len(layer)
            total = (0.5 * mean + 0.5 * np.eye(len(mean))) @ total
        assert total.sum(axis=1) == pytest.approx(np.ones(len(total)))
        row = np.mean([total[token] for token in range(1, len(total))], axis=0) if pool == "mean" else total[0]
        maps.append(row[1:] / row[1:].sum() * (len(row) - 1))
    return np.array(maps)


@pytest.mark.parametrize("flags", [AVG, CLS])
@pytest.mark.parametrize("fused", [False, True])
def test_rollout_equals_its_definition_on_the_models_own_weights(tmp_path, flags, fused):
    write_classifier(tmp_path / "last.pth", *flags)
    trained = load_classifier_model(tmp_path / "last.pth")
    model, pool, images = trained.model, own_pool(trained), torch.randn(3, 3, 16, 24)
    assert pool == ("cls" if flags else "mean")
    expected = rollout_by_loops(own_weights(model, images), pool)
    for block in model.blocks:
        block.attn.fused_attn = fused
    logits, maps = attention_rollout(model, images, pool)
    assert maps.shape == (3, 4, 6)
    assert maps.flatten(1).numpy() == pytest.approx(expected, abs=2e-6)
    assert np.ptp(expected, axis=1).min() > 0.01 and not np.allclose(expected[0], expected[1], atol=1e-3)
    with torch.no_grad():
        assert torch.equal(logits, model(images))
    assert not any(block.attn.qkv._forward_hooks for block in model.blocks)


@pytest.mark.parametrize("flags", [AVG, CLS])
def test_a_model_that_looks_everywhere_alike(tmp_path, flags):
    write_classifier(tmp_path / "last.pth", *flags)
    trained = load_classifier_model(tmp_path / "last.pth")
    for block in trained.model.blocks:
        block.attn.qkv.weight.data[:16] = 0
        block.attn.qkv.bias.data[:16] = 0
    _, maps = attention_rollout(trained.model, torch.randn(1, 3, 16, 24), own_pool(trained))
    torch.testing.assert_close(maps, torch.ones(1, 4, 6))


def picture(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(path)
    return str(path)


def run(*flags):
    return attention.main(attention.get_args_parser().parse_args([*map(str, flags), "--device", "cpu"]))


@pytest.mark.parametrize(("loss", "activation"), [("bal_bce", "sigmoid"), ("ce", "softmax"), ("ldam", "softmax")])
def test_the_class_and_its_score_are_those_of_the_loss(tmp_path, monkeypatch, capsys, loss, activation):
    model = write_classifier(tmp_path / "last.pth", "--loss", loss)
    picture(tmp_path / "one.png")
    shown = []
    monkeypatch.setattr(attention, "draw_overlays", lambda *arguments: shown.append(arguments))
    monkeypatch.setattr(attention, "save_print", lambda figure, path: [path, path])
    run("--checkpoint", tmp_path / "last.pth", "--images", tmp_path / "one.png")
    # The evaluation resizes to 16 / .875 = 18 by 27 and cuts the middle.
    pixels = np.asarray(Image.open(tmp_path / "one.png").resize((27, 18), Image.Resampling.BICUBIC))[1:17, 2:26]
    images = torch.tensor((pixels / 255 - [0.4, 0.5, 0.3]) / [0.2, 0.3, 0.25], dtype=torch.float32).permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = model(images)[0].double() * (30 if loss == "ldam" else 1)
    score, label = (logits.sigmoid() if activation == "sigmoid" else logits.softmax(0)).max(dim=0)
    name, share = ["cat", "dog", "elk"][label], f"{100 * score:.0f} %"
    assert f"one: {name}, {share} ({activation})" in capsys.readouterr().out
    pictures, maps, captions, title, _ = shown[0]
    assert captions == [f"one\n→ {name}\n{share}"] and activation in title and "mean of the patch tokens" in title
    assert pictures[0] == pytest.approx(pixels / 255, abs=1e-6)
    assert maps[0] == pytest.approx(attention_rollout(model, images, "mean")[1][0].numpy(), abs=1e-5)


def test_the_overlay_puts_each_patch_where_it_is():
    maps = np.zeros((9, 2, 3))
    maps[:, 0, 2], maps[3, 1, 1] = 1, 4
    pictures = np.random.default_rng(0).random((9, 16, 24, 3))
    figure = figures_pictures.draw_overlays(pictures, maps, ["a $\n→ b\n5 %"] * 9, "title", "scale")
    check_all_inside(figure)
    overlay = figure.axes[8 + 3].images[1]  # of the fourth picture, in the second of four rows
    assert overlay.get_extent() == [-0.5, 23.5, 15.5, -0.5]
    assert overlay.get_array()[1, 1] == 4 and overlay.get_clim() == (0, 4)
    assert figure.axes[-1].get_ylabel() == "scale" and figure.axes[0].get_title() == "a \\$\n→ b\n5 %"
    with pytest.raises(ValueError, match="expected .9, h, w., finite and not negative"):
        figures_pictures.draw_overlays(pictures, -maps, ["a"] * 9, "t", "s")


def test_the_figure_is_written(tmp_path, monkeypatch):
    write_classifier(tmp_path / "last.pth")
    out = tmp_path / "attention.pdf"
    paths = run("--checkpoint", tmp_path / "last.pth", "--images", picture(tmp_path / "one.png"), "--out", out)
    assert paths == [out.with_suffix(".png"), out] and all(path.stat().st_size > 5000 for path in paths)


def test_stage_1_has_no_classes(tmp_path, monkeypatch, capsys):
    write_mae(tmp_path / "last.pth")
    monkeypatch.setattr("sys.argv", ["attention", "--checkpoint", str(tmp_path / "last.pth"), "--images", "x"])
    with pytest.raises(SystemExit) as stop:
        run_command(attention.get_args_parser(), attention.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "is of stage 'pretrain', expected 'finetune'" in error


def test_the_loaded_classifier_scores_as_its_run_did(finetune, tmp_path, monkeypatch):
    """Through training, checkpoint and back: the very logits of predictions.npz, in the class order of the run."""
    monkeypatch.setattr("main_finetune.figures", figures_stub())
    finetune(tmp_path / "run", "--epochs", 1, "--warmup_epochs", 0, "--crop_pct", 1, "--mean", ".3", "--std", ".2")
    trained = load_classifier_model(tmp_path / "run" / "last.pth")
    images = load_split(trained, "test")
    with torch.no_grad():
        logits = trained.model(trained.batch([images.image(i) for i in range(len(images))]))
    stored = np.load(tmp_path / "run" / "predictions.npz")
    assert trained.class_names == ["cat", "dog", "elk"] and list(stored["ids"]) == list(images.ids)
    assert logits.numpy() == pytest.approx(stored["logits"], abs=1e-6)


def figures_stub():
    """Stands for util.figures: drawing is not what is tested here."""
    class Nothing:
        def __getattr__(self, name):
            return lambda *arguments, **options: None
    return Nothing()
