"""Adapters whose files are damaged, or hostile: each is refused in one short paragraph, before memory is taken for it."""

import os
import resource
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_adapter import edit, make

import latentknobs as lk
from latentknobs import testbed
from latentknobs.adapter import CONFIG, HEAD, RIVAL
from latentknobs.errors import AdapterError


@pytest.fixture(scope="module")
def model():
    return testbed.load_model()


@pytest.fixture()
def saved(model, tmp_path):
    return make(model, testbed.load_tokenizer()).save_pretrained(tmp_path / "adapter")


def set_at(config, path, value):
    """Puts a value at a path of keys of nested data."""
    *keys, last = path
    for key in keys:
        config = config[key]
    config[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["training"], [1, 2]), (["training"], None), (["features"], "hidden"), (["features"], [["hidden"]]), (["features"], []),
        (["features"], ["hidden", "hidden"]), (["features"], ["hiden"]), (["features"], ["hidden"] * 1000), (["level"], 3),
        (["level"], "every:99999999999"), (["delimiter_ids"], [-1]), (["delimiter_ids"], ["."]), (["head"], [8, 8]),
        (["head", "hidden"], 8.5), (["head", "hidden"], "8"), (["head", "hidden"], True), (["head", "hidden"], -8),
        (["head", "hidden"], 10**400), (["head", "hidden"], float("nan")), (["head", "rank"], -1), (["head", "factorised"], "no"),
        (["base"], "testbed"), (["base", "hidden_size"], 0), (["base", "vocabulary"], float("inf")), (["base", "name"], None),
        (["space"], None), (["space", "order"], "mine"), (["space", "knobs"], {}), (["space", "knobs"], []),
        (["space", "knobs", 0], "temperature"), (["space", "knobs", 0, "options"], "0,1"),
        (["space", "knobs", 0, "options"], [0.0, 0.5, float("nan")]), (["space", "knobs", 0, "options"], [0.0, True, 1.5]),
        (["space", "knobs", 0, "options"], [n / 10**4 for n in range(10_000)]), (["space", "knobs", 0, "settings"], [1]),
        (["space", "knobs", 0, "settings"], {"power": 2}), (["space", "knobs", 0, "hashes"], [1, 2, 3]),
        (["space", "knobs", 0, "hashes"], ["x"] * 9), (["space", "knobs", 0, "name"], "x" * 10**6),
        (["space", "grid"], [[0, 0], [1, 1], [7, 0]]), (["space", "grid"], [[0], [1], [2]]), (["space", "grid"], [[-1, 0]]),
        (["space", "grid"], [[0, 0], [0, 0]]), (["space", "grid"], [[0.9, 0]]), (["space", "grid"], [["1", 0]]),
        (["space", "grid"], [[True, 0]]), (["space", "grid"], []), (["space", "grid"], [[]]), (["space", "grid"], "all"),
        (["space", "grid"], [[0, 0]] * 200_000),
    ],
)  # fmt: skip
def test_whatever_is_wrong_in_a_config_is_refused_in_one_short_paragraph(saved, path, value):
    edit(saved, lambda config: set_at(config, path, value))
    with pytest.raises(AdapterError, match=r"The adapter .* (has a damaged|cannot be used here)") as caught:
        lk.KnobAdapter.from_pretrained(saved)
    assert len(str(caught.value)) < 800 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "3", "\ufeff", "[" * 100_000, '{"a":' * 5_000, '{"format": ' + "9" * 5_000 + "}"]
)
def test_what_is_not_a_config_is_refused_whatever_it_is(saved, content):
    (saved / CONFIG).write_text(content, encoding="utf-8")
    with pytest.raises(AdapterError, match=rf"{CONFIG}' (is damaged|cannot be read): .* Copy the whole folder again") as caught:
        lk.KnobAdapter.from_pretrained(saved)
    assert len(str(caught.value)) < 500


def test_no_more_of_a_config_is_read_than_one_may_hold(saved, model):
    with (saved / CONFIG).open("ab") as file:
        file.truncate(8 * 2**30)  # takes no room on the disk
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(AdapterError, match="larger than 16 MB"):
        lk.KnobAdapter.from_pretrained(saved)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000 and time.monotonic() - started < 10
    (saved / CONFIG).unlink()
    (saved / CONFIG).mkdir()
    with pytest.raises(AdapterError, match="it is not a file"):
        lk.KnobAdapter.from_pretrained(saved)


@pytest.mark.parametrize("claim", [{"head": {"hidden": 20_000}}, {"head": {"hidden": 2**30}}, {"base": {"hidden_size": 10**9}},
                                   {"base": {"hidden_size": 10**9}, "head": {"hidden": 10**9, "rank": 10**8}}])  # fmt: skip
def test_a_size_is_believed_only_once_the_file_has_shown_it(saved, claim):
    edit(saved, lambda config: [config[part].update(sizes) for part, sizes in claim.items()])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(AdapterError, match="does not hold a head for"):
        lk.KnobAdapter.from_pretrained(saved)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB; a width of 20,000 would take 1.6 GB


@pytest.mark.parametrize("file", [HEAD, RIVAL])
@pytest.mark.parametrize("name, value", [("mlp.0.weight", float("nan")), ("mlp.4.bias", float("inf")), ("shift_F", float("-inf")),
                                         ("scale_F", float("nan")), ("scale_F", 0.0), ("scale_F", -1.0)])  # fmt: skip
def test_weights_that_are_not_numbers_are_refused(saved, file, name, value):
    tensors = load_file(saved / file)
    tensors[name].view(-1)[0] = value
    save_file(tensors, saved / file)
    with pytest.raises(AdapterError, match=rf"{file} has weights that are not numbers, in {name}.*train again"):
        lk.KnobAdapter.from_pretrained(saved)


def test_weights_that_are_infinite_in_the_precision_of_the_head_are_refused(saved):
    tensors = load_file(saved / HEAD)
    save_file(tensors | {"mlp.0.weight": tensors["mlp.0.weight"].double() * 0 + 1e300}, saved / HEAD)
    with pytest.raises(AdapterError, match=r"weights that are not numbers, in mlp\.0\.weight"):
        lk.KnobAdapter.from_pretrained(saved)


def test_a_pipe_in_place_of_a_head_is_refused_and_not_waited_for(saved):
    (saved / HEAD).unlink()
    os.mkfifo(saved / HEAD)
    with pytest.raises(AdapterError, match="it is not a file"):
        lk.KnobAdapter.from_pretrained(saved)


@pytest.mark.parametrize("file", [HEAD, RIVAL, "knob_config.json"])
def test_a_link_to_nothing_is_refused(saved, file):
    (saved / file).unlink()
    (saved / file).symlink_to(saved / "moved")
    with pytest.raises(AdapterError, match=f"{file} is missing|There is no adapter in"):
        lk.KnobAdapter.from_pretrained(saved)


def test_a_feature_that_never_varied_has_an_infinite_scale_and_loads(saved):
    tensors = load_file(saved / HEAD)
    tensors["scale_F"][0] = float("inf")
    save_file(tensors, saved / HEAD)
    assert lk.KnobAdapter.from_pretrained(saved).head.scale_F[0] == float("inf")


@pytest.mark.parametrize("change", [lambda t: t.pop("shift_F"), lambda t: t.update(more=torch.zeros(1)),
                                    lambda t: t.update(shift_F=t["shift_F"].long())])  # fmt: skip
def test_missing_further_and_whole_number_tensors_are_named(saved, change):
    tensors = load_file(saved / HEAD)
    change(tensors)
    save_file(tensors, saved / HEAD)
    with pytest.raises(AdapterError, match=r"does not hold a head for .*: (shift_F|more) is"):
        lk.KnobAdapter.from_pretrained(saved)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x08" + bytes(7) + b"not json", bytes(100)])
def test_a_file_that_holds_no_tensors_is_refused(saved, content):
    (saved / HEAD).write_bytes(content)
    with pytest.raises(AdapterError, match=f"{HEAD} does not hold a head for .* Copy the whole folder again") as caught:
        lk.KnobAdapter.from_pretrained(saved)
    assert len(str(caught.value)) < 800
