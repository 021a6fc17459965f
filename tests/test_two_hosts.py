"""torchrun over two hosts: two network namespaces of this machine, each with an address of its own."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DECODER, TINY
from tests.test_distributed import MAE, VIT

PROJECT = Path(__file__).resolve().parent.parent
HOSTS = {"livt-a": "10.231.7.1", "livt-b": "10.231.7.2"}


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def hosts():
    """Two namespaces joined by a cable. Skips where this user may not make them."""
    if not shutil.which("ip"):
        pytest.skip("no `ip` command to make two network namespaces with")
    try:
        for name in HOSTS:
            ip("netns", "add", name)
        ip("link", "add", "livt-va", "netns", "livt-a", "type", "veth", "peer", "name", "livt-vb", "netns", "livt-b")
        for name, address in HOSTS.items():
            device = f"livt-v{name[-1]}"
            ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
            ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "link", "set", "lo", "up")
    except (subprocess.CalledProcessError, OSError) as error:
        remove()
        pytest.skip(f"this user may not make network namespaces ({error})")
    yield list(HOSTS)
    remove()


def remove():
    for name in HOSTS:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_two_hosts_compute_what_one_does(hosts, data_flags, tmp_path, stage):
    flags = [*data_flags, *TINY, *(MAE + DECODER if stage == "pretrain" else VIT), "--epochs", 2]
    own = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    run = [sys.executable, "-m", "torch.distributed.run"]
    script = [str(PROJECT / f"main_{stage}.py"), *map(str, flags)]
    jobs = []
    for name in hosts:
        # These hosts have no names that lead to their addresses, so torchrun and gloo are told what they else look up.
        environment = {**own, "GLOO_SOCKET_IFNAME": f"livt-v{name[-1]}"}
        torchrun = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", stage, "--rdzv_endpoint",
                    f"{HOSTS['livt-a']}:29400", "--rdzv_conf", f"is_host={name == 'livt-a'}", "--local_addr", HOSTS[name]]
        command = [*run, *torchrun, *script, "--batch_size", "8", "--output_dir", str(tmp_path / "two")]
        jobs.append(subprocess.Popen(["ip", "netns", "exec", name, *command], env=environment, stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT, text=True))
    output = [job.communicate(timeout=120)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], "\n".join(output)
    subprocess.run([sys.executable, *script, "--batch_size", "8", "--accum_iter", "2", "--output_dir", str(tmp_path / "one")],
                   check=True, env=own, capture_output=True)
    one, two = ([json.loads(line)["train_loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
                for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5) and len(two) == 2
