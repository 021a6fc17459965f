"""The benchmarks: what they count and compare, that each prints its table, and their mistakes, in one line each."""
import importlib
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import attention, profile, step, step_cases, step_memory
from benchmarks.step_cases import COMPILED, OURS, PLAIN, Case, Size, step_flops
from tests.processes import NoFigures
from util.args import PROJECT, run_command

CPU = torch.device("cpu")
SMALL = Size("tiny_patch16", 32, 8, 2, 2, 48, 2, 3, (32, 1, 2), 3, 7)  # 16 patches of 192 numbers, 4 of them kept


def run(monkeypatch, module, *flags):
    """The command as the command line does it."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *flags])
    run_command(module.get_args_parser(), module.main)


@pytest.mark.parametrize("stage, who", [(1, OURS), (1, "ours, fused"), (2, OURS), (2, "ours, fused"), (2, PLAIN)])
def test_operations_are_those_that_torch_counts(stage, who, monkeypatch):
    """torch counts no gradient of the images, which nobody needs, and nothing within the fused kernel of a CPU."""
    if who == "ours, fused":
        monkeypatch.setattr(step_cases, "choose_attention", lambda model, *_: attention.use_fused(model, True))
    case = Case("small", SMALL, stage, "fp32", CPU)
    run_step, data = case.build(PLAIN if who == PLAIN else OURS), case.draw(3)
    with FlopCounterMode(display=False) as counter:
        run_step(*data)
    left_out = 2 * {1: 4, 2: 16}[stage] * 192 * 48
    if who == "ours, fused":  # both products of every block, forward and twice backward; (tokens, width) of a block
        blocks = {1: [(5, 48), (5, 48), (17, 32)], 2: [(17, 48), (17, 48)]}[stage]
        left_out += sum(3 * 4 * tokens * tokens * width for tokens, width in blocks)
    assert counter.get_total_flops() == 3 * (step_flops(SMALL, stage) - left_out)


def test_contestants_are_of_one_shape():
    case = Case("small", SMALL, 2, "fp32", CPU)
    assert case.contestants(True, True) == ["timm", PLAIN, "ours", "timm, compiled", "ours, compiled", "ours, recomputed"]
    assert Case("small", SMALL, 2, "fp32", torch.device("cuda")).contestants(False, False) == ["timm", "ours"]
    assert Case("small", SMALL, 1, "bf16", CPU).contestants(True, False) \
        == ["transformers", "ours", "transformers, compiled", "ours, compiled"]
    images, targets = case.draw(20)
    assert images.shape == (20, 3, 32, 32) and targets.shape == (20, 7)
    assert targets.sum(1).tolist() == pytest.approx([1.0] * 20)
    assert step_cases.SIZES["demo"].classes == 10 and step_cases.SIZES["base_224"].classes == 1000


def test_turns_go_round_and_ratios_are_of_the_same_round(monkeypatch):
    now, order = [0.0], []
    monkeypatch.setattr(step, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    takes = {"theirs": [9, 2, 4, 6], "ours": [9, 1, 4, 2], "third": [9, 1, 1, 1]}

    def stepping(who):
        def run_step():
            order.append(who)
            now[0] += takes[who][order.count(who) - 1]
        return run_step
    times = step.time_rounds({who: stepping(who) for who in takes}, (), CPU, rounds=3, warmup=1)
    assert times == {who: values[1:] for who, values in takes.items()}
    assert order == ["third", "theirs", "ours", "theirs", "ours", "third", "ours", "third", "theirs", "third", "theirs", "ours"]
    assert step.speed_ratio(times["ours"], times["theirs"]) == (4 / 2, 1.5, 2.5)  # of the rounds: 2, 1, 3
    assert step.speed_ratio([2.0], [3.0]) == (1.5, 1.5, 1.5)


def number(text):
    return float(text.strip().rstrip("%"))


def rows(out):
    """[(contestant, images/s, ratio, quartiles, share of the peak, GiB)], the peak in operations a second, the ratios below."""
    cells = []
    for line in out.splitlines():
        if re.match(r"\w+ +[12] +(fp32|bf16)", line):
            quartiles = [number(part) for part in line[69:84].split("-") if part.strip()]
            cells.append((line[30:52].strip(), number(line[52:62]), number(line[62:69]), quartiles, number(line[84:93]) / 100,
                          line[93:].strip()))
    peak = 1e12 * number(re.search(r"peak +([\d.]+) TFLOP/s", out).group(1))
    below = re.findall(r"^ {5}(\w.*?)  +([\d.]+) +[\d.]+ - *[\d.]+$", out, re.MULTILINE)
    return cells, peak, {label: number(ratio) for label, ratio in below}


@pytest.fixture
def quick(monkeypatch):
    """No processes that are measured for their memory, and a small product for the peak."""
    monkeypatch.setattr(step_memory, "in_own_process", lambda *_: 3 * 2 ** 28)
    monkeypatch.setitem(step.PRODUCT, "cpu", 512)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("stage, names", [(1, ["transformers", "ours"]), (2, ["timm", PLAIN, "ours"])])
def test_the_table_of_steps(stage, names, monkeypatch, capsys):
    if stage == 1:
        pytest.importorskip("transformers")
    run(monkeypatch, step, "--device", "cpu", "--sizes", "demo", "--stages", str(stage), "--types", "fp32", "--rounds", "2",
        "--warmup", "1", "--batch_size", "16")
    cells, peak, below = rows(capsys.readouterr().out)
    assert [cell[0] for cell in cells] == names
    flops, other, first = step_flops(step_cases.SIZES["demo"], stage), names[0], cells[0][1]
    for who, speed, ratio, quartiles, share, memory in cells:
        assert ratio == pytest.approx(speed / first, abs=0.006) and memory == "0.75"
        assert share == pytest.approx(speed * flops / peak, rel=1e-3, abs=6e-4)
        assert quartiles == sorted(quartiles) and len(quartiles) == (0 if who == other else 2)
    assert list(below) == [f"ours / {name}" for name in names if name != "ours"] and below[f"ours / {other}"] == cells[-1][2]


@pytest.mark.usefixtures("quick")
def test_compiled_stands_beside_compiled(monkeypatch, capsys):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(type(self).__name__))
    monkeypatch.setattr(step, "check_compiler", compiled.append)
    run(monkeypatch, step, "--device", "cpu", "--sizes", "demo", "--stages", "2", "--types", "fp32", "--rounds", "1",
        "--warmup", "1", "--batch_size", "2", "--compile")
    cells, _, below = rows(capsys.readouterr().out)
    assert compiled == [CPU, "VisionTransformer"] + ["Block"] * 4
    assert [(cell[0], cell[5]) for cell in cells] \
        == [("timm", "0.75"), (PLAIN, "0.75"), (OURS, "0.75"), ("timm, compiled", "-"), (COMPILED, "-")]
    medians = {cell[0]: cell[1] for cell in cells}
    assert below["both compiled"] == pytest.approx(medians[COMPILED] / medians["timm, compiled"], abs=0.006)
    assert below["ours compiled / timm as it is"] == pytest.approx(medians[COMPILED] / medians["timm"], abs=0.006)


@pytest.mark.parametrize("limit", [64, 127, 128, 250, 1000, 1023, 1500, 1999, 5000])
def test_the_largest_batch(limit):
    tried = []
    found = step_memory.largest_batch(lambda batch: tried.append(batch) or batch <= limit)
    assert found in tried and found % 64 == 0 and limit - max(128, 1.2 * found / 8 + 64) < found <= limit
    assert len(tried) == len(set(tried)) <= 12


def test_the_largest_batch_is_searched_with_all_contestants_there():
    """The second needs half as much again, and a step that failed leaves its gradients until one that does not."""
    case, held, built = Case("small", SMALL, 2, "bf16", torch.device("cuda")), {}, []

    def build(who):
        built.append(who)
        need = 1.5 if who == OURS else 1.0

        def run_step(batch):
            taken = need * batch + sum(size for other, size in held.items() if other != who)
            held[who] = 0 if taken <= 1500 else 800
            if held[who]:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return run_step
    stub = SimpleNamespace(other=case.other, other_compiled=case.other_compiled, build=build, draw=lambda batch: (batch,))
    assert step_memory.search_largest(stub, case.contestants(True, False)) == 960
    assert built == ["timm", OURS, "timm", OURS]
    with pytest.raises(ValueError, match="--largest begins at a batch of 64"):
        step_memory.largest_batch(lambda batch: False)


@pytest.mark.skipif(not step_memory.CLEAR_REFS.exists(), reason="Linux alone says in a file what a process has resident")
def test_memory_is_that_of_a_process_of_its_own():
    case = Case("small", SMALL, 2, "fp32", CPU)
    before = step_memory.resident("VmHWM")
    found = step_memory.in_own_process(step_memory.host_memory, case, "timm", 1024)
    assert 1024 * 3 * 32 * 32 * 4 < found < 2 ** 30  # more than the images
    assert step_memory.resident("VmHWM") >= before


@pytest.mark.parametrize("flags, words", [
    (["--device", "foo"], "--device foo is not usable here"),
    (["--device", "mps"], "cpu and cuda only: use --device auto"),
    (["--rounds", "0"], "--rounds must be at least 1, not 0"),
    (["--warmup", "0"], "--warmup must be at least 1, not 0"),
    (["--batch_size", "0"], "--batch_size must be at least 1, not 0"),
    (["--batch_size", "-3"], "--batch_size must be at least 1, not -3"),
    (["--sizes", "huge"], "choose from 'demo', 'tiny_32', 'base_224', 'large_224'|choose from demo, tiny_32"),
    (["--largest"], "--largest looks for what a GPU has memory for, and the device is cpu"),
    (["--stages", "1"], "pip install -r requirements-optional.txt, or use --stages 2"),
    (["--model", "vit_base"], "unknown model 'vit_base'; known: mae_vit_tiny_patch16"),
    (["--model", "mae_vit_base_patch16", "--input_size", "225"], "225 x 225 is no multiple of the patch size 16"),
    (["--model", "mae_vit_base_patch16", "--sizes", "demo"], "both choose the model: give one"),
    (["--patch_size", "8"], "--patch_size 8 does nothing without --model"),
])
def test_mistakes_end_in_one_line(flags, words, monkeypatch, capsys):
    monkeypatch.setattr(step, "find_spec", lambda _: None)
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, step, "--device", "cpu", "--stages", "2", *flags)
    shown = capsys.readouterr()
    assert end.value.code == 2 and re.search(words, shown.err)
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1 and shown.out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_no_cuda_device(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, step, "--device", "cuda", "--largest")
    assert "finds no CUDA device here: use --device cpu" in capsys.readouterr().err


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: cannot")])
def test_too_large_a_batch_ends_in_one_line(error, monkeypatch, capsys):
    def out_of_memory(*_):
        raise error
    monkeypatch.setattr(Case, "draw", out_of_memory)
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, step, "--device", "cpu", "--stages", "2", "--types", "fp32", "--batch_size", "99999")
    shown = capsys.readouterr().err
    assert end.value.code == 2 and shown.count("\n") == 1
    assert "demo, stage 2, fp32 at a batch of 99999 with 3 contestants: give a smaller --batch_size" in shown


def test_a_model_by_its_name_and_what_a_large_gpu_does(monkeypatch):
    def chosen(device, *flags):
        return step.chosen_sizes(step.get_args_parser().parse_args(flags), torch.device(device))
    assert chosen("cpu", "--model", "mae_vit_base_patch16") == {"base_224": Size("base_patch16", 224, 16, 8, 64)}
    tiny = chosen("cpu", "--model", "mae_vit_tiny_patch16", "--input_size", "32", "--patch_size", "4")
    assert tiny == {"tiny_32": Size("tiny_patch16", 32, 4, 8, 64)}
    smaller = ["demo", "tiny_32", "base_224"]
    for gib, names in ((40, smaller), (79, [*smaller, "large_224"])):
        properties = SimpleNamespace(total_memory=gib * 2 ** 30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, found=properties: found)
        assert list(chosen("cuda")) == names
    assert list(chosen("cpu")) == smaller and list(chosen("cuda", "--sizes", "demo")) == ["demo"]


def test_the_table_of_kernels(monkeypatch, capsys):
    run(monkeypatch, attention, "--device", "cpu", "--parts", "28_7", "--rounds", "1")
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("28_7")]
    assert [line[1:5] for line in lines] == [["16", "64", stage, word] for stage in "12" for word in ("bf16", "fp32")]
    for *_, fused, plain, ratio, takes in lines:
        assert float(ratio) == pytest.approx(float(plain) / float(fused), abs=0.006) and takes == "plain"


@pytest.mark.usefixtures("few_embedded_images")
def test_the_table_of_where_time_goes(monkeypatch, capsys):
    for stage in (profile.main_pretrain, profile.main_finetune):
        monkeypatch.setattr(stage, "figures", NoFigures())
    monkeypatch.setattr(profile.main_pretrain, "show_reconstructions", lambda *_: None)
    run(monkeypatch, profile, "--", "--device", "cpu", "--amp", "off")
    tables = re.split(r"embedded/\w+, \d+ threads: ", capsys.readouterr().out)[1:]
    assert len(tables) == 2
    for table in tables:
        shares = [number(share) for share in re.findall(r"^  \w.{23} *([-\d.]+)%$", table, re.MULTILINE)]
        assert len(shares) > 6 and sum(shares) == pytest.approx(100, abs=1)


@pytest.mark.parametrize("name", sorted(path.stem for path in (PROJECT / "benchmarks").glob("[a-z]*.py")))
def test_every_command_says_what_it_takes(name):
    module = importlib.import_module(f"benchmarks.{name}")
    if name not in ("step_cases", "step_memory"):
        assert module.__doc__.splitlines()[0].split()[0] in module.get_args_parser().format_help()
