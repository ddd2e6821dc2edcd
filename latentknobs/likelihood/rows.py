"""Whether rows need work. Asking a GPU makes the host wait for it, so there all rows are worked on instead.

For whatever is cheap and changes nothing in the other rows. Where the work is dear (sorting rows), the host asks after all.
"""

from torch import Tensor


def host_sees(tensor: Tensor) -> bool:
    """Whether the host can read a tensor's values without waiting for the device it is on."""
    return tensor.device.type == "cpu"


def perhaps(mask: Tensor) -> bool:
    """Whether any element is True, as far as the host can tell without waiting: always on a GPU."""
    return not host_sees(mask) or bool(mask.numpy().any())  # torch takes ten times as long
