"""The loop over micro-batches: which rate, weight and seed each gets, with a stub for loader and optimiser."""
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from util.log_line import log_line
from util.loop import epoch_record, host_memory, micro_batches, on_device
from util.lr import Schedule
from util.seed import derive_seed
from util.steps import Clock, StepPlan


class StubLoader:
    """37 samples in micro-batches of 4, the last of 1, or of another size."""

    def __init__(self, size=4):
        self.size = size
        self.batch_sampler = SimpleNamespace(set_epoch=self.set_epoch)

    def set_epoch(self, epoch, micro_batches):
        self.epoch, self.micro_batches = epoch, list(micro_batches)

    def __len__(self):
        return 10

    def __iter__(self):
        return iter([(torch.zeros(min(self.size, 37 - index * self.size)),) for index in self.micro_batches])


class StubStepper:
    """Writes down what it is asked for."""

    def __init__(self):
        self.optimizer = SimpleNamespace(param_groups=[{"lr": None, "lr_scale": 0.5}, {"lr": None}])
        self.steps, self.reads, self.started, self.clock = [], [], 0, Clock()
        self.meetings, self.max_bad_steps, self.device = [], 20, torch.device("cpu")

    def gradients_meet(self, last):
        self.meetings.append(last)
        return nullcontext()

    def start_epoch(self):
        self.started += 1

    def step(self, samples):
        self.steps.append((samples, [group["lr"] for group in self.optimizer.param_groups]))

    def read(self, where):
        self.reads.append(where)
        return {"train_loss": 0.25}


def test_rates_weights_and_seeds():
    loader, stepper, schedule = StubLoader(), StubStepper(), Schedule(1.0, 0.1, 1, 5)
    loop = micro_batches(loader, stepper, StepPlan(37, 4, 3), schedule, 2, 7, log_every=2)
    yielded = [(drawn, weight) for _, drawn, weight in loop]
    assert loader.epoch == 2 and stepper.started == 1
    # Four steps of 12, 12, 12 and 1 samples: each sample of a step counts the same.
    assert [weight for _, weight in yielded] == pytest.approx([4 / 12] * 9 + [1.0])
    assert [drawn.seed for drawn, _ in yielded] == [derive_seed(7, "step", 8 + i // 3, i % 3) for i in range(10)]
    rates = [schedule.at(2 + step / 4) for step in range(4)]
    assert [samples for samples, _ in stepper.steps] == [12, 12, 12, 1]
    assert [lr for _, lr in stepper.steps] == [pytest.approx([0.5 * rate, rate]) for rate in rates]
    assert len(stepper.reads) == 2 and stepper.reads[0].startswith("epoch 2, step 1, lr ")
    assert stepper.meetings == [False, False, True] * 3 + [True]


def test_the_rest_of_an_epoch_is_what_the_whole_epoch_has():
    def epoch(plan, first_step=0):
        done, stepper = [], StubStepper()
        loop = micro_batches(StubLoader(), stepper, plan, Schedule(1.0, 0.1, 1, 5), 2, 7, 50, first_step, done.append)
        return [(len(batch[0]), drawn, weight) for batch, drawn, weight in loop], stepper, done
    whole, stepper, done = epoch(StepPlan(37, 4, 3))
    rest, later, _ = epoch(StepPlan(37, 4, 3), 2)
    assert done == [1, 2, 3, 4] and rest == whole[6:] and later.steps == stepper.steps[2:]
    assert (stepper.started, later.started) == (1, 0)  # the sums of the steps before came out of the checkpoint


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_do_together_what_one_does_with_more_accumulation(processes):
    def epoch(plan):
        return [(drawn.seed, drawn.first, len(batch[0]), weight) for batch, drawn, weight in
                micro_batches(StubLoader(), StubStepper(), plan, Schedule(1.0, 0.1, 1, 5), 2, 7, 50)]
    one = epoch(StepPlan(37, 4, 2 * processes))
    spread = [part for process in range(processes) for part in epoch(StepPlan(37, 4, 2, processes, process))]
    # A process that has none left repeats one that counts nothing, to take part in the exchange.
    assert sorted(part for part in spread if part[3]) == sorted(one)
    assert all(size for _, _, size, _ in spread)


def test_images_draw_the_same_however_a_step_is_cut():
    """A step of 24 in micro-batches of 4, of 8, of 24, and spread over three processes."""
    def epoch(plan):
        loader = StubLoader(plan.batch_size)
        return [(drawn.first, row, seed) for batch, drawn, _ in
                micro_batches(loader, StubStepper(), plan, Schedule(1.0, 0.1, 1, 5), 2, 7, 50)
                for row, seed in zip(drawn.of_images("mask", len(batch[0]), 5, torch.device("cpu")),
                                     (drawn.of_image("erase", i) for i in range(len(batch[0]))), strict=True)]

    def rows(parts):
        assert len(parts) == 37
        return [(row.tolist(), seed) for _, row, seed in parts]
    expected = rows(epoch(StepPlan(37, 4, 6)))
    assert len({tuple(row) for row, _ in expected}) == len({seed for _, seed in expected}) == 37
    for plan in (StepPlan(37, 8, 3), StepPlan(37, 24, 1)):
        assert rows(epoch(plan)) == expected
    spread = [epoch(StepPlan(37, 4, 2, 3, process)) for process in range(3)]
    assert sorted(rows([part for parts in spread for part in parts])) == sorted(expected)


def test_a_long_epoch_tells_where_it_is(monkeypatch, capsys):
    def lines(seconds):
        monkeypatch.setattr("util.loop.LINE_SECONDS", seconds)
        list(micro_batches(StubLoader(), StubStepper(), StepPlan(37, 4, 3), Schedule(1.0, 0.1, 1, 5), 2, 7, log_every=2))
        return capsys.readouterr().out.splitlines()
    assert lines(1000) == []
    first, second = lines(0)
    assert first.startswith("epoch 2, step 1, lr ") and first.endswith("of 4 steps: mean loss so far 0.2500")
    assert second.startswith("epoch 2, step 3")


def test_batches_come_to_the_device():
    batches = [(torch.arange(3.0), torch.arange(3)), (torch.arange(1.0), torch.arange(1))]
    assert [[(part.device.type, len(part)) for part in batch] for batch in on_device(batches, torch.device("meta"))] \
        == [[("meta", 3)] * 2, [("meta", 1)] * 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="copies beside the computation need a CUDA device")
def test_copies_beside_the_computation_bring_every_batch_whole():
    device, sums = torch.device("cuda"), []
    batches = [torch.full((8, 2 ** 20), float(index)).pin_memory() for index in range(40)]
    weight = torch.rand(4096, 4096, device=device)
    for images, in on_device(([batch] for batch in batches), device):
        weight = (weight @ weight).clamp(0, 1)  # the copies overtake this
        sums.append(images.double().mean() + 0 * weight[0, 0])
    assert torch.stack(sums).tolist() == list(range(40))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone says in a file what a process has resident")
def test_the_memory_that_the_record_has_is_this_process_s():
    before = host_memory()
    large = torch.ones(2 ** 27, dtype=torch.uint8)
    with open("/proc/self/status") as status:
        resident = next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    assert before <= host_memory() and abs(host_memory() - resident) < 2 ** 25 and large.all()


def test_the_record_of_an_epoch_says_how_long_it_took_and_how_much_of_that_it_waited(monkeypatch):
    """37 images in ten micro-batches: each takes .75 s to load, however long it is, and 1.25 s to compute."""
    now = [100.0]
    for module in ("util.loop", "util.steps"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(perf_counter=lambda: now[0], monotonic=lambda: now[0]))
    monkeypatch.setattr("util.loop.host_memory", lambda: 12345)

    class SlowLoader(StubLoader):
        def __iter__(self):
            for batch in super().__iter__():
                now[0] += 0.75
                yield batch
    stepper, plan = StubStepper(), StepPlan(37, 4, 3)
    for _ in micro_batches(SlowLoader(), stepper, plan, Schedule(1.0, 0.1, 1, 5), 2, 7, 50):
        now[0] += 1.25
    record = epoch_record(stepper, plan, 2)
    assert {name: record[name] for name in ("epoch", "train_loss", "seconds", "images_per_second", "data_wait")} \
        == {"epoch": 2, "train_loss": 0.25, "seconds": 20.0, "images_per_second": 1.9, "data_wait": 0.375}  # 37 / 20 = 1.85
    assert record["host_memory_bytes"] == 12345 and record["device_memory_bytes"] is None


def test_the_printed_line_of_an_epoch():
    record = {"epoch": 3, "train_loss": 0.5, "lr": 1e-3, "grad_norm": 0.2, "images_per_second": 3000.0, "data_wait": 0.0123,
              "device_memory_bytes": None, "host_memory_bytes": 2 ** 30, "skipped_steps": 0}
    line = "epoch   3  loss 0.5000  lr 1.00e-03  grad 0.20  3000 images/s, 1.2% waiting for data"
    assert log_line(record) == line + ", 1.0 GiB"
    assert log_line({**record, "device_memory_bytes": 2 ** 31}) == line + ", 2.0 GiB"
    assert log_line({**record, "host_memory_bytes": None, "skipped_steps": 2}) == line + "  2 steps skipped, not finite"
