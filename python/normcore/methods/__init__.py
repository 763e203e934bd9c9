"""The methods of normcore, one module each: functions, their gradients, and the layer.

Functions and layers are found in :mod:`normcore`, the named tuples of statistics and gradients in
the modules here. Everything here is axes, names and documentation; arrays are read, checked and
normalized by the compiled core. Shapes are written as NumPy does; ``C`` is
``x.shape[channel_axis]`` and ``N`` is ``x.shape[0]``.

Rules that all functions share:

- ``x`` and its parameters are NumPy arrays of float16, float32, float64 or ``ml_dtypes.bfloat16``
  with any strides, or any object with ``__dlpack__`` on the CPU (PyTorch, JAX); results are arrays
  of the same library. Lists of floats are read as NumPy reads them.
- Results have x's shape, dtype and order in memory. Arithmetic is float32 or better and the result
  is rounded once. Parameters may have another float dtype than ``x``.
- ``out`` is written and returned; it may be ``x`` itself (in backward also ``dy`` or ``dh``), and
  must not overlap ``x`` otherwise, nor any other argument.
- Magnitudes of ``x`` may be anything that float32 or the 16-bit dtypes hold, and from 1e-150 to
  1e150 in float64, whose squares leave its range beyond (:func:`normcore.normalize`,
  :func:`normcore.norm` and :func:`normcore.weight_norm` mind them). A large mean costs no digits in
  float32 and 16 bits; the mean of float64 is one double.
- Masked arrays of NumPy are taken by functions with a mask where theirs is the same for all
  channels, and refused elsewhere.
- With ``return_stats=True`` a function returns its statistics too, for the backward function;
  without them the backward function computes them again. Their field ``pooled`` is a NumPy array
  whatever the library of ``x``, with a last axis of 2.
- Errors are a :class:`TypeError` for a dtype or kind, a :class:`ValueError` for a shape, a size or
  a range; nothing has been written then.
- Empty input gives empty output and leaves running statistics as they are.
"""
