"""A conformance suite: named checks that everything of one kind must pass, with a report for people and a test class."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from latentknobs.errors import LatentKnobsError

Check = Callable[[Any], None]


class Violation(Exception):
    """A check's verdict: what the subject did, on which input, and what it should do."""


class CannotTry(Exception):
    """A check has nothing to try, because another check fails: it neither passes nor fails."""


class ConformanceError(LatentKnobsError, AssertionError):
    """Something failed one or more checks of its contract."""


def require(is_good: bool, fact: str) -> None:
    """Raises `Violation(fact)` unless `is_good`."""
    if not is_good:
        raise Violation(fact)


def by_name(*checks: Check) -> dict[str, Check]:
    """The checks of a suite, in the order in which they run."""
    return {check.__name__: check for check in checks}


@dataclass(frozen=True)
class Outcome:
    """One check of one subject; `message` says what is wrong, `tried` is False where another check has to pass first."""

    check: str
    message: str = ""
    tried: bool = True

    @property
    def passed(self) -> bool:
        """Whether the check found no fault."""
        return not self.message

    def __str__(self) -> str:
        if not self.passed:
            return f"FAIL  {self.check}: {self.message}"
        return f"{'ok  ' if self.tried else '-   '}  {self.check}"


@dataclass(frozen=True)
class Suite:
    """The checks of one kind.

    Attributes:
        kind: `knob`, `reward`, ...
        checks: by name; each raises `Violation`, or any other exception, where its subject is broken.
        find: from a name with settings, or the object itself, to the subject of the checks.
        name: what a subject is called in messages.
        show: the first line of a report.
    """

    kind: str
    checks: Mapping[str, Check]
    find: Callable[..., Any]
    name: Callable[[Any], str]
    show: Callable[[Any], str] = repr

    def outcome(self, check: str, subject: Any) -> Outcome:
        """The outcome of one check. A subject that raises fails it."""
        try:
            self.checks[check](subject)
        except Violation as violation:
            return Outcome(check, str(violation))
        except CannotTry:
            return Outcome(check, tried=False)
        except Exception as error:
            return Outcome(check, f"it raised {type(error).__name__}: {error}")
        return Outcome(check)

    def outcomes(self, spec: Any, **options: Any) -> list[Outcome]:
        """The outcome of every check, in a fixed order. Options go to `find`."""
        subject = self.find(spec, **options)
        return [self.outcome(check, subject) for check in self.checks]

    def check(self, spec: Any, **options: Any) -> None:
        """Raises a ConformanceError that names each failed check and what the subject did, if there are any."""
        subject = self.find(spec, **options)
        failed = [found for found in (self.outcome(check, subject) for check in self.checks) if not found.passed]
        if failed:
            facts = "; ".join(f"{found.check}: {found.message}" for found in failed)
            raise ConformanceError(
                f"The {self.kind} {self.name(subject)!r} fails {len(failed)} of {len(self.checks)} checks: {facts}."
            )

    def report(self, spec: Any, **options: Any) -> tuple[str, bool]:
        """What the command line prints, and whether every check passed."""
        subject = self.find(spec, **options)
        found = [self.outcome(check, subject) for check in self.checks]
        good = sum(outcome.passed and outcome.tried for outcome in found)
        return "\n".join([self.show(subject), *map(str, found), f"{good} of {len(found)} checks passed."]), good == len(found)


class Conformance:
    """Base of the test classes: a subclass with a `suite` has one test for each check."""

    suite: Suite

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for check in cls.suite.checks if "suite" in vars(cls) else ():
            setattr(cls, f"test_{check}", _test(check, cls.suite))

    def subject(self) -> Any:
        """What is checked: the attribute named after the kind."""
        return self.suite.find(getattr(self, self.suite.kind))


def _test(check: str, suite: Suite) -> Callable[[Conformance], None]:
    def test(self: Conformance) -> None:
        subject = self.subject()
        outcome = suite.outcome(check, subject)
        assert outcome.passed, f"The {suite.kind} {suite.name(subject)!r} fails {check}: {outcome.message}."

    test.__doc__ = suite.checks[check].__doc__
    return test
