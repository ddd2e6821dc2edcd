"""The registry: three ways in with the same checks, lazy listing, and an error for each way a plugin can be wrong."""

import re
import subprocess
import sys
import types
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest
from broken_knobs import Cut, Scale

import latentknobs as lk
from latentknobs.errors import ConfigError, GridError, PluginError, SpaceError, UnknownNameError
from latentknobs.knobs import registry
from latentknobs.knobs.knob import ContextKnob, DecodingKnob, Stage
from latentknobs.knobs.registry import knob_class, names, register, resolve, source_of, sources


class Dist:
    """The two things the registry asks of a distribution."""

    def __init__(self, name: str, version: str) -> None:
        self.name, self.version = name, version


@pytest.fixture(autouse=True)
def _nothing_stays_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    """Installs entry points: `install("acme-knobs 2.0", cut=Cut)`; a string instead of a class is a value as it stands."""
    real, extra = registry.entry_points, []

    def plug(distribution: str, **knobs: Any) -> None:
        module = types.ModuleType(f"plug_{distribution.split()[0].replace('-', '_')}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        for name, knob in knobs.items():
            value = knob if isinstance(knob, str) else f"{module.__name__}:{name}"
            if not isinstance(knob, str):
                setattr(module, name, knob)
            point = EntryPoint(name, value, registry.GROUP)
            vars(point).update(dist=Dist(*distribution.split()))
            extra.append(point)
        monkeypatch.setattr(registry, "entry_points", lambda group: [*real(group=group), *extra])

    return plug


def assert_refused(error: type[Exception], words: str, call, *args) -> str:
    with pytest.raises(error, match=re.escape(words)) as caught:
        call(*args)
    assert "\n" not in str(caught.value) and str(caught.value)[-1] in ".)"
    return str(caught.value)


# ways in


def test_a_name_a_grid_a_mapping_and_an_object_are_the_same_knob() -> None:
    made = lk.KnobSpace.of("top_p:0.5,0.9,1.0").knobs[0]
    assert resolve("top_p:0.5,0.9,1.0") == resolve({"top_p": [0.5, 0.9, 1.0]}) == made == resolve(made)
    assert resolve({"top_p": {"options": [0.5, 0.9, 1.0]}}) == made
    assert resolve("latentknobs:top_p:0.5,0.9,1") == made
    assert resolve({"top_p": None}) == resolve("top_p") == resolve("latentknobs:top_p")


def test_a_registered_class_is_listed_and_found() -> None:
    assert register(Scale) is Scale and register(Scale) is Scale
    assert "scale" in names() and knob_class("scale") is Scale and knob_class("this process:scale") is Scale
    assert lk.KnobSpace.of("scale:0.5,1", "top_p").names == ("scale", "top_p")
    assert str(source_of(Scale)) == '"scale", registered in this process by broken_knobs:Scale'


def test_an_object_needs_no_registration() -> None:
    assert lk.KnobSpace.of(Scale(), "top_p").names == ("scale", "top_p")


def test_an_installed_plugin_is_found_with_its_distribution_and_version(install) -> None:
    install("acme-knobs 2.0", cut=Cut)
    assert knob_class("cut") is knob_class("acme-knobs:cut") is Cut
    assert str(source_of(Cut())) == 'entry point "cut = plug_acme_knobs:cut" of acme-knobs 2.0'


class Nameless(Scale):
    name: ClassVar[str] = None  # type: ignore[assignment]


class NoStage(DecodingKnob):
    name: ClassVar[str] = "no_stage"
    neutral: ClassVar[float] = 0.0
    options: tuple[float, ...] = (0.0,)

    def apply(self, logits_NV, value_N):
        return logits_NV


class WordStage(NoStage):
    stage: ClassVar[Stage] = "rank"  # type: ignore[assignment]


class NotANumber(Scale):
    neutral: ClassVar[float] = float("nan")


class TooNew(Scale):
    api_version: ClassVar[int] = 2


class TooOld(Scale):
    api_version: ClassVar[int] = 0


class NeedsNothing(ContextKnob):
    name: ClassVar[str] = "needs_nothing"
    neutral: ClassVar[float] = 0.0
    needs: ClassVar[tuple[str, ...]] = ("history",)
    options: tuple[float, ...] = (0.0,)

    def apply_context(self, logits_NV, value_N, context):
        return logits_NV


BAD: list[tuple[type[DecodingKnob], str]] = [
    (Nameless, "is named None. Write the name in lower_snake_case, e.g. 'top_p'."),
    (NoStage, "does not set the class variable(s) stage. See docs/write-a-knob.md."),
    (WordStage, "declares the stage 'rank'. Choose one of Stage.CONTEXT, Stage.SCALE"),
    (NotANumber, "declares the neutral value nan. It must be a finite number."),
    (TooNew, "was written for version 2 of the knob contract; this latentknobs knows 1. Upgrade latentknobs."),
    (TooOld, "was written for version 0 of the knob contract; this latentknobs knows 1. Upgrade the plugin."),
    (NeedsNothing, "declares needs=('history',). Name one or more of previous_NL, position_N, second_NV, hidden_ND, logits_NV."),
]


@pytest.mark.parametrize(("cls", "words"), BAD, ids=lambda x: getattr(x, "__name__", ""))
def test_each_way_in_refuses_a_class_that_breaks_the_contract(cls, words: str, install) -> None:
    assert assert_refused(PluginError, words, register, cls).startswith(f"register({cls.__name__}) ")
    assert assert_refused(PluginError, words, resolve, cls()).startswith("The knob object ")
    install("acme-knobs 2.0", bad=cls)
    assert assert_refused(PluginError, words, resolve, "bad").startswith(
        'entry point "bad = plug_acme_knobs:bad" of acme-knobs 2.0 '
    )


def test_an_abstract_class_is_refused_naming_what_it_leaves_out() -> None:
    class Abstract(lk.TruncationKnob):
        name, stage, neutral = "abstract", Stage.RANK, 0.0

    assert_refused(PluginError, "register(", register, Abstract)
    assert_refused(PluginError, "does not implement kept. See docs/write-a-knob.md.", register, Abstract)


def test_what_is_no_knob_class_is_refused(install) -> None:
    assert_refused(
        PluginError, "register(dict) is <class 'dict'>, which is not a subclass of latentknobs.DecodingKnob", register, dict
    )
    install("acme-knobs 2.0", odd=dict)
    assert_refused(PluginError, "of acme-knobs 2.0 is <class 'dict'>, which is not a subclass", resolve, "odd")


def test_a_plugin_installed_while_the_process_runs_is_found(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "late" not in names()
    (tmp_path / "late.py").write_text("from broken_knobs import Cut\nclass Late(Cut):\n    name = 'late'\n")
    info = tmp_path / "late_knobs-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: late-knobs\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text("[latentknobs.knobs]\nlate = late:Late\n")
    found = source_of(resolve("late:0,0.5"))
    assert (found.distribution, found.version) == ("late-knobs", "0.3")


# broken plugins


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ("no_such_module_at_all:Cut", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("latentknobs.knobs.knob:NoSuchThing", "AttributeError: module 'latentknobs.knobs.knob' has no attribute 'NoSuchThing'"),
    ],
)
def test_a_broken_plugin_fails_only_for_whoever_asks_for_it(value: str, cause: str, install) -> None:
    install("acme-knobs 2.0", cut=value)
    assert "cut" in names() and resolve("top_p").name == "top_p"
    words = f"The knob 'cut' cannot be loaded: entry point \"cut = {value}\" of acme-knobs 2.0 failed with {cause}"
    message = assert_refused(PluginError, words, resolve, "cut")
    assert message.endswith("Repair or uninstall acme-knobs; other knobs are not affected.")


def test_an_entry_point_and_its_class_must_agree_on_the_name(install) -> None:
    install("acme-knobs 2.0", other=Cut)
    assert_refused(
        PluginError, "of acme-knobs 2.0 holds a knob that calls itself 'cut'. The two names must be equal.", resolve, "other"
    )


def test_listing_imports_neither_plugins_nor_torch_models() -> None:
    code = (
        "import sys; from latentknobs.knobs.registry import sources; found = sources();"
        "assert any(s.name == 'temperature' for s in found);"
        "assert not [m for m in sys.modules if m.startswith(('latentknobs_', 'transformers'))]"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# clashes


def test_two_plugins_of_one_name_raise_naming_both_and_the_way_out(install) -> None:
    class Other(Cut):
        pass

    install("acme-knobs 2.0", cut=Cut)
    install("zeta 0.1", cut=Other)
    words = (
        "Two plugins offer the knob 'cut': entry point \"cut = plug_acme_knobs:cut\" of acme-knobs 2.0 and "
        'entry point "cut = plug_zeta:cut" of zeta 0.1. Write "acme-knobs:cut" or "zeta:cut".'
    )
    assert_refused(PluginError, words, resolve, "cut")
    assert type(resolve("acme-knobs:cut")) is Cut and type(resolve("zeta:cut:0.1,0.5")) is Other
    assert_refused(
        SpaceError, "The knob 'cut' stands twice in ['cut', 'cut']", lambda: lk.KnobSpace.of("acme-knobs:cut", "zeta:cut")
    )


def test_a_distribution_found_twice_on_the_path_is_no_clash(install) -> None:
    install("acme-knobs 2.0", cut=Cut)
    install("acme-knobs 2.0", cut=Cut)
    assert knob_class("cut") is Cut and [source.name for source in sources()].count("cut") == 1


def test_names_of_this_distribution_are_reserved(install) -> None:
    class Fake(Cut):
        name: ClassVar[str] = "top_p"

    assert_refused(
        PluginError, "wants the name 'top_p', which entry point \"top_p = latentknobs_truncation:TopP\"", register, Fake
    )
    assert_refused(PluginError, "wants the name 'top_p', which entry point", resolve, Fake())
    install("acme-knobs 2.0", top_p=Fake)
    assert type(resolve("top_p")).__module__ == "latentknobs_truncation"
    words = 'of acme-knobs 2.0 takes the name of entry point "top_p = latentknobs_truncation:TopP" of latentknobs'
    assert_refused(PluginError, words, resolve, "acme-knobs:top_p")
    assert_refused(PluginError, "which is reserved. The plugin must choose another name.", resolve, "acme-knobs:top_p")


def test_register_and_objects_do_not_shadow_an_installed_plugin(install) -> None:
    class Other(Cut):
        pass

    install("acme-knobs 2.0", cut=Cut)
    assert_refused(PluginError, "Other) wants the name 'cut', which entry point \"cut = plug_acme_knobs:cut\"", register, Other)
    assert_refused(PluginError, "wants the name 'cut', which entry point", resolve, Other())
    assert resolve(Cut()) == Cut()


def test_two_classes_of_one_name_cannot_both_be_registered() -> None:
    class Second(Scale):
        pass

    register(Scale)
    words = 'which "scale", registered in this process by broken_knobs:Scale already has. Give the class another `name`.'
    assert_refused(PluginError, words, register, Second)


# bad requests


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("topp", UnknownNameError, "There is no knob 'topp'. Did you mean \"top_p\"? Known: "),
        ("nobody:top_p", UnknownNameError, "There is no knob 'nobody:top_p'. Did you mean \"top_p\"?"),
        ("os:system", UnknownNameError, "There is no knob 'os:system'."),
        ("top_p:0.5,x", ConfigError, "The grid in 'top_p:0.5,x' is not a list of numbers. Write it as 'top_p:0.5,0.9,1'."),
        ("top_p:high", ConfigError, "The grid in 'top_p:high' is not a list of numbers."),
        ("top_p:", GridError, "The grid [] does not fit the knob 'top_p': it is empty; give at least one value."),
        ("top_p:0.9,0.5", GridError, "The grid [0.9, 0.5] does not fit the knob 'top_p': values must ascend; write [0.5, 0.9]."),
        ("top_p:0.5,0.5", GridError, "does not fit the knob 'top_p': values repeat; write [0.5]."),
        ("top_p:0.5,1.5", GridError, "value 1.5: input should be less than or equal to 1."),
        ("temperature:-1,1", GridError, "value -1.0: input should be greater than or equal to 0."),
        ("temperature:nan", GridError, "does not fit the knob 'temperature'"),
        ("top_k:1.5", GridError, "1.5 is not a whole number of tokens."),
        ({"top_p": {"options": [1.0], "mood": 3}}, GridError, "there is no setting 'mood'."),
        ({"top_p": "wide"}, GridError, "The grid 'wide' does not fit the knob 'top_p'"),
        ({}, ConfigError, "{} does not name a knob. Write a name, 'name:0.5,0.9', {'name': [0.5, 0.9]}, or pass a knob object."),
        (3, ConfigError, "3 does not name a knob."),
        (Scale, ConfigError, "does not name a knob. Did you mean Scale()?"),
    ],
)  # fmt: skip
def test_a_bad_request_is_told_what_was_wrong_and_what_to_write(spec: Any, error: type[Exception], words: str) -> None:
    assert_refused(error, words, resolve, spec)


def test_a_knob_without_a_default_grid_asks_for_one() -> None:
    class Bare(lk.ScalingKnob):
        name: ClassVar[str] = "bare"
        neutral: ClassVar[float] = 1.0

        def temperature(self, value_N):
            return value_N

    register(Bare)
    assert_refused(ConfigError, "The knob 'bare' has no default grid. Write one, e.g. 'bare:0.5,1'.", resolve, "bare")


def test_too_many_options_are_refused_before_they_fill_the_memory() -> None:
    grid = [v / 64 for v in range(1, 65)]
    words = "has 16,777,216 options, more than 131,072. Shorten the grids, leave out knobs, or choose options"
    assert_refused(SpaceError, words, lambda: lk.KnobSpace.of(*({n: grid} for n in ("temperature", "top_p", "min_p", "p_less"))))
