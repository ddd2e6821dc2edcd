"""Which rows need work. Asking a GPU makes the host wait for it, so there all rows are worked on instead.

For whatever is cheap and changes nothing in the other rows. Where the work is dear (sorting rows), the host asks after all.
"""

from torch import Tensor


def perhaps(mask: Tensor) -> bool:
    """Whether any element is True, as far as the host can tell without waiting: always on a GPU."""
    return mask.device.type != "cpu" or bool(mask.any())


def rows_where(mask_N: Tensor) -> Tensor | slice | None:
    """An index of the rows to work on: those of the mask (None if there are none), or all of them on a GPU."""
    if mask_N.device.type != "cpu":
        return slice(None)
    rows = mask_N.nonzero().squeeze(-1)
    return rows if len(rows) else None
