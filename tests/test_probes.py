"""The probes against scikit-learn and torch, and that they tell a trained encoder from an untrained one."""
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

import main_pretrain
from tests.checkpoints import write_classifier, write_mae
from util import figures, knn, linprobe, metrics
from util.probes import Features, features, probes
from util.trained import load_encoder_model, load_split

COUNTS = (120, 60, 30, 15)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def textures(tmp_path_factory):
    """DIR/{train,test}/<class>/*.png, 16 x 16 grey: four faint textures under a slope of any direction and brightness.

    Pixels, and random features of them, are alike where the slope is; what a normalised patch can be told from is the texture.
    """
    root, draw = tmp_path_factory.mktemp("textures"), np.random.default_rng(0)
    y, x = np.indices((16, 16))
    kinds = [y % 2, x % 2, (x + y) % 2, y // 2 % 2]
    for split, counts in (("train", COUNTS), ("test", (25,) * 4)):
        for label, count in enumerate(counts):
            (root / split / f"texture{label}").mkdir(parents=True)
            for i in range(count):
                slope = draw.uniform(80, 175) + draw.uniform(-60, 60) * (y / 7.5 - 1) + draw.uniform(-60, 60) * (x / 7.5 - 1)
                pixels = slope + 6 * (2 * kinds[label] - 1) + draw.normal(0, 3, (16, 16))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / f"texture{label}" / f"{i:03}.png")
    return root


@pytest.fixture(scope="module")
def textured(textures, pretrain, tmp_path_factory):
    """last.pth of a short stage 1 on the textures."""
    folder = tmp_path_factory.mktemp("textured") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main_pretrain, "show_reconstructions", lambda *_: None)
        patch.setattr(figures, "training_curves", lambda *_: None)
        pretrain(folder, "--data_path", textures, "--mean", ".5", "--std", ".2", "--model", "mae_vit_tiny_patch16",
                 "--norm_pix_loss", "--train_crop", "none", "--hflip", 0, "--epochs", 10, "--lr", 4e-3, "--batch_size", 16)
    return folder / "last.pth"


def parse(command, *flags):
    return command.get_args_parser().parse_args(
        ["--device", "cpu", "--amp", "off", "--num_workers", "0", "--checkpoint", *map(str, flags)])


def run(command, *flags):
    return command.main(parse(command, *flags))


def some(count, dim=16, classes=4):
    return Features(torch.randn(count, dim), torch.randint(classes, (count,)))


@pytest.mark.parametrize(("k", "temperature"), [(1, .07), (5, .07), (20, .5), (60, .03)])
@pytest.mark.parametrize("block", [2**26, 7 * 60])
def test_votes_equal_scikit_learns(monkeypatch, k, temperature, block):
    monkeypatch.setattr(knn, "BLOCK_VALUES", block)
    train, queries = some(60), torch.randn(23, 16)
    theirs = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / temperature))
    theirs.fit(train.values.double().numpy(), train.labels.numpy())
    shares = knn.knn_shares(train, queries, 5, k, temperature)
    assert shares.shape == (23, 5) and (shares[:, 4] == 0).all()
    assert shares[:, :4].numpy() == pytest.approx(theirs.predict_proba(queries.double().numpy()), abs=2e-5)


def test_a_small_temperature_does_not_overflow():
    train = some(60)
    shares = knn.knn_shares(train, train.values, 4, 20, 1e-3)
    assert torch.isfinite(shares).all() and torch.equal(shares.argmax(1), train.labels)


def test_features_are_the_encoders_tokens(tmp_path, picture_folder):
    flags = ["--input_size", 16, "--data_path", picture_folder]
    mae = write_mae(tmp_path / "mae.pth", *flags)
    trained = load_encoder_model(tmp_path / "mae.pth")
    images = load_split(trained, "test")
    batch = trained.batch([images.image(i) for i in range(len(images))])
    with torch.no_grad():
        tokens = mae.forward_encoder(mae.patchify(batch), torch.arange(16).expand(len(batch), 16))
    for pool, expected in (("mean", tokens[:, 1:].mean(1)), ("cls", tokens[:, 0])):
        for batch_size in (21, 4):
            found = features(trained, images, pool, batch_size, num_workers=0)
            torch.testing.assert_close(found.values, expected, atol=1e-5, rtol=1e-5)
            assert found.labels.tolist() == images.labels.tolist()


@pytest.mark.parametrize("flags", [[], ["--cls_token"], ["--loss", "ldam"]])
def test_features_of_a_classifier_are_what_its_head_takes(tmp_path, picture_folder, flags):
    model = write_classifier(tmp_path / "last.pth", "--input_size", 16, "--data_path", picture_folder, "--crop_pct", 1, *flags)
    trained = load_encoder_model(tmp_path / "last.pth")
    images = load_split(trained, "test")
    with torch.no_grad():
        _, expected = model(trained.batch([images.image(i) for i in range(len(images))]), return_features=True)
    found = features(trained, images, "cls" if "--cls_token" in flags else "mean", num_workers=0)
    torch.testing.assert_close(found.values, expected, atol=1e-5, rtol=1e-5)


def test_the_crop_is_that_of_the_classifiers_evaluation(tmp_path, picture_folder):
    write_classifier(tmp_path / "last.pth", "--input_size", 16, "--data_path", picture_folder, "--crop_pct", .5)
    trained = load_encoder_model(tmp_path / "last.pth")
    images = load_split(trained, "test")
    own, same, other = (features(trained, images, "mean", crop_pct=crop_pct).values for crop_pct in (None, .5, 1))
    assert torch.equal(own, same) and not torch.equal(own, other)


def test_stage_1_learns_what_random_weights_do_not_show(textured, capsys):
    results = run(knn, textured, "--random", "--k", 5)
    (name, learnt), (other, random) = results.items()
    assert name == f"5-NN, {textured}, 10 epochs" and other == "5-NN, untrained weights"
    assert learnt["overall"] > random["overall"] + 15
    table = capsys.readouterr().out
    assert table.startswith("features of 225 images of ") and "evaluated on 100 of" in table
    assert [line.split()[-4:] for line in table.splitlines() if line.startswith("5-NN")] == [
        [f"{result[key]:.1f}" for key in ("many", "medium", "few", "overall")] for result in (learnt, random)]


def test_the_table_is_made_of_the_features_of_both_splits(textured):
    probe, = probes(parse(knn, textured))
    assert probe.class_counts.tolist() == list(COUNTS)
    theirs = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / .07))
    theirs.fit(probe.train.values.double().numpy(), probe.train.labels.numpy())
    right = theirs.predict(probe.test.values.double().numpy()) == probe.test.labels.numpy()
    accuracy = 100 * right.reshape(4, 25).mean(axis=1)
    result, = run(knn, textured).values()
    assert result["per_class_accuracy"] == pytest.approx(accuracy)
    assert (result["many"], result["few"]) == pytest.approx((accuracy[0], accuracy[3]))
    assert result["medium"] == pytest.approx(accuracy[1:3].mean())


def test_untrained_weights_are_those_of_a_run_before_its_first_step(textured):
    torch.rand(3)
    drawn = torch.get_rng_state()
    first, again, learnt = (load_encoder_model(textured, untrained=value).model.state_dict() for value in (True, True, False))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert first.keys() == learnt.keys() and not any(key.startswith("head") for key in first)
    assert all(torch.equal(first[key], again[key]) for key in first)
    same = {key for key in first if torch.equal(first[key], learnt[key])}
    assert same == {"pos_embed"}


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_fit_is_the_optimum_of_its_formula(balanced, classes):
    """Of sum_i w_i ce(W x_i + b, y_i) + |W|^2 / 2C the gradient vanishes, w_i = N / (classes n_y) where balanced."""
    x, C = np.random.default_rng(0).normal(size=(90, 5)), 0.1
    y = np.repeat(np.arange(classes), [60, 30] if classes == 2 else [60, 20, 10])
    x[np.arange(90), y] += 1
    logits = linprobe.linear_logits(x, y, np.vstack([x, np.eye(5), np.zeros((1, 5))]), classes + 1, C, balanced)
    assert (logits[:, classes] < logits[:, :classes].min()).all()  # a class without an image comes last
    z, bias = logits[:90, :classes], logits[-1, :classes]
    weights = logits[90:95, :classes] - bias
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    residual = (p - np.eye(classes)[y]) * (90 / (classes * np.bincount(y)[y])[:, None] if balanced else 1)
    if classes == 2:  # the log-odds alone are penalised: one vector, not two
        residual, weights = residual[:, 1:], weights[:, 1:]
    assert x.T @ residual + weights / C == pytest.approx(0, abs=2e-2)
    assert residual.sum(axis=0) == pytest.approx(0, abs=2e-2)
    assert np.abs(weights / C).max() > 1


def test_standardised_as_a_batch_norm_without_scale_and_shift():
    train, test = 3 * torch.randn(50, 8) + 2, torch.randn(20, 8)
    train[:, 3] = 7.0  # says nothing, and has no deviation
    norm = torch.nn.BatchNorm1d(8, eps=1e-6, affine=False, momentum=None).double()
    expected = norm(train.double())
    x, queries = linprobe.standardise(train, test)
    assert x == pytest.approx(expected.numpy(), abs=1e-9)
    # In evaluation torch takes the unbiased variance; the training images' own scale is meant.
    scale = (train.double().var(0, correction=0) + 1e-6).sqrt()
    assert queries == pytest.approx(((test.double() - train.double().mean(0)) / scale).numpy(), rel=1e-9)


def test_C_is_chosen_on_held_out_training_images(monkeypatch, capsys):
    draw = np.random.default_rng(1)
    y = np.repeat([0, 1, 2, 3], [100, 40, 11, 4])
    x = draw.normal(size=(155, 6))
    x[np.arange(155), y % 3] += 0.8
    label_of = {row.tobytes(): label for row, label in zip(x, y, strict=True)}
    fits, fit = [], linprobe.linear_logits
    monkeypatch.setattr(linprobe, "linear_logits", lambda *arguments: fits.append(arguments) or fit(*arguments))
    chosen = linprobe.choose_C(x, y, 4, True)
    accuracy = {}
    for own, labels, held, classes, C, balanced in fits:
        truth = [label_of[row.tobytes()] for row in held]
        assert np.bincount(truth, minlength=4).tolist() == [20, 8, 2, 1] and len(own) == 124 and balanced
        assert not {row.tobytes() for row in own} & {row.tobytes() for row in held}
        found = fit(own, labels, held, classes, C, balanced).argmax(1)
        accuracy[C] = np.mean([(found == k)[np.equal(truth, k)].mean() for k in range(4)])
    assert tuple(accuracy) == linprobe.GRID and accuracy[chosen] == max(accuracy.values()) > min(accuracy.values())
    assert chosen == min(C for C in accuracy if accuracy[C] == accuracy[chosen])
    assert f"C {chosen:g}, by the mean accuracy over classes on 31 held-out training images" in capsys.readouterr().out


def test_linear_probe_of_the_encoder(textured, capsys):
    chosen, = run(linprobe, textured, "--balanced").values()
    C = float(capsys.readouterr().out.split("\nC ")[1].split(",")[0])
    (name, given), = run(linprobe, textured, "--balanced", "--C", C).items()
    assert given == chosen and name == f"linear probe, balanced, {textured}, 10 epochs"
    assert given["overall"] > 90
    weak, plain = (next(iter(run(linprobe, textured, "--C", 1e-4, *more).values())) for more in (["--balanced"], []))
    assert plain["few"] < weak["few"] and weak["confusion_matrix"] != given["confusion_matrix"]


@pytest.mark.parametrize("flags", [["--features", "cls"], ["--split", "val"], ["--imb_factor", 2], ["--crop_pct", .5],
                                   ["--imb_factor", 2, "--data_seed", 3], ["--dataset", "list"]])
def test_every_flag_reaches_the_features(tmp_path, picture_folder, flags):
    write_mae(tmp_path / "last.pth", "--input_size", 16, "--data_path", picture_folder)
    if "list" in flags:
        (tmp_path / "data").symlink_to(picture_folder)
        for split in ("train", "test"):
            lines = [f"data/{split}/{name}/0{i}.png {label}\n" for label, name in enumerate(("cat", "dog")) for i in range(5)]
            (tmp_path / f"{split}.txt").write_text("".join(lines))
        flags = [*flags, "--data_path", tmp_path]
    plain, changed = (next(probes(parse(knn, tmp_path / "last.pth", *more))) for more in ([], flags))
    parts = [(a.values, b.values) for a, b in zip(plain[1:3], changed[1:3], strict=True)]
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in parts)


@pytest.mark.parametrize(("command", "flags", "words"), [
    (knn, ["--k", 0], "--k must be at least 1, not 0"),
    (knn, ["--k", 42], "--k 42, but there are 41 training images"),
    (knn, ["--temperature", 0], "--temperature must be a finite number above 0, not 0"),
    (knn, ["--batch_size", 0], "--batch_size must be at least 1"),
    (knn, ["--crop_pct", 1.5], r"--crop_pct must lie in \(0, 1\], not 1.5"),
    (knn, ["--num_workers", -1], "--num_workers must not be negative"),
    (knn, ["--dataset", "embedded"], "images of 3 channels, --dataset embedded has 1"),
    (knn, ["--dataset", "unlabeled", "--data_path", "."], "unlabeled has no labelled images to evaluate"),
    (linprobe, ["--C", 0], "--C must be a finite number above 0, not 0")])
def test_wrong_flags_are_refused_in_one_line(tmp_path, picture_folder, command, flags, words):
    write_mae(tmp_path / "last.pth", "--input_size", 16, "--data_path", picture_folder)
    with pytest.raises(ValueError, match=words) as error:
        run(command, tmp_path / "last.pth", *flags)
    assert "\n" not in str(error.value)


def test_an_encoder_of_unlabelled_images_wants_a_data_set(tmp_path, picture_folder):
    write_mae(tmp_path / "last.pth", "--input_size", 16, "--dataset", "unlabeled", "--data_path", picture_folder)
    with pytest.raises(ValueError, match="--dataset unlabeled has no labelled images to evaluate: name others"):
        run(knn, tmp_path / "last.pth")
    result, = run(knn, tmp_path / "last.pth", "--dataset", "folder", "--data_path", picture_folder).values()
    assert result["num_samples"] == 21


def test_a_probe_of_one_class_or_none_to_hold_out():
    x = np.random.default_rng(0).normal(size=(4, 2))
    with pytest.raises(ValueError, match="at least two classes"):
        linprobe.linear_logits(x, np.zeros(4, dtype=int), x, 2, 1.0, False)
    with pytest.raises(ValueError, match="no class has a second training image .* give --C"):
        linprobe.choose_C(x, np.arange(4), 4, False)


def test_metrics_take_shares_of_votes():
    shares = knn.knn_shares(some(60), torch.randn(10, 16), 4, 5, .07)
    assert metrics.evaluate_logits(shares, np.arange(10) % 4, [30, 10, 10, 10])["num_samples"] == 10
