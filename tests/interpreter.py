"""Where the Triton kernels are tested: on the GPU where there is one, else on the CPU by Triton's interpreter.

conftest.py sets TRITON_INTERPRET, which has to happen before anything imports triton.
"""

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _mend(interpreter) -> None:
    """What Triton 3.6's interpreter does wrong: an int of an array of one element, which NumPy 2.4 refuses, products
    of bfloat16, which it holds as integers, and rounding to bfloat16, which it does towards zero."""
    patch, dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot
    convert, narrow = interpreter._convert_float, (interpreter.tl.float32, interpreter.tl.bfloat16)

    def patch_lang_tensor(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def create_dot(self, a, b, *rest):
        bfloat16, float32 = interpreter.tl.bfloat16, interpreter.tl.float32
        a, b = (self.cast_impl(x, float32) if x.dtype.scalar == bfloat16 else x for x in (a, b))
        return dot(self, a, b, *rest)

    def convert_float(values, source, target, rounding):
        if (source, target) != narrow:
            return convert(values, source, target, rounding)
        bits = torch.tensor(values.view("float32")).bfloat16().view(torch.int16)
        return bits.numpy().view("uint16")

    interpreter._patch_lang_tensor = patch_lang_tensor
    interpreter._convert_float = convert_float
    interpreter.InterpreterBuilder.create_dot = create_dot


if DEVICE.type == "cpu":
    _mend(pytest.importorskip("triton.runtime.interpreter"))
