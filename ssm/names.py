"""Name the backends of the scan, and for each device those that auto tries, in this order; import none of them."""

BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")
FOR_DEVICE = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}
