"""Knob spaces: options, orders, subsets, how a space shows and saves itself, and every way to ask for a bad one."""

import itertools
import json

import pytest
import torch

from latentknobs import KnobSpace
from latentknobs.errors import ConfigError, GridError, LatentKnobsError, SpaceError, UnknownNameError
from latentknobs.knobs.registry import resolve

GRID = {"temperature": [0.0, 0.5, 1.0], "top_p": [0.8, 1.0]}


def test_options_are_the_full_product_the_last_acting_knob_fastest() -> None:
    space = KnobSpace.of(GRID)
    product = [{"temperature": t, "top_p": p} for t, p in itertools.product(GRID["temperature"], GRID["top_p"])]
    assert space.K == 6 and space.options == product and space.is_product
    assert space.values_KJ().tolist() == [list(option.values()) for option in product]
    assert space.values_KJ().dtype == torch.float64
    assert space.label(2) == "temperature 0.5, top_p 0.8"
    assert [space.index(option) for option in product] == list(range(6))


def test_knobs_may_be_given_in_any_form() -> None:
    forms = [
        KnobSpace.of("temperature:0,0.5,1", "top_p:0.8,1"),
        KnobSpace.of({"temperature": [0, 0.5, 1]}, {"top_p": (0.8, 1)}),
        KnobSpace.of(resolve({"top_p": [0.8, 1.0]}), "temperature:0,0.5,1"),
        KnobSpace.of(GRID),
    ]
    assert all(space == forms[0] for space in forms)
    assert KnobSpace.of("temperature").options[3] == {"temperature": 0.6}
    assert KnobSpace.of({"temperature": 0.7}).options == [{"temperature": 0.7}]


def test_a_subset_keeps_the_named_options_in_the_order_given() -> None:
    space = KnobSpace.of(GRID)
    by_index = space.select([5, 0])
    assert by_index.options == [{"temperature": 1.0, "top_p": 1.0}, {"temperature": 0.0, "top_p": 0.8}]
    assert by_index == space.select([{"top_p": 1.0, "temperature": 1.0}, {"temperature": 0.0, "top_p": 0.8}])
    assert by_index.K == 2 and not by_index.is_product and by_index.knobs == space.knobs
    assert by_index.select([1]).options == [space.options[0]]
    assert space.select(range(6)) == space and space.select(range(6)).is_product
    assert not space.select(reversed(range(6))).is_product


def test_repr_explains_chain_options_and_order() -> None:
    assert repr(KnobSpace.of({"top_p": [0.8, 1.0]}, "temperature:0,0.5")) == (
        "KnobSpace(temperature[0, 0.5] -> top_p[0.8, 1]; K=4 options, full product, order=transformers)"
    )
    chosen = KnobSpace.of(GRID, order="llama.cpp").select([0, 3])
    assert repr(chosen) == "KnobSpace(top_p[0.8, 1] -> temperature[0, 0.5, 1]; K=2 options, chosen subset, order=llama.cpp)"


@pytest.mark.parametrize("keep", [[], [5, 0, 3]], ids=["product", "subset"])
@pytest.mark.parametrize("order", ["transformers", "vllm", "llama.cpp", ["min_p", "temperature", "top_p"]], ids=str)
def test_a_space_survives_json(order: str | list[str], keep: list[int]) -> None:
    space = KnobSpace.of(GRID, {"min_p": [0.1]}, order=order)
    space = space.select(keep) if keep else space
    again = KnobSpace.from_dict(json.loads(json.dumps(space.to_dict())))
    assert again == space and repr(again) == repr(space) and again.options == space.options
    assert again.order == ("given" if isinstance(order, list) else order)


def test_saved_data_cannot_make_a_knob_that_is_not_registered() -> None:
    data = KnobSpace.of("temperature").to_dict()
    data["knobs"][0]["name"] = "os:system"
    with pytest.raises(UnknownNameError, match="There is no knob 'os:system'"):
        KnobSpace.from_dict(data)


BAD = [
    (lambda: KnobSpace.of(), SpaceError, "needs at least one knob, e.g. KnobSpace.of('temperature')"),
    (lambda: KnobSpace.of("temprature"), UnknownNameError, "no knob 'temprature'. Did you mean \"temperature\"? Known: "),
    (lambda: KnobSpace.of("temperature", "temperature:0.3"), SpaceError, "'temperature' stands twice .* Merge its two grids"),
    (lambda: KnobSpace.of("temperature", order="vlm"), SpaceError, "no order 'vlm'. Did you mean \"vllm\"? Known: .*llama.cpp"),
    (lambda: KnobSpace.of(GRID, order=["top_p"]), SpaceError, "must name each of the knobs ['temperature', 'top_p']"),
    (lambda: KnobSpace.of(GRID, order=["top_p", "top_p"]), SpaceError, "must name each of the knobs"),
    (lambda: KnobSpace.of(GRID).select([]), SpaceError, "must keep at least one"),
    (lambda: KnobSpace.of(GRID).select([6]), SpaceError, "no option 6: this space has options 0 to 5"),
    (lambda: KnobSpace.of(GRID).select([-1]), SpaceError, "no option -1: this space has options 0 to 5"),
    (lambda: KnobSpace.of(GRID).select([1, 1]), SpaceError, "[1, 1] names an option twice"),
    (lambda: KnobSpace.of(GRID).select([{"temperature": 0.5}]), SpaceError, "no option {'temperature': 0.5} in KnobSpace("),
    (lambda: KnobSpace.of(GRID).select([{"temperature": 0.3, "top_p": 1}]), SpaceError, "no option {'temperature': 0.3"),
    (lambda: KnobSpace.of(3), ConfigError, "3 does not name a knob. Write a name, 'name:0.5,0.9'"),
    (lambda: KnobSpace.of("top_p:0.5,high"), ConfigError, "grid in 'top_p:0.5,high' is not a list of numbers. Write it as"),
    (lambda: KnobSpace.of({"temperature": []}), GridError, "[] does not fit the knob 'temperature': it is empty; give at least"),
    (lambda: KnobSpace.of({"temperature": [0.5, 0.2]}), GridError, "[0.5, 0.2] .* must ascend; write [0.2, 0.5]"),
    (lambda: KnobSpace.of({"temperature": [0.5, 0.5]}), GridError, "values repeat; write [0.5]"),
    (lambda: KnobSpace.of({"temperature": [-0.1, 1]}), GridError, "'temperature': value -0.1: .* greater than or equal to 0"),
    (lambda: KnobSpace.of({"temperature": [float("inf")]}), GridError, "every value must be finite"),
    (lambda: KnobSpace.of({"temperature": [float("nan")]}), GridError, "'temperature': value nan"),
    (lambda: KnobSpace.of({"temperature": ["hot"]}), GridError, "value 'hot': .* valid number"),
    (lambda: KnobSpace.of({"top_p": [0.0, 1.0]}), GridError, "'top_p': value 0.0: .* greater than 0"),
    (lambda: KnobSpace.of("top_p:0.9,1.5"), GridError, "[0.9, 1.5] .* 'top_p': value 1.5: .* less than or equal to 1"),
    (lambda: KnobSpace.of({"min_p": [0.0, 1.01]}), GridError, "'min_p': value 1.01: .* less than or equal to 1"),
    (lambda: KnobSpace.of({"top_k": [2.5]}), GridError, "'top_k': 2.5 is not a whole number of tokens"),
    (lambda: KnobSpace.of({"top_k": [-1]}), GridError, "'top_k': value -1: .* greater than or equal to 0"),
]  # fmt: skip


def literal(words: str) -> str:
    """A regular expression in which only `.*` is special."""
    escapes = str.maketrans({c: "\\" + c for c in "()[]{}?+$^|"})
    return words.translate(escapes)


@pytest.mark.parametrize(("build", "error", "words"), BAD, ids=[words[:40] for _, _, words in BAD])
def test_bad_spaces_are_refused_in_one_paragraph_with_the_input_and_the_remedy(build, error: type, words: str) -> None:
    with pytest.raises(error, match=literal(words)) as caught:
        build()
    assert isinstance(caught.value, LatentKnobsError) and isinstance(caught.value, ValueError | LookupError)
    assert "\n" not in str(caught.value) and str(caught.value).rstrip()[-1] in ".)"


@pytest.mark.parametrize("index", [1.7, "1"])
def test_an_index_that_is_no_whole_number_is_not_rounded(index: object) -> None:
    with pytest.raises((SpaceError, TypeError)):
        KnobSpace.of(GRID).select([index])


def test_a_grid_by_mistake():
    with pytest.raises(GridError, match=r"\[0, 0.001, 0.002, 0.003, ..., 4.999\] of 5,000 values .* more than 4,096"):
        KnobSpace.of({"temperature": [n / 1000 for n in range(5000)]})
    with pytest.raises(GridError, match="true and false are not numbers"):
        KnobSpace.of({"temperature": [True]})


@pytest.mark.parametrize("order", [3, None, {"temperature"}])
def test_an_order_without_order(order):
    with pytest.raises(SpaceError, match="is neither an engine's name nor a list of knob names"):
        KnobSpace.of("temperature", order=order)
