"""What adapting could add to the best constant, from rewards alone. What chooses never judges: no optimism of choosing."""

from collections.abc import Hashable, Sequence

import numpy as np

from latentknobs.evaluation.statistics import ALPHA, Floats, Interval


def choosing_by_group(reward_CSP: Floats, group_P: Sequence[Hashable]) -> Floats:
    """(P,) what the best of C candidates for each group of prompts adds to the best one for all.

    Chosen on every second of the S samples and judged on the others, then the other way round: of pure noise the mean is 0.
    """
    groups, place_P = np.unique([str(group) for group in group_P], return_inverse=True)
    found = []
    for fit, judge in ((0, 1), (1, 0)):
        fit_CP, judge_CP = reward_CSP[:, fit::2].mean(1), reward_CSP[:, judge::2].mean(1)
        best_G = np.array([fit_CP[:, place_P == g].mean(1).argmax() for g in range(len(groups))])
        found.append(judge_CP[best_G[place_P], np.arange(judge_CP.shape[1])] - judge_CP[fit_CP.mean(1).argmax()])
    return np.mean(found, axis=0)


def choosing_among(rival_CSP: Floats, member_MSP: Floats) -> Floats:
    """(P,) what the best of M members adds to the best of C rivals, both chosen on half of the prompts, judged on the others."""
    rival_CP, member_MP = rival_CSP.mean(1), member_MSP.mean(1)
    gain_P = np.empty(rival_CP.shape[1])
    for fit, judge in ((0, 1), (1, 0)):
        rival, member = rival_CP[:, fit::2].mean(1).argmax(), member_MP[:, fit::2].mean(1).argmax()
        gain_P[judge::2] = member_MP[member, judge::2] - rival_CP[rival, judge::2]
    return gain_P


def recommendation(
    gains: dict[str, Interval], p: dict[str, float], best: str, by_token: Sequence[str]
) -> tuple[str, str | None]:  # fmt: skip
    """What the gains come to, in words; and the level at which to train, None for not at all.

    Args:
        gains: by the kind of adapting; `p` corrected for all of them.
        best: the best constant.
        by_token: the kinds that choose within a response.
    """
    shown = [name for name in gains if p[name] < ALPHA and gains[name].mean > 0]
    most = max(gains.values(), key=lambda gain: gain.high)
    if not shown:
        return (
            f"Use {best} and stop: no kind of adapting is shown to pay. The largest gain that these samples leave possible is "
            f"{most.high:.3f}; more prompts (--count) would say more.", None,
        )  # fmt: skip
    found = max(shown, key=lambda name: gains[name].mean)
    level = "token" if any(name in by_token for name in shown) else "sequence"
    return f"Adapting pays: {found} adds {gains[found]} to {best}.", level
