"""A run that can be saved, stopped and continued: where it stands, and the loop over its epochs."""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from datasets.paths import printable
from util import signals
from util.checkpoint import SaveError, load_checkpoint, save_checkpoint
from util.distributed import World
from util.lr import Schedule
from util.run import RunFolder, say, write_file
from util.seed import rng_state, set_rng_state
from util.steps import NonFiniteError, Stepper, StepPlan

NAMED_SAMPLES = 8  # of a bad step, in the message
BAD_STEP = "bad_step.txt"  # index, tab, id of all of them


@dataclass
class Session:
    """A run: its folder, stepper, data, and the next step that it has to do.

    batches: the loader's sampler, asked which images a step has. save_every and save_steps: epochs and steps between two
    checkpoints, save_steps None for none within an epoch.
    """

    stage: str
    args: dict
    run: RunFolder
    stepper: Stepper
    images: object
    plan: StepPlan
    schedule: Schedule
    batches: object
    world: World
    save_every: int = 1
    save_steps: int | None = None
    epoch: int = 0
    step: int = 0
    log_lines: int = 0  # of the log that the run goes on with
    went_back: bool = False
    _saved: tuple[int, int] | None = None

    def save(self) -> None:
        """Write last.pth of where the run stands."""
        self._saved = self.epoch, self.step
        progress = {"epoch": self.epoch, "step": self.step, "data_hash": self.images.data_hash, "went_back": self.went_back,
                    "group_counts": self.images.group_counts.tolist(), "effective_batch_size": self.plan.effective_batch_size,
                    "processes": self.world.size, "readers": getattr(self.batches, "readers", None),
                    "log_lines": self.run.lines, "working_dir": self.run.working_dir,
                    "bad_images": getattr(self.images, "found", [])}
        if self.world.first:
            stepper = self.stepper
            save_checkpoint(self.run.last, {
                "stage": self.stage, "model": stepper.model.state_dict(), "optimizer": stepper.optimizer.state_dict(),
                "scaler": stepper.state_dict(), "ema": stepper.ema.module.state_dict() if stepper.ema else None,
                "progress": progress, "rng": rng_state(), "args": self.args,
                "class_counts": self.images.class_counts.tolist(), "class_names": self.images.class_names})
            self.run.note_save()

    def restore(self, state: dict | None) -> None:
        """Put a checkpoint into model, optimiser and position; None leaves them at the beginning."""
        if state is None:
            return
        progress, stepper = state["progress"], self.stepper
        if progress["data_hash"] != self.images.data_hash:
            raise ValueError("the checkpoint was trained on other images (the hash of ids and labels differs): use the "
                             "same --data_path, or another --output_dir")
        readers = getattr(self.batches, "readers", None)
        if progress["step"] and progress["readers"] != readers:
            raise ValueError(f"the checkpoint stands within an epoch that {progress['readers']} readers of shards had begun "
                             f"(processes x workers), and now there are {readers}, which read in another order: use as many, "
                             "or go on from a checkpoint between two epochs")
        stepper.model.load_state_dict(state["model"])
        stepper.optimizer.load_state_dict(state["optimizer"])
        stepper.load_state_dict(state["scaler"])
        if stepper.ema:
            stepper.ema.module.load_state_dict(state["ema"])
        set_rng_state(state["rng"])
        if hasattr(self.images, "remember"):
            self.images.remember(progress.get("bad_images", []))  # earlier versions kept none
        self.epoch, self.step, self.went_back = progress["epoch"], progress["step"], progress["went_back"]
        self._saved = self.epoch, self.step
        # A run that goes on in another folder begins a log of its own there.
        self.log_lines = progress["log_lines"] if self.run.has_checkpoint() else 0

    def train(self, epochs: int, train_epoch: Callable[[int, int, Callable], dict],
              finish: Callable[[int, dict], dict]) -> None:
        """Train up to `epochs` epochs, saving and listening to signals.

        train_epoch(epoch, first step, after_step) -> record; finish(epoch, record) -> the record to log, the evaluation
        in it. Raises Stopped after a signal, and NonFiniteError where training is not finite for the second time: the first
        time it goes back to the last checkpoint.
        """
        while self.epoch < epochs:
            try:
                record = train_epoch(self.epoch, self.step, self.after_step)
                if self.epoch + 1 == epochs and record["train_loss"] is None:
                    raise self.stepper.non_finite(f"the last epoch, {self.epoch}, has no other step")
                self.step = self.plan.steps_per_epoch
            except NonFiniteError as error:
                self.go_back(error)
                continue
            self.run.log(finish(self.epoch, record))
            self.epoch, self.step = self.epoch + 1, 0
            if self.epoch == epochs or (self.epoch % self.save_every == 0 and self.is_good()):
                self.save()
            if self.epoch < epochs:
                self.listen()

    def after_step(self, done: int) -> None:
        """Between two steps, `done` of the epoch being done."""
        self.step = done
        if self.save_steps and done % self.save_steps == 0 and done < self.plan.steps_per_epoch and self.is_good():
            self.save()
        self.listen()

    def is_good(self) -> bool:
        """Whether no row of bad steps is going on, so that a run which goes back to here goes back before it."""
        return not self.stepper.bad_in_row.item()

    def listen(self) -> None:
        """Save and raise Stopped where any process was asked to stop; SaveError in all of them where that has failed."""
        number = self.world.agree(signals.received())
        if not number:
            return
        failed = None
        if self._saved != (self.epoch, self.step):
            try:
                self.save()
            except SaveError as error:
                failed = error
        # Only the first process writes, and none of them may say "saved" before it has.
        if failed := self.world.from_first(failed):
            raise failed
        raise signals.Stopped(f"{signals.signal.Signals(number).name}: saved {self.run.last} after epoch {self.epoch} and "
                              f"{self.step} steps; the same command goes on from there", number)

    def go_back(self, error: NonFiniteError) -> None:
        """To the last checkpoint, once in a run; raises NonFiniteError with all that is known where that has been done."""
        epoch, step = divmod(error.first, self.plan.steps_per_epoch)
        words = (f"{error}; the row began with step {step} of epoch {epoch}, lr "
                 f"{self.schedule.at(epoch + step / self.plan.steps_per_epoch):.3g}, {self.named_samples(epoch, step)}")
        advice = "lower --blr, set --clip_grad 1, or use --amp off"
        state, why = (None, "it had gone back to its last checkpoint before") if self.went_back else self.last_checkpoint()
        if state is None:
            raise NonFiniteError(f"{words}; the weights are those before it, and {why}: {advice}") from None
        self.restore(state)
        self.stepper.forget_bad_row()
        self.went_back = True
        self.run.cut_log(self.log_lines, self.epoch)
        self.save()  # that it has gone back: a run that is killed now must not do it again
        say(f"warning: {words}. Going back, once, to the checkpoint after epoch {self.epoch} and {self.step} steps; if it "
            f"happens again: {advice}")

    def last_checkpoint(self) -> tuple[dict | None, str]:
        """The run's newest checkpoint that is whole, the same on all processes; None, and words that say why there is none."""
        source, state, why = None, None, "there is no checkpoint to go back to"
        if self.world.first and self.run.has_checkpoint():
            try:
                source, state = self.run.newest(self.stage)
            except ValueError as error:
                why = f"it cannot go back: {error}"
        # Every process reads it itself, once the first has found it.
        source, why = self.world.from_first((source, why))
        return state or (source and load_checkpoint(source, self.stage)), why

    def named_samples(self, epoch: int, step: int) -> str:
        """The images of a step, in words."""
        if not hasattr(self.images, "ids"):
            return "its images chosen by the shards' readers"
        first = step * self.plan.effective_batch_size
        indices = np.asarray(self.batches.order(epoch))[first:first + self.plan.samples(step)]
        shown = ", ".join(f"{index} ({printable(str(self.images.ids[index]))})" for index in indices[:NAMED_SAMPLES].tolist())
        more = ""
        if len(indices) > NAMED_SAMPLES:
            path = self.run.path / BAD_STEP
            more = f", ... (all in {path})"
            if self.world.first:
                lines = "".join(f"{index}\t{printable(str(self.images.ids[index]))}\n" for index in indices.tolist())
                write_file(path, lambda file: file.write(lines.encode()))
        return f"{len(indices)} images, by index {shown}{more}"
