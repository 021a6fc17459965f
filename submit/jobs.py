"""A run of a stage as a job of submitit: what the cluster's tasks call, and what happens when they are asked to stop."""
import os
import signal
import sys
from dataclasses import dataclass, field

import submitit

from util.args import Parser, outcome
from util.distributed import world
from util.signals import Stopped

REQUEUED_BY = (signal.SIGUSR1, signal.SIGUSR2)  # the time is over, or the scheduler wants the place: go on later


def stage_module(stage: str):
    """main_pretrain or main_finetune, imported when it is needed."""
    import main_finetune
    import main_pretrain
    return {"pretrain": main_pretrain, "finetune": main_finetune}[stage]


def stage_parser(stage: str) -> Parser:
    """The parser of a stage's flags."""
    return stage_module(stage).get_args_parser()


@dataclass
class StageJob:
    """`main(args)` of a stage, called in every task of a job.

    stage: "pretrain" or "finetune"; argv: its flags. A job that was stopped by SIGUSR1 or SIGUSR2 has saved and is queued
    again, and goes on from last.pth. One that got SIGTERM has saved too, and waits for the cluster to do what it means:
    to end it (scancel), or to end it and queue it again (preemption).
    """

    stage: str
    argv: list[str] = field(default_factory=list)

    def parse(self):
        """The flags as the stage reads them; the parser ends the program where they are wrong."""
        return stage_module(self.stage).main, stage_parser(self.stage).parse_args(self.argv)

    def __call__(self):
        environment = submitit.JobEnvironment()
        if environment.cluster == "local":
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        main, args = self.parse()
        try:
            main(args)
            world().close()
        except Stopped as stop:
            print(stop, flush=True)
            self.wait_for_the_cluster(stop.signal)
        except Exception as error:
            code, message = outcome(error, args)
            earlier = world().fail(code, message or f"{type(error).__name__}: {error}")
            if message is None and earlier is None:
                raise
            # submitit carries an exception's text to whoever asks for the result.
            raise RuntimeError((earlier or (code, message))[1]) from None

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit queues again: the same job, which finds its last.pth."""
        return submitit.helpers.DelayedSubmission(self)

    @staticmethod
    def wait_for_the_cluster(number: int) -> None:
        """Everything is saved: have submitit queue the job again, or wait to be ended. Returns on a machine without one."""
        if submitit.JobEnvironment().cluster == "local":
            sys.exit(75)
        if number in REQUEUED_BY:
            # Its handler calls `checkpoint` and queues the job again in the first task, and does nothing in the others.
            os.kill(os.getpid(), signal.SIGUSR2)
        while True:  # a task that returned would count as done
            signal.pause()
