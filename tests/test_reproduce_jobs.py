"""Jobs of tables and figures: what names them, and how they are handed in."""
# ruff: noqa: E402
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("submitit", reason="jobs are handed in by submitit, which is not installed")

import main_finetune
import main_pretrain
from submit import experiment, reproduce, studies_small
from submit.experiment import Job, finetune, jobs_of, pretrain


def run(*words):
    return reproduce.main(reproduce.get_args_parser().parse_args(list(map(str, words))))


def test_a_job_is_named_by_what_decides_its_result():
    mgp = pretrain("embedded/pretrain")
    job = Job(finetune("embedded/finetune", after=mgp), 0)
    # Written otherwise, split otherwise over memory, read by more workers: the same run.
    for flags in (["--loss", "bal_bce"], ["--lr", "0.002"], ["--batch_size", 16, "--accum_iter", 4], ["--num_workers", 3],
                  ["--batch_size", 32, "--effective_batch_size", 64], ["--save_every", 5]):
        assert Job(finetune("embedded/finetune", *flags, after=mgp), 0).folder == job.folder, flags
    others = [Job(finetune("embedded/finetune", *flags, after=mgp), 0) for flags in
              (["--tau", 2], ["--batch_size", 128], ["--loss_args", "lam=2"], ["--mean", ".3", "--std", ".3"])]
    others += [Job(job.run, 1), Job(finetune("embedded/finetune"), 0), Job(replace(job.run, data="fashion_10"), 0),
               Job(replace(job.run, after=pretrain("embedded/pretrain", "--mask_ratio", 0.5)), 0)]
    assert len({one.hash for one in (job, *others)}) == 1 + len(others)


def test_another_micro_batch_is_another_run_where_it_is_asked_for():
    """Mixed pairs and masks are drawn a micro-batch; a recipe that says its batch, and not its step, keeps it."""
    run = finetune("imagenet_lt/finetune", after=pretrain("imagenet_lt/pretrain"))
    job = Job(run, 0)
    assert Job(run.after, 0, job.after.parse().batch_size).hash == job.after.hash
    other = Job(run, 0, 16)
    assert other.after.batch_size == 16 and len({job.hash, job.after.hash, other.hash, other.after.hash}) == 4
    assert other.argv(Path("out"), {"imagenet_lt": "d"})[-2:] == ["--batch_size", "16"] and other.parse().batch_size == 16
    small = finetune("embedded/finetune", after=pretrain("embedded/pretrain"))
    assert Job(small, 0, 16).hash == Job(small, 0).hash and Job(small, 0, 16).parse().batch_size == 64
    assert [one.hash for one in jobs_of([run], [0], 16)] == [other.after.hash, other.hash]


def test_a_flag_that_a_later_version_adds_leaves_finished_runs_their_name(monkeypatch):
    job = Job(finetune("embedded/finetune", after=pretrain("embedded/pretrain")), 0)
    before = job.hash
    monkeypatch.setattr(experiment, "_parser", experiment._parser.__wrapped__)
    for module in (main_pretrain, main_finetune):
        def more(made=module.get_args_parser):
            parser = made()
            parser.add_argument("--new", default=3)
            return parser
        monkeypatch.setattr(module, "get_args_parser", more)
    experiment.parse.cache_clear()
    assert hasattr(job.parse(), "new") and Job(job.run, 0).hash == before
    experiment.parse.cache_clear()


def test_runs_are_shared():
    """Table 7 and Figure 3 have one run and one encoder in common, and a job stands behind what it starts from."""
    table, figure = (jobs_of(studies_small.STUDIES[name]().runs, [0]) for name in ("table7", "figure3"))
    common = {job.folder for job in table} & {job.folder for job in figure}
    assert {name.rpartition("-")[0] for name in common} == {"cifar100_lt_small_pretrain", "cifar100_lt_small_finetune"}
    order = [job.hash for job in jobs_of(studies_small.table6().runs, [0, 1])]
    assert len(order) == len(set(order)) == 2 * 28
    for place, job in enumerate(jobs_of(studies_small.table6().runs, [0, 1])):
        assert job.after is None or job.after.hash in order[:place]


class Handed(list):
    """Stands for the cluster: keeps what it is handed; a job's id is the name of its folder."""

    def __call__(self, jobs, folder, settings):
        self.append((jobs, settings))
        folder.mkdir(parents=True)
        return [SimpleNamespace(job_id=place.name) for _, place in jobs]


def test_what_waits_for_one_job_is_one_array(tmp_path, monkeypatch):
    handed = Handed()
    monkeypatch.setattr(reproduce.slurm, "submit_to_slurm", handed)
    jobs = jobs_of(studies_small.table6().runs, [0])
    done = jobs[0]
    (tmp_path / done.folder).mkdir()
    (tmp_path / done.folder / "metrics.json").write_text("{}")
    run("table6", "--scale", "small", "--output_dir", tmp_path, "--gpus_per_node", 1)
    (encoders, first) = next(group for group in handed if group[0][0][0].stage == "pretrain")
    arrays = [group for group in handed if group[0] is not encoders]
    assert len(encoders) == 3 and "dependency" not in first["additional_parameters"] and first["gpus_per_node"] == 1
    assert [len(group) for group, _ in arrays] == [6, 6, 6, 6]
    after = {str(tmp_path / job.folder): settings["additional_parameters"].get("dependency")
             for group, settings in arrays for job in jobs if str(tmp_path / job.folder) in
             {word.removesuffix("/last.pth") for one, _ in group for word in one.argv if word.endswith("last.pth")}}
    names = {str(place): f"afterok:{place.name}" for _, place in encoders}
    assert after == {**names, str(tmp_path / done.folder): None}


def test_from_another_folder(tmp_path, monkeypatch):
    handed = Handed()
    monkeypatch.setattr(reproduce.slurm, "submit_to_slurm", handed)
    monkeypatch.chdir(tmp_path)
    run("table2", "--scale", "small", "--output_dir", "out")
    monkeypatch.chdir("/")
    folders = [one.parse()[1].output_dir for group, _ in handed for one, _ in group]
    assert sorted(folders) == sorted(str(tmp_path / "out" / job.folder) for job in jobs_of(studies_small.table2().runs, [0]))


def test_here_what_starts_from_a_failed_job_is_left_out(tmp_path, monkeypatch, capsys):
    def run_here(jobs, folder, tasks, side_by_side):
        for number, (_, place) in enumerate(jobs):
            if number != 1:
                place.mkdir(parents=True)
                (place / "metrics.json").write_text("{}")
        return [SimpleNamespace() for _ in jobs]
    monkeypatch.setattr(reproduce.slurm, "run_here", run_here)
    monkeypatch.setattr(reproduce.slurm, "tell", lambda jobs, places: None)
    with pytest.raises(SystemExit):
        run("table6", "--scale", "small", "--output_dir", tmp_path, "--where", "local")
    jobs = jobs_of(studies_small.table6().runs, [0])
    lost = [job for job in jobs if job.run.stage == "pretrain"][1]
    left_out = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert sorted(left_out) == sorted(str(tmp_path / job.folder) for job in jobs if job.after == lost)


def test_wait_tells_how_the_clusters_jobs_ended(tmp_path, monkeypatch, capsys):
    def submit_to_slurm(jobs, folder, settings):
        folder.mkdir(parents=True)
        made = []
        for number, (_, place) in enumerate(jobs):
            broken = place.name.startswith("embedded_finetune") and number == 0
            error = RuntimeError("ValueError: no such thing") if broken else None
            if error is None:
                place.mkdir()
                (place / "metrics.json").write_text("{}")
            made.append(SimpleNamespace(job_id=place.name, exception=lambda error=error: error, stderr=lambda: None,
                                        paths=SimpleNamespace(stderr="err")))
        return made
    monkeypatch.setattr(reproduce.slurm, "submit_to_slurm", submit_to_slurm)
    with pytest.raises(SystemExit):
        run("table2", "--scale", "small", "--output_dir", tmp_path, "--wait")
    monkeypatch.setattr(reproduce.slurm, "queued", set)
    text = capsys.readouterr().out
    assert text.count(": done") == 2 and text.count("FAILED: no such thing (more in err)") == 2
    run("table2", "--scale", "small", "--output_dir", tmp_path)
    assert "4 jobs, 2 of them finished" in capsys.readouterr().out


def test_what_is_in_the_queue_is_not_handed_in_again(tmp_path, monkeypatch, capsys):
    handed = Handed()
    monkeypatch.setattr(reproduce.slurm, "submit_to_slurm", handed)
    run("table2", "--scale", "small", "--output_dir", tmp_path)
    first = [place.name for group, _ in handed for _, place in group]
    encoder = next(name for name in first if name.startswith("embedded_pretrain"))
    monkeypatch.setattr(reproduce.slurm, "queued", lambda: {encoder, "123_4"})
    handed.clear()
    run("table2", "--scale", "small", "--output_dir", tmp_path)
    assert f"{encoder}: {tmp_path / encoder}, in the queue already" in capsys.readouterr().out
    assert sorted(place.name for group, _ in handed for _, place in group) == sorted(set(first) - {encoder})
    waits = [settings["additional_parameters"].get("dependency") for group, settings in handed]
    assert waits == [None, f"afterok:{encoder}"]
