"""The loop over micro-batches: which rate, weight and seed each gets, with a stub for loader and optimiser."""
from types import SimpleNamespace

import pytest
import torch

from util.loop import micro_batches
from util.lr import Schedule
from util.seed import derive_seed
from util.steps import StepPlan


class StubLoader:
    """37 samples in micro-batches of 4, the last of 1."""

    def __init__(self):
        self.batch_sampler = SimpleNamespace(set_epoch=lambda epoch: setattr(self, "epoch", epoch))

    def __len__(self):
        return 10

    def __iter__(self):
        return iter([(torch.zeros(4),)] * 9 + [(torch.zeros(1),)])


class StubStepper:
    """Writes down what it is asked for."""

    def __init__(self):
        self.optimizer = SimpleNamespace(param_groups=[{"lr": None, "lr_scale": 0.5}, {"lr": None}])
        self.steps, self.reads, self.started = [], [], 0

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
    yielded = [(seed, weight) for _, seed, weight in loop]
    assert loader.epoch == 2 and stepper.started == 1
    # Four steps of 12, 12, 12 and 1 samples: each sample of a step counts the same.
    assert [weight for _, weight in yielded] == pytest.approx([4 / 12] * 9 + [1.0])
    assert [seed for seed, _ in yielded] == [derive_seed(7, "step", 8 + i // 3, i % 3) for i in range(10)]
    rates = [schedule.at(2 + step / 4) for step in range(4)]
    assert [samples for samples, _ in stepper.steps] == [12, 12, 12, 1]
    assert [lr for _, lr in stepper.steps] == [pytest.approx([0.5 * rate, rate]) for rate in rates]
    assert len(stepper.reads) == 2 and stepper.reads[0].startswith("epoch 2, step 1, lr ")


def test_a_long_epoch_tells_where_it_is(monkeypatch, capsys):
    def lines(seconds):
        monkeypatch.setattr("util.loop.LINE_SECONDS", seconds)
        list(micro_batches(StubLoader(), StubStepper(), StepPlan(37, 4, 3), Schedule(1.0, 0.1, 1, 5), 2, 7, log_every=2))
        return capsys.readouterr().out.splitlines()
    assert lines(1000) == []
    first, second = lines(0)
    assert first.startswith("epoch 2, step 1, lr ") and first.endswith("of 4 steps: mean loss so far 0.2500")
    assert second.startswith("epoch 2, step 3")
