"""The optimiser step: accumulation with its tail, clipping, precision, and steps that are not finite."""
import math
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import nn

from tests.test_loop import StubLoader
from util.distributed import World
from util.loop import micro_batches
from util.lr import Schedule
from util.precision import choose_amp
from util.session import Session
from util.setup import Machine, spread
from util.steps import NonFiniteError, Stepper, StepPlan, build_optimizer, derive_accumulation

CPU = torch.device("cpu")


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))


def make(model, **options):
    return Stepper(model, build_optimizer([{"params": list(model.parameters())}], 1e-2, (0.9, 0.95)), CPU, **options)


def train(model, stepper, plan, inputs, targets, epochs=3):
    for _ in range(epochs):
        for part in plan.micro_batches():
            own = slice(part.index * plan.batch_size, (part.index + 1) * plan.batch_size)
            stepper.backward((model(inputs[own]) - targets[own]).square().mean(), part.weight)
            if part.last:
                stepper.step(plan.samples(part.step))
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize(("num", "batch", "accum"), [(64, 8, 4), (37, 4, 3), (10, 4, 4), (7, 8, 2), (33, 8, 4)])
def test_accumulation_equals_one_big_batch_tail_included(num, batch, accum):
    inputs, targets = torch.randn(num, 5, generator=torch.Generator().manual_seed(1)), torch.randn(num, 1)
    accumulated, whole = small_net(), small_net()
    plan = StepPlan(num, batch, accum)
    one = train(accumulated, make(accumulated), plan, inputs, targets)
    other = train(whole, make(whole), StepPlan(num, batch * accum, 1), inputs, targets)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("num", "batch", "accum"), [(64, 8, 4), (37, 4, 3), (10, 4, 4), (7, 8, 2)])
def test_plan_counts_every_sample_once(num, batch, accum):
    plan = StepPlan(num, batch, accum)
    parts = plan.micro_batches()
    assert [part.index for part in parts] == list(range(math.ceil(num / batch)))
    assert sum(plan.samples(part.step) for part in parts if part.last) == num
    assert sum(part.last for part in parts) == plan.steps_per_epoch and parts[-1].last


@pytest.mark.parametrize("own_parts", [False, True])
@pytest.mark.parametrize(("num", "batch", "accum", "processes"), [
    (64, 8, 2, 2), (37, 4, 3, 2), (10, 4, 4, 3), (3, 8, 1, 2), (33, 8, 2, 3), (101, 5, 2, 4)])
def test_a_plan_over_processes_has_every_sample_once_and_equal_steps(own_parts, num, batch, accum, processes):
    plans = [StepPlan(num, batch, accum, processes, process, own_parts) for process in range(processes)]
    parts = [plan.micro_batches() for plan in plans]
    steps = [plan.samples(step) for plan in plans[:1] for step in range(plans[0].steps_per_epoch)]
    assert sum(steps) == num and max(steps) <= batch * accum * processes == plans[0].effective_batch_size
    for step, samples in enumerate(steps):
        here = [part for own in parts for part in own if part.step == step]
        assert sum(part.weight for part in here) == pytest.approx(1)
        assert sum(part.last for part in here) == processes  # all of them take part in the exchange
        counted = [part for part in here if part.weight]
        assert len({part.place for part in counted}) == len(counted)
        sizes = [round(part.weight * samples) for part in counted]
        assert all(1 <= size <= batch for size in sizes)
    if not own_parts:
        counted = sorted(part.index for own in parts for part in own if part.weight)
        assert counted == list(range(math.ceil(num / batch)))
    else:  # consecutive in each process, the last one perhaps twice
        for own in parts:
            assert [part.index for part in own if part.weight] == list(range(len([part for part in own if part.weight])))


def test_epoch_means_are_over_samples_not_over_batches():
    model, plan = small_net(), StepPlan(10, 4, 1)
    stepper = make(model)
    losses = [1.0, 2.0, 7.0]
    for index, value in enumerate(losses):
        stepper.backward(model(torch.ones(1, 5)).sum() * 0 + value, 1.0)
        stepper.step(plan.samples(index))
    assert stepper.read("")["train_loss"] == pytest.approx((4 * 1 + 4 * 2 + 2 * 7) / 10)


def test_clipping_and_the_norm_that_is_logged():
    model = small_net()
    stepper = make(model, clip_grad=0.5)
    seen = []
    stepper.optimizer.register_step_pre_hook(lambda *_: seen.append([p.grad.clone() for p in model.parameters()]))
    x = torch.ones(4, 5) * 10
    reference = small_net()
    (reference(x).sum() * 50).backward()
    norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in reference.parameters()))
    stepper.backward(model(x).sum() * 50, 1.0)
    stepper.step(4)
    assert norm > 0.5 and stepper.read("")["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert math.sqrt(sum(g.double().square().sum().item() for g in seen[0])) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(poison, where):
    model = small_net()
    stepper = make(model)
    train(model, stepper, StepPlan(8, 4, 1), torch.randn(8, 5), torch.randn(8, 1), epochs=1)
    before = [p.detach().clone() for p in model.parameters()]
    moments = [{k: v.clone() for k, v in s.items()} for s in stepper.optimizer.state.values()]
    loss = model(torch.ones(2, 5)).sum()
    if where == "loss":
        stepper.backward(loss * poison, 1.0)
    else:
        stepper.backward(loss, 1.0)
        next(model.parameters()).grad[0, 0] = poison
    stepper.step(2)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    for old, new in zip(moments, stepper.optimizer.state.values(), strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)
    record = stepper.read("")
    assert record["skipped_steps"] == 1 and math.isfinite(record["train_loss"])
    train(model, stepper, StepPlan(8, 4, 1), torch.randn(8, 5), torch.randn(8, 1), epochs=1)
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_skipped_step_leaves_the_moving_average_where_it_is():
    model = small_net()
    stepper = make(model, ema=ModelEmaV3(model, decay=0.5))
    train(model, stepper, StepPlan(8, 4, 1), torch.randn(8, 5), torch.randn(8, 1), epochs=1)
    before = [p.clone() for p in stepper.ema.module.parameters()]
    stepper.backward(model(torch.ones(2, 5)).sum() * float("nan"), 1.0)
    stepper.step(2)
    assert all(torch.equal(a, b) for a, b in zip(before, stepper.ema.module.parameters(), strict=True))
    assert not torch.equal(before[0], next(model.parameters()))  # so that there was somewhere to go
    stepper.backward(model(torch.ones(2, 5)).sum(), 1.0)
    stepper.step(2)
    assert not any(torch.equal(a, b) for a, b in zip(before, stepper.ema.module.parameters(), strict=True))


def test_too_many_bad_steps_in_a_row_stop_with_a_message():
    model = small_net()
    stepper = make(model, max_bad_steps=3)

    def bad():
        stepper.backward(model(torch.ones(1, 5)).sum() * float("nan"), 1.0)
        stepper.step(1)

    def good():
        stepper.backward(model(torch.ones(1, 5)).sum(), 1.0)
        stepper.step(1)

    for step in (bad, bad, good, bad, bad):
        step()
    assert stepper.read("")["skipped_steps"] == 4
    stepper.start_epoch()  # the row goes on over the end of an epoch
    bad()
    with pytest.raises(NonFiniteError, match="3 steps in a row .epoch 4, lr 0.1, gradient norm nan") as caught:
        stepper.read("epoch 4, lr 0.1")
    assert caught.value.first == 3
    stepper.forget_bad_row()
    stepper.read("")


def test_no_checkpoint_is_written_within_a_row_of_bad_steps(monkeypatch):
    model, bad, saved = small_net(), {(0, 1), (1, 2), (2, 0)}, []
    stepper = make(model)
    monkeypatch.setattr(Session, "save", lambda self: saved.append((self.epoch, self.step)))
    session = Session("pretrain", {}, SimpleNamespace(log=lambda record: None), stepper, None, StepPlan(6, 2, 1), None, None,
                      World(), save_steps=1)

    def train_epoch(epoch, first_step, after_step):
        for step in range(3):
            stepper.backward(model(torch.ones(2, 5)).sum() * (float("nan") if (epoch, step) in bad else 1.0), 1.0)
            stepper.step(2)
            after_step(step + 1)
        return {"train_loss": 0.5}
    session.train(4, train_epoch, lambda epoch, record: record)
    assert saved == [(0, 1), (1, 0), (1, 1), (1, 2), (2, 2), (3, 0), (3, 1), (3, 2), (4, 0)]


@pytest.fixture
def gloo():
    """A group of processes that has this one alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(("accum", "expected"), [(3, [3, 6, 9, 10]), (1, list(range(1, 11)))])
def test_gradients_are_exchanged_in_the_last_micro_batch_of_a_step_only(gloo, accum, expected):
    plan, seen, exchanged = StepPlan(37, 4, accum), [], []
    network = spread(small_net(), plan, Machine(CPU, None, World(size=2)))
    assert network.gradient_as_bucket_view and network.static_graph == (accum == 1)

    def exchange(_, bucket):
        exchanged.append(len(seen))
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future
    network.register_comm_hook(None, exchange)
    stepper = make(network)
    stepper.processes = 2  # of which this is the one that is here
    for batch, _, weight in micro_batches(StubLoader(), stepper, plan, Schedule(1e-2, 0.0, 0, 5), 0, 7, 50):
        seen.append(batch)
        stepper.backward(network(torch.ones(len(batch[0]), 5)).square().mean(), weight)
    assert exchanged == expected


def test_state_is_restored():
    stepper, other = make(small_net()), make(small_net())
    stepper.backward(next(iter(stepper.parameters)).sum() * float("nan"), 1.0)
    stepper.step(1)
    other.load_state_dict(stepper.state_dict())
    assert other.bad_in_row == 1 and other.total == 1 and other.read("")["skipped_steps"] == 1


def test_the_scale_of_fp16_is_restored():
    stepper, other = make(small_net(), amp=torch.float16), make(small_net(), amp=torch.float16)
    for poison in (1.0, float("inf"), 1.0):
        stepper.backward(stepper.model(torch.ones(2, 5)).sum() * poison, 1.0)
        stepper.step(2)
    scale, growth = stepper.scaler.get_scale(), stepper.scaler.state_dict()["_growth_tracker"]
    assert scale == other.scaler.get_scale() / 2 and growth == 1
    other.load_state_dict(stepper.state_dict())
    assert (other.scaler.get_scale(), other.scaler.state_dict()["_growth_tracker"]) == (scale, growth)


@pytest.mark.parametrize(("batch", "accum", "effective", "derived"), [
    (64, None, None, 1), (64, 4, None, 4), (64, None, 1024, 16), (64, 16, 1024, 16)])
def test_accumulation_is_derived(batch, accum, effective, derived):
    assert derive_accumulation(batch, accum, effective) == derived


@pytest.mark.parametrize(("batch", "accum", "effective", "words"), [
    (48, None, 1024, r"1024 is no multiple of --batch_size 48 \(remainder 16\)"),
    (64, 8, 1024, "means 16 .* --accum_iter is 8"),
    (0, None, None, "--batch_size must be at least 1, not 0"), (8, 0, None, "--accum_iter must be"),
    (8, None, -8, "--effective_batch_size must be")])
def test_batches_that_cannot_be_are_refused_with_all_numbers(batch, accum, effective, words):
    with pytest.raises(ValueError, match=words):
        derive_accumulation(batch, accum, effective)


def test_amp_says_what_it_chose_and_why():
    for choice, dtype in (("off", None), ("bf16", torch.bfloat16)):
        assert choose_amp(choice, CPU)[0] is dtype
    dtype, reason = choose_amp("auto", CPU)
    assert ("has native bf16" in reason) == (dtype is torch.bfloat16) and "auto: this CPU" in reason
    with pytest.raises(ValueError, match="--amp fp16 on a CPU"):
        choose_amp("fp16", CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 with loss scaling needs a CUDA device")
def test_fp16_scales_the_loss_and_skips_overflow():
    device = torch.device("cuda")
    model = small_net().to(device)
    optimizer = build_optimizer([{"params": list(model.parameters())}], 1e-2, (0.9, 0.95))
    stepper = Stepper(model, optimizer, device, torch.float16)
    before = [p.detach().clone() for p in model.parameters()]
    stepper.backward(model(torch.ones(2, 5, device=device)).sum() * float("inf"), 1.0)
    stepper.step(2)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    stepper.backward(model(torch.ones(2, 5, device=device)).sum(), 1.0)
    stepper.step(2)
    assert stepper.read("")["skipped_steps"] == 1
    assert not torch.equal(before[0], next(model.parameters()))
