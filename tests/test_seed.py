"""Seeds are functions of their key, and seeding a draw leaves the global generators as they were."""
import contextlib
import random

import numpy as np
import torch

from util.seed import derive_seed, rng_state, seed_everything, seeded, set_rng_state


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_seed_is_a_function_of_its_key_on_every_machine():
    assert derive_seed(0, "step", 17, 3) == derive_seed(0, "step", 17, 3) == 4454474308618351653
    keys = [(s, w, i, j) for s in range(3) for w in ("step", "order") for i in range(20) for j in range(20)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    assert all(0 <= derive_seed(*key) < 2**63 for key in keys)


def test_the_named_accelerator_is_seeded_not_the_current_one(monkeypatch):
    """Two made-up devices, 0 being current: seeding device 1 must reach device 1."""
    class Fake:
        current, seeds = 0, {}

        @contextlib.contextmanager
        def device(self, device):
            before, self.current = self.current, device.index
            yield
            self.current = before

        def manual_seed(self, seed):
            self.seeds[self.current] = seed

    fake = Fake()
    monkeypatch.setattr(torch, "cuda", fake)
    seed_everything(11, torch.device("cuda:1"))
    assert fake.seeds == {1: 11}


def test_seeded_draws_repeat_and_leave_no_trace():
    outside = draws()
    state = rng_state()
    with seeded(5):
        first = draws()
    assert draws() != outside
    set_rng_state(state)
    after = draws()
    set_rng_state(state)
    with seeded(5):
        assert draws() == first
    assert draws() == after
    with seeded(6):
        assert draws() != first
