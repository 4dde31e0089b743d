"""What a program prepares before it computes."""

import subprocess
import sys

CODE = """
from training.runtime.process import prepare_process
prepare_process()
import torch
torch.set_num_threads(2)
x = torch.full((1 << 20,), 1e-20, requires_grad=True)
product = x * 1e-20
product.backward(torch.full_like(x, 1e-20))
print(torch.count_nonzero(product).item(), torch.count_nonzero(x.grad).item())
"""


def denormals(code):
    """Return how many of a million products and gradients of 1e-40 are more than zero."""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return [int(count) for count in out.split()]


def test_all_threads_take_denormal_numbers_as_zero():
    assert denormals(CODE) == [0, 0]
    assert denormals(CODE.replace("prepare_process()", "")) == [1 << 20, 1 << 20]
