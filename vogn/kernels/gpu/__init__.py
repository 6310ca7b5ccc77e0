"""The kernels in Triton, one file each; nothing here is imported before :mod:`vogn.kernels.dispatch` needs it."""
