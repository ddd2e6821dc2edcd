"""Lists of rewards with weights, and what makes two rewards the same."""

import functools
import math
from pathlib import Path

import pytest

from latentknobs.errors import ConfigError, UnknownNameError
from latentknobs.rewards import NgramRepetition, resolve_rewards
from latentknobs.rewards.identity import content_hash


def reward_identity(reward):
    rewards = resolve_rewards(reward)
    return None if rewards.unversioned else rewards.key


def mine(prompts, completions, **columns):
    return [0.0] * len(completions)


def test_one_name_or_callable_is_a_list_of_one():
    (part,) = resolve_rewards("repetition:n=4").parts
    assert (part.name, part.weight, part.function.n) == ("repetition:n=4", 1.0, 4)
    assert resolve_rewards(mine).parts[0].function is mine


def test_names_and_callables_mix_and_have_weights():
    rewards = resolve_rewards(["repetition", mine], [1, -0.5])
    assert [(part.name, part.weight) for part in rewards.parts] == [("repetition", 1.0), ("mine", -0.5)]
    assert rewards.name == "repetition + mine"
    assert resolve_rewards(rewards) is rewards
    assert [part.weight for part in resolve_rewards(("repetition", mine)).parts] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("spec", "weights", "told"),
    [
        (["repetition", mine], [1.0], r"1 reward_weights \[1.0\] for 2 rewards. Give one for each"),
        ("repetition", [1.0, 2.0], "2 reward_weights .* for 1 rewards"),
        (["repetition", mine], [0.0, 0], "all 0"),
        (["repetition", mine], [1.0, math.nan], "must be finite numbers"),
        (["repetition", mine], [1.0, math.inf], "must be finite numbers"),
        (["repetition", mine], [1.0, "2"], "must be finite numbers"),
        ([], None, "list of rewards is empty. Give at least one: .*repetition"),
        ([mine, 5], None, "5 is not a reward"),
        ({mine}, None, "is not a reward"),
        (NgramRepetition, None, "The reward NgramRepetition is a class: pass an object of it"),
    ],
)
def test_wrong_lists_and_weights_are_named(spec, weights, told):
    with pytest.raises(ConfigError, match=told):
        resolve_rewards(spec, weights)


def test_an_unknown_name_in_a_list():
    with pytest.raises(UnknownNameError, match='mean "repetition"'):
        resolve_rewards([mine, "repetitoin"])


def test_commas_inside_a_setting_stay_there():
    (part,) = resolve_rewards("text_constraint:contains=one, two,max_words=9").parts
    assert len(part.function.checks) == 2
    assert part.function(["p"], ["it is one, two"]) == [1.0]


class TestIdentity:
    def test_a_named_reward_is_known_by_its_settings(self):
        assert reward_identity("repetition:n=3") == reward_identity("repetition:n=3")
        names = ["repetition", "repetition:n=3", "repetition:n=4", "exact_match", "word_surprise"]
        assert len({reward_identity(name) for name in names}) == len(names)

    def test_a_callable_without_version_is_not_known_and_nor_is_a_list_with_it(self):
        for reward in (mine, NgramRepetition(n=3), functools.partial(mine), ["repetition", mine]):
            assert reward_identity(reward) is None
        rewards = resolve_rewards(["repetition", functools.partial(mine), NgramRepetition()])
        assert rewards.unversioned == ("mine", "repetition(n=3)")

    @pytest.mark.parametrize("version", [None, ("1",), ["1"], {"a": 1}, lambda: "1", object()])
    def test_only_a_text_or_a_number_is_a_version(self, version):
        def versioned(prompts, completions, **columns):
            return [0.0] * len(completions)

        versioned.version = version
        assert reward_identity(versioned) is None

    def test_a_key_tells_unversioned_rewards_apart_by_name_and_weight(self):
        others = [mine, NgramRepetition(), NgramRepetition(n=4), ["repetition", mine]]
        keys = {resolve_rewards(mine, [2.0]).key, *(resolve_rewards(one).key for one in others)}
        assert len(keys) == 5

    def test_a_version_makes_a_callable_known(self):
        class Judge:
            def __init__(self, version):
                self.version = version

            def __call__(self, prompts, completions, **columns):
                return [0.0] * len(completions)

        assert reward_identity(Judge("1")) == reward_identity(Judge("1"))
        assert len({reward_identity(Judge(version)) for version in ("1", "2", 1)}) == 3
        assert reward_identity(Judge(None)) is None

        def other(prompts, completions, **columns):
            return [0.0] * len(completions)

        other.version = "1"
        assert reward_identity(other) not in (None, reward_identity(Judge("1")))

    def test_settings_count_beside_the_version(self):
        class Judge:
            version = 1

            def __init__(self, words, client=None):
                self.words, self._client, self.calls = words, client, 0

            def __call__(self, prompts, completions, **columns):
                self.calls += 1
                return [0.0] * len(completions)

            def strict(self, prompts, completions, **columns):
                return [1.0] * len(completions)

        judge = Judge(["a"])
        before = reward_identity(judge)
        judge(["p"], ["c"])
        assert reward_identity(judge) == reward_identity(Judge(["a"], client=object())) == before is not None
        assert reward_identity(Judge(["b"])) not in (None, before)
        assert reward_identity(judge.strict) not in (None, before)
        assert reward_identity(judge.strict) == reward_identity(Judge(["a"]).strict) != reward_identity(Judge(["b"]).strict)

        def scaled(prompts, completions, factor, **columns):
            return [factor] * len(completions)

        scaled.version = "1"
        once, twice = functools.partial(scaled, factor=1), functools.partial(scaled, factor=2)
        assert len({reward_identity(reward) for reward in (once, twice, scaled)} - {None}) == 3
        assert reward_identity(functools.partial(scaled, factor=2)) == reward_identity(twice)

    def test_weights_and_order_count(self):
        both = ["repetition", "word_surprise"]
        found = {resolve_rewards(both, weights).key for weights in (None, [1, 2], [2, 1])}
        assert len(found) == 3 and None not in found
        assert reward_identity(both) != reward_identity(both[::-1])

    def test_the_content_of_a_file_among_the_settings_counts(self, tmp_path):
        file = tmp_path / "lexicon.json"
        file.write_text('{"a": 1}')
        before = reward_identity(f"word_surprise:lexicon={file}")
        assert reward_identity(f"word_surprise:lexicon={file}") == before
        file.write_text('{"b": 1}')
        assert reward_identity(f"word_surprise:lexicon={file}") != before

    def test_the_code_of_the_module_counts(self, monkeypatch):
        before = reward_identity("repetition")
        monkeypatch.setattr("latentknobs.rewards.identity.inspect.getsourcefile", lambda code: str(Path(__file__)))
        assert reward_identity("repetition") != before

    def test_every_file_of_a_model_folder_counts_and_other_folders_do_not(self, tmp_path):
        assert content_hash(tmp_path) is None
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "part").mkdir()
        weights = tmp_path / "part" / "model.safetensors"
        hashes = [content_hash(str(tmp_path))]
        for data in (b"1", b"2"):
            weights.write_bytes(data)
            hashes.append(content_hash(str(tmp_path)))
        weights.rename(tmp_path / "part" / "renamed.safetensors")
        hashes.append(content_hash(str(tmp_path)))
        assert len(set(hashes)) == 4

    @pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b", 3, None, "no such file"])
    def test_what_names_no_file_has_no_content(self, name):
        assert content_hash(name) is None
