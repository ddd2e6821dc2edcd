"""Lists of rewards with weights, and what makes two rewards the same."""

import math
from pathlib import Path

import pytest

from latentknobs.errors import ConfigError, UnknownNameError
from latentknobs.rewards import NgramRepetition, resolve_rewards, reward_identity
from latentknobs.rewards.identity import content_hash


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

    def test_a_plain_callable_is_known_by_what_it_is_made_of(self):
        assert reward_identity(mine) == reward_identity(mine) is not None
        assert (
            reward_identity(NgramRepetition(n=3))
            == reward_identity(NgramRepetition(n=3))
            != reward_identity(NgramRepetition(n=4))
        )
        assert reward_identity(["repetition", mine]) is not None

    def test_what_cannot_be_read_is_not_known_and_nor_is_a_list_with_it(self):
        client = iter(())

        def asks(prompts, completions, **columns):
            return [next(client) for _ in completions]

        assert reward_identity(asks) is None
        assert reward_identity(["repetition", asks]) is None
        assert [part.unread for part in resolve_rewards(["repetition", asks]).parts] == [
            None,
            "its variable `client`, a tuple_iterator",
        ]

    def test_a_version_makes_a_callable_known(self):
        class Judge:
            def __init__(self, version):
                self.version = version

            def __call__(self, prompts, completions, **columns):
                return [0.0] * len(completions)

        assert reward_identity(Judge("1")) == reward_identity(Judge("1"))
        assert len({reward_identity(Judge(version)) for version in ("1", "2", 1)}) == 3
        assert reward_identity(Judge(None)) not in (None, reward_identity(Judge("1")))

        def other(prompts, completions, **columns):
            return [0.0] * len(completions)

        other.version = "1"
        assert reward_identity(other) not in (None, reward_identity(Judge("1")))

    def test_weights_and_order_count(self):
        both = ["repetition", "word_surprise"]
        found = {reward_identity(resolve_rewards(both, weights)) for weights in (None, [1, 2], [2, 1])}
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
