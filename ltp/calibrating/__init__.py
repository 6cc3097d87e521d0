"""What ``python -m ltp.calibrate`` does.

:mod:`~ltp.calibrating.request` says what is wished, :mod:`~ltp.calibrating.sample` what it is measured on.
:mod:`~ltp.calibrating.flops` and :mod:`~ltp.calibrating.latency` meet it, :mod:`~ltp.calibrating.run` leads from one to
the other, :mod:`~ltp.calibrating.folder` keeps what came out and :mod:`~ltp.calibrating.report` prints it.
"""
