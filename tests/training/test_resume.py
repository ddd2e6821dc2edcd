"""`--resume`, several processes, and a disk that is really full."""

import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from forked import launched_as, started
from safetensors.torch import load_file, save_file

import latentknobs as lk
from latentknobs import testbed
from latentknobs.cli import cli, main
from latentknobs.config import flat, make_config, read_yaml
from latentknobs.errors import RunError

SETTINGS = {
    "knobs": ["temperature:0,1"], "prompts": "testbed:stories", "train_prompts": 12, "rollouts": 3, "eval_size": 4,
    "eval_seeds": 1, "tune_size": 2, "max_new_tokens": 6, "batch_size": 6, "shard_size": 6, "steps": 12, "hidden": 8,
    "pairs_per_step": 5,
    "checkpoint_every": 5, "rounds": 2,
}  # fmt: skip
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items() if name != "knobs"] + [
    "--knobs=temperature:0,1"
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return lk.train(**SETTINGS, output_dir=tmp_path_factory.mktemp("run")).path


def same(one: Path, other: Path, *files: str) -> list[str]:
    return [file for file in files if (one / file).read_bytes() != (other / file).read_bytes()]


def test_resume_reads_the_settings_of_the_run(finished):
    rollouts = finished / "round-1" / "rollouts" / "00000.jsonl"
    made = rollouts.stat().st_mtime_ns
    shown = CliRunner().invoke(cli, ["train", "--resume", str(finished)])
    assert shown.exit_code == 0, shown.output
    assert rollouts.stat().st_mtime_ns == made
    with_flag = CliRunner().invoke(cli, ["train", "--resume", "--output-dir", str(finished), "--eval-size", "0"])
    assert with_flag.exit_code == 0
    assert not (finished / "report.html").exists()
    assert CliRunner().invoke(cli, ["train", "--resume", str(finished), "--eval-size", "4"]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--resume", "/nowhere/run"], "There is no run to resume in '/nowhere/run'"),
        (["--resume", "--config", "x.yaml"], "Leave out --config"),
    ],
)
def test_resume_is_refused_where_there_is_nothing_to_resume(arguments, told):
    shown = CliRunner().invoke(cli, ["train", *arguments])
    assert shown.exit_code == 2
    assert told in shown.output


def test_a_run_with_an_object_can_only_be_resumed_from_python(tmp_path):
    def length(prompts, completions, **columns):
        return [float(len(text)) for text in completions]

    lk.train(**(SETTINGS | {"eval_size": 0, "rounds": 1}), reward=length, output_dir=tmp_path)
    shown = CliRunner().invoke(cli, ["train", "--resume", str(tmp_path)])
    assert shown.exit_code == 2
    assert "reward was a Python object: length" in shown.output


def launched(folder: Path, *launcher: str) -> None:
    command = [sys.executable, "-m", *launcher, "train", *FLAGS, f"--output-dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Adapter:") == 1  # only one of them tells the result


def near(one: Path, other: Path) -> float:
    from safetensors.torch import load_file

    ours, theirs = (load_file(path / "adapter" / "knob_head.safetensors") for path in (one, other))
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")
# without an accelerator, accelerate starts several processes only where --multi_gpu says so; they then meet over gloo
PLAIN = ("--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0")
ACCELERATE = ("accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes=2", *PLAIN)


@pytest.mark.slow  # torch's launcher has two more tests below
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_give_the_same_pairs_and_head_as_one(finished, tmp_path, launcher):
    launched(tmp_path / "two", *launcher, "-m", "latentknobs")
    assert (tmp_path / "two" / "manifest.1.jsonl").stat().st_size > 0
    stages = ("examples.jsonl", "rollouts/00001.jsonl", "scores/00001.jsonl", "features/00001.safetensors")
    assert same(finished, tmp_path / "two", *(f"round-1/{file}" for file in stages)) == []
    assert near(finished, tmp_path / "two") < 1e-6


def test_num_processes_starts_them_and_one_process_goes_on_with_what_two_made(tmp_path, finished):
    command = [sys.executable, "-m", "latentknobs", "train", *FLAGS, f"--output-dir={tmp_path}", "--num-processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "manifest.1.jsonl").stat().st_size > 0
    again = CliRunner().invoke(cli, ["train", "--resume", str(tmp_path)])
    assert again.exit_code == 0
    assert near(finished, tmp_path) < 1e-6


def command_line(*arguments: str) -> None:
    """What `latentknobs arguments...` does."""
    sys.argv = ["latentknobs", *arguments]
    main()


def two_processes(folder: Path, *arguments: str) -> tuple[list[int], str]:
    """The exit codes of two processes as a launcher starts them, without the launcher, and what both said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [folder / f"said-{rank}" for rank in range(2)]
    running = [started(command_line, *arguments, env=launched_as(rank, 2, port), log=logs[rank]) for rank in range(2)]
    for process in running:
        process.join(timeout=200)
    return [process.exitcode for process in running], "".join(log.read_text() for log in logs)


def test_two_processes_that_share_one_model_run_it_on_the_same_rows(finished, tmp_path):
    testbed.load_model().save_pretrained(tmp_path / "model")
    testbed.load_tokenizer().save_pretrained(tmp_path / "model")
    shared = [f"--model={tmp_path / 'model'}", "--tp-plan=auto"]
    codes, said = two_processes(tmp_path, "train", *FLAGS, *shared, f"--output-dir={tmp_path / 'run'}")
    assert codes == [0, 0], said[-3000:]
    assert same(finished, tmp_path / "run", "round-1/rollouts/00001.jsonl", "round-1/examples.jsonl") == []
    assert near(finished, tmp_path / "run") < 1e-3  # two halves of a sum are rounded differently


def test_each_of_several_processes_says_what_is_wrong_without_a_traceback(tmp_path):
    codes, said = two_processes(tmp_path, "train", f"--output-dir={tmp_path / 'run'}", "--reward=nosuch")
    assert codes == [2, 2] and "Traceback" not in said
    assert all(f"Process {rank}: Error: There is no reward 'nosuch'" in said for rank in range(2))


@pytest.mark.slow  # what the processes say is tested above, and a launcher's exit code
def test_what_is_wrong_with_a_run_of_several_processes_ends_its_launcher(tmp_path):
    start = ["train", f"--output-dir={tmp_path}", "--num-processes=2"]
    wrong = subprocess.run(
        [sys.executable, "-m", "latentknobs", *start, "--reward=nosuch"], capture_output=True, text=True, timeout=120, check=False
    )
    assert wrong.returncode == 2 and re.search("Process [01]: Error: There is no reward 'nosuch'", wrong.stderr)
    assert "Traceback" not in wrong.stderr


def test_wrong_settings_start_no_processes(tmp_path, monkeypatch):
    start = ["train", f"--output-dir={tmp_path}", "--num-processes=2"]
    monkeypatch.setattr("latentknobs.commands.train._launch", lambda count: pytest.fail("a process was started"))
    wrong = CliRunner().invoke(cli, [*start, "--bata=1"])
    assert wrong.exit_code == 2 and "No such option" in wrong.output
    wrong = CliRunner().invoke(cli, [*start, "--beta=-1"])
    assert wrong.exit_code == 2 and wrong.output.count("beta=-1") == 1


@pytest.mark.parametrize("saved", ["reward: 'command:run=touch HERE'", "trust_remote_code: true"])
def test_resuming_a_folder_runs_none_of_its_code_unasked(tmp_path, saved):
    (tmp_path / "config.yaml").write_text(
        saved.replace("HERE", str(tmp_path / "touched")) + "\nevaluate: {eval_size: 0}\nsteps: 1\n"
    )
    given = [f"--{name}" for name in ("train-prompts=4", "rollouts=2", "max-new-tokens=4", "hidden=4")]
    shown = CliRunner().invoke(cli, ["train", "--resume", str(tmp_path), *given])
    assert not (tmp_path / "touched").exists()
    if "command" in saved:
        assert shown.exit_code == 2 and "is a program" in shown.output
    else:
        assert "trust_remote_code: false" in (tmp_path / "config.yaml").read_text()


def test_resuming_without_any_settings_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    shown = CliRunner().invoke(cli, ["train", "--resume", str(tmp_path)])
    assert shown.exit_code == 2 and "holds no settings" in shown.output


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_announced_before_the_run_explained_during_it_and_loses_nothing(small_disk, finished, capsys):
    run = small_disk / "run"
    (small_disk / "other").write_bytes(bytes(230_000))
    with pytest.raises(RunError, match=r"The disk that holds .* is full .*Finished files are kept"):
        lk.train(**SETTINGS, output_dir=run)
    assert re.search(r"The features may take \S+ kB of disk, and \S+ kB are free", capsys.readouterr().err)
    kept = {path: path.stat().st_mtime_ns for path in (run / "round-1" / "rollouts").glob("*.jsonl")}
    assert kept
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    lk.train(**SETTINGS, output_dir=run)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    files = ("adapter/knob_head.safetensors", "round-2/examples.jsonl", "evaluation/summary.json", "metrics.jsonl")
    assert same(finished, run, *files) == []


def test_a_run_of_the_first_edition_must_start_anew_and_its_file_still_works(finished, tmp_path):
    """Then config.yaml was flat; its settings are still settings, and its other files are never reused."""
    old = flat(read_yaml(finished / "config.yaml"))
    (tmp_path / "old").mkdir()
    config = tmp_path / "old" / "config.yaml"
    config.write_text(yaml.safe_dump({name: value for name, value in old.items() if name not in ("learner", "engine")}))
    shown = CliRunner().invoke(cli, ["train", "--resume", str(tmp_path / "old")])
    assert shown.exit_code == 2 and shown.output.count("Error") == 1
    assert "was made by an earlier edition of latentknobs" in shown.output and "must start anew" in shown.output
    assert "latentknobs train --config" in shown.output
    assert make_config(read_yaml(config)) == make_config(old)


@pytest.mark.parametrize("damage", [lambda t: t * float("nan"), lambda t: t[:1]])
def test_a_head_that_does_not_belong_to_the_run_is_refused(finished, tmp_path, damage):
    """Although the manifest says that it is finished, as one from elsewhere can."""
    folder = shutil.copytree(finished, tmp_path / "copy")
    path = folder / "round-1" / "heads" / "main.safetensors"
    save_file({name: damage(tensor) for name, tensor in load_file(path).items()}, path)
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    entry = next(entry for entry in map(json.loads, lines) if entry["file"] == "round-1/heads/main.safetensors")
    entry |= {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
    with (folder / "manifest.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")
    shown = CliRunner().invoke(cli, ["train", "--resume", str(folder)])
    assert shown.exit_code == 2 and "main.safetensors' is not a head of this run" in shown.output
    assert "Traceback" not in shown.output and len(shown.output) < 3000
