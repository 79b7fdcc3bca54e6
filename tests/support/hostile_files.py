"""Files of somebody who means ill, and how a call must refuse them."""

import struct

import pytest

from pretrain.errors import BadWeights


def refused(call, *arguments, match=None, error=BadWeights):
    """The call raises the error, in one line that is short enough to be read."""
    with pytest.raises(error, match=match) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def flood(file):
    file.write_bytes(struct.pack("<Q", 20 << 30) + b"{}")


class Trap:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))
