"""Who a process is, out of a launcher's environment."""
import pytest

from util.launch import Launch, first_host, read_environment

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SLURM = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[07-09,12]",
         "SLURM_JOB_ID": "1234567"}


def test_the_environment_says_who_is_who():
    assert read_environment({}) == Launch()
    assert read_environment(TORCHRUN) == Launch(3, 8, 1, "node1", 29500, "torchrun")
    assert read_environment(SLURM) == Launch(3, 8, 1, "gpu07", 15000 + 1234567 % 17000, "srun")
    assert read_environment({**SLURM, **TORCHRUN}).by == "torchrun"  # torchrun inside srun
    assert read_environment({**SLURM, "MASTER_ADDR": "ib0", "MASTER_PORT": "1"}).address == "ib0"
    # In a batch script, before srun, and with an address exported for others.
    assert read_environment({"SLURM_PROCID": "0", "SLURM_JOB_ID": "9", "MASTER_ADDR": "x", "MASTER_PORT": "1"}) == Launch()


@pytest.mark.parametrize(("nodes", "host"), [
    ("gpu07", "gpu07"), ("gpu[07-09,12]", "gpu07"), ("a[1,3]-ib,b2", "a1-ib"), ("login1,gpu[1-2]", "login1")])
def test_the_first_host_of_slurms_list(nodes, host):
    assert first_host(nodes) == host


@pytest.mark.parametrize("launcher", [TORCHRUN, SLURM])
def test_an_environment_that_is_set_in_part_is_refused_with_both_lists(launcher):
    for name in launcher:
        partly = {key: value for key, value in launcher.items() if key != name}
        with pytest.raises(ValueError, match=f"is set in part: .*; {name} missing"):
            read_environment(partly)
    batch = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "5"}  # a script's own
    assert read_environment(batch) == Launch()
    with pytest.raises(ValueError, match="SLURM_PROCID=1, SLURM_LOCALID=1, SLURM_JOB_ID=5; SLURM_STEP_NUM_TASKS, SLURM_STEP_N"):
        read_environment({**batch, "SLURM_PROCID": "1", "SLURM_LOCALID": "1"})
    first = next(iter(launcher))
    with pytest.raises(ValueError, match=f"{first} must be a whole number, not 'x'"):
        read_environment({**launcher, first: "x"})


@pytest.mark.parametrize(("changes", "words"), [
    ({"MASTER_PORT": "99999"}, "MASTER_PORT must be a port, 1 to 65535, not 99999"),
    ({"MASTER_PORT": "0"}, "MASTER_PORT must be a port, 1 to 65535, not 0"),
    ({"RANK": "8"}, "RANK=8 and WORLD_SIZE=8: processes are numbered from 0 to 7"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0: a run has at least 1 process"),
    ({"RANK": "\N{SUPERSCRIPT TWO}"}, "RANK must be a whole number")])
def test_numbers_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        read_environment({**TORCHRUN, **changes})


@pytest.mark.parametrize(("changes", "words"), [
    ({"SLURM_PROCID": "9"}, "SLURM_PROCID=9 and SLURM_STEP_NUM_TASKS=8: processes are numbered from 0 to 7"),
    ({"SLURM_STEP_NUM_TASKS": "0"}, "SLURM_STEP_NUM_TASKS is 0"), ({"MASTER_PORT": "65536"}, "not 65536")])
def test_numbers_of_slurm_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        read_environment({**SLURM, **changes})
