"""Members of a family of rules, and those beyond its grid."""

from latentknobs.evaluation.tuning import beyond, members


def test_members_are_every_combination_of_the_settings() -> None:
    assert members("dynatemp", low=[0, 0.5], high=[1]) == ["dynatemp:low=0,high=1", "dynatemp:low=0.5,high=1"]


def test_a_grid_that_ends_where_its_policy_does_stays_as_it_is() -> None:
    tried = members("constant", temperature=[0.4, 0.8, 1.2], top_p=[0.8, 0.9, 1.0])
    assert beyond("constant:temperature=0.8,top_p=1", tried) == []
    assert beyond("constant:temperature=1.2,top_p=0.9", tried) == ["constant:temperature=1.6,top_p=0.9"]
    assert beyond("constant:temperature=0.8,top_p=0.8", tried) == ["constant:temperature=0.8,top_p=0.7"]
    assert beyond("constant:temperature=1.6,top_p=0.9", [*tried, "constant:temperature=1.6,top_p=0.9"]) == [
        "constant:temperature=2,top_p=0.9", "constant:temperature=1.6,top_p=0.8", "constant:temperature=1.6,top_p=1",
    ]  # fmt: skip
    assert beyond("dynatemp:low=0,high=2", members("dynatemp", low=[0, 0.4], high=[1, 2])) == ["dynatemp:low=0,high=3"]
    assert beyond("mirostat:tau=3", ["mirostat:tau=3"]) == [], "one value is not a grid"
    sixths = [f"constant:temperature={n / 6!r}" for n in range(1, 4)]
    assert beyond(sixths[1], sixths) == [], "a value of many digits between others is not at the edge"
