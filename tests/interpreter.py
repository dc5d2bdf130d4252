"""Where the Triton kernels are tested: on the GPU where there is one, else on the CPU by Triton's interpreter.

conftest.py sets TRITON_INTERPRET, which has to happen before anything imports triton.
"""

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _mend(interpreter) -> None:
    """What Triton 3.6's interpreter does wrong: an int of an array of one element, which NumPy 2.4 refuses, products
    of bfloat16, which it holds as integers, and rounding to bfloat16 and float8, which it does towards zero."""
    patch, dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot
    convert, tl = interpreter._convert_float, interpreter.tl
    narrow = {tl.bfloat16: (torch.bfloat16, torch.uint16), tl.float8e4nv: (torch.float8_e4m3fn, torch.uint8)}

    def patch_lang_tensor(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def create_dot(self, a, b, *rest):
        a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, *rest)

    def convert_float(values, source, target, rounding):
        if source != tl.float32 or target not in narrow:
            return convert(values, source, target, rounding)
        dtype, bits = narrow[target]
        return torch.tensor(values.view("float32")).to(dtype).view(bits).numpy()

    interpreter._patch_lang_tensor = patch_lang_tensor
    interpreter._convert_float = convert_float
    interpreter.InterpreterBuilder.create_dot = create_dot


if DEVICE.type == "cpu":
    _mend(pytest.importorskip("triton.runtime.interpreter"))
